"""The main job: data to sites, both stages over the federation, a synthetic data set, its evaluation, a report.

Every step leaves its result in the run folder, and is skipped when it is there: the same command resumes.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import Grid

from cmrfed.config.experiment import STAGES, Experiment, check_fits_sites
from cmrfed.core.artifacts import digest_folder, digest_json, new_folder, read_json, write_json
from cmrfed.core.digests import digested
from cmrfed.core.errors import CmrfedError, ConfigError, DataError
from cmrfed.core.owner import owned
from cmrfed.core.progress import say, track
from cmrfed.data.cohort import Cohort
from cmrfed.data.partition import PLACEMENT, partition, placement_of, refuse_lone_values
from cmrfed.data.phantom import write_phantom
from cmrfed.data.pool import pool
from cmrfed.data.preparation.account import facts
from cmrfed.data.preparation.prepare import PrepareConfig, prepare
from cmrfed.data.settings import PartitionConfig, PhantomConfig
from cmrfed.data.synthetic import PAIRED, RECONSTRUCTED, Case, Manifest, PostProcessed, SyntheticDataset
from cmrfed.evaluation.evaluate import check_test_names, claim_of, evaluate
from cmrfed.evaluation.installed import check_installed
from cmrfed.evaluation.privacy.white_box import white_box
from cmrfed.federation.identity import make_identities
from cmrfed.federation.local_grid import LocalGrid
from cmrfed.federation.server.run import FederatedRun, StageSpec
from cmrfed.federation.site.site import Site, SiteRecord
from cmrfed.generators.generator import Generator
from cmrfed.pipeline.contents import write_contents
from cmrfed.pipeline.guarantee import audit_experiment, claim, plan_rows, plan_text, requests
from cmrfed.pipeline.pretrain import CODEC, pretrained, starting_weights
from cmrfed.pipeline.record import Record, versions
from cmrfed.pipeline.tracking import Tracker, tracking_callback
from cmrfed.privacy.policy import SitePolicy
from cmrfed.report.html import write_report
from cmrfed.synthesis.two_stage import pair_with, reconstruct, synthesize
from cmrfed.synthesis.write import write_dataset
from cmrfed.training.loop import refuse_unlabelled

RUN_FOLDER = "the run folder"


@dataclass(frozen=True)
class Data:
    """Cohorts of a run: what sites train on (one each), their union, and the patients no stage sees."""

    names: list[str]
    sites: list[Cohort]
    train: Cohort
    holdout: Cohort
    split: dict[str, Any]
    """The content of split.json."""


# --- data ---------------------------------------------------------------------------------------
def open_data(experiment: Experiment, run_dir: Path) -> Data:
    """Open or make the cohort of a run, set patients aside, and share the others out over the sites.

    Raises:
        ConfigError: The cohorts do not fit the recipe, or are not those that the run folder began with.
        DataError: There are too few patients, or a site has patients without masks.
    """
    whole, layout = _whole_cohort(experiment, run_dir)
    _externals(experiment)
    split = _split(experiment, whole, run_dir)
    train, holdout = whole.select(split["train"]), whole.select(split["holdout"])
    names = [f"site-{number}" for number in layout.numbers]
    sites = partition(train, layout, experiment.seed)
    if experiment.privacy.private:
        refuse_lone_values(train, layout)
    for name, cohort in zip(names, sites, strict=True):
        refuse_unlabelled(cohort, name)
    return Data(names, sites, train if layout.only is None else sites[0], holdout, split)


def _split(experiment: Experiment, whole: Cohort, run_dir: Path) -> dict[str, Any]:
    """The split that the run folder began with, or a new one."""
    if not (run_dir / "split.json").exists():
        shares = {"train": 1 - experiment.data.holdout, "holdout": experiment.data.holdout}
        parts = whole.split(shares, experiment.seed)
        chosen = {name: list(part.patient_ids) for name, part in parts.items()}
        return {"cohort": whole.digest, "placement": PLACEMENT, **chosen}
    split: dict[str, Any] = read_json(run_dir / "split.json")
    if placement_of(run_dir) != PLACEMENT:
        raise ConfigError(
            f"{run_dir} was begun by a version that chose hold-out and sites in another way",
            got=f"placement {placement_of(run_dir)} in split.json",
            expected=f"placement {PLACEMENT}",
            do="give another --run-dir, or finish the run with the version that began it",
        )
    if split["cohort"] != whole.digest:
        raise ConfigError(
            f"{run_dir} was started on other patients",
            got=f"cohort {whole.digest[:12]}",
            expected=f"cohort {split['cohort'][:12]}",
            do="give the same cohort as before, or another --run-dir",
        )
    return split


def _externals(experiment: Experiment) -> dict[str, Cohort]:
    """The other data sets; opened before training too, so that a wrong path does not show after it."""
    check_installed(experiment.evaluation.installed_metrics, experiment.evaluation.attacks)
    places = experiment.data.external
    check_test_names(places)
    return {name: _open_sized(Path(place), experiment.data.size_px) for name, place in places.items()}


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
            device=experiment.compute.device,
        )
        Site.register(root, site, policy)
        roots.append(root)
    if experiment.federation.secure_aggregation:
        make_identities(roots)
    return roots


def stage_specs(experiment: Experiment, start: Path | None = None, generators: Path | None = None) -> list[StageSpec]:
    """The stages as the federation takes them.

    Args:
        experiment: What to do.
        start: Folder with what the recipe has of public weights.
        generators: Folder where each stage leaves what it has trained: images go by the autoencoder there, if it is
            trained too.
    """
    private, public, out = requests(experiment), start / CODEC if start else None, []
    codec = generators / "autoencoder" if generators and experiment.autoencoder else public
    for stage in experiment.stages:
        generator, training = experiment.generator(stage), experiment.training(stage)
        if stage == "autoencoder":
            out.append(StageSpec(stage, generator, training, private[stage], public))
            continue
        first = start / stage if start and experiment.starts_publicly(stage) else None
        out.append(
            StageSpec(stage, generator, training, private[stage], first, codec if generator.autoencoder else None)
        )
    return out


def describe_sites(data: Data) -> list[dict[str, Any]]:
    """Name, size and groups of each simulated site."""
    out = []
    for name, cohort in zip(data.names, data.sites, strict=True):
        groups: dict[str, int] = {}
        for record in cohort.patients:
            groups[record.group or "unknown"] = groups.get(record.group or "unknown", 0) + 1
        out.append({"name": name, "patients": len(cohort), "groups": dict(sorted(groups.items()))})
    return out


# --- steps --------------------------------------------------------------------------------------
def run(experiment: Experiment, run_dir: Path, trackers: Sequence[Tracker] = ()) -> Path:
    """Do the whole job in one process and return the path of the report.

    Args:
        experiment: What to do.
        run_dir: Where results go; a folder with the beginnings of the same run is carried on.
        trackers: Where the numbers of every round and of the end are sent.

    Raises:
        InUse: Another process does it already.
    """
    run_dir = run_dir.absolute()
    with owned(run_dir, RUN_FOLDER):
        return _run(experiment, run_dir, trackers)


def _run(experiment: Experiment, run_dir: Path, trackers: Sequence[Tracker]) -> Path:
    send = tracking_callback(run_dir, trackers)
    data, roots, record = begin(experiment, run_dir)
    train(experiment, run_dir, LocalGrid(roots), record, send)
    drawn = digest_json([experiment.digest, digested(experiment.synthesis)])
    if not record.done("synthesis", drawn):
        with record.timed("synthesis"):
            _synthesis_step(experiment, run_dir, data)
        record.mark("synthesis", drawn)
    judged = digest_json([drawn, digested(experiment.evaluation), experiment.data.external])
    if not record.done("evaluation", judged):
        with record.timed("evaluation"):
            _evaluation_step(experiment, run_dir, data)
        record.mark("evaluation", judged)
    record.set(finished=datetime.now(UTC).isoformat(timespec="seconds"))
    report = write_report(run_dir)
    write_contents(run_dir, claim(experiment, run_dir))
    send()
    say(f"report: {report}")
    return report


def begin(experiment: Experiment, run_dir: Path) -> tuple[Data, list[Path], Record]:
    """Data, site folders and record of a run: what a simulation needs before it trains."""
    torch.set_num_threads(experiment.compute.threads)
    promise = plan_text(experiment)  # a target that cannot be met shows before anything is touched
    record = Record(run_dir, experiment)
    with record.timed("data"):
        data = open_data(experiment, run_dir)
        record.save()  # from here on the folder is this experiment's
        write_json(run_dir / "split.json", data.split)
        roots = write_sites(data, run_dir, experiment)
        write_contents(run_dir, None)
    say(promise)
    record.set(privacy_plan=plan_rows(experiment))
    record.set(sites=describe_sites(data), split={"train": len(data.train), "holdout": len(data.holdout)})
    record.set(data=facts(data.holdout.header.account, (p.notes for c in (*data.sites, data.holdout) for p in c)))
    return data, roots, record


def run_deployed(experiment: Experiment, run_dir: Path, grid: Grid, sites: list[str]) -> None:
    """Train over a network: patients are at the sites, and all that is here are recipe, weights and records.

    Args:
        experiment: What to do; its cohorts are not used.
        run_dir: Where results go; `synthesize_run` draws from it when this returns.
        grid: The network.
        sites: Names of the sites, in order of their styles.

    Raises:
        InUse: Another process trains this run already.
    """
    with owned(run_dir, RUN_FOLDER):
        _run_deployed(experiment, run_dir, grid, sites)


def _run_deployed(experiment: Experiment, run_dir: Path, grid: Grid, sites: list[str]) -> None:
    torch.set_num_threads(experiment.compute.threads)
    check_fits_sites(experiment)
    promise = plan_text(experiment)
    record = Record(run_dir, experiment)
    record.set(sites=[{"name": name} for name in sites], privacy_plan=plan_rows(experiment), problem=None)
    write_contents(run_dir, None)
    say(promise)
    try:
        train(experiment, run_dir, grid, record)
    except Exception as error:
        record.set(problem=str(error) if isinstance(error, CmrfedError) else f"{type(error).__name__}: {error}")
        raise
    record.set(finished=datetime.now(UTC).isoformat(timespec="seconds"))
    write_contents(run_dir, claim(experiment, run_dir))


def train(
    experiment: Experiment, run_dir: Path, grid: Grid, record: Record, on_round: Callable[[], None] = lambda: None
) -> None:
    """Train all stages over a grid of sites: in this process, under Ray or over a network."""
    start = _public_start(experiment, run_dir, record) if experiment.pretrain else None
    for spec in stage_specs(experiment, start, run_dir / "generators"):
        with record.timed(spec.name):
            FederatedRun(
                grid,
                run_dir,
                run_id=experiment.name,
                seed=experiment.seed,
                digest=experiment.digest,
                federation=experiment.federation,
                stages=[spec],
                threads=experiment.compute.threads,
                on_round=on_round,
            ).start_or_resume()
    if experiment.privacy.private:
        with record.timed("audit"):
            write_json(run_dir / "audit.json", audit_experiment(experiment))


def _public_start(experiment: Experiment, run_dir: Path, record: Record) -> Path:
    """Pre-trained generators and the autoencoder, in the run folder: a run that is carried on needs no cache."""
    start = run_dir / "start"
    if not start.is_dir():
        with record.timed("pretraining"):
            made = pretrained(experiment)
        with new_folder(start) as part:
            shutil.copytree(made, part, dirs_exist_ok=True)
    record.set(start=starting_weights(start))
    return start


def _manifest(
    run_dir: Path, name: str, patients: int, seed: int, spacing: tuple[float, float, float] | None
) -> Manifest:
    record = read_json(run_dir / "run.json")
    experiment = Experiment.model_validate(record["experiment"])
    return Manifest(
        name=name,
        patients=patients,
        seed=seed,
        generators={stage: digest_folder(run_dir / "generators" / stage) for stage in STAGES},
        experiment_digest=record["digest"],
        size_px=record["experiment"]["data"]["size_px"],
        spacing_mm=spacing,
        styles=tuple(site["name"] for site in record["sites"]),
        privacy=claim(experiment, run_dir),
        versions=versions(),
    )


def synthesize_run(run_dir: Path, out: Path, *, patients: int, seed: int) -> SyntheticDataset:
    """Draw a synthetic data set from the generators of a finished run.

    Raises:
        DataError: The run has no generators yet.
    """
    if not (run_dir / "run.json").exists():
        raise DataError(
            f"{run_dir} is not a run", expected="a folder made by `cmrfed run`", do="cmrfed run RECIPE --run-dir DIR"
        )
    experiment = Experiment.model_validate(read_json(run_dir / "run.json")["experiment"])
    generators = {stage: _generator(run_dir, stage) for stage in STAGES}
    spacing = _spacing(run_dir, experiment)
    manifest = _manifest(run_dir, f"{experiment.name}-synthetic", patients, seed, spacing)
    if (method := experiment.synthesis.mask_post_processing) != "none":
        manifest = manifest.model_copy(update={"post_processed": PostProcessed(method=method)})
    expected = 2 * patients * sum(experiment.synthesis.slices) // 2
    with track("synthesis: slices (about)", expected) as bar:
        cases = synthesize(
            generators["mask"],
            generators["image"],
            experiment.synthesis,
            patients=patients,
            seed=seed,
            spacing_mm=spacing,
            style_names=manifest.styles,
            on_slices=bar.advance,
        )
        return write_dataset(out, cases, manifest)


def _generator(run_dir: Path, stage: str) -> Generator:
    folder = run_dir / "generators" / stage
    if not folder.exists():
        raise DataError(
            f"{run_dir} has no {stage} generator yet", do="finish the run: the same `cmrfed run` command resumes it"
        )
    return Generator.load(folder)


def _spacing(run_dir: Path, experiment: Experiment) -> tuple[float, float, float] | None:
    """Spacing of what is drawn: as the recipe states it, or as preparation fixed it for all patients of the cohorts."""
    config = experiment.synthesis
    if config.pixel_mm:
        return (config.pixel_mm, config.pixel_mm, config.slice_spacing_mm)
    if experiment.privacy.private:  # whether all patients have a spacing is a fact about patients
        return None
    if not (run_dir / "sites").is_dir():  # patients are elsewhere
        return None
    sites = read_json(run_dir / "sites" / "00" / "site.json")
    records = Cohort.open(sites["cohort"]).patients
    in_plane = {record.spacing_mm[:2] if record.spacing_mm else None for record in records}
    if len(in_plane) != 1 or None in in_plane:
        return None
    row, column = in_plane.pop()  # type: ignore[misc]
    return (row, column, config.slice_spacing_mm)


def _synthesis_step(experiment: Experiment, run_dir: Path, data: Data) -> None:
    config = experiment.synthesis
    synthesize_run(run_dir, run_dir / "synthetic", patients=config.patients, seed=config.seed)
    manifest = _manifest(run_dir, f"{experiment.name}-paired", len(data.holdout), config.seed, None)
    manifest = manifest.model_copy(update={"privacy": PAIRED, "real_content": ("masks",)})
    with track("synthesis: images of hold-out masks", len(data.holdout.rows)) as bar:
        cases: Iterator[Case] = pair_with(
            _generator(run_dir, "image"),
            data.holdout,
            config,
            seed=config.seed,
            style_names=manifest.styles,
            on_slices=bar.advance,
        )
        write_dataset(run_dir / "paired", cases, manifest)
    if experiment.image.generator.autoencoder:
        _reconstruct(experiment, run_dir, data)


def _reconstruct(experiment: Experiment, run_dir: Path, data: Data) -> None:
    """Write hold-out images as the autoencoder leaves them: what it loses bounds all that is drawn."""
    manifest = _manifest(run_dir, f"{experiment.name}-reconstructed", len(data.holdout), experiment.seed, None)
    manifest = manifest.model_copy(update={"privacy": RECONSTRUCTED, "real_content": ("masks", "images")})
    with track("synthesis: hold-out images through the autoencoder", len(data.holdout.rows)) as bar:
        cases = reconstruct(
            _generator(run_dir, "image"), data.holdout, experiment.synthesis.batch_size, on_slices=bar.advance
        )
        write_dataset(run_dir / "reconstructed", cases, manifest)


def _evaluation_step(experiment: Experiment, run_dir: Path, data: Data) -> None:
    config, attacked = experiment.evaluation, None
    if config.attacks.white_box:
        image = run_dir / "generators" / "image"
        claim = claim_of(run_dir / "synthetic", image)
        attacked = white_box(image, (), data.train, data.holdout, config.attacks, claim, config.seed)
    evaluate(
        synthetic=run_dir / "synthetic",
        train=data.train,
        holdout=data.holdout,
        external=_externals(experiment),
        paired=run_dir / "paired",
        reconstructed=run_dir / "reconstructed" if experiment.image.generator.autoencoder else None,
        config=experiment.evaluation,
        out=run_dir / "evaluation",
        sites=dict(zip(data.names, data.sites, strict=True)),
        white_box=attacked,
    )


# --- dry run ------------------------------------------------------------------------------------
def plan(experiment: Experiment) -> dict[str, Any]:
    """What a run would do, without touching a file: sizes, steps, bytes per round."""
    stages = {}
    for spec in stage_specs(experiment):
        count = sum(p.numel() for p in Generator(spec.generator).network.parameters())
        private, steps = spec.privacy, spec.training.rounds * spec.training.local_steps
        drawn = private.sampling_rate * private.declared_patients * private.draws if private else None
        stages[spec.name] = {
            "parameters": count,
            "rounds": spec.training.rounds,
            "steps_per_site": steps,
            "slices_seen_per_site": round(steps * (drawn or spec.training.batch_size)),
            "megabytes_per_site_and_round": round(2 * 4 * count / 1e6, 1),
        }
    privacy = plan_text(experiment).splitlines()
    return {"digest": experiment.digest, "sites": experiment.sites, "stages": stages, "privacy": privacy}
