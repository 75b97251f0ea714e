"""nnU-Net v2 raw folders: ``dataset.json``, ``imagesTr/CASE_0000.nii.gz``, ``labelsTr/CASE.nii.gz``.

Source: Isensee et al., Nature Methods 2021, doi 10.1038/s41592-020-01008-z, and the nnU-Net v2 dataset format.
Labels are matched by their names. A case belongs to a patient by its identifier: ``<patient>_frameNN`` (the
lower number is taken as ED), ``<patient>_ED`` and ``<patient>_ES``; any other case is a patient of its own.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cmrfed.artifacts import read_json
from cmrfed.data.labels import Label, Phase
from cmrfed.data.sources.raw import RawPatient, RawVolume, find_nifti, guarded, nifti_files, stem_of
from cmrfed.errors import DataError

NAMES = {
    Label.BACKGROUND: ("background", "bg"),
    Label.RV: (
        "rv",
        "rvc",
        "rvbp",
        "rv cavity",
        "right ventricle",
        "right ventricle cavity",
        "right ventricular cavity",
    ),
    Label.MYO: ("myo", "lvm", "lvmyo", "lv myo", "myocardium", "lv myocardium", "left ventricular myocardium"),
    Label.LV: ("lv", "lvc", "lvbp", "lv cavity", "left ventricle", "left ventricle cavity", "left ventricular cavity"),
}
_PHASED = re.compile(r"^(?P<patient>.+)_(?P<phase>ED|ES)$", re.IGNORECASE)
_FRAME = re.compile(r"^(?P<patient>.+)_frame(?P<number>\d+)$")
_CHANNEL = re.compile(r"_\d{4}$")


def read(src: Path) -> Iterator[RawPatient]:
    """Yield the patients of imagesTr and imagesTs; a case without a label file has no mask.

    Raises:
        DataError: There is no dataset.json, it has several channels or a label whose name is not known, or there
            is no image.
    """
    description = read_json(src / "dataset.json")
    labels = label_mapping(description.get("labels"), src / "dataset.json")
    channels = description.get("channel_names", {"0": ""})
    if len(channels) != 1:
        raise DataError(f"{src} has several channels", got=channels, expected="one: short-axis cine MRI")
    cases = {p: _CHANNEL.sub("", stem_of(p)) for p in _images(src)}
    if not cases or len(set(cases.values())) != len(cases):
        raise DataError(
            f"{src} does not hold one image a case",
            got=f"{len(cases)} image(s), {len(set(cases.values()))} case(s)",
            expected="imagesTr/CASE_0000.nii.gz, each CASE once",
            do="check imagesTr and imagesTs",
        )
    by_patient: dict[str, dict[str, Path]] = {}
    for path, case in cases.items():
        match = _PHASED.match(case) or _FRAME.match(case)
        by_patient.setdefault(match["patient"] if match else case, {})[case] = path
    for name, files in sorted(by_patient.items()):
        yield guarded(name, next(iter(files.values())), partial(_patient, name, files, labels))


def _images(src: Path) -> list[Path]:
    folders = [src / name for name in ("imagesTr", "imagesTs") if (src / name).is_dir()]
    return [path for folder in folders for path in nifti_files(folder)]


def label_mapping(labels: Any, where: Path) -> dict[int, Label]:
    """Map the values of dataset.json to canonical labels by their names.

    Raises:
        DataError: A name is not known, a name stands for a region (a list of values), or a structure comes twice.
    """
    known = {name: label for label, names in NAMES.items() for name in names}
    given = labels if isinstance(labels, dict) else {}
    plain = {str(name).lower().replace("_", " ").replace("-", " ").strip(): v for name, v in given.items()}
    mapping = {int(v): known[name] for name, v in plain.items() if name in known and str(v).isdecimal()}
    if not plain or len(mapping) != len(plain) or len(set(mapping.values())) != len(mapping):
        raise DataError(
            f"the labels of {where} are not those of a short-axis heart",
            got=labels,
            expected="; ".join(f"{label.name}: {', '.join(names)}" for label, names in NAMES.items()),
            do="rename the labels in dataset.json, one number each",
        )
    return {0: Label.BACKGROUND, **mapping}


def _patient(name: str, files: dict[str, Path], labels: dict[int, Label]) -> RawPatient:
    phases, notes = _phases(name, sorted(files))
    volumes = []
    for phase, case in phases.items():
        image = files[case]
        folder = image.parent.parent / image.parent.name.replace("images", "labels")
        volumes.append(RawVolume(phase, image, find_nifti(folder, case), labels))
    return RawPatient(name, tuple(volumes), notes=notes, path=volumes[0].image_path)


def _phases(name: str, cases: list[str]) -> tuple[dict[Phase, str], tuple[str, ...]]:
    """Say which case is which phase, with what had to be assumed."""
    if all(_PHASED.match(case) for case in cases):
        phases = {Phase[case.rsplit("_", 1)[1].upper()]: case for case in cases}
        assumed = ""
    elif len(cases) == 1:
        phases = {Phase.ED: cases[0]}
        assumed = "one case whose name does not say its phase: taken as ED"
    else:
        cases = sorted(cases, key=lambda case: int(case.rsplit("_frame", 1)[-1]) if _FRAME.match(case) else -1)
        phases = dict(zip(Phase, cases, strict=False))
        assumed = "the frame with the lower number is taken as ED, the other as ES"
    if len(phases) != len(cases):
        raise DataError(f"{name} has cases of no known phase", got=cases, expected="one ED and one ES")
    return phases, (assumed,) if assumed else ()
