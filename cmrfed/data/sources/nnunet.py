"""nnU-Net v2 raw folders: ``dataset.json``, ``imagesTr/CASE_0000.nii.gz``, ``labelsTr/CASE.nii.gz``.

Source: Isensee et al., Nature Methods 2021, doi 10.1038/s41592-020-01008-z, and the nnU-Net v2 dataset format; the
dataset.json of v1 and of the Medical Segmentation Decathlon ("modality", number → name) is read too. Labels are
matched by their names. A case belongs to a patient by its identifier: ``<patient>_frameNN`` (the lower number is
taken as ED), ``<patient>_ED`` and ``<patient>_ES``; any other case is a patient of its own.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cmrfed.core.errors import DataError
from cmrfed.data.labels import Label, Phase
from cmrfed.data.sources.raw import RawPatient, RawVolume, guarded
from cmrfed.data.sources.seen import once
from cmrfed.data.sources.text import decoded
from cmrfed.data.sources.walk import SUFFIXES, Tree, stem_of, unfollowed

NAMES = {
    Label.BACKGROUND: ("background", "bg"),
    Label.RV: (
        "rv",
        "rvc",
        "rvbp",
        "rv cavity",
        "rv blood pool",
        "rv endo",
        "right ventricle",
        "right ventricle cavity",
        "right ventricle blood pool",
        "right ventricular cavity",
        "right ventricular blood pool",
    ),
    Label.MYO: (
        "myo",
        "lvm",
        "mlv",
        "lvmyo",
        "lv myo",
        "myo lv",
        "myocardium",
        "lv myocardium",
        "myocardium lv",
        "left ventricle myocardium",
        "left ventricular myocardium",
        "left myocardium",
        "lv wall",
    ),
    Label.LV: (
        "lv",
        "lvc",
        "lvbp",
        "lv cavity",
        "lv blood pool",
        "lv endo",
        "left ventricle",
        "left ventricle cavity",
        "left ventricle blood pool",
        "left ventricular cavity",
        "left ventricular blood pool",
    ),
}
PHASED = re.compile(r"(?P<patient>.+?)[_\-. ](sa[_\-. ])?(?P<phase>ED|ES)", re.IGNORECASE)
FRAMED = re.compile(r"(?P<patient>.+)[_\-. ]frame[_\-]?(?P<number>\d{1,6})", re.IGNORECASE)
_CHANNEL = re.compile(r"_(\d{4})$")
_PARTS = ("Tr", "Ts")
_LARGEST_LABEL = 255


@dataclass
class _Case:
    """One image and its mask, by where they are."""

    name: str
    part: str
    image: Path | None = None
    mask: str | None = None
    paths: list[Path] = field(default_factory=list)


def read(tree: Tree) -> Iterator[RawPatient]:
    """Yield the patients of imagesTr, imagesTs and their labels; a case without a label file has no mask.

    Raises:
        DataError: There is no dataset.json, it has several channels or a label whose name is not known, or there
            is no image.
    """
    labels = _described(tree)
    every = _cases(tree)
    if not every:
        raise _no_images(tree)
    cases = [every[key] for key in once(tree, {key: (case.name, case.paths) for key, case in every.items()})]
    _note_pairs(tree, cases)
    by_patient: dict[str, list[_Case]] = {}
    for case in cases:
        match = PHASED.fullmatch(case.name) or FRAMED.fullmatch(case.name)
        by_patient.setdefault(match["patient"] if match else case.name, []).append(case)
    for name, files in sorted(by_patient.items()):
        yield guarded(name, files[0].paths[0], partial(_patient, tree, name, files, labels))


# --- dataset.json -------------------------------------------------------------------------------
def _described(tree: Tree) -> dict[int, Label]:
    path = tree.root / "dataset.json"
    if path in tree.broken:
        raise unfollowed(path, tree.broken[path])
    if not path.is_file():
        raise DataError(f"{path} is missing", do="check the folder, or make it again")
    try:
        description = json.loads(decoded(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON", got=error, do="restore the file or make it again") from None
    if not isinstance(description, dict):
        raise DataError(f"{path} does not describe a data set", got=type(description).__name__, expected="an object")
    channels = description.get("channel_names", description.get("modality", {"0": ""}))
    if not isinstance(channels, dict | list) or len(channels) != 1:
        raise DataError(f"{tree.root} has several channels", got=channels, expected="one: short-axis cine MRI")
    ending = description.get("file_ending", SUFFIXES[0])
    if not isinstance(ending, str) or ending.lower() not in SUFFIXES:
        raise DataError(
            f"{path} names files that are not read",
            got=f"file_ending {ending!r}",
            expected=" or ".join(SUFFIXES),
            do="convert the images and labels to NIfTI",
        )
    return label_mapping(description.get("labels"), path)


def label_mapping(labels: Any, where: Path) -> dict[int, Label]:
    """Map the values of dataset.json to canonical labels by their names; {"RV": 1} and {"1": "RV"} are read.

    Raises:
        DataError: A name is not known, a name stands for a region (a list of values) or for voxels without a label,
            or a structure comes twice.
    """
    pairs = _pairs(labels)
    known = {_plain(name): label for label, names in NAMES.items() for name in names}
    strange = [f"{name!r} is a region of several" for name, value in pairs if isinstance(value, list | tuple)]
    strange += [f"{name!r} marks voxels that nobody annotated" for name, _ in pairs if _plain(name) == "ignore"]
    mapping = {
        number: known[_plain(name)]
        for name, value in pairs
        if _plain(name) in known and (number := _label_number(value)) is not None
    }
    structures = [label for number, label in mapping.items() if number]
    sound = mapping.get(0, Label.BACKGROUND) == Label.BACKGROUND and Label.BACKGROUND not in structures
    if not structures or not sound or len(mapping) != len(pairs) or len(set(structures)) != len(structures):
        raise DataError(
            f"the labels of {where} are not those of a short-axis heart",
            got="; ".join([*strange, str(labels)]),
            expected="; ".join(f"{label.name}: {', '.join(names)}" for label, names in NAMES.items()),
            do="rename the labels in dataset.json, one number each",
        )
    return {0: Label.BACKGROUND, **mapping}


def _pairs(labels: Any) -> list[tuple[str, Any]]:
    """Name and value of each label, whichever of the two is the key."""
    if not isinstance(labels, dict):
        return []
    by_number = all(_label_number(key) is not None and isinstance(value, str) for key, value in labels.items())
    return [(value, key) if by_number else (str(key), value) for key, value in labels.items()]


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-.()]+", "", name.lower())


def _label_number(value: Any) -> int | None:
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,3}(\.0+)?", str(value), re.ASCII):
        return None
    number = int(float(str(value)))
    return number if number <= _LARGEST_LABEL else None


# --- files --------------------------------------------------------------------------------------
def _cases(tree: Tree) -> dict[tuple[str, str], _Case]:
    """The cases of both parts: by part and name, in order of name."""
    cases: dict[tuple[str, str], _Case] = {}
    for part in _PARTS:
        images, masks = (_stems(tree, tree.root / f"{kind}{part}") for kind in ("images", "labels"))
        several = {m[1] for stem in images if stem not in masks and (m := _CHANNEL.search(stem))} - {"0000"}
        channels = sorted(several) if any(stem.endswith("_0000") for stem in images if stem not in masks) else []
        if channels:
            raise DataError(
                f"{tree.root} has several channels",
                got=f"images{part} with files _{', _'.join(['0000', *channels[:3]])}",
                expected="one: short-axis cine MRI, CASE_0000",
            )
        for stem, paths in images.items():
            name = stem if stem in masks else _CHANNEL.sub("", stem) if stem.endswith("_0000") else stem
            case = cases.setdefault((part, name), _Case(name, part))
            case.image, case.paths = paths[0], [*case.paths, *paths]
        for stem, paths in masks.items():
            case = cases.setdefault((part, stem), _Case(stem, part))
            case.mask, case.paths = stem, [*case.paths, *paths]
    imaged = {case.name for case in cases.values() if case.image}
    for key, case in list(cases.items()):
        if case.image is None and case.name in imaged:
            tree.leave(cases.pop(key).paths[0], "masks without their image", lost=True)
    return dict(sorted(cases.items(), key=lambda item: item[0][::-1]))


def _stems(tree: Tree, folder: Path) -> dict[str, list[Path]]:
    if folder in tree.broken:
        raise unfollowed(folder, tree.broken[folder])
    found: dict[str, list[Path]] = {}
    for path in tree.inside.get(folder, []):
        if path.name.lower().endswith(SUFFIXES) and path not in tree.folders:
            found.setdefault(stem_of(path), []).append(path)
    return found


def _no_images(tree: Tree) -> DataError:
    there = [p.name for part in _PARTS for p in tree.inside.get(tree.root / f"images{part}", [])]
    return DataError(
        f"{tree.root} does not hold one image a case",
        got=f"no NIfTI in imagesTr and imagesTs{f', but {there[0]}' if there else ''}",
        expected="imagesTr/CASE_0000.nii.gz, each CASE once",
        do="check imagesTr and imagesTs; other formats must be converted to NIfTI",
    )


def _note_pairs(tree: Tree, cases: list[_Case]) -> None:
    """Say so where cases look like two frames of one patient but are read as two patients."""
    loose = [c for c in cases if not PHASED.fullmatch(c.name) and not FRAMED.fullmatch(c.name)]
    stems: dict[str, list[_Case]] = {}
    for case in loose:
        if match := re.fullmatch(r"(.+)[_\-]\d+", case.name):
            stems.setdefault(match[1], []).append(case)
    pairs = {stem: two for stem, two in stems.items() if len(two) == 2}
    if len(pairs) > 1 and len(pairs) == len(stems):
        for two in pairs.values():
            tree.leave(two[0].paths[0].parent / two[0].name, PAIRS)


PAIRS = (
    "cases that differ from another in their last number alone, and are patients of their own here; if they are "
    "frames of one patient, call them PATIENT_frameNN"
)


# --- patients -----------------------------------------------------------------------------------
def _patient(tree: Tree, name: str, cases: list[_Case], labels: dict[int, Label]) -> RawPatient:
    repeated = sorted({c.name for c in cases if sum(c.name == other.name for other in cases) > 1})
    if repeated:
        raise DataError(
            f"{name} does not have one image a case",
            got=f"{repeated[0]} in imagesTr and in imagesTs",
            expected="each CASE once",
            do="remove one of the two",
        )
    phases, notes = _phases(name, cases)
    assumed = len(cases) > 1 and bool(notes)
    volumes = tuple(_volume(tree, phase, case, labels) for phase, case in phases.items())
    if not any(volume.mask_path for volume in volumes):
        notes = (*notes, "unlabelled: the source has no mask of this patient")
    return RawPatient(name, volumes, notes=notes, path=volumes[0].image_path, phases_assumed=assumed)


def _volume(tree: Tree, phase: Phase, case: _Case, labels: dict[int, Label]) -> RawVolume:
    folder = tree.root / f"labels{case.part}"
    mask = tree.find(folder, case.mask) if case.mask else None
    if case.image is None:
        raise DataError(
            f"{mask or folder / case.name}: its image is missing",
            expected=f"{case.name}_0000.nii.gz in images{case.part}",
            do="add the image, or remove the label",
        )
    image = tree.find(case.image.parent, stem_of(case.image))
    if image is None:
        raise DataError(f"{case.image} is gone", do="restore the file")
    return RawVolume(phase, image, mask, labels)


def _phases(name: str, cases: list[_Case]) -> tuple[dict[Phase, _Case], tuple[str, ...]]:
    """Say which case is which phase, and what had to be assumed."""
    phased = [PHASED.fullmatch(case.name) for case in cases]
    assumed = ""
    if all(phased):
        phases = {Phase[match["phase"].upper()]: case for match, case in zip(phased, cases, strict=True) if match}
    elif len(cases) == 1:
        phases = {Phase.ED: cases[0]}
        assumed = "one case whose name does not say its phase: taken as ED"
    else:
        numbered = sorted(cases, key=lambda case: int(m["number"]) if (m := FRAMED.fullmatch(case.name)) else -1)
        phases = dict(zip(Phase, numbered, strict=False))
        assumed = "names of frames do not say which is ED: the larger LV cavity decides, or else the lower number"
    if len(phases) != len(cases):
        got = [case.name for case in cases]
        raise DataError(f"{name} has cases of no known phase", got=got, expected="one ED and one ES")
    return dict(sorted(phases.items())), (assumed,) if assumed else ()
