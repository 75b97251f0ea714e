"""The catalogue of metrics: what each is called, its unit and its direction, and every word of the evaluation.

Code selects metrics by id or field (:mod:`cmrfed.evaluation.results.result`), so all texts here can be changed freely.
A metric is added where it is computed: ``register(Measure(...))`` beside the function, which then calls :func:`metric`.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cmrfed.evaluation.results.result import QUALIFIERS, Axis, Estimate, Level, Metric, Series, identity, slug


@dataclass(frozen=True)
class Measure:
    """What is measured, for all sets, arms and attacks alike.

    Args:
        key: Axis and measure, such as ``utility.dice``.
        name: Pattern of the name; ``{arm}`` and other qualifiers stand for their words.
        about: What it is, in half a sentence, for the documentation.
        unit: Key of `UNITS`, or None where each metric gives its own.
        better: The better direction; None where there is none.
        qualifiers: Those of `QUALIFIERS` that its metrics may have.
        short: Name without qualifiers, for a metric that lacks one of the pattern.
    """

    key: str
    name: str
    about: str
    unit: str | None
    better: Literal["higher", "lower"] | None
    qualifiers: tuple[str, ...] = ()
    short: str = ""

    @property
    def id_pattern(self) -> str:
        """The form of its ids; qualifiers in brackets."""
        return self.key + "".join(f".<{name}>" for name in QUALIFIERS if name in self.qualifiers)


@dataclass(frozen=True)
class Plot:
    """A series for plots: patterns of its name and of what its values are."""

    key: str
    name: str
    label: str
    qualifiers: tuple[str, ...] = ()
    kind: Literal["values", "scores", "ceiling"] = "values"


Qualifiers = Mapping[str, str | None]
"""Name of a qualifier → its key; None is left out."""
NONE: Qualifiers = {}
_MADE, _TESTED = ("arm", "space"), ("arm", "test", "structure", "segmenter")
_TRAINED = "trained on {arm}, tested on {test}"

MEASURES: dict[str, Measure] = {
    measure.key: measure
    for measure in (
        # fidelity
        Measure("fidelity.kid", "KID ({space})", "kernel distance of features to the hold-out", "squared-mmd", "lower",
                _MADE),
        Measure("fidelity.fid", "FID ({space})", "Fréchet distance of features to the hold-out", "frechet-distance",
                "lower", _MADE),
        Measure("fidelity.frd", "FRD ({space})", "Fréchet distance of radiomic features to the hold-out",
                "log-squared-frechet-distance", "lower", _MADE),
        Measure("fidelity.precision", "Precision ({space})", "share of synthetic slices that lie among real ones",
                "share-of-slices", "higher", _MADE),
        Measure("fidelity.recall", "Recall ({space})", "share of real slices that lie among synthetic ones",
                "share-of-slices", "higher", _MADE),
        Measure("fidelity.density", "Density ({space})", "real neighbourhoods that a synthetic slice lies in, over k",
                "neighbourhoods", "higher", _MADE),
        Measure("fidelity.coverage", "Coverage ({space})",
                "share of real slices with a synthetic one in their neighbourhood", "share-of-slices", "higher", _MADE),
        Measure("fidelity.spread", "Feature spread ({space})",
                "mean distance of slices of different patients, over the hold-out's", "multiple-of-holdout", None,
                _MADE),
        Measure("fidelity.psnr", "PSNR", "peak signal to noise, image by image", "db", "higher", ("arm",)),
        Measure("fidelity.ssim", "SSIM", "structural similarity, image by image", "index-from-minus-1", "higher",
                ("arm",)),
        Measure("fidelity.ms-ssim", "MS-SSIM", "structural similarity over scales, image by image", "index-from-0",
                "higher", ("arm",)),
        Measure("fidelity.lpips", "LPIPS", "learned perceptual distance, image by image", "distance", "lower",
                ("arm",)),
        # anatomy
        Measure("anatomy.shape-distance", "{structure} {quantity}, distance to hold-out",
                "Wasserstein-1 distance of a shape over patients", "sd-of-holdout", "lower", ("structure", "quantity")),
        Measure("anatomy.clinical-distance", "{quantity}, distance to hold-out",
                "Wasserstein-1 distance of a volume, ejection fraction or mass over patients", None, "lower",
                ("quantity",)),
        Measure("anatomy.valid-masks", "Anatomically valid masks",
                "each structure in one piece, the LV cavity enclosed by myocardium", "share-of-slices", "higher",
                ("arm",)),
        Measure("anatomy.closed-rings", "Closed myocardial rings", "myocardium that closes around the LV cavity",
                "share-of-slices", "higher", ("arm",)),
        Measure("anatomy.differing", "Shapes and volumes that differ from the hold-out",
                "permutation tests over patients below 0.05 after Holm's correction", "share-of-tests", "lower"),
        # memorisation
        Measure("memorisation.nearer-to-training", "Nearer to training than to hold-out ({space})",
                "synthetic slices that lie nearer to training than to as many hold-out patients", "share-of-slices",
                None, ("space",)),
        Measure("memorisation.distance-ratio", "Nearest distance, training / hold-out ({space})",
                "mean nearest distance to training over that to as many hold-out patients", "ratio", None, ("space",)),
        Measure("memorisation.copies", "Copies of training slices ({space})",
                "synthetic slices nearer to a training slice than 1 % of hold-out slices are", "share-of-slices",
                "lower", ("space",)),
        Measure("memorisation.duplicates", "Duplicates inside the set ({space})",
                "synthetic slices that repeat a slice of another synthetic patient", "share-of-slices", "lower",
                ("space",)),
        Measure("memorisation.constant-images", "Constant images", "synthetic images without any contrast",
                "share-of-slices", "lower"),
        # leakage
        Measure("leakage.auc", "AUC, {attack} ({space})", "area under the ROC curve of a membership inference attack",
                "auc", None, ("attack", "space"), "AUC"),
        Measure("leakage.control", "Control, {attack} ({space})", "AUC of the attack where there is nothing to find",
                "auc", None, ("attack", "space")),
        Measure("leakage.tpr", "TPR at {quantity}, {attack} ({space})",
                "share of members found at a fixed false-positive rate", "share-of-members", "lower",
                ("attack", "space", "quantity"), "TPR at a fixed FPR"),
        Measure("leakage.membership", "Membership inference, {space}", "why no attack of this access was made", None,
                None, ("space",)),
        Measure("leakage.adversarial-accuracy", "Adversarial accuracy, hold-out minus training ({space})",
                "privacy loss of Yale et al. 2020", "share-of-slices", "lower", ("space",)),
        Measure("leakage.patients-copied", "Patients copied, less false alarms ({space})",
                "members with a slice nearer to a synthetic one than any reference patient's, less others",
                "share-of-patients", "lower", ("space",)),
        # utility
        Measure("utility.dice", f"Dice, {_TRAINED}", "Dice of a segmenter, per volume, mean over patients", "dice",
                "higher", _TESTED, "Dice"),
        Measure("utility.dice-ratio", "Dice ratio synthetic / real, {test}", "Dice of the arm over that of real slices",
                "ratio", "higher", ("arm", "test", "segmenter")),
        Measure("utility.dice-gain", "Dice gain of {arm}, {test}", "what synthetic slices add to real ones",
                "dice-difference", "higher", ("arm", "test", "segmenter")),
        Measure("utility.hd95", f"HD95, {_TRAINED}", "95th percentile of the distance of outlines", None, "lower",
                ("arm", "test", "segmenter")),
        Measure("utility.assd", f"ASSD, {_TRAINED}", "mean distance of outlines", None, "lower",
                ("arm", "test", "segmenter")),
        Measure("utility.clinical-error", f"{{quantity}} error, {_TRAINED}",
                "bias of a volume or ejection fraction read off the segmentation", None, None,
                ("arm", "test", "quantity", "segmenter"), "Clinical errors"),
    )
}  # fmt: skip
"""Key → measure; in the order of the documentation."""

PLOTS: dict[str, Plot] = {
    plot.key: plot
    for plot in (
        Plot("anatomy.shape", "{structure} {quantity}", "{structure} {quantity} ({unit})", ("structure", "quantity")),
        Plot("anatomy.clinical", "{quantity}", "{quantity} ({unit})", ("quantity",)),
        Plot("memorisation.nearest-distance", "Nearest distance ({space})", "Nearest distance ({space})", ("space",)),
        Plot("leakage.scores", "Membership scores, {attack} ({space})", "score", ("attack", "space"), "scores"),
        Plot("leakage.ceiling", "Ceiling of the privacy claim", "rate", (), "ceiling"),
        Plot("utility.dice-per-patient", "Dice per patient, {test}", "Dice", ("test", "segmenter")),
        Plot(
            "utility.ejection-fraction-error", "Ejection fraction error per patient, {test}",
            "Ejection fraction error (points)", ("test", "segmenter"),
        ),
    )
}  # fmt: skip

# --- words ----------------------------------------------------------------------------------------
TITLES: dict[Axis, str] = {
    "fidelity": "Fidelity: do the images look real?",
    "anatomy": "Anatomy: are the shapes plausible?",
    "utility": "Utility: does a segmenter learn from them?",
    "memorisation": "Memorisation: do they repeat training patients?",
    "leakage": "Membership inference: can training patients be identified?",
}
"""Axis → its question, in the order of the report."""
UNITS = {
    "squared-mmd": "squared MMD",
    "frechet-distance": "Fréchet distance",
    "log-squared-frechet-distance": "log squared Fréchet distance",
    "share-of-slices": "share of slices",
    "share-of-tests": "share of tests",
    "share-of-members": "share of members",
    "share-of-patients": "share of patients",
    "neighbourhoods": "neighbourhoods",
    "multiple-of-holdout": "hold-out's",
    "db": "dB",
    "index-from-minus-1": "index, -1 to 1",
    "index-from-0": "index, 0 to 1",
    "distance": "distance",
    "sd-of-holdout": "SD of hold-out patients",
    "percentage-points": "points",
    "ml": "ml",
    "g": "g",
    "mm": "mm",
    "pixels": "pixels",
    "percent": "%",
    "fraction": "0 to 1",
    "ratio": "ratio",
    "auc": "AUC",
    "dice": "Dice, 0 to 1",
    "dice-difference": "Dice",
}
_ARMS = {
    "fidelity.synthetic": "",
    "fidelity.training": "training against hold-out",
    "fidelity.blurred-training": "blurred training against hold-out",
    "fidelity.paired": "mask-paired",
    "fidelity.reconstruction": "reconstruction",
    "anatomy.synthetic": "",
    "anatomy.as-drawn": "as drawn",
    "utility.real": "real only",
    "utility.synthetic": "synthetic only",
    "utility.both": "real and synthetic",
    "utility.real-unaugmented": "real only, without augmentation",
    "utility.mixed": "real and {share:.0%} synthetic",
    "utility.site": "the patients of one site",
    "utility.site-synthetic": "the patients of one site and synthetic",
    "utility.dice-ratio.synthetic": "",
    "utility.dice-gain.both": "adding synthetic",
    "utility.dice-gain.site-synthetic": "adding synthetic to the patients of one site",
}
WORDS: dict[str, dict[str, str]] = {
    "arm": _ARMS,
    "test": {"holdout": "hold-out", "reconstruction": "reconstruction of hold-out"},
    "structure": {"lv": "LV", "myo": "MYO", "rv": "RV"},
    "attack": {
        "nearest-neighbour": "nearest neighbour",
        "neighbour-ratio": "neighbour ratio",
        "monte-carlo-ball": "Monte-Carlo ball",
        "calibrated-neighbour": "calibrated neighbour",
        "loss": "loss",
        "sima": "SimA",
        "pia": "PIA",
        "secmi": "SecMI",
        "calibrated-loss": "calibrated loss",
    },
    "space": {"white-box": "white box", "black-box": "black box"},
    "quantity": {
        "lv-edv": "LV end-diastolic volume",
        "lv-esv": "LV end-systolic volume",
        "lv-ef": "LV ejection fraction",
        "rv-edv": "RV end-diastolic volume",
        "rv-esv": "RV end-systolic volume",
        "rv-ef": "RV ejection fraction",
        "myocardial-mass": "myocardial mass",
        "volumes": "Volumes in ml and myocardial mass",
        "utility.clinical-error.volumes": "volumes in ml",
        "fpr-1e-1": "10% FPR",
        "fpr-1e-2": "1% FPR",
        "fpr-1e-3": "0.1% FPR",
    },
    "segmenter": {},
    "group": {
        "holdout": "hold-out",
        "synthetic-to-training": "synthetic to training",
        "synthetic-to-holdout": "synthetic to hold-out",
        "holdout-to-training": "hold-out to training",
    },
}
"""Qualifier → its key → words; a key without words stands for itself. AXIS.KEY and MEASURE.KEY come before KEY."""

LEVELS: dict[str, str] = {
    "not-measured": "Not measured",
    "good": "Good",
    "fair": "Fair",
    "poor": "Poor",
    "memorisation.none-found": "No sign of copying found",
    "memorisation.some-sign": "Some sign of memorisation",
    "memorisation.strong-sign": "Strong sign of copying",
    "leakage.none-found": "No attack did better than chance",
    "leakage.some-sign": "Some sign of leakage",
    "leakage.identified": "Training patients can be identified",
    "leakage.claim-refuted": "The privacy claim does not hold",
}
"""Level of a verdict → its word; by axis where axes differ."""
TONES: dict[Level, str] = {
    "good": "good",
    "fair": "warn",
    "poor": "bad",
    "some-sign": "warn",
    "strong-sign": "bad",
    "identified": "bad",
    "claim-refuted": "bad",
}
"""Level → CSS class. Finding no copies is no guarantee, so it is not coloured as one."""
SENTENCES: dict[str, str] = {
    "fidelity": "{name} is {kid:.4f}; real against real patients: {real:.4f} (up to {top:.4f}), slightly blurred real "
    "images: {blurred:.4f}.",
    "fidelity.rule": "Good up to the upper end for real patients, fair up to the value for blurred ones, poor above.",
    "fidelity.missing": "KID or one of its reference values is unavailable.",
    "anatomy": "Shapes are {middle:.2f} standard deviations of the hold-out patients farther from the hold-out than "
    "those of real training patients (median; largest {worst:.2f}).",
    "anatomy.valid": " {valid:.0%} of synthetic masks are valid{drawn}, {real:.0%} of real ones.",
    "anatomy.drawn": " ({drawn:.0%} as drawn)",
    "anatomy.rule": "Good with a median up to {good}, none above {fair}, and valid masks at most 5 points below real "
    "ones; fair with a median up to {fair}; else poor.",
    "anatomy.missing": "No shapes could be compared.",
    "memorisation": "Slices nearer to training than to hold-out patients: {shares} (50% expected); copies: "
    "{copied:.1%} (1% expected). This is no guarantee of privacy.",
    "memorisation.share": "{value:.0%} in {space}",
    "memorisation.rule": "Some sign if an interval lies above what is expected; strong if also more than {many:.0%} "
    "are copies.",
    "memorisation.missing": "No distances are available.",
    "leakage": "{hits} of {attacks} membership inference attacks distinguished members from non-members{found}{failed}",
    "leakage.found": ": {names}.",
    "leakage.nothing": "; this is no proof of privacy.",
    "leakage.attack": "{attack} ({space})",
    "leakage.hit": "{attack} (AUC {value:.2f})",
    "leakage.also": "{name} ({value:.2f})",
    "leakage.failed": " {count} attack(s) failed their control and are not counted.",
    "leakage.rule": "Some sign if an interval excludes the value expected by chance (one in twenty does so by chance); "
    "identified if an attack does so after correction for the number of attacks (Holm, 5 %); a claim fails where "
    "members are found more often than its ε and δ allow.",
    "leakage.missing": "No membership inference attack could be made.{failed} Leakage is unknown.",
    "leakage.refuted": "the claim (ε = {epsilon:.3g}, δ = {delta:.2g}) does not hold against {attack}: it finds "
    "{tpr:.0%} of members at {fpr:.0%} false alarms, beyond chance above the ceiling",
    "utility": "A segmenter trained on synthetic slices alone reaches {ratio:.3f} of the Dice of one trained on real "
    "slices{added}{site}.",
    "utility.added": "; adding synthetic to real slices changes Dice by {gain:+.3f} (interval over patients {where})",
    "utility.above": "above 0",
    "utility.below": "below 0",
    "utility.around": "contains 0",
    "utility.site": "; for a single site with its own patients, by {gain:+.3f}",
    "utility.rule": "Good from {good}, fair from {fair}, else poor.",
    "utility.missing": "No segmenter was trained, or the one trained on real slices found nothing.",
    "few-patients": "{name}: {count} patient(s); intervals over fewer than {fewest} patients are unreliable",
    "constant-images": "{count} of {total} synthetic images are constant",
    "repeated-patients": "excluded from the distances: hold-out patients whose images are also in training: {patients}",
    "identical-pairs": "{count} paired image(s) equal the real one exactly; PSNR excludes them",
}
"""What verdicts and warnings say; numbers are put in by name."""
SWEEP = {
    "utility": "Dice, trained on synthetic only, tested on hold-out",
    "fidelity": "KID",
    "leakage": "AUC, calibrated neighbour (pixels)",
}
"""What a sweep lays out against ε, for titles."""
HEADINGS = {
    "dice-real": "Dice, real only",
    "dice-synthetic": "Dice, synthetic only",
    "dice-ratio": "ratio",
    "dice-external": "Dice, {test}",
}
"""Columns of a sweep's main numbers."""


