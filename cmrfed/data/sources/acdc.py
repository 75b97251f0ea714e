"""The ACDC layout: a folder per patient with ``<patient>_frameNN[_gt].nii[.gz]`` and ``Info.cfg``.

Source: Bernard et al., IEEE TMI 2018, doi 10.1109/TMI.2018.2837502. Info.cfg holds ED and ES (1-based frame
numbers) and Group. Without Info.cfg the annotated frame with the larger LV cavity is taken as end-diastole.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cmrfed.data.labels import ACDC_LABELS, Label, Phase
from cmrfed.data.sources.raw import RawPatient, RawVolume, find_nifti, guarded, nifti_files, no_patients, stem_of
from cmrfed.errors import DataError

_FRAME = re.compile(r"^(?P<patient>.+)_frame(?P<number>\d+)$")


def read(src: Path) -> Iterator[RawPatient]:
    """Yield the patients of every folder at or below ``src`` that holds ``<patient>_frameNN`` files.

    Patients of one name in several folders are told apart by the folders above them.

    Raises:
        DataError: There is no such file below ``src``.
    """
    frames: dict[tuple[Path, str], dict[int, Path]] = {}
    for path in nifti_files(src):
        if match := _FRAME.match(stem_of(path)):
            frames.setdefault((path.parent, match["patient"]), {})[int(match["number"])] = path
    if not frames:
        raise no_patients(src, "ACDC", "patient001/patient001_frame01.nii.gz and patient001/Info.cfg")
    repeated = {name for name, n in Counter(name for _, name in frames).items() if n > 1}
    for (folder, name), files in sorted(frames.items()):
        above = folder.relative_to(src).parts
        unique = "-".join((*(p for p in above if p != name), name)) if name in repeated else name
        yield guarded(unique, folder, lambda: _patient(unique, name, folder, files))  # noqa: B023 (called at once)


def _patient(unique: str, name: str, folder: Path, files: dict[int, Path]) -> RawPatient:
    info = read_info(folder / "Info.cfg")
    notes: tuple[str, ...] = ()
    if "ED" in info and "ES" in info:
        numbers = {phase: _number(folder, info, phase.name) for phase in Phase}
    else:
        numbers = _phases_by_volume(folder, name, files)
        notes = ("no ED and ES in Info.cfg: the frame with the larger LV cavity is taken as ED",)
    missing = [n for n in numbers.values() if n not in files]
    if missing:
        raise DataError(
            f"{folder} lacks the frames that Info.cfg names", got=sorted(files), expected=sorted(numbers.values())
        )
    volumes = (RawVolume(p, files[n], mask_of(files[n]), ACDC_LABELS) for p, n in numbers.items())
    return RawPatient(unique, tuple(volumes), group=info.get("Group") or None, notes=notes, path=folder)


def mask_of(image: Path) -> Path | None:
    """The ``_gt`` file beside an image, or None."""
    return find_nifti(image.parent, f"{stem_of(image)}_gt")


def read_info(path: Path) -> dict[str, str]:
    """Read ``key: value`` lines; an absent file is an empty dictionary."""
    if not path.is_file():
        return {}
    lines = (line.split(":", 1) for line in path.read_text(errors="replace").splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in lines}


def _number(folder: Path, info: dict[str, str], key: str) -> int:
    if not info[key].isdecimal():
        raise DataError(f"{folder}/Info.cfg is damaged", got=f"{key}: {info[key]}", expected=f"{key}: a frame number")
    return int(info[key])


def _phases_by_volume(folder: Path, name: str, files: dict[int, Path]) -> dict[Phase, int]:
    if len(files) != 2 or not all(mask_of(path) for path in files.values()):
        raise DataError(
            f"{folder} does not say which frame is ED and which ES",
            got=f"{len(files)} frame(s) of {name}, no ED and ES in Info.cfg",
            expected="Info.cfg with ED and ES, or exactly two frames, both with a _gt mask",
            do="write Info.cfg with the lines 'ED: <frame>' and 'ES: <frame>'",
        )
    cavity = {n: _cavity(RawVolume(Phase.ED, path, mask_of(path), ACDC_LABELS)) for n, path in files.items()}
    large, small = sorted(cavity, key=lambda n: -cavity[n])
    return {Phase.ED: large, Phase.ES: small}


def _cavity(volume: RawVolume) -> int:
    mask = volume.load().mask
    return int(np.count_nonzero(mask == Label.LV))
