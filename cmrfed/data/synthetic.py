"""The synthetic data set: a folder of patients as NIfTI, with a manifest that says what it is.

Folder::

    manifest.json   cases.csv   images/<case>.nii.gz   masks/<case>.nii.gz   previews/*.png
    masks_as_drawn/<case>.nii.gz   (only where masks were post-processed)
    NOT-FOR-RELEASE.txt   (only where the manifest's real_content names something)

A case is one phase of one patient, named ``<patient>_<ED|ES>``; its slices run from base to apex.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cmrfed.core.artifacts import read_object, write_json, write_text
from cmrfed.core.errors import DataError
from cmrfed.core.settings.config import Section
from cmrfed.core.settings.validation import validated
from cmrfed.core.text import read_text
from cmrfed.data.geometry.affine import short_axis_affine
from cmrfed.data.labels import Label, Phase

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
AS_DRAWN = "masks_as_drawn"
NOTICE = "NOT-FOR-RELEASE.txt"
INTENDED_USE = (
    "Research on methods for cardiac MRI: training and testing of segmentation, and study of synthetic data. "
    "Not for diagnosis, treatment or any other clinical use."
)


class PrivacyStatement(Section):
    """What is promised about the patients behind the data, in words that are true as they stand."""

    differentially_private: bool
    statement: str
    unit: str | None = None
    """patient, or slice, which is weaker."""
    relation: str | None = None
    """Which data sets are indistinguishable."""
    epsilon: float | None = None
    delta: float | None = None
    epsilon_strict: float | None = None
    """The same loss at ``strict_delta``."""
    strict_delta: float | None = None
    epsilon_rdp: float | None = None
    """ε at ``delta`` under RDP accounting."""
    accountant: str | None = None
    no_patients: bool = False
    """Whether nothing at all was learned from patients of sites, so that there is nothing to protect."""
    sites: dict[str, Any] = {}
    """The largest loss that each site's ledger stated, with the hash of its last line when the site last answered."""


NOT_PRIVATE = PrivacyStatement(
    differentially_private=False,
    statement="Not differentially private. The generators were trained on patients without any formal guarantee; "
    "the data set may reveal who took part or what they look like. Treat it as you would treat the scans.",
)


PAIRED = PrivacyStatement(
    differentially_private=False,
    statement="Not differentially private, whatever the training was: the masks are real masks of hold-out patients, "
    "unchanged, and the images were drawn for them. Treat the data set as you would treat the scans.",
)

RECONSTRUCTED = PrivacyStatement(
    differentially_private=False,
    statement="Not differentially private: real images of hold-out patients, passed through an autoencoder, with their "
    "real masks. Treat the data set as you would treat the scans.",
)

SIMULATED = PrivacyStatement(
    differentially_private=False,
    no_patients=True,
    statement="No patient is behind this data set, and no generator: its patients are simulated by a numerical "
    "phantom, whatever else the run has trained on. There is nothing to protect, and nothing else is claimed.",
)

RealContent = Literal["masks", "images"]


class Completed(Section):
    """Structures of a public data set that its annotators did not draw, and that a segmenter filled in."""

    structures: tuple[str, ...]
    pixels: float
    """Share of all pixels that were filled in with a structure."""
    slices: float
    """Share of slices with such a pixel."""
    agreement: dict[str, float] = {}
    """Structure that the annotators drew → Dice of the segmenter with them, mean over volumes, before it had learned
    from these patients."""


class LearnedFrom(Section):
    """A public source that weights were learned from without accounting."""

    name: str
    licence: str | None = None
    """Terms under which it is published; None: it is simulated."""
    source: str | None = None
    """Where it comes from; None: it is simulated."""
    patients: int
    completed: Completed | None = None
    """None: the masks are as they were drawn."""

    def __str__(self) -> str:
        """Name and terms, such as ``Sunnybrook, CC0-1.0``."""
        return self.name if self.licence is None else f"{self.name}, {self.licence}"

    @property
    def in_full(self) -> str:
        """With the number of patients, the source, and which structures a segmenter filled in."""
        kind = "simulated patients" if self.licence is None else "patients"
        where = f", {self.source}" if self.source else ""
        filled = f"; {', '.join(self.completed.structures)} filled in by a segmenter" if self.completed else ""
        return f"{self}{where}: {self.patients} {kind}{filled}"


