"""Usefulness: how well a segmenter does that was trained on real slices, on synthetic ones, and on both.

The arms get the same network, steps, batch size and augmentation; they are tested on real patients whom nobody has
trained on. Dice is taken per volume, averaged over a patient's volumes and seeds, and intervals are over patients.

Where sites cannot pool, nobody has all real slices: what a site has are its own, and the synthetic set. So each site's
own patients make two more arms, without the synthetic set and with it.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from cmrfed.artifacts import digest_json, digest_state, load_state, locked, save_state
from cmrfed.data.cohort import Cohort
from cmrfed.data.labels import STRUCTURES, Label
from cmrfed.errors import DataError
from cmrfed.evaluation.contours import clinical_findings, distance_metrics, unscaled_metric
from cmrfed.evaluation.result import Estimate, Findings, Metric, bootstrap, mean_interval
from cmrfed.evaluation.segmenter import (
    LabelledSlices,
    Patients,
    SegmenterConfig,
    VolumeDice,
    build_segmenter,
    dice_per_volume,
    labelled_slices,
    train_segmenter,
)
from cmrfed.precision import granted
from cmrfed.progress import track

__all__ = ["ARMS", "Examination", "Runs", "arm_on_other_images", "arms_findings", "site_utility", "utility"]

ARMS = {"real": "real only", "synthetic": "synthetic only", "both": "real and synthetic"}
CONTROL = "real only, without augmentation"
SITE_ARMS = {"own": "the patients of one site", "own+": "the patients of one site and synthetic"}
_USUAL = SegmenterConfig()
_RECIPE = 1
"""Number of the training code in the name of a cached segmenter; raised when that code changes its results."""

Sources = tuple[LabelledSlices, LabelledSlices | None]
"""What a segmenter is trained on: slices, and others that are mixed in."""

Arm = TypeVar("Arm", bound=Hashable)

Runs = list[list[VolumeDice]]
"""The volumes of a test set, once for every seed."""

PatientDice = dict[str, dict[Label, float]]
"""Patient => structure => Dice, mean over volumes (and seeds) where it has a value."""


# --- training with a cache, and scoring ---------------------------------------------------------
def _arms(real: LabelledSlices, synthetic: LabelledSlices) -> dict[str, Sources]:
    return {"real": (real, None), "synthetic": (synthetic, None), "both": (real, synthetic)}


@dataclass(frozen=True)
class Examination:
    """What every segmenter of a comparison goes through alike.

    Args:
        holdout: Patients that nothing has learned from.
        external: Name => cohort of another data set; scored on the structures that its annotators drew.
        config: The segmenter, and how many of each arm.
        cache: Folder where trained segmenters are kept, so that an interrupted evaluation goes on.
        seed: Decides everything random.
    """

    holdout: Cohort
    external: Mapping[str, Patients]
    config: SegmenterConfig
    cache: Path
    seed: int = 0

    def of(self, title: str, arms: Mapping[Arm, Sources], labels: tuple[Label, ...]) -> dict[str, dict[Arm, Runs]]:
        """Train the segmenters of all arms and score them: test set => arm => runs."""
        tests: dict[str, Patients] = {"hold-out": self.holdout, **self.external}
        seeds = self.config.seeds
        scores: dict[str, dict[Arm, Runs]] = {test: {arm: [] for arm in arms} for test in tests}
        with track(f"{title}: segmenter steps", len(arms) * seeds * self.config.steps) as bar:
            for number in range(seeds):
                for arm, sources in arms.items():
                    model = self._segmenter(sources, labels, self.seed + number, bar.advance)
                    for test, patients in tests.items():
                        scores[test][arm].append(dice_per_volume(model, patients, labels))
        return scores

    def _segmenter(
        self, sources: Sources, labels: tuple[Label, ...], seed: int, on_step: Callable[..., None]
    ) -> torch.nn.Module:
        """Train a segmenter, or read the one that the same data, settings and seed gave before."""
        first, second = sources
        data = [digest_state({"images": s.images, "masks": s.masks}) for s in (first, second) if s is not None]
        plain = {key for key in ("augment", "mixed_share") if getattr(self.config, key) == getattr(_USUAL, key)}
        settings = self.config.model_dump(exclude={"seeds"} | plain) | {
            "precision": granted(self.config.precision, "cpu")
        }
        name = digest_json([_RECIPE, data, settings, seed, [int(v) for v in labels]])[:24]
        path = self.cache / f"segmenter-{name}.safetensors"
        model = build_segmenter(self.config, seed)
        with locked(path):  # several evaluations may share a cache: each segmenter is trained once
            try:
                model.load_state_dict(load_state(path)[0])
                on_step(self.config.steps)
                return model.eval()
            except DataError:  # absent or damaged: train it
                model = train_segmenter(
                    first.images, first.masks, self.config, seed, labels, mixed_with=second, on_step=lambda: on_step(1)
                )
                save_state(path, model.state_dict())
                return model


# --- from volumes to patients -------------------------------------------------------------------
def patient_dice(runs: Runs) -> PatientDice:
    """Average the volumes of all runs (seeds) per patient and structure; structures without any value are left out."""
    values: dict[str, dict[Label, list[float]]] = {}
    for volume in (v for run in runs for v in run):
        mine = values.setdefault(volume.patient_id, {})
        for label, dice in volume.dice.items():
            if dice is not None:
                mine.setdefault(label, []).append(dice)
    return {p: {label: float(np.mean(d)) for label, d in mine.items()} for p, mine in values.items() if mine}


def _mean_per_patient(dice: PatientDice) -> np.ndarray:
    """Mean over the structures of each patient, (N,), in order of patient."""
    return np.array([np.mean(list(dice[p].values())) for p in sorted(dice)])


# --- metrics ------------------------------------------------------------------------------------
def _seed_range(runs: Runs) -> str:
    means = [_mean_per_patient(patient_dice([run])).mean() for run in runs]
    return f"{len(means)} seed(s), {min(means):.3f} to {max(means):.3f}" if len(means) > 1 else "1 seed"


def _missed(runs: Runs) -> str:
    volumes = [v for run in runs for v in run]
    return f"missed structures: {sum(len(v.missed) for v in volumes)} in {len(volumes)} segmented volumes"


def _arm_metrics(words: str, test: str, runs: Runs, real: float | None) -> list[Metric]:
    """Mean Dice of an arm on a test set, and that of every structure; ``words`` say on what it was trained."""
    dice = patient_dice(runs)
    common = {"axis": "utility", "unit": "Dice, 0 to 1", "higher_is_better": True}
    overall = mean_interval(_mean_per_patient(dice))._asdict()
    detail = f"mean over structures; {_seed_range(runs)}; {_missed(runs)}; interval over patients"
    name = f"Dice, trained on {words}, tested on {test}"
    out = [Metric(name=name, **overall, n=len(dice), reference=real, detail=detail, **common)]
    for label in STRUCTURES:
        have = np.array([dice[p][label] for p in sorted(dice) if label in dice[p]])
        if len(have):
            alone = mean_interval(have)._asdict()
            out.append(Metric(name=f"{name}: {label.name}", **alone, n=len(have), **common))
    return out


def _patients_by_seed(scores: Mapping[str, Runs]) -> np.ndarray:
    """Mean Dice (P, arms, S seeds) of the patients that have one in every run; arms in the order of `ARMS`."""
    runs = [[patient_dice([run]) for run in scores[arm]] for arm in ARMS if arm in scores]
    common = set.intersection(*(set(dice) for arm in runs for dice in arm))
    return np.stack([[_mean_per_patient({p: d[p] for p in common}) for d in arm] for arm in runs]).transpose(2, 0, 1)


def _over_seeds(drawn: np.ndarray) -> np.ndarray:
    """Mean Dice (draws, A) of resampled patients (draws, P, A, S), over seeds resampled for each arm on its own."""
    means = drawn.mean(1)
    chosen = np.random.default_rng(0).integers(means.shape[-1], size=means.shape)
    return np.take_along_axis(means, chosen, -1).mean(-1)


def _comparisons(test: str, scores: Mapping[str, Runs]) -> list[Metric]:
    """Paired over patients: synthetic only as a ratio to real only, and both minus real only."""
    table = _patients_by_seed(scores)
    real, synthetic, *both = table.mean((0, 2))

    def ratio_of(drawn: np.ndarray) -> np.ndarray:
        arms = _over_seeds(drawn)
        return arms[:, 1] / np.maximum(arms[:, 0], 1e-9)

    def gain_of(drawn: np.ndarray) -> np.ndarray:
        arms = _over_seeds(drawn)
        return arms[:, 2] - arms[:, 0]

    ratio = bootstrap(table, ratio_of)
    detail = f"paired over patients; interval over patients and {table.shape[2]} seeds"
    common = {"axis": "utility", "n": len(table), "higher_is_better": True, "detail": detail}
    if not real:
        reason = "the segmenter trained on real slices finds nothing. Do: train it for longer"
        first = Metric(axis="utility", name=f"Dice ratio synthetic / real, {test}", unavailable=reason)
    else:
        first = Metric(
            name=f"Dice ratio synthetic / real, {test}",
            **Estimate(float(synthetic / real), *ratio)._asdict(),
            reference=1.0,
            unit="ratio",
            **common,
        )
    name = f"Dice gain of adding synthetic, {test}"
    if not both:
        reason = "no segmenter was trained on both. Do: set evaluation.mixed_arm=true"
        return [first, Metric(axis="utility", name=name, unavailable=reason)]
    second = Metric(
        name=name,
        **Estimate(float(both[0] - real), *bootstrap(table, gain_of))._asdict(),
        reference=0.0,
        unit="Dice",
        **common,
    )
    return [first, second]


def _mean_over_runs(runs: Runs) -> np.ndarray:
    """Dice (P, runs) of the patients that have one in every run."""
    dice = [patient_dice([run]) for run in runs]
    common = set.intersection(*map(set, dice))
    return np.stack([_mean_per_patient({p: d[p] for p in common}) for d in dice], 1)


def _site_findings(test: str, by_arm: Mapping[str, Mapping[str, Runs]]) -> Findings:
    """Arm => site => runs: the means over sites, and what the synthetic set adds at a site, paired over patients."""
    common = {"axis": "utility", "unit": "Dice, 0 to 1", "higher_is_better": True}
    metrics, tables = [], {}
    for arm, sites in by_arm.items():
        table = np.concatenate([_mean_over_runs(runs) for runs in sites.values()], 1)
        tables[arm] = table
        each = ", ".join(f"{site} {_mean_over_runs(runs).mean():.3f}" for site, runs in sites.items())
        metrics.append(
            Metric(
                name=f"Dice, trained on {SITE_ARMS[arm]}, tested on {test}",
                **mean_interval(table.mean(1))._asdict(),
                n=len(table),
                detail=f"mean over structures and sites: {each}; interval over patients",
                **common,
            )
        )
    gain = mean_interval(tables["own+"].mean(1) - tables["own"].mean(1))
    metrics.append(
        Metric(
            axis="utility",
            name=f"Dice gain of adding synthetic to the patients of one site, {test}",
            **gain._asdict(),
            n=len(tables["own"]),
            unit="Dice",
            reference=0.0,
            higher_is_better=True,
            detail=f"mean over {len(by_arm['own'])} sites; paired, interval over patients",
        )
    )
    return Findings(metrics=tuple(metrics))


def site_utility(sites: Mapping[str, Cohort], synthetic: LabelledSlices, examination: Examination) -> Findings:
    """What a site gains that has its own patients alone: a segmenter of them, without the synthetic set and with it.

    Args:
        sites: Name => the site's patients, all annotated for the same structures.
        synthetic: All synthetic slices.
        examination: Its number of segmenters is that of each site and arm.
    """
    own = {site: labelled_slices(cohort) for site, cohort in sites.items()}
    sources = {(arm, site): (own[site], synthetic if arm == "own+" else None) for site in sites for arm in SITE_ARMS}
    labels = next(iter(sites.values())).labels
    found = Findings()
    for test, scores in examination.of("utility of sites", sources, labels).items():
        found += _site_findings(test, {arm: {site: scores[arm, site] for site in sites} for arm in SITE_ARMS})
    return found


def utility(
    real: Cohort,
    synthetic: LabelledSlices,
    examination: Examination,
    *,
    mixed_arm: bool = True,
    control_seeds: int = 0,
    mixed_shares: Sequence[float] = (),
) -> Findings:
    """Train the arms and score them on the hold-out and on every external cohort.

    Args:
        real: Patients that the generators learned from.
        synthetic: All synthetic slices.
        examination: Test sets and segmenter; the same for all arms.
        mixed_arm: Train on real and synthetic slices together too.
        control_seeds: Segmenters of real slices alone without augmentation; 0 leaves them out.
        mixed_shares: Further parts of a batch that are synthetic, beside real slices.
    """
    arms = _arms(labelled_slices(real), synthetic)
    main = arms if mixed_arm else {arm: arms[arm] for arm in arms if arm != "both"}
    scores = examination.of("utility", main, real.labels)
    further = _further(arms, examination, real.labels, control_seeds, mixed_shares)
    found = Findings()
    for test, by_arm in scores.items():
        found += arms_findings(test, by_arm, {words: by_test[test] for words, by_test in further.items()})
    return found


def arm_on_other_images(
    arm: str, sources: LabelledSlices, labels: tuple[Label, ...], examination: Examination, test: str
) -> Findings:
    """Dice of one arm on an external test set, beside its own on the hold-out.

    Args:
        arm: Which of `ARMS`.
        sources: What it is trained on.
        labels: Structures that it learns.
        examination: Has the test set among its ``external`` ones.
        test: Name of the test set.
    """
    scores = examination.of(f"utility, {test}", {arm: (sources, None)}, labels)
    reference = float(_mean_per_patient(patient_dice(scores["hold-out"][arm])).mean())
    return Findings(metrics=tuple(_arm_metrics(ARMS[arm], test, scores[test][arm], reference)))


def _further(
    arms: Mapping[str, Sources],
    examination: Examination,
    labels: tuple[Label, ...],
    control_seeds: int,
    mixed_shares: Sequence[float],
) -> dict[str, dict[str, Runs]]:
    """Words of a further arm => test set => runs: real slices as they are, and other parts of synthetic ones."""
    usual = examination.config
    control = usual.model_copy(update={"augment": False, "seeds": control_seeds})
    variants = {CONTROL: (arms["real"], control)} if control_seeds else {}
    for share in mixed_shares:
        variants[f"real and {share:.0%} synthetic"] = arms["both"], usual.model_copy(update={"mixed_share": share})
    out = {}
    for words, (sources, config) in variants.items():
        scores = replace(examination, config=config).of(f"utility, {words}", {words: sources}, labels)
        out[words] = {test: runs[words] for test, runs in scores.items()}
    return out


def arms_findings(test: str, by_arm: Mapping[str, Runs], further: Mapping[str, Runs]) -> Findings:
    """Dice of all arms, their comparison, and the distances and clinical errors of the main ones."""
    metrics: list[Metric] = []
    series = {}
    reference = float(_mean_per_patient(patient_dice(by_arm["real"])).mean())
    for arm, runs in by_arm.items():
        metrics += _arm_metrics(ARMS[arm], test, runs, None if arm == "real" else reference)
        series[ARMS[arm]] = tuple(_mean_per_patient(patient_dice(runs)).tolist())
    metrics += _comparisons(test, by_arm)
    for words, runs in further.items():
        metrics.append(_arm_metrics(words, test, runs, reference)[0])
    for arm, runs in by_arm.items():
        metrics += distance_metrics(ARMS[arm], test, runs, by_arm["real"])
    found = Findings(metrics=tuple(metrics), series={f"Dice per patient, {test}": series})
    return found + _clinical(test, by_arm)


def _clinical(test: str, by_arm: Mapping[str, Runs]) -> Findings:
    """Clinical errors of the arms, in one series for one plot."""
    each = [clinical_findings(ARMS[arm], test, runs) for arm, runs in by_arm.items()]
    series: dict[str, dict[str, tuple[float, ...]]] = {}
    for found in each:
        for name, groups in found.series.items():
            series[name] = series.get(name, {}) | groups
    metrics = tuple(m for found in each for m in found.metrics)
    return Findings(metrics=metrics + unscaled_metric(test, by_arm["real"]), series=series)
