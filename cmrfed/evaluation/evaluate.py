"""The evaluator: folders in, numbers, pictures and a verdict in words out. It never sees a generator."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cmrfed.core.artifacts import digest_folder, write_text
from cmrfed.core.device import HOST
from cmrfed.core.errors import EvaluationError
from cmrfed.core.progress import track
from cmrfed.data.cohort import Cohort
from cmrfed.data.synthetic import NOTICE, SyntheticDataset
from cmrfed.evaluation.anatomy.shapes import anatomy
from cmrfed.evaluation.features.extractors import Extractor, KeptFeatures, open_extractor
from cmrfed.evaluation.features.radiomics import frd_metrics
from cmrfed.evaluation.fidelity.distances import distribution_metrics, paired_metrics
from cmrfed.evaluation.fidelity.precision_recall import manifold_metrics
from cmrfed.evaluation.fidelity.reconstruction import reconstruction_fidelity, reconstruction_utility
from cmrfed.evaluation.inputs import EvaluatedSet, layout_of, read_dataset
from cmrfed.evaluation.installed import Sets, check_installed, installed_attacks, installed_metrics
from cmrfed.evaluation.names import check_test_names
from cmrfed.evaluation.pictures import draw_pictures
from cmrfed.evaluation.privacy.black_box import leakage
from cmrfed.evaluation.privacy.membership import Claim
from cmrfed.evaluation.privacy.memorisation import memorisation
from cmrfed.evaluation.results.catalogue import say
from cmrfed.evaluation.results.result import EvaluationReport, Findings, Notice
from cmrfed.evaluation.settings import (
    EvaluationConfig,
)
from cmrfed.evaluation.slices import SliceSet, slices_of_cohort
from cmrfed.evaluation.utility.arms import SegmenterBenchmark, site_utility, utility
from cmrfed.evaluation.utility.nnunet import nnunet_utility
from cmrfed.evaluation.verdict import verdicts

FEW_PATIENTS = 10
NO_COHORTS: Mapping[str, Cohort] = {}
NOT_FOR_RELEASE = (
    "NOT FOR RELEASE\n\nNumbers, series, features and segmenters were computed from real patients without noise, and "
    "pictures may show some of them. No privacy claim of the synthetic data set covers this folder.\n"
)


def evaluate(
    *,
    synthetic: Path,
    train: Cohort,
    holdout: Cohort,
    config: EvaluationConfig,
    out: Path,
    external: Mapping[str, Cohort] = NO_COHORTS,
    paired: Path | None = None,
    sites: Mapping[str, Cohort] | None = None,
    reconstructed: Path | None = None,
    white_box: Findings | None = None,
    device: torch.device = HOST,
) -> EvaluationReport:
    """Measure a synthetic data set on five axes and write evaluation.json, metrics.csv and pictures.

    Args:
        synthetic: A synthetic data set, an nnU-Net v2 raw folder or an ACDC-layout folder.
        train: Patients that the generators learned from.
        holdout: Patients that nothing has learned from.
        config: What is measured and how.
        out: Folder for the results; segmenters and features that are already there are used again.
        external: Name => cohort of another data set.
        paired: Images made from the hold-out's own masks, or None.
        sites: Name => the training patients of each site, to measure what a site gains that has these alone.
        reconstructed: Images of the hold-out that went through an autoencoder, where the generator has one.
        white_box: What attacks on the saved generator found; the evaluator itself never opens one.
        device: Where features, segmenters and distances are computed.

    Raises:
        EvaluationError: The sets share patients, differ in size, or are empty, or an installed metric failed.
        ConfigError: A metric or an attack that is asked for is not installed.
    """
    _check(train, holdout, external, sites or {})
    check_installed(config.installed_metrics, config.attacks)
    dataset = read_dataset(synthetic, train.header, out)
    sets = (
        replace(dataset.slices, name="synthetic", device=device),
        replace(slices_of_cohort(train, out), name="training", device=device),
        replace(slices_of_cohort(holdout, out), name="hold-out", device=device),
    )
    extractor = KeptFeatures(open_extractor(config.features, device), out / "features")
    features = _features(sets, extractor)
    with track("evaluation: fidelity, anatomy, memorisation, leakage", 4, equal=False) as bar:
        found = _fidelity(sets, features, extractor, paired, reconstructed, config)
        if config.fidelity.frd_slices:
            found += frd_metrics(*sets, config.fidelity, out / "features", config.seed)
        bar.advance(note="anatomy")
        found += anatomy(*sets, config.anatomy)
        bar.advance(note="memorisation")
        near, to_train = memorisation(*sets, features, extractor.name, config.memorisation, config.seed)
        found += near
        bar.advance(note="leakage")
        if config.attacks.black_box:
            records = (train.patients, holdout.patients)
            extra = installed_attacks(config.attacks, "black-box")
            found += leakage(*sets, features, extractor.name, records, claim_of(synthetic), config.seed, extra)
        found += white_box or Findings()
        found += installed_metrics(config.installed_metrics, Sets(*sets, config.seed))
        bar.advance()
    if config.utility:
        benchmark = SegmenterBenchmark(holdout, external, config.segmenter, out / "segmenters", config.seed, device)
        found += _utility(sets[0], train, sites or {}, config, benchmark)
        if config.nnunet:
            found += nnunet_utility(
                train, sets[0], holdout, external, config.nnunet, out / "nnunet", config.seed, device
            )
        if reconstructed:
            found += reconstruction_utility(reconstructed, train, benchmark)
    report = _report(found, dataset, sets, external, extractor)
    draw_pictures(out / "pictures", *sets, to_train, show_real=config.show_real, seed=config.seed)
    report.write(out)
    write_text(out / NOTICE, NOT_FOR_RELEASE)
    return report


def claim_of(synthetic: Path, generator: Path | None = None) -> Claim | None:
    """What a synthetic data set promises each patient, and so does a generator behind it; None: nothing.

    Args:
        synthetic: Folder of the data set; one of others promises nothing.
        generator: Folder of the generator that is asked about, if it is not the data set itself.
    """
    if layout_of(synthetic) != "cmrfed":
        return None
    manifest = SyntheticDataset.open(synthetic).manifest
    if generator and digest_folder(generator) not in manifest.generators.values():
        return None
    said = manifest.privacy
    if said.unit != "patient" or said.epsilon is None or said.delta is None:
        return None
    return Claim(said.epsilon, said.delta)


def _fidelity(
    sets: tuple[SliceSet, SliceSet, SliceSet],
    features: dict[str, np.ndarray],
    extractor: Extractor,
    paired: Path | None,
    reconstructed: Path | None,
    config: EvaluationConfig,
) -> Findings:
    found = distribution_metrics(*sets, features, extractor, config.fidelity, config.seed)
    found += manifold_metrics(*sets, features, extractor.name, config.seed)
    found += paired_metrics(paired, sets[2], config.lpips_weights)
    if reconstructed:
        found += reconstruction_fidelity(reconstructed, sets[2], config.lpips_weights)
    return found


def _utility(
    synthetic: SliceSet,
    train: Cohort,
    sites: Mapping[str, Cohort],
    config: EvaluationConfig,
    benchmark: SegmenterBenchmark,
) -> Findings:
    slices = synthetic.labelled()
    found = utility(
        train,
        slices,
        benchmark,
        mixed_arm=config.mixed_arm,
        control_seeds=config.control_seeds,
        mixed_shares=config.mixed_shares,
    )
    if len(sites) > 1 and config.site_seeds:
        each = config.segmenter.model_copy(update={"seeds": config.site_seeds})
        found += site_utility(sites, slices, replace(benchmark, config=each))
    return found


def _check(train: Cohort, holdout: Cohort, external: Mapping[str, Cohort], sites: Mapping[str, Cohort]) -> None:
    shared = set(train.patient_ids) & set(holdout.patient_ids) if train.root == holdout.root else set()
    if shared:
        raise EvaluationError(
            "training and hold-out share patients",
            got=sorted(shared)[:5],
            expected="disjoint patients: nothing measured on patients that were learned from says anything",
            do="split the cohort by patient",
        )
    check_test_names(external)
    for name, cohort in {"hold-out": holdout, **external, **sites}.items():
        if cohort.size_px != train.size_px:
            raise EvaluationError(
                f"cohort {name} is of another size than the training cohort",
                got=f"{cohort.size_px} px",
                expected=f"{train.size_px} px",
                do=f"prepare it with --size {train.size_px}",
            )


def _features(sets: tuple[SliceSet, ...], extractor: Extractor) -> dict[str, np.ndarray]:
    with track(f"evaluation: features ({extractor.name})", len(sets)) as bar:
        out = {}
        for each in sets:
            out[each.name] = extractor(each.images)
            bar.advance(note=each.name)
        return out


def _report(
    found: Findings,
    dataset: EvaluatedSet,
    sets: tuple[SliceSet, SliceSet, SliceSet],
    external: Mapping[str, Cohort],
    extractor: Extractor,
) -> EvaluationReport:
    sizes = {each.name: len(each.patients) for each in sets} | {name: len(c) for name, c in external.items()}
    few = tuple(
        say("few-patients", name=name, count=count, fewest=FEW_PATIENTS)
        for name, count in sizes.items()
        if count < FEW_PATIENTS
    )
    inputs = {"synthetic": dataset.digest, f"extractor {extractor.name}": extractor.digest}
    inputs |= {each.name: each.digest for each in sets[1:]} | {name: c.digest for name, c in external.items()}
    return EvaluationReport(
        metrics=found.metrics,
        warnings=(*(Notice(text=text) for text in (*dataset.warnings, *few)), *found.warnings),
        series=found.series,
        inputs=inputs,
        sizes=sizes,
        verdicts=verdicts(found),
    )
