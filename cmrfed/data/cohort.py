"""A cohort: prepared patients in memory-mapped files; its items are patients, its rows are slices.

Folder::

    cohort.json      schema version, name, size, labels, number of patients and slices, digest of the content
    patients.jsonl   one PatientRecord a line
    slices.npy       structured (S,): patient, phase, position index, slices in the volume
    images.npy       float16 (S, H, W) in [-1, 1]
    masks.npy        uint8 (S, H, W), canonical labels (all 0 where the patient has no mask)
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from cmrfed.core.artifacts import digest_bytes, digest_json, new_folder, read_object, write_json, write_text
from cmrfed.core.errors import DataError
from cmrfed.core.rng import uniform
from cmrfed.core.settings.config import Section
from cmrfed.core.text import one_line, parse_json, read_text
from cmrfed.data.labels import Label, Phase
from cmrfed.data.preparation.account import Account

SCHEMA_VERSION = 2
"""2: hearts are shown in one view, whatever the order of axes in their files; in version 1 they lie as stored."""
SLICE_DTYPE = np.dtype([("patient", "<i4"), ("phase", "i1"), ("index", "<i2"), ("count", "<i2")])


class PatientRecord(Section):
    """What is known of a patient beside the pixels; None means that the source does not say."""

    patient_id: str
    group: str | None = None
    vendor: str | None = None
    centre: str | None = None
    has_mask: bool = True
    spacing_mm: tuple[float, float, float] | None = None
    """Row, column and slice spacing of the *prepared* pixels in mm; None is unknown."""
    notes: tuple[str, ...] = ()

    def place(self, seed: int, *purpose: str) -> float:
        """A number in [0, 1) that follows from seed, purpose, centre and identifier, whoever the others are.

        `pool` puts the centre before identifiers where two hospitals use the same ones: that changes no place.
        """
        own = self.patient_id.removeprefix(f"{self.centre}-")
        return uniform(seed, *purpose, self.centre or "", own)


class CohortHeader(Section):
    """The content of cohort.json."""

    schema_version: int
    name: str
    source: str
    size_px: int
    labels: tuple[int, ...]
    """Structures that the annotators drew; Sunnybrook, for example, has (3,)."""
    patients: int
    slices: int
    preparation: dict[str, float | int | str | None]
    digest: str
    account: Account | None = None
    """Who was found in the source and what became of them; None where nobody counted."""


@dataclass(frozen=True)
class Volume:
    """One phase of one patient, from base to apex.

    image: float32 (Z, H, W) in [-1, 1]. mask: uint8 (Z, H, W) canonical, or None.
    spacing_mm: row, column, slice, or None.
    """

    patient_id: str
    phase: Phase
    image: np.ndarray
    mask: np.ndarray | None
    spacing_mm: tuple[float, float, float] | None


@dataclass(frozen=True)
class PreparedPatient:
    """A record with its prepared volumes, on the way into a cohort folder."""

    record: PatientRecord
    volumes: tuple[Volume, ...]


def write_cohort(
    path: Path,
    patients: Iterable[PreparedPatient],
    *,
    name: str,
    source: str,
    size_px: int,
    labels: Sequence[int] | None,
    preparation: dict[str, float | int | str | None],
    account: Callable[[], Account | None] = lambda: None,
) -> "Cohort":
    """Write prepared patients as a cohort folder; the folder appears only when it is whole.

    ``labels`` are the structures that the annotators drew; None takes those found in the masks. ``account`` is asked
    when all patients have been taken.

    Raises:
        DataError: There is no patient, a patient comes twice, or a volume has another size.
    """
    records: list[PatientRecord] = []
    rows, images, masks = [], [], []
    found: set[int] = set()
    for patient in patients:
        if patient.record.patient_id in {r.patient_id for r in records}:
            raise DataError(f"patient {patient.record.patient_id} comes twice", do="rename or remove one of the two")
        for volume in sorted(patient.volumes, key=lambda v: v.phase):
            depth = len(volume.image)
            if volume.image.shape != (depth, size_px, size_px):
                raise DataError(
                    f"{patient.record.patient_id} has another size",
                    got=volume.image.shape,
                    expected=(depth, size_px, size_px),
                )
            rows += [(len(records), int(volume.phase), z, depth) for z in range(depth)]
            images.append(volume.image.astype(np.float16, copy=False))
            masks.append(
                np.zeros(volume.image.shape, np.uint8) if volume.mask is None else volume.mask.astype(np.uint8)
            )
            found.update(np.unique(masks[-1][masks[-1] > 0]).tolist())
        records.append(patient.record)
    if not rows:
        raise DataError(
            "the cohort would be empty",
            got="no usable patient",
            expected="at least one",
            do="run `cmrfed verify` on the source to see why files were set aside",
        )
    lines = [record.model_dump_json() for record in records]
    with new_folder(path) as part:
        np.save(part / "slices.npy", np.array(rows, SLICE_DTYPE))
        np.save(part / "images.npy", np.concatenate(images))
        np.save(part / "masks.npy", np.concatenate(masks))
        write_text(part / "patients.jsonl", "\n".join(lines) + "\n")
        digest = digest_json(
            [
                lines,
                [digest_bytes(np.load(part / f"{n}.npy").tobytes()) for n in ("slices", "images", "masks")],
            ]
        )
        header = CohortHeader(
            schema_version=SCHEMA_VERSION,
            name=name,
            source=source,
            size_px=size_px,
            labels=tuple(sorted(int(v) for v in (found if labels is None else labels))),
            patients=len(records),
            slices=len(rows),
            preparation=preparation,
            digest=digest,
            account=account(),
        )
        write_json(part / "cohort.json", header.model_dump(mode="json"))
    return Cohort.open(path)


class Cohort(Sequence[PatientRecord]):
    """A cohort folder, or a selection of its patients. ``len()`` is the number of patients."""

    def __init__(self, root: Path, header: CohortHeader, chosen: Sequence[str] | None = None) -> None:
        self.root, self.header = root, header
        self._chosen = None if chosen is None else tuple(chosen)

    @classmethod
    def open(cls, root: Path | str, patients: Sequence[str] | None = None) -> "Cohort":
        """Open a cohort folder; arrays are memory-mapped when they are first used.

        Raises:
            DataError: The folder is not a cohort, is of another schema, or lacks a named patient.
        """
        root = Path(root).absolute()
        if not (root / "cohort.json").is_file():
            raise DataError(
                f"{root} is not a cohort",
                got="no cohort.json",
                expected="a folder made by `cmrfed prepare`",
                do=f"cmrfed prepare SOURCE {root} --source acdc",
            )
        raw = read_object(root / "cohort.json")
        if raw.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"{root} was prepared by another version of this project, which may have turned hearts another way",
                got=f"schema version {raw.get('schema_version')}",
                expected=f"{SCHEMA_VERSION}",
                do=f"prepare it again: cmrfed prepare SOURCE {root} --source {raw.get('source') or 'acdc'}",
            )
        try:
            header = CohortHeader.model_validate(raw)
        except ValidationError as error:
            raise DataError(f"{root}/cohort.json is damaged", got=str(error), do="prepare the cohort again") from None
        cohort = cls(root, header)
        return cohort if patients is None else cohort.select(patients)

    # --- what it is -------------------------------------------------------------------------
    @property
    def name(self) -> str:
        """Short name, for messages and reports."""
        return self.header.name

    @property
    def size_px(self) -> int:
        """Height and width of every slice."""
        return self.header.size_px

    @property
    def labels(self) -> tuple[Label, ...]:
        """Structures that the annotators drew."""
        return tuple(Label(v) for v in self.header.labels)

    @cached_property
    def digest(self) -> str:
        """Digest of the content: the folder's own, or folder and selection."""
        return self.header.digest if self._chosen is None else digest_json([self.header.digest, list(self._chosen)])

    @cached_property
    def _all_records(self) -> tuple[PatientRecord, ...]:
        path = self.root / "patients.jsonl"
        lines = read_text(path).split("\n")  # a name may hold what splitlines takes for an end
        try:
            return tuple(PatientRecord.model_validate(parse_json(line)) for line in lines if line)
        except ValueError as error:
            raise DataError(f"{path} is damaged", got=one_line(error)[:200], do="prepare the cohort again") from None

    @cached_property
    def _numbers(self) -> np.ndarray:
        if self._chosen is None:
            return np.arange(self.header.patients)
        place = {record.patient_id: i for i, record in enumerate(self._all_records)}
        unknown = [p for p in self._chosen if p not in place]
        if unknown:
            raise DataError(f"{self.root} lacks patients", got=unknown[:5], expected="identifiers in patients.jsonl")
        return np.array([place[p] for p in self._chosen], int)

    @cached_property
    def patients(self) -> tuple[PatientRecord, ...]:
        """The records, in order."""
        return tuple(self._all_records[i] for i in self._numbers)

    @property
    def patient_ids(self) -> tuple[str, ...]:
        """The identifiers, in order."""
        return tuple(p.patient_id for p in self.patients)

    def pseudonym(self, patient_id: str) -> str:
        """A name for a patient that the identifier alone does not give: keyed by the pixels of the whole folder.

        The same in every selection of the folder, so that those who have the cohort can find the patient again, and
        nobody else.
        """
        key = bytes.fromhex(digest_json(["pseudonym", self.header.digest]))
        return f"real-{hashlib.blake2b(patient_id.encode(), key=key, digest_size=6).hexdigest()}"

    def __len__(self) -> int:
        return self.header.patients if self._chosen is None else len(self._chosen)

    def __getitem__(self, i: int) -> PatientRecord:  # type: ignore[override]
        return self.patients[i]

    # --- pixels -----------------------------------------------------------------------------
    def _map(self, name: str) -> np.ndarray:
        try:
            return np.load(self.root / f"{name}.npy", mmap_mode="r")
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.root}/{name}.npy cannot be read", got=error, do="prepare the cohort again"
            ) from None

    @cached_property
    def images(self) -> np.ndarray:
        """float16 (S, H, W), memory-mapped: all rows of the folder."""
        return self._map("images")

    @cached_property
    def masks(self) -> np.ndarray:
        """uint8 (S, H, W), memory-mapped: all rows of the folder."""
        return self._map("masks")

    @cached_property
    def slices(self) -> np.ndarray:
        """Structured (S,) with patient, phase, index (0 = base) and count: all rows of the folder."""
        return self._map("slices")

    @cached_property
    def rows_of(self) -> tuple[np.ndarray, ...]:
        """Per chosen patient, the rows of its slices (ED base → apex, then ES base → apex)."""
        owners = np.asarray(self.slices["patient"])
        starts = np.searchsorted(owners, self._numbers, "left")
        stops = np.searchsorted(owners, self._numbers, "right")
        return tuple(np.arange(a, b) for a, b in zip(starts, stops, strict=True))

    @cached_property
    def rows(self) -> np.ndarray:
        """All rows of the chosen patients."""
        return np.concatenate(self.rows_of) if len(self) else np.zeros(0, int)

    def volumes(self, i: int) -> list[Volume]:
        """The volumes of patient ``i``, ED before ES, slices from base to apex."""
        rows, record = self.rows_of[i], self.patients[i]
        out = []
        for phase in Phase:
            mine = rows[np.asarray(self.slices["phase"][rows]) == phase]
            if len(mine):
                mask = np.array(self.masks[mine]) if record.has_mask else None
                out.append(
                    Volume(
                        record.patient_id,
                        phase,
                        np.asarray(self.images[mine], np.float32),
                        mask,
                        record.spacing_mm,
                    )
                )
        return out

    def iter_volumes(self) -> Iterator[Volume]:
        """All volumes of all chosen patients."""
        for i in range(len(self)):
            yield from self.volumes(i)

    # --- parts ------------------------------------------------------------------------------
    def select(self, patient_ids: Sequence[str]) -> "Cohort":
        """The same folder, with these patients only, in this order."""
        chosen = Cohort(self.root, self.header, patient_ids)
        _ = chosen._numbers
        return chosen

    def split(self, fractions: dict[str, float], seed: int) -> dict[str, "Cohort"]:
        """Split by patient: the parts are disjoint and together are the whole.

        Each patient is placed by `PatientRecord.place`, so that adding or removing one moves nobody else: a promise
        about one patient covers the split too. The price is that sizes vary as those of independent draws do (for n
        patients and a share p by about sqrt(n p (1 - p))), and that groups are not balanced.

        Args:
            fractions: Name → share; the shares sum to 1.
            seed: Same seed, same split.

        Raises:
            DataError: There are fewer patients than parts, or a part would be empty.
        """
        if len(self) < len(fractions):
            raise DataError(
                f"cohort {self.name} is too small to split",
                got=f"{len(self)} patient(s)",
                expected=f"at least {len(fractions)}: one for each of {', '.join(fractions)}",
                do="add patients",
            )
        if abs(sum(fractions.values()) - 1) > 1e-9:
            raise DataError("the shares of a split must sum to 1", got=fractions)
        names, ends = list(fractions), np.cumsum(list(fractions.values()))[:-1]
        parts: dict[str, list[str]] = {name: [] for name in names}
        for record in self.patients:
            part = np.searchsorted(ends, record.place(seed, "split"), "right")
            parts[names[int(part)]].append(record.patient_id)
        empty = [name for name, ids in parts.items() if not ids]
        if empty:
            raise DataError(
                f"a part of cohort {self.name} would be empty: {', '.join(empty)}",
                got=f"{len(self)} patient(s), seed {seed}, shares {fractions}",
                expected="a patient in every part; each is placed by seed and identifier alone",
                do="choose another seed or another share, or add patients",
            )
        return {name: self.select(sorted(ids)) for name, ids in parts.items()}
