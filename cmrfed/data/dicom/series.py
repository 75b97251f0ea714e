"""What a series shows: a short-axis cine or something else, by geometry first, words second; each with its reason."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cmrfed.data.dicom.headers import Image
from cmrfed.data.geometry.affine import ALIGNED_COSINE, BASE

LEAST_PHASES = 10
"""Fewest phases of a cine."""
LEAST_POSITIONS = 4
"""Fewest parallel positions of a short-axis stack; perfusion and scout series have three."""
SURE_DEG = 45.0
"""Largest angle between slice normal and the usual short-axis normal at which words are not needed. The two studies
that the usual normal is the mean of lie 15 degrees from it."""
POSSIBLE_DEG = 60.0
"""Largest angle at which words can say that it is one."""
PARALLEL = 0.9998
"""Least cosine between directions that count as the same (1.1 degrees)."""
SAME_POSITION_MM = 1.0
"""Largest distance along the normal between two acquisitions of one slice position."""
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
_OTHERS = (
    ("localizer", r"locali[sz]er|\blocs?\b|scout|survey|planning"),
    ("late enhancement", r"\blge\b|\bmde\b|psir|\bde\b|delayed|late ?(gad|enh)|viab|\bir\b"),
    ("perfusion", r"perf|first ?pass|dynamic"),
    ("parametric map", r"\bt[12]s? ?(star|\*)? ?map|molli|shmolli|mapping|\bmaps?\b|t2star|t2 ?\*|\becv\b"),
    ("phase contrast", r"phase ?contrast|venc|\bq?flow\b|velocity|\bpc\b"),
    ("tagging", r"\btag(s|ged|ging)?\b|spamm|grid tag"),
    ("long axis", r"[234] ?-? ?ch\b|(two|three|four|2|3|4) ?chamber|\blax\b|long ?axis|[lr]vot|outflow|\bv?h?la\b"),
    ("black blood", r"haste|(dark|black) ?blood|\bstir\b|tirm|\bt?se\b"),
    ("angiography", r"angio|\bmra\b|\bmip\b"),
)
_SHORT_AXIS = r"\bsax?\b|\bsao\b|short ?axis|\bsht? ?ax|kurzachse|petit ?axe|eje ?corto"
_PHASE_TYPES = {"P", "PHASE", "PHASE MAP", "VELOCITY", "VELOCITY MAP"}
_DERIVED_TYPES = {
    "MPR", "PROJECTION IMAGE", "MIP", "SUBTRACTION", "LOCALIZER", "T1 MAP", "T2 MAP", "T2_STAR_MAP", "R2 MAP",
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """Images of one series with one orientation."""

    images: tuple[Image, ...]

    @property
    def first(self) -> Image:
        """One of them, for what they share."""
        return self.images[0]

    @cached_property
    def words(self) -> str:
        """Description and protocol, with any separator as a space."""
        return re.sub(r"[\s_\-./\\^,;:()\[\]]+", " ", self.first.header.words).strip()

    @cached_property
    def normal(self) -> np.ndarray:
        """Unit normal (3,) of its planes in DICOM's axes."""
        return normal_of(self.first)

    @cached_property
    def tilt_deg(self) -> float:
        """Angle between its planes and those of a usual short-axis view."""
        cosine = abs(float(self.normal * LPS_TO_RAS @ BASE)) / float(np.linalg.norm(BASE))
        return float(np.degrees(np.arccos(min(cosine, 1.0))))

    @cached_property
    def positions(self) -> list[list[Image]]:
        """Its images by position along the normal, in rising order of position."""
        return by_position(self.images, self.normal)

    @property
    def says_short_axis(self) -> bool:
        """Whether its words do."""
        return re.search(_SHORT_AXIS, self.words) is not None

    @property
    def says_other(self) -> str | None:
        """What else its words say that it is."""
        return next((kind for kind, pattern in _OTHERS if re.search(pattern, self.words)), None)

    @cached_property
    def phases(self) -> int:
        """Different moments at most of its positions."""
        counts = Counter(moments(images) for images in self.positions)
        return counts.most_common(1)[0][0]

    @property
    def name(self) -> str:
        """As messages name it: by its number alone, since descriptions may hold anything."""
        number = self.first.header.series_number
        return "a series" if number is None else f"series {number}"


