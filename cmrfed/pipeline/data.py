"""The patients of a simulated run: its cohort, who is held out, who is at which site, and the sites' folders."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from cmrfed.config.experiment import Experiment
from cmrfed.core.artifacts import digest_json, read_json, write_json
from cmrfed.core.device import of_site
from cmrfed.core.errors import ConfigError
from cmrfed.core.settings.digests import digested
from cmrfed.data.cohort import Cohort
from cmrfed.data.partition import (
    PLACEMENT,
    SPLIT,
    Split,
    partition,
    read_split,
    refuse_lone_values,
)
from cmrfed.data.phantom import write_phantom
from cmrfed.data.pool import pool
from cmrfed.data.preparation.prepare import PrepareConfig, prepare
from cmrfed.data.settings import PartitionConfig, PhantomConfig
from cmrfed.evaluation.installed import check_installed
from cmrfed.evaluation.names import check_test_names
from cmrfed.federation.identity import make_identities
from cmrfed.federation.site.folder import SiteFolder, SiteRecord
from cmrfed.pipeline.files.record import SiteEntry
from cmrfed.pipeline.public import never_learned_from, refuse_public
from cmrfed.privacy.policy import SitePolicy
from cmrfed.training.loop import refuse_unlabelled


@dataclass(frozen=True)
class Data:
    """Cohorts of a run: what sites train on (one each), their union, and the patients no stage sees."""

    names: list[str]
    sites: list[Cohort]
    train: Cohort
    holdout: Cohort
    split: Split


def open_data(experiment: Experiment, run_dir: Path) -> Data:
    """Open or make the cohort of a run, set patients aside, and share the others out over the sites.

    Raises:
        ConfigError: The cohorts do not fit the recipe, or are not those that the run folder began with.
        DataError: There are too few patients, or a site has patients without masks.
    """
    whole, layout = _whole_cohort(experiment, run_dir)
    refuse_public(experiment, whole)
    open_externals(experiment)
    split = _split(experiment, whole, run_dir)
    train, holdout = whole.select(split.train), whole.select(split.holdout)
    names = [f"site-{number}" for number in layout.numbers]
    sites = partition(train, layout, experiment.seed)
    if experiment.privacy.private:
        refuse_lone_values(train, layout)
    for name, cohort in zip(names, sites, strict=True):
        refuse_unlabelled(cohort, name)
    return Data(names, sites, train if layout.only is None else sites[0], holdout, split)


def _split(experiment: Experiment, whole: Cohort, run_dir: Path) -> Split:
    """The split that the run folder began with, or a new one."""
    if not (run_dir / SPLIT).exists():
        shares = {"train": 1 - experiment.data.holdout, "holdout": experiment.data.holdout}
        parts = whole.split(shares, experiment.seed)
        train, holdout = (tuple(parts[name].patient_ids) for name in ("train", "holdout"))
        return Split(cohort=whole.digest, placement=PLACEMENT, train=train, holdout=holdout)
    split = read_split(run_dir)
    if split.placement != PLACEMENT:
        raise ConfigError(
            f"{run_dir} was begun by a version that chose hold-out and sites in another way",
            got=f"placement {split.placement} in split.json",
            expected=f"placement {PLACEMENT}",
            do="give another --run-dir, or finish the run with the version that began it",
        )
    if split.cohort != whole.digest:
        raise ConfigError(
            f"{run_dir} was started on other patients",
            got=f"cohort {whole.digest[:12]}",
            expected=f"cohort {split.cohort[:12]}",
            do="give the same cohort as before, or another --run-dir",
        )
    return split


def open_externals(experiment: Experiment) -> dict[str, Cohort]:
    """The other data sets; opened before training too, so that a wrong path does not show after it.

    Patients from whom public training learns are left out.
    """
    check_installed(experiment.evaluation.installed_metrics, experiment.evaluation.attacks)
    places = experiment.data.external
    check_test_names(places)
    opened = {name: _open_sized(Path(place), experiment.data.size_px) for name, place in places.items()}
    return {name: never_learned_from(experiment, name, cohort) for name, cohort in opened.items()}


def _whole_cohort(experiment: Experiment, run_dir: Path) -> tuple[Cohort, PartitionConfig]:
    config = experiment.data
    by_centre = config.partition.model_copy(update={"scheme": "centre"})
    if config.cohorts:
        cohorts = [_open_sized(Path(path), config.size_px) for path in config.cohorts]
        if len(cohorts) == 1:
            return cohorts[0], config.partition
        if len(cohorts) != config.partition.sites:
            raise ConfigError(
                "each of several cohorts is a site",
                got=f"{len(cohorts)} cohorts, data.partition.sites = {config.partition.sites}",
                expected="equal numbers",
                do=f"--set data.partition.sites={len(cohorts)}",
            )
        return _pooled(cohorts, run_dir), by_centre
    if config.phantom is None:
        raise ConfigError("there are no patients", got="neither --data nor data.phantom", do="give --data COHORT")
    return _pooled(_phantom_cohorts(config.phantom, config.size_px, run_dir / "data"), run_dir), by_centre


def _open_sized(path: Path, size_px: int) -> Cohort:
    cohort = Cohort.open(path)
    if cohort.size_px != size_px:
        raise ConfigError(
            f"cohort {path} is of another size than the recipe",
            got=f"{cohort.size_px} px",
            expected=f"{size_px} px",
            do=f"prepare it with --size {size_px}, or --set data.size_px={cohort.size_px}",
        )
    return cohort


def _pooled(cohorts: list[Cohort], run_dir: Path) -> Cohort:
    key = digest_json([[cohort.name, cohort.digest] for cohort in cohorts])[:12]
    out = run_dir / "data" / f"pooled-{key}"
    return Cohort.open(out) if (out / "cohort.json").exists() else pool(cohorts, out, "pooled")


def _phantom_cohorts(config: PhantomConfig, size_px: int, folder: Path) -> list[Cohort]:
    """The phantom of each site, written as scans and read back by the importer that real scans go through."""
    scans, names = folder / "phantom", [f"site-{i}" for i in range(config.sites)]
    made, origin = folder / "phantom.json", {"phantom": digested(config), "size_px": size_px}
    if not made.exists() or read_json(made) != origin:
        made.unlink(missing_ok=True)
        shutil.rmtree(scans, ignore_errors=True)
        write_phantom(scans, config)
        for name in names:
            prepare(scans / name, folder / name, "acdc", PrepareConfig(size_px=size_px), name=name)
        shutil.rmtree(scans)
        write_json(made, origin)
    return [Cohort.open(folder / name) for name in names]


def write_sites(data: Data, run_dir: Path, experiment: Experiment) -> list[Path]:
    """Make the root folder of each simulated site; it refers to the cohort instead of copying it."""
    privacy, roots = experiment.privacy, []
    policy = SitePolicy.of_simulation(privacy.unit, privacy.epsilon, privacy.target_delta)
    for number, (name, cohort) in enumerate(zip(data.names, data.sites, strict=True)):
        root = run_dir / "sites" / f"{number:02d}"
        site = SiteRecord(
            name=name,
            style=number,
            cohort=str(cohort.root),
            patients=cohort.patient_ids,
            simulated=True,
            device=of_site(experiment.compute.device, number),
        )
        SiteFolder.register(root, site, policy)
        roots.append(root)
    if experiment.federation.secure_aggregation:
        make_identities(roots)
    return roots


def describe_sites(data: Data) -> list[SiteEntry]:
    """Name, size and groups of each simulated site."""
    out = []
    for name, cohort in zip(data.names, data.sites, strict=True):
        groups: dict[str, int] = {}
        for record in cohort.patients:
            groups[record.group or "unknown"] = groups.get(record.group or "unknown", 0) + 1
        out.append(SiteEntry(name=name, patients=len(cohort), groups=dict(sorted(groups.items()))))
    return out