# --- making metrics -------------------------------------------------------------------------------
def register(measure: Measure) -> Measure:
    """Add a measure to the catalogue, beside the code that computes it; the same again changes nothing.

    Raises:
        ValueError: Another measure has its key, or a qualifier is none of `QUALIFIERS`.
    """
    unknown = set(measure.qualifiers) - set(QUALIFIERS)
    if unknown or MEASURES.get(measure.key, measure) != measure:
        raise ValueError(f"{measure.key} cannot be registered: {sorted(unknown) or 'it is another measure already'}")
    MEASURES[measure.key] = measure
    return measure


def metric(
    key: str,
    found: Estimate | float,
    of: Qualifiers = NONE,
    *,
    n: int | None = None,
    unit: str | None = None,
    reference: float | None = None,
    detail: str | None = None,
    named: Mapping[str, str] | None = None,
) -> Metric:
    """Make a metric of the catalogue.

    Args:
        key: Of `MEASURES`.
        found: The value, with its interval where there is one.
        of: Qualifiers, as fields of the metric.
        n: Number of independent things behind it.
        unit: Key of `UNITS` where the measure has none of its own.
        reference: What a perfect synthetic set would get.
        detail: What value and interval are over.
        named: Qualifier → words, where they are not in the catalogue.
    """
    measure, estimate = MEASURES[key], found if isinstance(found, Estimate) else Estimate(found, None, None)
    return Metric(
        **_identified(measure, of, named),
        **estimate._asdict(),
        n=n,
        unit=unit or measure.unit,
        higher_is_better=None if measure.better is None else measure.better == "higher",
        reference=reference,
        detail=detail,
    )


