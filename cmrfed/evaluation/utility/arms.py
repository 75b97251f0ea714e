"""Downstream utility: how well a segmenter does that was trained on real slices, on synthetic ones, and on both.

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

from cmrfed.core.artifacts import digest_json, load_state, locked, save_state
from cmrfed.core.device import HOST
from cmrfed.core.errors import DataError
from cmrfed.core.precision import granted
from cmrfed.core.progress import track
from cmrfed.core.settings.digests import digested
from cmrfed.data.cohort import Cohort
from cmrfed.data.labels import STRUCTURES, Label
from cmrfed.evaluation.names import HOLDOUT
from cmrfed.evaluation.results.catalogue import metric, series, share_arm, unavailable, word
from cmrfed.evaluation.results.result import Estimate, Findings, Metric, bootstrap, mean_interval
from cmrfed.evaluation.utility.contours import Scored, clinical_findings, distance_metrics, unscaled_metric
from cmrfed.evaluation.utility.segmenter import (
    LabelledSlices,
    Patients,
    VolumeDice,
    build_segmenter,
    dice_per_volume,
    labelled_slices,
    train_segmenter,
)
from cmrfed.segmentation.settings import SegmenterConfig

__all__ = [
    "ARMS",
    "Runs",
    "SegmenterBenchmark",
    "arm_on_other_images",
    "arms_findings",
    "site_utility",
    "utility",
]

ARMS = ("real", "synthetic", "both")
"""What the main segmenters are trained on."""
CONTROL = "real-unaugmented"
SITE_ARMS = ("site", "site-synthetic")
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
class SegmenterBenchmark:
    """What is the same for every segmenter of a comparison: test sets, training, cache and seed.

    Args:
        holdout: Patients that nothing has learned from.
        external: Name => cohort of another data set; scored on the structures that its annotators drew.
        config: The segmenter, and how many of each arm.
        cache: Folder where trained segmenters are kept, so that an interrupted evaluation goes on.
        seed: Decides everything random.
        device: Where segmenters are trained and asked. The cache does not depend on it, but on its arithmetic.
    """

    holdout: Cohort
    external: Mapping[str, Patients]
    config: SegmenterConfig
    cache: Path
    seed: int = 0
    device: torch.device = HOST

    def score(self, title: str, arms: Mapping[Arm, Sources], labels: tuple[Label, ...]) -> dict[str, dict[Arm, Runs]]:
        """Train the segmenters of all arms and score them: test set => arm => runs."""
        tests: dict[str, Patients] = {HOLDOUT: self.holdout, **self.external}
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
        data = [s.digest for s in (first, second) if s is not None]
        plain = {key for key in ("augment", "mixed_share") if getattr(self.config, key) == getattr(_USUAL, key)}
        settings = digested(self.config, {"seeds"} | plain) | {
            "precision": granted(self.config.precision, self.device.type)
        }
        name = digest_json([_RECIPE, data, settings, seed, [int(v) for v in labels]])[:24]
        path = self.cache / f"segmenter-{name}.safetensors"
        model = build_segmenter(self.config, seed)
        with locked(path):  # several evaluations may share a cache: each segmenter is trained once
            try:
                model.load_state_dict(load_state(path)[0])
                on_step(self.config.steps)
                return model.eval().to(self.device)
            except DataError:  # absent or damaged: train it
                model = train_segmenter(
                    first.images,
                    first.masks,
                    self.config,
                    seed,
                    labels,
                    mixed_with=second,
                    on_step=lambda: on_step(1),
                    device=self.device,
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


def _arm_metrics(scored: Scored, runs: Runs, real: float | None) -> list[Metric]:
    """Mean Dice of an arm on a test set, and that of every structure."""
    dice = patient_dice(runs)
    detail = f"mean over structures; {_seed_range(runs)}; {_missed(runs)}; interval over patients"
    overall = mean_interval(_mean_per_patient(dice))
    key, named = "utility.dice", scored.named
    out = [metric(key, overall, scored.of, n=len(dice), reference=real, detail=detail, named=named)]
    for label in STRUCTURES:
        have = np.array([dice[p][label] for p in sorted(dice) if label in dice[p]])
        if len(have):
            of = {**scored.of, "structure": label.name.lower()}
            out.append(metric(key, mean_interval(have), of, n=len(have), named=named))
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


def _comparisons(scored: Scored, scores: Mapping[str, Runs]) -> list[Metric]:
    """Paired over patients: synthetic only as a ratio to real only, and both minus real only."""
    table = _patients_by_seed(scores)
    detail = f"paired over patients; interval over patients and {table.shape[2]} seeds"
    return [_ratio(scored.arm("synthetic"), table, detail), _gain(scored.arm("both"), table, detail)]


def _ratio(scored: Scored, table: np.ndarray, detail: str) -> Metric:
    """Dice of the synthetic over that of the real arm; ``table`` is (P, arms, S)."""
    real, synthetic = table.mean((0, 2))[:2]
    key, named = "utility.dice-ratio", scored.named
    if not real:
        reason = "the segmenter trained on real slices finds nothing. Do: train it for longer"
        return unavailable(key, reason, scored.of, named=named)

    def ratio_of(drawn: np.ndarray) -> np.ndarray:
        arms = _over_seeds(drawn)
        return arms[:, 1] / np.maximum(arms[:, 0], 1e-9)

    found = Estimate(float(synthetic / real), *bootstrap(table, ratio_of))
    return metric(key, found, scored.of, n=len(table), reference=1.0, detail=detail, named=named)


def _gain(scored: Scored, table: np.ndarray, detail: str) -> Metric:
    """Dice of the arm of both minus that of the real arm; ``table`` is (P, arms, S)."""
    key, named = "utility.dice-gain", scored.named
    if table.shape[1] < len(ARMS):
        reason = "no segmenter was trained on both. Do: set evaluation.mixed_arm=true"
        return unavailable(key, reason, scored.of, named=named)

    def gain_of(drawn: np.ndarray) -> np.ndarray:
        arms = _over_seeds(drawn)
        return arms[:, 2] - arms[:, 0]

    real, _, both = table.mean((0, 2))
    found = Estimate(float(both - real), *bootstrap(table, gain_of))
    return metric(key, found, scored.of, n=len(table), reference=0.0, detail=detail, named=named)


def _mean_over_runs(runs: Runs) -> np.ndarray:
    """Dice (P, runs) of the patients that have one in every run."""
    dice = [patient_dice([run]) for run in runs]
    common = set.intersection(*map(set, dice))
    return np.stack([_mean_per_patient({p: d[p] for p in common}) for d in dice], 1)


def _site_findings(test: str, by_arm: Mapping[str, Mapping[str, Runs]]) -> Findings:
    """Arm => site => runs: the means over sites, and what the synthetic set adds at a site, paired over patients."""
    metrics, tables = [], {}
    for arm, sites in by_arm.items():
        table = np.concatenate([_mean_over_runs(runs) for runs in sites.values()], 1)
        tables[arm] = table
        each = ", ".join(f"{site} {_mean_over_runs(runs).mean():.3f}" for site, runs in sites.items())
        detail = f"mean over structures and sites: {each}; interval over patients"
        of = {"arm": arm, "test": test}
        metrics.append(metric("utility.dice", mean_interval(table.mean(1)), of, n=len(table), detail=detail))
    own, helped = (tables[arm] for arm in SITE_ARMS)
    metrics.append(
        metric(
            "utility.dice-gain",
            mean_interval(helped.mean(1) - own.mean(1)),
            {"arm": SITE_ARMS[1], "test": test},
            n=len(own),
            reference=0.0,
            detail=f"mean over {own.shape[1]} sites; paired, interval over patients",
        )
    )
    return Findings(metrics=tuple(metrics))


def site_utility(sites: Mapping[str, Cohort], synthetic: LabelledSlices, benchmark: SegmenterBenchmark) -> Findings:
    """What a site gains that has its own patients alone: a segmenter of them, without the synthetic set and with it.

    Args:
        sites: Name => the site's patients, all annotated for the same structures.
        synthetic: All synthetic slices.
        benchmark: Its number of segmenters is that of each site and arm.
    """
    own = {site: labelled_slices(cohort, benchmark.cache) for site, cohort in sites.items()}
    added = dict(zip(SITE_ARMS, (None, synthetic), strict=True))
    sources = {(arm, site): (own[site], added[arm]) for site in sites for arm in SITE_ARMS}
    labels = next(iter(sites.values())).labels
    found = Findings()
    for test, scores in benchmark.score("utility of sites", sources, labels).items():
        found += _site_findings(test, {arm: {site: scores[arm, site] for site in sites} for arm in SITE_ARMS})
    return found


def utility(
    real: Cohort,
    synthetic: LabelledSlices,
    benchmark: SegmenterBenchmark,
    *,
    mixed_arm: bool = True,
    control_seeds: int = 0,
    mixed_shares: Sequence[float] = (),
) -> Findings:
    """Train the arms and score them on the hold-out and on every external cohort.

    Args:
        real: Patients that the generators learned from.
        synthetic: All synthetic slices.
        benchmark: Test sets and segmenter; the same for all arms.
        mixed_arm: Train on real and synthetic slices together too.
        control_seeds: Segmenters of real slices alone without augmentation; 0 leaves them out.
        mixed_shares: Further parts of a batch that are synthetic, beside real slices.
    """
    arms = _arms(labelled_slices(real, benchmark.cache), synthetic)
    main = arms if mixed_arm else {arm: arms[arm] for arm in arms if arm != "both"}
    scores = benchmark.score("utility", main, real.labels)
    further = _further(arms, benchmark, real.labels, control_seeds, mixed_shares)
    found = Findings()
    for test, by_arm in scores.items():
        found += arms_findings(Scored(test), by_arm, {arm: by_test[test] for arm, by_test in further.items()})
    return found


def arm_on_other_images(
    arm: str, sources: LabelledSlices, labels: tuple[Label, ...], benchmark: SegmenterBenchmark, test: str
) -> Findings:
    """Dice of one arm on an external test set, beside its own on the hold-out.

    Args:
        arm: Which of `ARMS`.
        sources: What it is trained on.
        labels: Structures that it learns.
        benchmark: Has the test set among its ``external`` ones.
        test: Name of the test set.
    """
    scores = benchmark.score(f"utility, {test}", {arm: (sources, None)}, labels)
    reference = float(_mean_per_patient(patient_dice(scores[HOLDOUT][arm])).mean())
    return Findings(metrics=tuple(_arm_metrics(Scored(test).arm(arm), scores[test][arm], reference)))


def _further(
    arms: Mapping[str, Sources],
    benchmark: SegmenterBenchmark,
    labels: tuple[Label, ...],
    control_seeds: int,
    mixed_shares: Sequence[float],
) -> dict[tuple[str, str], dict[str, Runs]]:
    """Key and words of a further arm => test set => runs: real slices as they are, and other shares of synthetic."""
    usual = benchmark.config
    control = usual.model_copy(update={"augment": False, "seeds": control_seeds})
    name = CONTROL, word("arm", CONTROL, "utility.dice")
    variants = {name: (arms["real"], control)} if control_seeds else {}
    for share in mixed_shares:
        variants[share_arm(share)] = arms["both"], usual.model_copy(update={"mixed_share": share})
    out = {}
    for (arm, words), (sources, config) in variants.items():
        scores = replace(benchmark, config=config).score(f"utility, {words}", {arm: sources}, labels)
        out[arm, words] = {test: runs[arm] for test, runs in scores.items()}
    return out


def arms_findings(scored: Scored, by_arm: Mapping[str, Runs], further: Mapping[tuple[str, str], Runs]) -> Findings:
    """Dice of all arms, their comparison, and the distances and clinical errors of the main ones.

    Args:
        scored: Test set and segmenter.
        by_arm: Arm of `ARMS` => its runs.
        further: Key and words of a further arm => its runs.
    """
    metrics: list[Metric] = []
    reference = float(_mean_per_patient(patient_dice(by_arm["real"])).mean())
    for arm, runs in by_arm.items():
        metrics += _arm_metrics(scored.arm(arm), runs, None if arm == "real" else reference)
    metrics += _comparisons(scored, by_arm)
    for (arm, words), runs in further.items():
        metrics.append(_arm_metrics(scored.arm(arm, words), runs, reference)[0])
    for arm, runs in by_arm.items():
        metrics += distance_metrics(scored.arm(arm), runs, by_arm["real"])
    each = {arm: _mean_per_patient(patient_dice(runs)) for arm, runs in by_arm.items()}
    plot = series("utility.dice-per-patient", each, scored.of, named=scored.named)
    found = Findings(metrics=tuple(metrics), series=(plot,))
    for arm, runs in by_arm.items():
        found += clinical_findings(scored.arm(arm), runs)
    return found + Findings(metrics=unscaled_metric(scored, by_arm["real"]))