def learned_from_words(sources: Sequence[LearnedFrom]) -> str:
    """Such as ``phantom v2; Sunnybrook, CC0-1.0``; empty where there is nothing."""
    return "; ".join(map(str, sources))


class PostProcessed(Section):
    """What was done to the masks after they were drawn, and to how many."""

    method: str
    """The privacy unit of the recipe."""
    slices: int = 0
    changed: int = 0
    """Slices on which a pixel has another label than was drawn."""


class Manifest(Section):
    """The content of manifest.json."""

    schema_version: int = SCHEMA_VERSION
    name: str
    patients: int
    seed: int
    source: Literal["generators", "phantom", "relabelled"] = "generators"
    """What drew it. Of a phantom no generator and no patient is behind it; relabelled: a phantom's images under the
    labels of a segmenter that has learned from patients."""
    generators: dict[str, str]
    """Stage → digest of its weights; empty where no generator drew it."""
    experiment_digest: str | None = None
    image_value_range: tuple[float, float] = (-1.0, 1.0)
    size_px: int
    spacing_mm: tuple[float, float, float] | None = None
    """Row, column and slice spacing; None is unknown, and then the spacing in the NIfTI headers means nothing."""
    labels: dict[str, int] = {label.name: int(label) for label in Label}
    styles: tuple[str, ...] = ()
    post_processed: PostProcessed | None = None
    """None: masks are as they were drawn."""
    real_content: tuple[RealContent, ...] | None = ()
    """What in the files comes from patients without having been drawn; None: the file does not say, as those of earlier
    versions do not."""
    learned_from: tuple[LearnedFrom, ...] = ()
    """Public sources behind the data set, beside the patients whom ``privacy`` is about; their terms are passed on."""
    privacy: PrivacyStatement
    intended_use: str = INTENDED_USE
    versions: dict[str, str] = {}


def read_manifest(root: Path) -> Manifest:
    """Read the manifest.json of a synthetic data set, of this version or of one before.

    Raises:
        DataError: There is none, or it is damaged.
    """
    tree = {"real_content": None} | read_object(root / MANIFEST)
    return validated(Manifest, tree, str(root / MANIFEST), do="synthesise again")


@dataclass(frozen=True)
class Case:
    """One phase of one synthetic patient: image float32 (Z, H, W) in [-1, 1], mask uint8 (Z, H, W)."""

    case_id: str
    patient_id: str
    phase: Phase
    image: np.ndarray
    mask: np.ndarray
    spacing_mm: tuple[float, float, float] | None
    style: str
    drawn: np.ndarray | None = None
    """The mask before post-processing, where there was some."""


def affine_of(spacing_mm: tuple[float, float, float] | None, shape: tuple[int, int, int]) -> np.ndarray:
    """Affine (4, 4) of a case of ``shape`` (Z, H, W) for its arrays in the order (column, row, slice).

    It is that of a short-axis view, so that readers know from the header how the heart lies. Unknown spacing is written
    as 1 mm, columns to the left and rows to the posterior from the origin, which readers of this project take as
    unknown.
    """
    return np.diag([-1.0, -1.0, 1.0, 1.0]) if spacing_mm is None else short_axis_affine(spacing_mm, shape)


def write_case(folder: Path, case: Case) -> None:
    """Write one case as NIfTI files of the same geometry, in the order (column, row, slice)."""
    import nibabel as nib

    affine = affine_of(case.spacing_mm, case.mask.shape)
    arrays: dict[str, np.ndarray] = {"images": case.image.astype(np.float32), "masks": case.mask.astype(np.uint8)}
    if case.drawn is not None:
        arrays[AS_DRAWN] = case.drawn.astype(np.uint8)
    for kind, array in arrays.items():
        (folder / kind).mkdir(exist_ok=True, parents=True)
        volume = nib.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), affine)
        volume.header.set_xyzt_units("mm" if case.spacing_mm else "unknown")
        nib.save(volume, folder / kind / f"{case.case_id}.nii.gz")


CASE_COLUMNS = ("case", "patient", "phase", "slices", "style")


def write_index(folder: Path, manifest: Manifest, rows: list[dict[str, str | int]]) -> None:
    """Write cases.csv and, last, manifest.json: a folder with a manifest is whole."""
    with (folder / "cases.csv").open("w", newline="", encoding="utf-8") as handle:
        table = csv.DictWriter(handle, CASE_COLUMNS)
        table.writeheader()
        table.writerows(rows)
    if manifest.real_content != ():
        write_text(folder / NOTICE, f"NOT FOR RELEASE\n\n{manifest.privacy.statement}\n")
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))


