"""Reads evaluations of version 1, which knew a metric by its English name; kept for one release.

Names are those that version 0.1 wrote. What is unknown here keeps its name, and gets an id that is made of it.
"""

import re
from collections.abc import Mapping
from typing import Any

from cmrfed.evaluation.results.result import CLAIM_REFUTED, CONTROL_FAILED, identity, slug

_ARMS = {
    "real only": "real",
    "synthetic only": "synthetic",
    "real and synthetic": "both",
    "real only, without augmentation": "real-unaugmented",
    "the patients of one site": "site",
    "the patients of one site and synthetic": "site-synthetic",
}
_COMPARED = {
    None: "synthetic",
    "training against hold-out": "training",
    "blurred training against hold-out": "blurred-training",
}
_TESTS = {"hold-out": "holdout", "reconstruction of hold-out": "reconstruction"}
_CLINICAL = {
    f"{chamber} {words}": f"{chamber.lower()}-{short}"
    for chamber in ("LV", "RV")
    for words, short in (
        ("end-diastolic volume", "edv"),
        ("end-systolic volume", "esv"),
        ("ejection fraction", "ef"),
    )
} | {"myocardial mass": "myocardial-mass"}
_UNITS = {
    "squared MMD": "squared-mmd",
    "Frechet distance": "frechet-distance",
    "log squared Frechet distance": "log-squared-frechet-distance",
    "hold-out's": "multiple-of-holdout",
    "dB": "db",
    "index, -1 to 1": "index-from-minus-1",
    "index, 0 to 1": "index-from-0",
    "SD of hold-out patients": "sd-of-holdout",
    "points": "percentage-points",
    "AUC": "auc",
    "Dice, 0 to 1": "dice",
    "Dice": "dice-difference",
}
_TESTED = r"tested on (?P<test>[^:]+?)(?: \((?P<segmenter>nnU-Net[^)]+)\))?(?:: (?P<structure>LV|MYO|RV))?"
_OF_TEST = r"(?P<test>.+?)(?: \((?P<segmenter>nnU-Net[^)]+)\))?"
_TRAINED = rf"trained on (?P<arm>.+?), {_TESTED}"
_SHAPE = r"(?P<structure>LV|MYO|RV) (?P<quantity>area|eccentricity|roundness|solidity)"
_ATTACK = r"(?P<attack>.+) \((?P<space>.+)\)"
_FEATURES = {"Precision": "precision", "Recall": "recall", "Density": "density", "Coverage": "coverage"}
_PAIRED = r"(?P<measure>PSNR|SSIM|MS-SSIM|LPIPS), (?P<arm>mask-paired|reconstruction)"
_SPACE = {
    "Nearer to training than to hold-out": "memorisation.nearer-to-training",
    "Nearest distance, training / hold-out": "memorisation.distance-ratio",
    "Copies of training slices": "memorisation.copies",
    "Duplicates inside the set": "memorisation.duplicates",
    "Adversarial accuracy, hold-out minus training": "leakage.adversarial-accuracy",
    "Patients copied, less false alarms": "leakage.patients-copied",
}
_METRICS: tuple[tuple[str, str], ...] = (
    (r"(?P<measure>KID|FID|FRD) \((?P<space>.+?)\)(?:, (?P<compared>.+))?", "fidelity"),
    (_PAIRED, "fidelity"),
    (rf"(?P<feature>{'|'.join(_FEATURES)}|Feature spread) \((?P<space>.+)\)", "fidelity"),
    (rf"{_SHAPE}, distance to hold-out", "anatomy.shape-distance"),
    (rf"(?P<clinical>{'|'.join(_CLINICAL)}), distance to hold-out", "anatomy.clinical-distance"),
    (r"(?P<clinical>Volumes in ml and myocardial mass)", "anatomy.clinical-distance"),
    (r"Anatomically valid masks(?P<drawn>, as drawn)?", "anatomy.valid-masks"),
    (r"Closed myocardial rings(?P<drawn>, as drawn)?", "anatomy.closed-rings"),
    (r"Shapes and volumes that differ from the hold-out", "anatomy.differing"),
    (r"Constant images", "memorisation.constant-images"),
    (rf"AUC, {_ATTACK}", "leakage.auc"),
    (rf"Control, {_ATTACK}", "leakage.control"),
    (rf"TPR at (?P<rate>10\.0|1\.0|0\.1)% FPR, (?:{_ATTACK}|(?P<access>black box|white box))", "leakage.tpr"),
    (r"Membership attacks, (?P<access>black box|white box)", "leakage.membership"),
    (rf"Dice, {_TRAINED}", "utility.dice"),
    (r"Dice \((?P<segmenter>nnU-Net.+)\)", "utility.dice"),
    (rf"Dice ratio synthetic / real, {_OF_TEST}", "utility.dice-ratio"),
    (rf"Dice gain of adding synthetic(?P<at_site> to the patients of one site)?, {_OF_TEST}", "utility.dice-gain"),
    (rf"(?P<measure>HD95|ASSD), {_TRAINED}", "utility"),
    (rf"(?P<clinical>LV [a-z -]+) error, {_TRAINED}", "utility.clinical-error"),
    (rf"(?P<clinical>LV volume errors in ml), {_TESTED}", "utility.clinical-error"),
    *((rf"{re.escape(start)} \((?P<space>.+)\)", key) for start, key in _SPACE.items()),
)
_SERIES: tuple[tuple[str, str], ...] = (
    (rf"{_SHAPE} \(.+\)", "anatomy.shape"),
    (rf"(?P<clinical>{'|'.join(_CLINICAL)}) \(.+\)", "anatomy.clinical"),
    (r"Nearest distance \((?P<space>.+)\)", "memorisation.nearest-distance"),
    (rf"Membership scores, {_ATTACK}", "leakage.scores"),
    (r"Membership ceiling", "leakage.ceiling"),
    (rf"Dice per patient, {_OF_TEST}", "utility.dice-per-patient"),
    (rf"Ejection fraction error per patient, {_OF_TEST}", "utility.ejection-fraction-error"),
)
_GROUPS = {
    "hold-out": "holdout",
    "synthetic to training": "synthetic-to-training",
    "synthetic to hold-out": "synthetic-to-holdout",
    "hold-out to training": "holdout-to-training",
    "FPR": "fpr",
    "TPR": "tpr",
    **_ARMS,
}
_LEVELS = {
    "Not measured": "not-measured",
    "Good": "good",
    "Fair": "fair",
    "Poor": "poor",
    "No sign of copying found": "none-found",
    "Some sign of memorisation": "some-sign",
    "Strong sign of copying": "strong-sign",
    "Members were not told from others": "none-found",
    "Some sign of leakage": "some-sign",
    "Members can be told from others": "identified",
    "The privacy claim does not hold": "claim-refuted",
}