def unavailable(
    key: str,
    reason: str,
    of: Qualifiers = NONE,
    *,
    code: str | None = None,
    named: Mapping[str, str] | None = None,
) -> Metric:
    """A metric without a value: ``reason`` says why, and what to do; ``code`` the same where code depends on it."""
    return Metric(**_identified(MEASURES[key], of, named), unavailable=reason, unavailable_code=code)


def series(
    key: str,
    groups: Mapping[str, Sequence[float] | np.ndarray],
    of: Qualifiers = NONE,
    *,
    unit: str | None = None,
    named: Mapping[str, str] | None = None,
) -> Series:
    """Make a series of `PLOTS`; ``unit`` is a key of `UNITS` that its label may name."""
    plot = PLOTS[key]
    fields = _fields(key, plot.qualifiers, of)
    words = _words(key, fields, named) | {"unit": unit_words(unit)}
    return Series(
        **fields,
        kind=plot.kind,
        name=_filled(plot.name, words),
        label=_filled(plot.label, words),
        groups={group: tuple(map(float, values)) for group, values in groups.items()},
    )


def _identified(measure: Measure, of: Qualifiers, named: Mapping[str, str] | None) -> Any:
    fields = _fields(measure.key, measure.qualifiers, of)
    return fields | {"name": _name(measure, _words(measure.key, fields, named))}


