"""DICOM as scanners and archives export it: the short-axis cine of each patient, without masks, at ED and ES.

Paths, identifiers, dates and descriptions stay here: patients are named by keyed hashes, files are only counted.
"""

import re
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from cmrfed.core.artifacts import write_json
from cmrfed.core.errors import DataError
from cmrfed.core.progress import track
from cmrfed.data.dicom.burned_in import looks_like_text
from cmrfed.data.dicom.headers import DAMAGED, INDEX, Header, Image, images_of, missing_of_index
from cmrfed.data.dicom.identity import KEY_BYTES, pseudonym
from cmrfed.data.dicom.phases import HeartBeat, Segment, areas_by_masks, areas_by_motion, find_phases
from cmrfed.data.dicom.pixels import cine, grid_of_stack, sheet_of, stored
from cmrfed.data.dicom.stack import Found, Stack, find_stack
from cmrfed.data.geometry.affine import view_of
from cmrfed.data.labels import ACDC_LABELS, Phase
from cmrfed.data.pictures import save_png
from cmrfed.data.sources.raw import RawArrays, RawPatient, RawVolume, no_patients
from cmrfed.data.sources.walk import LeftOut, Tree

EVIDENCE, SET_ASIDE = "evidence", "set-aside"
"""Folders in the cohort: the curves that ED and ES were told by, and pictures of stacks that are not sure."""
COPIES = "second copies of images"
ARCHIVES = "archives (unpack them first)"
LOST_OF_INDEX = "files that a DICOMDIR names and that are not there"
BY_MOTION = "bright blood within what moves"
BY_MASKS = "masks of the LV cavity"
_ARCHIVE = re.compile(r"\.(zip|tar|tgz|gz|7z|rar|bz2|xz)$", re.IGNORECASE)


class BurnedIn(DataError):
    """Text seems to be drawn into the pixels: no picture of them may be written."""