def split(images: Iterable[Image]) -> list[Series]:
    """Group the images of a study by series and orientation."""
    by_uid: dict[str, list[Image]] = {}
    for image in images:
        by_uid.setdefault(image.header.series, []).append(image)
    found: list[Series] = []
    for members in by_uid.values():
        groups: list[list[Image]] = []
        for image in members:
            same = next((g for g in groups if _same_directions(g[0].orientation, image.orientation)), None)
            if same is None:
                groups.append([image])
            else:
                same.append(image)
        found += [Series(tuple(group)) for group in groups]
    return found


def _same_directions(first: Sequence[float], second: Sequence[float]) -> bool:
    if first == second:
        return True
    a, b = np.array(first).reshape(2, 3), np.array(second).reshape(2, 3)
    with np.errstate(invalid="ignore"):
        return bool(((a * b).sum(1) > PARALLEL * np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)).all())


def normal_of(image: Image) -> np.ndarray:
    """Unit normal (3,): direction of rows times direction of columns."""
    across = np.cross(image.orientation[:3], image.orientation[3:])
    with np.errstate(invalid="ignore", divide="ignore"):
        return across / np.linalg.norm(across)


def by_position(images: Iterable[Image], normal: np.ndarray) -> list[list[Image]]:
    """Group images by their place along the normal, within SAME_POSITION_MM of the first of each, in rising order."""
    placed = sorted(((float(normal @ image.position), i, image) for i, image in enumerate(images)), key=lambda p: p[:2])
    groups: list[list[Image]] = []
    start = -np.inf
    for place, _, image in placed:
        if place - start > SAME_POSITION_MM:
            groups.append([])
            start = place
        groups[-1].append(image)
    return groups


def moments(images: Sequence[Image]) -> int:
    """How many different moments of the heart beat there are among images of one position.

    By trigger time; where it is absent or constant by temporal position; else each image counts.
    """
    for name in ("time", "order"):
        values = {getattr(image, name) for image in images}
        if None not in values and len(values) > 1:
            return len(values)
    return len(images)


# --- what it is not ---------------------------------------------------------------------------
def why_not(series: Series) -> str | None:
    """Why a series takes no part in the search for a short-axis cine; None where it may be one, or a part of one."""
    header = series.first.header
    kinds = set(header.image_type)
    if header.burned_in:
        return "burned-in annotation: its header says that text is drawn into the image"
    if header.colour:
        return "colour images"
    if not np.isfinite(series.normal).all() or not np.isfinite(series.first.position).all():
        return "no position and orientation"
    if kinds & _PHASE_TYPES:
        return "phase contrast, by its type"
    if kinds & _DERIVED_TYPES or header.image_type[:2] == ("DERIVED", "SECONDARY"):
        return "derived images, by their type"
    if (other := series.says_other) and not (other == "long axis" and series.says_short_axis):
        return f"{other}, by its words"
    if header.prepared:
        return "prepared by inversion, as late enhancement and maps are"
    return _why_not_by_planes(series)


def _why_not_by_planes(series: Series) -> str | None:
    directions = np.abs(np.array(series.first.orientation).reshape(2, 3))
    if (directions.max(axis=1) > ALIGNED_COSINE).all():
        return "planes parallel to the axes of the body: axial, coronal or sagittal"
    if series.tilt_deg > POSSIBLE_DEG:
        return "planes of no short-axis view"
    return None


def is_cine(series: Series) -> bool:
    """Whether a series has the phases of one heart beat at its positions, not the same moment of many."""
    if series.phases < LEAST_PHASES:
        return False
    for images in series.positions:
        times = [image.time for image in images if image.time is not None]
        if len(times) == len(images) >= LEAST_PHASES and len(set(times)) == 1 and not _has_orders(images):
            return False
        if times and max(times) - min(times) > 2 * (images[0].interval or 2000):
            return False
    return True


def _has_orders(images: Sequence[Image]) -> bool:
    return len({image.order for image in images}) > 1