def _fields(key: str, allowed: Sequence[str], of: Qualifiers) -> dict[str, Any]:
    surplus = {name for name, value in of.items() if value is not None} - set(allowed)
    if surplus:
        raise ValueError(f"{key} has no {', '.join(sorted(surplus))}")
    axis, _, measure = key.partition(".")
    fields = {"axis": axis, "measure": measure} | {k: v for k, v in of.items() if v is not None}
    return fields | {"id": identity(fields)}


# --- making words ---------------------------------------------------------------------------------
def word(qualifier: str, value: str, key: str = "") -> str:
    """Words of a qualifier's value, or of a ``group`` of a series; ``key`` is that of the measure, for arms."""
    known = WORDS[qualifier]
    axis = key.partition(".")[0]
    return next((known[k] for k in (f"{key}.{value}", f"{axis}.{value}", value) if k in known), value)


def unit_words(unit: str | None) -> str:
    """Words of a unit."""
    return UNITS.get(unit, unit) if unit else ""


def group_words(key: str, group: str) -> str:
    """Words of a group of a series: an arm on the axis utility."""
    return word("arm" if key.startswith("utility.") else "group", group, key)


def attack_words(of: Qualifiers) -> str:
    """Name of a membership inference attack with its space or access."""
    return say("leakage.attack", **{q: word(q, str(of[q])) for q in ("attack", "space")})


