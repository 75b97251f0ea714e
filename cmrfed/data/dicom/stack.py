"""From the images of a study to one grid: positions along the normal times phases of the heart beat.

One series for each slice, for the whole stack or for each phase, and multi-frame objects all end as a `Stack`, whose
images are still on disk. What does not fit together is refused with a reason; nothing is filled in but phases that are
missing at single positions, from their neighbours in time, which a note says.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cmrfed.core.errors import DataError
from cmrfed.data.dicom.headers import Image
from cmrfed.data.dicom.series import (
    LEAST_PHASES,
    LEAST_POSITIONS,
    SURE_DEG,
    Series,
    by_position,
    is_cine,
    moments,
    split,
    why_not,
)
from cmrfed.data.geometry.affine import LEAST_FIELD_MM, LONGEST_STACK_MM, PLAUSIBLE_MM

COMPLETE = 0.8
"""Least share of the phases that a position must have."""
EVEN = 0.1
"""Largest deviation of a distance between slices from their median, as a share of it."""
OVERLAP = 0.9
"""Distance between slices, in thicknesses, below which they overlap."""


@dataclass(frozen=True, eq=False)
class Stack:
    """A short-axis cine on disk.

    images: [position][phase], positions in rising order along the normal of their planes. spacing_mm: rows, columns,
    slices, the last from positions. reference: the image whose rows and columns are the grid of all.
    """

    images: tuple[tuple[Image, ...], ...]
    spacing_mm: tuple[float, float, float]
    reference: Image
    notes: tuple[str, ...] = ()

    @property
    def phases(self) -> int:
        """Moments of the heart beat."""
        return len(self.images[0])

    @property
    def since_r_wave(self) -> np.ndarray | None:
        """Time of each phase since the R wave, in heart beats (median over positions); None where it is not known."""
        times = np.array([[np.nan if i.time is None else i.time for i in row] for row in self.images])
        if not np.isfinite(times).all() or len(np.unique(times[0])) < 2:
            return None
        median = np.median(times, axis=0)
        return median / (median[-1] + float(np.median(np.diff(median))))


@dataclass(frozen=True)
class Found:
    """What became of a study: a stack, or why there is none; and its other series with reasons."""

    stack: Stack | None
    problem: DataError | None = None
    left: tuple[tuple[str, str], ...] = ()
    """Name of a series, reason."""
    shown: tuple[Image, ...] = ()
    """Where there is no stack: an image of each position that was in question."""
    searched: bool = True
    """False where no series of the study had to do with a short-axis view."""


@dataclass(frozen=True)
class _Slice:
    """One acquisition of one position."""

    place: float
    images: tuple[Image, ...]
    series: str
    last: tuple[str, float, int] = field(default=("", 0.0, 0))
    """By which repeats are ordered."""

    @property
    def phases(self) -> int:
        return moments(self.images)


class Unsure(DataError):
    """A stack that cannot be put together with certainty; ``shown`` has an image of each position."""

    def __init__(self, what: str, shown: Sequence[Image], *, got: object = None, expected: object = None,
                 do: str | None = None) -> None:  # fmt: skip
        super().__init__(what, got=got, expected=expected, do=do)
        self.shown = tuple(shown)


def find_stack(images: Sequence[Image]) -> Found:
    """Find the short-axis cine of a study among all of its images."""
    left: list[tuple[str, str]] = []
    cines, stills = list[Series](), list[Series]()
    for series in split(images):
        if reason := why_not(series):
            left.append((series.name, reason))
        elif is_cine(series):
            cines.append(series)
        else:
            stills.append(series)
    merged, stills = _per_phase(stills)
    cines += merged
    one_phase = not cines
    if one_phase:
        cines, stills = _single_phase(stills)
    left += [(series.name, _not_cine(series)) for series in stills]
    groups = _parallel(cines)
    stacks = [g for g in groups if _positions(g) >= LEAST_POSITIONS]
    for group in (g for g in groups if _positions(g) < LEAST_POSITIONS):
        left += [(s.name, f"a cine of {_positions(group)} position(s), too few for a stack") for s in group]
    if not stacks:
        return Found(None, _nothing(left), tuple(left), (), searched=bool(cines))
    stacks.sort(key=lambda g: (any(s.says_short_axis for s in g), _positions(g), max(map(_last, g))))
    chosen = stacks.pop()
    left += [(s.name, "another short-axis stack of the study") for g in stacks for s in g]
    try:
        stack, more = _assemble(chosen, one_phase)
    except Unsure as error:
        return Found(None, error, tuple(left), error.shown)
    return Found(stack, None, (*left, *more))


def _nothing(left: Sequence[tuple[str, str]]) -> DataError:
    counts = Counter(reason for _, reason in left)
    return DataError(
        "no short-axis cine was found",
        got="; ".join(f"{reason} ({n})" for reason, n in counts.most_common(6)) or "no series of MR images",
        expected=f"at least {LEAST_POSITIONS} parallel positions of {LEAST_PHASES} phases or more",
        do="export the short-axis cine series of the study too",
    )


def _not_cine(series: Series) -> str:
    if series.phases >= LEAST_PHASES:
        return "one moment of many heart beats: no cine"
    return f"{'one phase' if series.phases == 1 else f'{series.phases} phases'}: no cine"


def _last(series: Series) -> tuple[str, float, int]:
    return max(_when(image) for image in series.images)


def _when(image: Image) -> tuple[str, float, int]:
    return image.header.when, float(image.header.series_number or 0), image.instance


# --- series that belong together --------------------------------------------------------------
def _per_phase(stills: list[Series]) -> tuple[list[Series], list[Series]]:
    """Merge series that hold one phase each of the same positions; what remains is returned as second."""
    kinds: dict[tuple[object, ...], list[Series]] = {}
    for series in stills:
        places = tuple(round(float(series.normal @ group[0].position)) for group in series.positions)
        kinds.setdefault((series.phases, places, series.first.header.shape, series.first.spacing), []).append(series)
    merged, rest = list[Series](), list[Series]()
    for key, members in kinds.items():
        one = Series(tuple(image for series in members for image in series.images))
        if key[0] == 1 and len(members) >= LEAST_PHASES and is_cine(one) and moments(one.positions[0]) >= LEAST_PHASES:
            merged.append(one)
        else:
            rest += members
    return merged, rest


def _single_phase(stills: list[Series]) -> tuple[list[Series], list[Series]]:
    """A stack of one phase counts only where its words say short axis, and nothing else fits."""
    good = [s for s in stills if s.phases == 1 and s.says_short_axis]
    return good, [s for s in stills if s not in good]


def _parallel(cines: Sequence[Series]) -> list[list[Series]]:
    groups: list[list[Series]] = []
    for series in cines:
        same = next((g for g in groups if _fits(g[0], series)), None)
        if same is None:
            groups.append([series])
        else:
            same.append(series)
    return groups


def _fits(first: Series, second: Series) -> bool:
    """Whether planes and rows have the same directions."""
    a, b = (np.array(s.first.orientation).reshape(2, 3) for s in (first, second))
    return bool(((a * b).sum(1) > 0.9998).all())


def _positions(group: Sequence[Series]) -> int:
    return len(by_position((image for s in group for image in s.images), group[0].normal))


# --- one stack --------------------------------------------------------------------------------
def _assemble(group: list[Series], one_phase: bool) -> tuple[Stack, list[tuple[str, str]]]:
    """Put the series of one orientation together; the second has those that were not used.

    Raises:
        Unsure: Their positions or phases do not make one stack.
    """
    normal, notes = group[0].normal, list[str]()
    candidates = [piece for series in group for piece in _slices(series, normal)]
    shown = [max(c, key=lambda s: s.last).images[0] for c in _clusters(candidates)]
    if group[0].tilt_deg > SURE_DEG and not any(s.says_short_axis for s in group):
        raise Unsure(
            "it is not sure that these planes are a short-axis view", shown,
            got=f"{group[0].tilt_deg:.0f} degrees from the usual one, and no words that say so",
            expected=f"at most {SURE_DEG:.0f} degrees",
        )  # fmt: skip
    chosen = _one_each(candidates, shown, one_phase, notes)
    left = list[tuple[str, str]]()
    problem = _uneven(chosen)
    if problem or _overlaps(chosen):
        alone = _best_alone(group, normal, one_phase)
        if alone is not None:
            others = {c.series for c in chosen} - {alone[0].series}
            left = [(s.name, "its slices lie between those of a later stack") for s in group
                    if s.first.header.series in others]  # fmt: skip
            chosen, problem = alone, None
            notes.append("stacks that interleave: the last complete one is taken")
    if problem:
        what, got, do = problem
        raise Unsure(what, shown, got=got, expected="slices at equal distances", do=do)
    _refuse_implausible(chosen, shown)
    return _stack(chosen, notes), left


def _slices(series: Series, normal: np.ndarray) -> list[_Slice]:
    """The acquisitions of each position of a series: more than one where moments come twice."""
    out = []
    for images in series.positions:
        for repeat in _repeats(images):
            place = float(np.mean([normal @ np.array(image.position) for image in repeat]))
            out.append(_Slice(place, tuple(repeat), series.first.header.series, max(map(_when, repeat))))
    return out


def _repeats(images: Sequence[Image]) -> list[list[Image]]:
    """Divide the images of a position into acquisitions: in each, time rises with the number of the image.

    Where that leaves runs that are no cine (numbers that say nothing), an acquisition has each moment once.
    """
    ordered = sorted(images, key=_when)
    runs: list[list[Image]] = []
    for image in ordered:
        if runs and image.time is not None and runs[-1][-1].time is not None and image.time > runs[-1][-1].time:
            runs[-1].append(image)
        else:
            runs.append([image])
    if len(runs) > 1 and min(map(len, runs)) >= LEAST_PHASES:
        return runs
    seen: Counter[object] = Counter()
    repeats: list[list[Image]] = []
    for image in ordered:
        key = _moment(image, images)
        if seen[key] == len(repeats):
            repeats.append([])
        repeats[seen[key]].append(image)
        seen[key] += 1
    return repeats


def _moment(image: Image, among: Sequence[Image]) -> object:
    for name in ("time", "order"):
        values = {getattr(other, name) for other in among}
        if None not in values and len(values) > 1:
            return getattr(image, name)
    return id(image)


def _clusters(candidates: Sequence[_Slice]) -> list[list[_Slice]]:
    groups: list[list[_Slice]] = []
    for piece in sorted(candidates, key=lambda c: c.place):
        if groups and piece.place - groups[-1][0].place <= 1.0:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


def _one_each(candidates: list[_Slice], shown: list[Image], one_phase: bool, notes: list[str]) -> list[_Slice]:
    """The last complete acquisition of each position."""
    clusters = _clusters(candidates)
    usual = 1 if one_phase else Counter(c.phases for c in candidates if c.phases >= LEAST_PHASES).most_common(1)[0][0]
    chosen = []
    for number, cluster in enumerate(clusters, 1):
        whole = [c for c in cluster if c.phases >= COMPLETE * usual]
        if not whole:
            raise Unsure(
                f"position {number} of {len(clusters)} lacks phases", shown,
                got=f"{max(c.phases for c in cluster)} phases", expected=f"{usual}, as others have",
                do="export the missing images too",
            )  # fmt: skip
        full = [c for c in whole if c.phases >= usual] or whole
        chosen.append(max(full, key=lambda c: c.last))
    if len(candidates) > len(chosen):
        notes.append(f"positions acquired more than once: the last complete one is taken ({len(clusters)} positions)")
    return chosen


def _uneven(chosen: Sequence[_Slice]) -> tuple[str, str, str] | None:
    """What is wrong with the distances of slices: what, got, do."""
    steps = np.diff([c.place for c in chosen])
    if not len(steps):
        return "one position alone", "1", "export the whole stack"
    usual = float(np.median(steps))
    off = np.abs(steps - usual) > max(EVEN * usual, 0.3)
    if not off.any():
        return None
    said = ", ".join(f"{step:.1f}" for step in steps)
    holes = np.abs(steps / usual - np.round(steps / usual)) < EVEN
    if (steps[off] > usual).all() and holes[off].all():
        missing = int(np.round(steps[off] / usual - 1).sum())
        return f"{missing} slice position(s) are missing", f"distances of {said} mm", "export the missing slices too"
    return "the slices do not lie at equal distances", f"distances of {said} mm", "look whether two stacks were mixed"


def _overlaps(chosen: Sequence[_Slice]) -> bool:
    thickness = chosen[0].images[0].thickness
    usual = float(np.median(np.diff([c.place for c in chosen])))
    return bool(thickness and usual < OVERLAP * thickness and len({c.series for c in chosen}) > 1)


def _best_alone(group: Sequence[Series], normal: np.ndarray, one_phase: bool) -> list[_Slice] | None:
    """The last series that is a stack at equal distances by itself."""
    for series in sorted(group, key=_last, reverse=True):
        if len(series.positions) < LEAST_POSITIONS:
            continue
        try:
            chosen = _one_each(_slices(series, normal), [], one_phase, [])
        except Unsure:
            continue
        if _uneven(chosen) is None:
            return chosen
    return None


def _refuse_implausible(chosen: Sequence[_Slice], shown: list[Image]) -> None:
    low, high = PLAUSIBLE_MM
    image = chosen[0].images[0]
    sizes = [side for c in chosen for side in c.images[0].spacing]
    field_mm = min(n * s for n, s in zip(image.header.shape, image.spacing, strict=True))
    length = chosen[-1].place - chosen[0].place
    if not (np.isfinite(sizes).all() and low <= min(sizes) and max(sizes) <= high and field_mm >= LEAST_FIELD_MM):
        raise Unsure("the pixel spacing is not plausible", shown, got=f"{sizes[0]:.3g} mm", expected=f"{low} to {high}")
    if length > LONGEST_STACK_MM:
        raise Unsure("the stack is too long", shown, got=f"{length:.0f} mm", expected=f"at most {LONGEST_STACK_MM:g}")


def _stack(chosen: list[_Slice], notes: list[str]) -> Stack:
    phases = Counter(c.phases for c in chosen).most_common(1)[0][0]
    reference = _usual([c.images[0] for c in chosen], notes)
    rows, filled = [], 0
    for piece in chosen:
        row, missing = _phases(piece, phases)
        rows.append(row)
        filled += missing
    if filled:
        notes.append(f"phases missing at single positions are taken from their neighbours in time ({filled} images)")
    step = (chosen[-1].place - chosen[0].place) / (len(chosen) - 1)
    return Stack(tuple(rows), (*reference.spacing, float(step)), reference, tuple(notes))


def _usual(images: Sequence[Image], notes: list[str]) -> Image:
    """An image with the most frequent size and spacing; a note where there are others."""
    kinds = Counter((image.header.shape, tuple(round(s, 3) for s in image.spacing)) for image in images)
    usual = kinds.most_common(1)[0][0]
    if len(kinds) > 1:
        notes.append(f"slices of {len(kinds)} sizes: all are brought onto the most frequent grid")
    fitting = [i for i in images if (i.header.shape, tuple(round(s, 3) for s in i.spacing)) == usual]
    return fitting[len(fitting) // 2]


def _phases(piece: _Slice, phases: int) -> tuple[tuple[Image, ...], int]:
    """The images of a position in order of time, ``phases`` of them, and how many had to be taken from a neighbour."""
    by_time: dict[object, Image] = {}
    for image in sorted(piece.images, key=_when):
        by_time[_moment(image, piece.images)] = image
    ordered = sorted(by_time.values(), key=lambda i: _time_key(i, piece.images))
    if len(ordered) == phases:
        return tuple(ordered), 0
    fractions = _fractions(ordered, phases)
    wanted = np.arange(phases) / phases
    apart = np.abs(wanted[:, None] - fractions[None])
    nearest = np.argmin(np.minimum(apart, 1 - apart), axis=1)
    missing = int((np.minimum(apart, 1 - apart).min(axis=1) > 0.5 / max(phases, len(ordered))).sum())
    return tuple(ordered[int(k)] for k in nearest), missing


def _time_key(image: Image, among: Sequence[Image]) -> tuple[float, tuple[str, float, int]]:
    moment = _moment(image, among)
    return (float(moment) if isinstance(moment, int | float) and moment != id(image) else 0.0), _when(image)


def _fractions(ordered: Sequence[Image], phases: int) -> np.ndarray:
    """Where in the heart beat the images lie, from 0 to below 1: by their times, else by their number."""
    times = [image.time for image in ordered]
    if None in times or len(set(times)) < 2:
        return np.arange(len(ordered)) / len(ordered)
    values = np.array(times, float)
    steps = np.diff(values)
    step = float(np.median(steps))
    if step <= 0:
        return np.arange(len(ordered)) / len(ordered)
    start = values[0] % step
    total = max(phases, round((values[-1] - start) / step) + 1)
    return np.round((values - start) / step) / total