def _read_index(path: Path) -> list[dict[str, str]]:
    table = csv.DictReader(io.StringIO(read_text(path), newline=""))
    rows, columns = list(table), list(table.fieldnames or ())
    again = "synthesise again"
    if not rows:
        raise DataError(f"{path} is empty", expected="at least one case", do=again)
    if not set(CASE_COLUMNS) <= set(columns):
        raise DataError(f"{path} lacks columns", got=", ".join(columns), expected=", ".join(CASE_COLUMNS), do=again)
    strange = sorted({row["phase"] for row in rows} - set(Phase.__members__))
    if strange:
        raise DataError(
            f"{path} has an unknown phase", got=", ".join(strange), expected=" or ".join(Phase.__members__), do=again
        )
    return rows


class SyntheticDataset:
    """A synthetic data set on disk."""

    def __init__(self, root: Path, manifest: Manifest, rows: list[dict[str, str]]) -> None:
        self.root, self.manifest, self.rows = root, manifest, rows

    @classmethod
    def open(cls, root: Path | str) -> "SyntheticDataset":
        """Open a folder made by `cmrfed synthesize`.

        Raises:
            DataError: The folder is not a synthetic data set, or one of its files is missing or damaged.
        """
        root = Path(root)
        if not (root / MANIFEST).is_file():
            raise DataError(
                f"{root} is not a synthetic data set",
                got="no manifest.json",
                expected="a folder made by `cmrfed synthesize`",
                do=f"cmrfed synthesize RUN_DIR --out {root} --patients 20 --seed 0",
            )
        manifest = read_manifest(root)
        if not (root / "cases.csv").is_file():
            raise DataError(f"{root}/cases.csv is missing", do="synthesise again")
        return cls(root, manifest, _read_index(root / "cases.csv"))

    @classmethod
    def open_for_release(cls, root: Path | str) -> "SyntheticDataset":
        """Open a data set that is about to be exported or shown to others.

        Raises:
            DataError: As `open`; or it holds real masks or images of patients, or does not say that it holds none.
        """
        data = cls.open(root)
        held = data.manifest.real_content
        if held is None:
            raise DataError(
                f"{data.root}/manifest.json does not say whether the data set holds real masks or images",
                got="no real_content",
                expected="a data set whose manifest says that it holds none",
                do="synthesise again with this version",
            )
        if held:
            raise DataError(
                f"{data.root} is not for release",
                got=f"real {' and '.join(held)} of patients, unchanged or passed through an autoencoder",
                expected="a data set that was drawn as a whole, such as RUN_DIR/synthetic",
                do="take the synthetic data set of the run; this one is for measurements inside the hospital",
            )
        return data

    def __len__(self) -> int:
        return len(self.rows)

    def cases(self) -> Iterator[Case]:
        """Read the cases one by one.

        Raises:
            DataError: A file is missing, damaged, or image and mask differ in shape.
        """
        kinds = ("images", "masks", *([AS_DRAWN] if self.manifest.post_processed else []))
        for row in self.rows:
            image, *masks = (self._read(kind, row["case"]) for kind in kinds)
            if any(mask.shape != image.shape for mask in masks):
                raise DataError(
                    f"image and mask of {row['case']} differ in shape",
                    got=tuple(array.shape for array in (image, *masks)),
                    do="synthesise again",
                )
            mask, drawn = masks[0], masks[1].astype(np.uint8) if len(masks) > 1 else None
            phase = Phase[row["phase"]]
            yield Case(
                row["case"],
                row["patient"],
                phase,
                image.astype(np.float32),
                mask.astype(np.uint8),
                self.manifest.spacing_mm,
                row["style"],
                drawn,
            )

    def _read(self, kind: str, case: str) -> np.ndarray:
        import nibabel as nib

        path = self.root / kind / f"{case}.nii.gz"
        try:
            return np.asarray(nib.load(path).dataobj).transpose(2, 1, 0)  # type: ignore[attr-defined]
        except Exception as error:  # nibabel raises many kinds for a damaged file
            raise DataError(
                f"{path} cannot be read", got=error, do="synthesise again, or remove the case from cases.csv"
            ) from None