def fields_of(axis: str, name: str) -> dict[str, str]:
    """Id and fields of the metric that version 1 called ``name``."""
    return _fields(_METRICS, axis, name)


def upgrade(old: Mapping[str, Any]) -> dict[str, Any]:
    """The content of an evaluation.json of version 1 as one of version 2."""
    return {
        "schema_version": 2,
        "metrics": [_metric(metric) for metric in old.get("metrics", ())],
        "warnings": [_warning(text) for text in old.get("warnings", ())],
        "series": [_series(name, groups) for name, groups in old.get("series", {}).items()],
        "inputs": old.get("inputs", {}),
        "sizes": old.get("sizes", {}),
        "verdicts": [_verdict(axis, text) for axis, text in old.get("verdict", {}).items()],
    }


def unit_of(unit: str | None) -> str | None:
    """Key of a unit that version 1 wrote in words."""
    return None if unit is None else _UNITS.get(unit, slug(unit))


def _metric(old: Mapping[str, Any]) -> dict[str, Any]:
    code = CONTROL_FAILED if (old.get("unavailable") or "").startswith("failed its control") else None
    new = {"unit": unit_of(old.get("unit")), "unavailable_code": code}
    return {**old, **new, **fields_of(old["axis"], old["name"])}


def _warning(text: str) -> dict[str, Any]:
    return {"text": text, "code": CLAIM_REFUTED if text.startswith("the claim (") else None}


