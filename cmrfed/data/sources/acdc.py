"""The ACDC layout: a folder per patient with ``<patient>_frameNN[_gt].nii[.gz]`` and ``Info.cfg``.

Source: Bernard et al., IEEE TMI 2018, doi 10.1109/TMI.2018.2837502. Info.cfg holds ED and ES (1-based frame
numbers) and Group. Without Info.cfg the annotated frame with the larger LV cavity is taken as end-diastole.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from cmrfed.core.errors import DataError
from cmrfed.data.labels import ACDC_LABELS, Label, Phase
from cmrfed.data.sources.raw import RawPatient, RawVolume, guarded, no_patients
from cmrfed.data.sources.seen import folders_without_images, once, without_images
from cmrfed.data.sources.text import decoded, frame_number
from cmrfed.data.sources.walk import Tree, is_nifti, stem_of

FRAME = re.compile(r"(?P<patient>.+)_frame_?(?P<number>\d{1,6})(?P<mask>_gt)?", re.IGNORECASE)
_INFO = ("info.cfg", "info.cfg.txt")
EXPECTED = "patient001/patient001_frame01.nii.gz and patient001/Info.cfg"


@dataclass
class _Files:
    """What lies in a folder of one patient: frame number → stems of images and of masks."""

    name: str
    folder: Path
    images: dict[int, set[str]] = field(default_factory=dict)
    masks: dict[int, set[str]] = field(default_factory=dict)
    paths: list[Path] = field(default_factory=list)
    shares_folder: bool = False


def read(tree: Tree) -> Iterator[RawPatient]:
    """Yield the patients of every folder that holds ``<patient>_frameNN`` files, and of those that lack them.

    Patients of one name in several folders are distinguished by the folders above them.

    Raises:
        DataError: There is no such file or folder.
    """
    every = _grouped(tree)
    kept = once(tree, {key: (files.name, files.paths) for key, files in every.items()})
    found = [every[key] for key in kept]
    names = ["patient001", *(files.name for files in found)]
    bare = folders_without_images(tree, {files.folder for files in every.values()}, names, _is_patient_folder)
    if not found and not bare:
        raise no_patients(tree.root, "ACDC", EXPECTED)
    repeated = {name for name, n in Counter([*(f.name for f in found), *(f.name for f in bare)]).items() if n > 1}
    for files in found:
        unique = _unique(tree, files.folder, files.name) if files.name in repeated else files.name
        yield guarded(unique, files.folder, partial(_patient, tree, unique, files))
    for folder in bare:
        yield without_images(tree, folder, EXPECTED)


def _grouped(tree: Tree) -> dict[tuple[Path, str], _Files]:
    every: dict[tuple[Path, str], _Files] = {}
    for path in sorted([*tree.nifti, *tree.broken_nifti]):
        if match := FRAME.fullmatch(stem_of(path)):
            files = every.setdefault((path.parent, match["patient"].casefold()), _Files(match["patient"], path.parent))
            kind = files.masks if match["mask"] else files.images
            kind.setdefault(int(match["number"]), set()).add(stem_of(path).casefold())
            files.paths.append(path)
        elif not stem_of(path).lower().endswith("_4d"):
            tree.leave(path, "NIfTI files whose names are not those of the layout")
    together = Counter(folder for folder, _ in every)
    for files in every.values():
        files.shares_folder = together[files.folder] > 1
        for number in sorted(set(files.masks) - set(files.images)) if files.images else ():
            tree.leave(files.folder / min(files.masks[number]), "masks without their image", lost=True)
    return every


def _is_patient_folder(inside: list[Path]) -> bool:
    return any(p.name.lower() in _INFO or (is_nifti(p) and stem_of(p).lower().endswith("_4d")) for p in inside)


def _unique(tree: Tree, folder: Path, name: str) -> str:
    return "-".join((*(part for part in folder.relative_to(tree.root).parts if part != name), name))


def _patient(tree: Tree, unique: str, files: _Files) -> RawPatient:
    info, notes = {}, list[str]()
    if files.shares_folder:
        if tree.named(files.folder, *_INFO):
            notes.append("Info.cfg is not used: its folder holds several patients")
    else:
        info = read_info(*tree.named(files.folder, *_INFO))
    known = "ed" in info and "es" in info
    if known:
        numbers = {
            phase: frame_number(info[phase.name.lower()], phase.name, f"{files.folder}/Info.cfg", 1) for phase in Phase
        }
    else:
        numbers = _phases_by_volume(tree, files)
        notes.append("no ED and ES in Info.cfg: the frame with the larger LV cavity is taken as ED")
    volumes = tuple(_volume(tree, files, phase, number, numbers) for phase, number in numbers.items())
    return RawPatient(
        unique,
        volumes,
        group=info.get("group") or None,
        notes=tuple(notes),
        path=files.folder,
        phases_assumed=not known,
    )


def _volume(tree: Tree, files: _Files, phase: Phase, number: int, wanted: dict[Phase, int]) -> RawVolume:
    if number not in files.images:
        there = f"its mask is there, its image is missing; images of frames {sorted(files.images)}"
        raise DataError(
            f"{files.folder} lacks the frames that Info.cfg names",
            got=there if number in files.masks else sorted(files.images),
            expected=sorted(wanted.values()),
            do="add the frame, or correct Info.cfg",
        )
    image = _one(tree, files, files.images[number], number)
    if image is None:
        raise DataError(f"{files.folder} lacks frame {number}", do="restore the file")
    return RawVolume(phase, image, _one(tree, files, files.masks.get(number, set()), number), ACDC_LABELS)


def _one(tree: Tree, files: _Files, stems: set[str], number: int) -> Path | None:
    if len(stems) > 1:
        raise DataError(
            f"{files.folder} holds frame {number} twice", got=", ".join(sorted(stems)), do="remove one of the two"
        )
    return tree.find(files.folder, next(iter(stems))) if stems else None


def read_info(*paths: Path) -> dict[str, str]:
    """Read ``key: value`` (or ``key = value``) lines; keys are in lower case, no file is an empty dictionary.

    Raises:
        DataError: A file cannot be read, or says two things of one key.
    """
    found: dict[str, str] = {}
    for path in paths:
        for line in decoded(path).splitlines():
            match = re.match(r"\s*([A-Za-z]\w*)\s*[:=]\s*(.*)", line)
            if not match:
                continue
            key, value = match[1].lower(), re.split(r"\s+[#;]|^[#;]", match[2])[0].strip().strip("\"'").strip()
            if found.setdefault(key, value) != value:
                raise DataError(
                    f"{path} gives {match[1]} twice", got=f"{found[key]} and {value}", do="correct the file"
                )
    return found


def _phases_by_volume(tree: Tree, files: _Files) -> dict[Phase, int]:
    masks = {n: _one(tree, files, stems, n) for n, stems in files.masks.items()}
    annotated = [n for n in files.images if masks.get(n)]
    if len(annotated) != 2:
        raise DataError(
            f"{files.folder} does not say which frame is ED and which ES",
            got=f"{len(files.images)} frame(s) of {files.name} with {len(annotated)} mask(s), no ED and ES in Info.cfg"
            + (f"; {len(files.masks)} mask(s) whose image is missing" if not files.images else ""),
            expected="Info.cfg with ED and ES, or exactly two frames with a _gt mask",
            do="write Info.cfg with the lines 'ED: <frame>' and 'ES: <frame>'",
        )
    cavity = {n: _cavity(_one(tree, files, files.images[n], n), masks[n]) for n in annotated}
    large, small = sorted(cavity, key=lambda n: -cavity[n])
    return {Phase.ED: large, Phase.ES: small}


def _cavity(image: Path | None, mask: Path | None) -> int:
    if image is None:
        return 0
    found = RawVolume(Phase.ED, image, mask, ACDC_LABELS).load().mask
    return int(np.count_nonzero(found == Label.LV))