def level_word(axis: Axis, level: Level) -> str:
    """Word of a verdict."""
    return LEVELS.get(f"{axis}.{level}") or LEVELS[level]


def say(key: str, **numbers: Any) -> str:
    """A sentence of the catalogue."""
    return SENTENCES[key].format(**numbers)


def name_of(key: str, of: Qualifiers = NONE, named: Mapping[str, str] | None = None) -> str:
    """What a metric with these qualifiers is called."""
    measure = MEASURES[key]
    return _name(measure, _words(key, _fields(key, measure.qualifiers, of), named))


def _words(key: str, fields: Mapping[str, Any], named: Mapping[str, str] | None) -> dict[str, str]:
    given = named or {}
    return {q: given.get(q) or word(q, fields[q], key) for q in QUALIFIERS if q in fields}


def _name(measure: Measure, words: Mapping[str, str]) -> str:
    """The pattern with its words; what it does not name follows: ", arm", ": structure"."""
    asked = _asked(measure.name)
    if not asked <= set(words):
        known = ", ".join(text for text in words.values() if text)
        start = measure.short or measure.name.partition(" ({")[0]
        return start + (f" ({known})" if known else "")
    rest = [q for q in ("arm", "structure") if q not in asked and words.get(q)]
    marks = {"arm": ", ", "structure": ": "}
    return _filled(measure.name, words) + "".join(marks[q] + words[q] for q in rest)


def _asked(pattern: str) -> set[str]:
    return {field for _, field, *_ in string.Formatter().parse(pattern) if field}


def _filled(pattern: str, words: Mapping[str, str]) -> str:
    """A segmenter that is not the reference is named with the test set."""
    whole = dict(words)
    if words.get("segmenter") and "test" in words:
        whole["test"] = f"{words['test']} ({words['segmenter']})"
    return pattern.format(**whole)


# --- documentation --------------------------------------------------------------------------------
def table() -> str:
    """All measures as a Markdown table: ids, names, units and directions."""
    lines = ["| id | what is measured | unit | better |", "| --- | --- | --- | --- |"]
    for measure in MEASURES.values():
        unit = unit_words(measure.unit) or "–"
        lines.append(f"| `{measure.id_pattern}` | {measure.about} | {unit} | {measure.better or '–'} |")
    return "\n".join(lines)


def share_arm(share: float) -> tuple[str, str]:
    """Key and words of the arm of real slices with another share of synthetic ones."""
    return f"mixed-{slug(f'{100 * share:g}')}", _ARMS["utility.mixed"].format(share=share)