@dataclass(frozen=True, eq=False)
class Cine:
    """A stack with its heart beat, which is found when it is first asked for.

    segment: Draws the masks whose cavity tells ED and ES; without it, see
    :func:`cmrfed.data.dicom.phases.areas_by_motion`.
    """

    stack: Stack
    segment: Segment | None = None

    @cached_property
    def beat(self) -> HeartBeat | None:
        """ED and ES; None of a stack of one phase, which counts as ED.

        Raises:
            DataError: They cannot be told, or the pixels cannot be used.
        """
        images = self.pixels()
        if len(images) == 1:
            return None
        row_mm, column_mm, _ = self.stack.spacing_mm
        if self.segment is None:
            return find_phases(areas_by_motion(images, row_mm), BY_MOTION, self.stack.since_r_wave)
        return find_phases(areas_by_masks(images, self.segment, row_mm * column_mm), BY_MASKS)

    def pixels(self) -> np.ndarray:
        """See :func:`cmrfed.data.dicom.pixels.cine`.

        Raises:
            BurnedIn: Marks on a slice do not move, as drawn text does not.
        """
        images = cine(self.stack)
        slices = [images[0]] if len(images) == 1 else [images[:, 0], images[:, images.shape[1] // 2]]
        if any(map(looks_like_text, slices)):
            raise BurnedIn(
                "text seems to be drawn into the image",
                got="bright marks that are the same at every phase",
                expected="images without burned-in annotation",
                do="export the original images",
            )
        return images


@dataclass(frozen=True)
class CineVolume(RawVolume):
    """One phase of a cine; ``image_path`` names patient and phase, not a file."""

    cine: Cine = field(kw_only=True)

    def load(self) -> RawArrays:
        """The phase in the short-axis view, base first by its place in the patient.

        Raises:
            DataError: The pixels cannot be used, or ED and ES cannot be told.
        """
        beat, images = self.cine.beat, self.cine.pixels()
        number = 0 if beat is None else beat.ed if self.phase is Phase.ED else beat.es
        grid = grid_of_stack(self.cine.stack)
        view = view_of(grid)
        image = np.ascontiguousarray(view.of(images[number].transpose(2, 1, 0)), np.float32)
        row_mm, column_mm, slice_mm = self.cine.stack.spacing_mm
        stored_mm = (column_mm, row_mm, slice_mm)
        normal, row, column = (stored_mm[axis] for axis in view.axes)
        return RawArrays(image, None, (row, column, normal), grid.frame, view.base_first, self._notes(beat))

    def _notes(self, beat: HeartBeat | None) -> tuple[str, ...]:
        how = "one phase alone: taken as ED" if beat is None else f"ED and ES by {beat.by}, without a drawn mask"
        order = "base to apex by the place of the slices in the patient"
        return (*self.cine.stack.notes, how, order)


def read(tree: Tree, key: bytes | None = None, segment: Segment | None = None) -> Iterator[RawPatient]:
    """Yield everybody of whom there is an MR image, by the headers alone; pixels are read when a volume is loaded.

    Args:
        tree: What lies below the folder.
        key: Of patients' names; without it names hold for this time alone.
        segment: Draws masks by which ED and ES are told.

    Raises:
        DataError: There is no MR image.
    """
    key = secrets.token_bytes(KEY_BYTES) if key is None else key
    images = _images(tree)
    if not images:
        raise no_patients(tree.root, "DICOM", "MR images of one study or many")
    patients: dict[str, list[Image]] = {}
    for image in images:
        patients.setdefault(_name(key, image.header), []).append(image)
    for name in sorted(patients):
        yield _patient(tree, name, patients[name], segment)


def _images(tree: Tree) -> list[Image]:
    """All MR images below a folder; what else is there is counted by kind, without names."""
    kinds: Counter[str] = Counter()
    found: dict[tuple[object, ...], Image] = {}
    with track("reading headers", len(tree.files)) as progress:
        for path in tree.files:
            images = ARCHIVES if _ARCHIVE.search(path.name) else images_of(path)
            if isinstance(images, str):
                kinds[images] += 1
                if images == INDEX and (missing := missing_of_index(path)):
                    kinds[LOST_OF_INDEX] += missing
            else:
                for image in images:
                    own = (image.header.uid, image.header.series, image.instance, image.position, image.time)
                    if found.setdefault(own, image) is not image:
                        kinds[COPIES] += 1
            progress.advance()
    tree.left_out[:] = [replace(item, path="") for item in tree.left_out]
    for kind, count in kinds.items():
        tree.left_out += [LeftOut("", kind, lost=kind in (DAMAGED, ARCHIVES, LOST_OF_INDEX))] * count
    return list(found.values())


def _name(key: bytes, header: Header) -> str:
    if header.patient_id:
        return pseudonym(key, header.patient_id, header.issuer)
    return pseudonym(key, f"study {header.study}")


def _patient(tree: Tree, name: str, images: Sequence[Image], segment: Segment | None) -> RawPatient:
    place = Path(name)
    if len({image.header.born for image in images if image.header.born}) > 1:
        problem = DataError(
            "one patient id stands for several persons",
            got="dates of birth that differ",
            expected="an id for each person",
            do="give each person an id of its own before the export",
        )
        return RawPatient(name, (), path=place, problem=problem)
    try:
        found, older = _last_usable(_by_study(images))
    except (ArithmeticError, LookupError, ValueError) as error:  # headers whose numbers contradict each other
        problem = DataError("the headers of the study contradict each other", got=type(error).__name__)
        return RawPatient(name, (), path=place, problem=problem)
    for series, reason in found.left:
        tree.left_out.append(LeftOut(f"{name} {series}", f"series, {reason}"))
    if older:
        tree.left_out.append(LeftOut(f"{name} ({older})", "other studies of a patient"))
    vendor = images[0].header.vendor
    if found.stack is None:
        keep = partial(_keep_shown, name, found.shown)
        return RawPatient(name, (), vendor=vendor, path=place, problem=found.problem, keep=keep)
    beat = Cine(found.stack, segment)
    volumes = tuple(
        CineVolume(phase, Path(f"{name}_{phase.name}"), None, ACDC_LABELS, cine=beat)
        for phase in (Phase if found.stack.phases > 1 else (Phase.ED,))
    )
    notes = () if images[0].header.patient_id else ("no patient id: each study counts as a patient",)
    return RawPatient(name, volumes, vendor=vendor, notes=notes, path=place, keep=partial(_keep_cine, name, beat))


def _by_study(images: Iterable[Image]) -> list[list[Image]]:
    """The images of each study, the last study first."""
    studies: dict[str, list[Image]] = {}
    for image in images:
        studies.setdefault(image.header.study, []).append(image)
    return sorted(studies.values(), key=lambda s: max(image.header.when for image in s), reverse=True)


def _last_usable(studies: Sequence[Sequence[Image]]) -> tuple[Found, int]:
    """What the last study with a stack holds, and how many others there are; else what stands against the last."""
    every = []
    for study in studies:
        every.append(find_stack(study))
        if every[-1].stack is not None:
            return every[-1], len(studies) - 1
    return next((found for found in every if found.searched), every[0]), len(studies) - 1


# --- what is kept -----------------------------------------------------------------------------
def _keep_cine(name: str, source: Cine, folder: Path, accepted: bool) -> None:
    """Write the curve that ED and ES were told by, or of a patient who is set aside a picture."""
    if not accepted:
        try:
            source.pixels()
        except BurnedIn:
            return
        except DataError:
            pass
        _keep_shown(name, [images[0] for images in source.stack.images], folder, accepted)
        return
    beat = source.beat
    content = {
        "patient_id": name,
        "phases": source.stack.phases,
        "slices": len(source.stack.images),
        "spacing_mm": source.stack.spacing_mm,
        "ed": 0 if beat is None else beat.ed,
        "es": None if beat is None else beat.es,
        "by": None if beat is None else beat.by,
        "area_mm2": None if beat is None else [round(v, 1) for v in beat.area],
    }
    write_json(folder / EVIDENCE / f"{name}.json", content)


def _keep_shown(name: str, images: Sequence[Image], folder: Path, accepted: bool) -> None:
    """Write a picture of images that are not sure, unless text seems to be drawn into them."""
    if not images:
        return
    usual = Counter(image.header.shape for image in images).most_common(1)[0][0]
    try:
        pixels = np.stack([stored(image) for image in images if image.header.shape == usual])
    except DataError:
        return
    if not looks_like_text(pixels):
        save_png(folder / SET_ASIDE / f"{name}.png", sheet_of(images))