def _series(name: str, groups: Mapping[str, Any]) -> dict[str, Any]:
    fields = _fields(_SERIES, "anatomy", name)
    key = f"{fields['axis']}.{fields['measure']}"
    kind = {"leakage.scores": "scores", "leakage.ceiling": "ceiling"}.get(key, "values")
    new = {_GROUPS.get(group, group): values for group, values in groups.items()}
    label = name.partition(" per patient")[0] + (" (points)" if "error" in name else "")
    return {**fields, "kind": kind, "name": name, "label": label, "groups": new}


def _verdict(axis: str, text: str) -> dict[str, Any]:
    word, _, rest = text.partition(": ")
    said, _, rule = rest.partition(" Rule: ")
    capital = [part[:1].upper() + part[1:] for part in (said, rule)]
    level = _LEVELS.get(word, "not-measured")
    return {"axis": axis, "level": level, "word": word, "text": capital[0], "rule": capital[1]}


def _fields(patterns: tuple[tuple[str, str], ...], axis: str, name: str) -> dict[str, str]:
    for pattern, key in patterns:
        found = re.fullmatch(pattern, name)
        if found:
            parts = found.groupdict()
            start, _, measure = key.partition(".")
            fields = {"axis": start, "measure": measure or _measure(parts), **_qualifiers(start, parts)}
            fields |= {"arm": "synthetic"} if key == "utility.dice-ratio" else {}
            if key == "utility.dice-gain":
                fields["arm"] = "site-synthetic" if parts["at_site"] else "both"
            return {"id": identity(fields), **fields}
    fields = {"axis": axis, "measure": slug(name)}
    return {"id": identity(fields), **fields}


def _measure(parts: Mapping[str, str | None]) -> str:
    feature = parts.get("feature")
    return str(parts.get("measure") or ("spread" if feature == "Feature spread" else feature)).lower()


def _qualifiers(axis: str, parts: Mapping[str, str | None]) -> dict[str, str]:
    given = {name: text for name, text in parts.items() if text is not None}
    out: dict[str, str] = {name: slug(given[name]) for name in ("structure", "quantity", "attack") if name in given}
    if "space" in given:
        out["space"] = {"white box": "white-box"}.get(given["space"], given["space"])
    if "access" in given:
        out["space"] = slug(given["access"])
    if "test" in given:
        out["test"] = _TESTS.get(given["test"], given["test"])
    if "segmenter" in given:
        out["segmenter"] = _segmenter(given["segmenter"])
    if "clinical" in given:
        out["quantity"] = _CLINICAL.get(given["clinical"], "volumes")
    if "rate" in given:
        out["quantity"] = {"10.0": "fpr-1e-1", "1.0": "fpr-1e-2", "0.1": "fpr-1e-3"}[given["rate"]]
    arm = _arm(axis, parts)
    return out | ({"arm": arm} if arm else {})


def _arm(axis: str, parts: Mapping[str, str | None]) -> str | None:
    if axis == "anatomy" and "drawn" in parts:
        return "as-drawn" if parts["drawn"] else "synthetic"
    arm = parts.get("arm")
    if axis == "fidelity":
        paired = {"mask-paired": "paired", "reconstruction": "reconstruction"}
        return paired[arm] if arm else _COMPARED[parts.get("compared")]
    if arm is None:
        return None
    mixed = re.fullmatch(r"real and (\d+)% synthetic", arm)
    return f"mixed-{mixed[1]}" if mixed else _ARMS.get(arm, slug(arm))


def _segmenter(title: str) -> str:
    length = re.fullmatch(r"nnU-Net v2, 2d, (\d+) epochs of (\d+) steps", title)
    return f"nnunet-2d-{length[1]}x{length[2]}" if length else slug(title)
