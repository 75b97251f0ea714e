"""Pictures that the generators of several runs draw: from noise to image, and the same masks in every family."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from cmrfed.core.errors import DataError
from cmrfed.core.precision import arithmetic
from cmrfed.data.cohort import Cohort, Volume
from cmrfed.data.labels import Phase
from cmrfed.data.pictures import coloured, grey
from cmrfed.data.synthetic import Case
from cmrfed.figures.study import Run, footer
from cmrfed.report.figure import ALARM, SOFT, STYLE, write_figure
from cmrfed.synthesis.two_stage import draw_images, image_request, image_seed

STRIDE = 200
"""Time between two frames, of 1000."""
COLUMNS = 5
"""Slices of each phase in the grid, spread evenly from base to apex."""
SHOWS_REAL = "shows a real patient: not for release"


# --- one slice, from noise to image ---------------------------------------------------------------
def patient_number(run: Run, case: Case) -> int:
    """Place of a patient in the run's data set, from 0, in the order in which patients were drawn."""
    return list(dict.fromkeys(row["patient"] for row in run.synthetic.rows)).index(case.patient_id)


def denoise(run: Run, case: Case, z: int) -> dict[float, np.ndarray]:
    """Draw slice ``z`` of a case of the run's data set once more, and keep what sampling passes through.

    Conditions, seeds, sampler and arithmetic are those of the data set, so that the last state is its image but for
    rounding, which depends on the batch.

    Returns:
        Time left, 1000 (noise) to 0 (image), in order => float32 (H, W) in [-1, 1].
    """
    style = run.synthetic.manifest.styles.index(case.style)
    seed = image_seed(run.synthetic.manifest.seed, patient_number(run, case))
    request = image_request([case.mask], [case.phase], [style], [seed])[z : z + 1]
    states: dict[float, np.ndarray] = {}

    def keep(time: float, state: torch.Tensor) -> None:
        states[time] = state[0, 0].float().numpy()

    run.generator.sample(
        request.cond,
        request.own,
        shared_seeds=request.common,
        shared=run.recipe.synthesis.shared_noise,
        precision=arithmetic(run.recipe.synthesis.precision, run.generator.device.type),
        on_state=keep,
    )
    return states


def at_stride(times: Sequence[float], stride: float = STRIDE) -> list[float | None]:
    """The time nearest to each of 1000, 1000 - stride, …, 0; None where none is nearer than to the one before.

    The first is always where sampling starts, the last always where it ends.
    """
    out: list[float | None] = [times[0]]
    for wish in np.arange(1000 - stride, 0, -stride):
        near = min(times, key=lambda time: abs(time - wish))
        out.append(near if abs(near - wish) < stride / 2 and near not in out else None)
    return [*out, times[-1]]


def denoising(folder: Path, runs: Sequence[Run]) -> str:
    """A row for each run: a mask of its data set, and the states of sampling from noise to image."""
    rows = []
    for run in runs:
        case = next(case for case in run.first_patient() if case.phase is Phase.ED)
        middle = len(case.mask) // 2
        states = denoise(run, case, middle)
        rows.append((run.label, case.mask[middle], states, at_stride(list(states))))
    with rc_context(STYLE):
        columns = 1 + max(len(times) for *_, times in rows)
        size = (0.8 + columns * 0.94, 0.4 + 1.12 * len(rows))
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.06))
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for (label, mask, states, times), line in zip(rows, axes, strict=True):
            _label(line[0], label)
            _picture(line[0], coloured(mask), "mask")
            for ax, time in zip(line[1:], times, strict=True):
                ax.set_axis_off()
                if time is not None:
                    _picture(ax, grey(states[time]), f"t = {time:.0f}")
        _foot(figure, f"noise beyond the range of images is clipped; {footer(runs)}")
        write_figure(folder, "denoising", figure)
    return "denoising"


# --- one patient, in every family -----------------------------------------------------------------
def _fits(run: Run, cases: Sequence[Case]) -> None:
    size, expected = cases[0].mask.shape[-1], run.generator.config.size_px
    if size != expected:
        raise DataError(
            f"the masks do not fit the generator of {run.folder}",
            got=f"masks of {size} px",
            expected=f"{expected} px",
            do="compare runs of one size",
        )


def drawn_for(run: Run, cases: Sequence[Case], style: int, seed: int) -> list[np.ndarray]:
    """Images of the run's generator for the masks of one patient: float32 (Z, H, W) for each case."""
    _fits(run, cases)
    return draw_images(
        run.generator,
        [case.mask for case in cases],
        [case.phase for case in cases],
        [style % run.generator.config.styles] * len(cases),
        run.recipe.synthesis,
        [seed] * len(cases),
    )


def _spread(volumes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """`COLUMNS` slices of each volume, from the first to the last; fewer where there are fewer."""
    return [v[np.unique(np.linspace(0, len(v) - 1, COLUMNS).round().astype(int))] for v in volumes]


def grid(folder: Path, runs: Sequence[Run], real: Cohort | None) -> str:
    """Masks of the first run's first patient, and the image of each run for these same masks, from the same seeds.

    Args:
        folder: Where the figure goes.
        runs: Runs of one size.
        real: Hold-out patients, the first of whom is shown too, with the masks that annotators drew.
    """
    cases = runs[0].first_patient()
    seed = image_seed(runs[0].synthetic.manifest.seed, patient_number(runs[0], cases[0]))
    style = runs[0].synthetic.manifest.styles.index(cases[0].style)
    rows = [("Mask", [coloured(m) for v in _spread([case.mask for case in cases]) for m in v])]
    for run in runs:
        drawn = _spread(drawn_for(run, cases, style, seed))
        rows.append((run.label, [grey(image) for volume in drawn for image in volume]))
    if real:
        rows += _real_rows(real)
    counts = [len(v) for v in _spread([case.mask for case in cases])]
    with rc_context(STYLE):
        write_figure(folder, "grid", _grid_figure(rows, counts, [case.phase for case in cases], runs, real is not None))
    return "grid"


def _real_rows(real: Cohort) -> list[tuple[str, list[np.ndarray]]]:
    number = next((i for i, record in enumerate(real.patients) if record.has_mask), None)
    if number is None:
        raise DataError(f"no hold-out patient of {real.name} has masks", do="leave out --show-real")
    volumes: list[Volume] = real.volumes(number)
    masks = _spread([np.asarray(volume.mask) for volume in volumes])
    images = _spread([volume.image for volume in volumes])
    return [
        ("Real, mask", [coloured(mask) for volume in masks for mask in volume]),
        ("Real", [grey(image) for volume in images for image in volume]),
    ]


def _grid_figure(
    rows: Sequence[tuple[str, list[np.ndarray]]],
    counts: Sequence[int],
    phases: Sequence[Phase],
    runs: Sequence[Run],
    shows_real: bool,
) -> Figure:
    """Rows of slices; a narrow gap stands between the phases."""
    widths = [w for count in counts for w in [1.0] * count + [0.12]][:-1]
    places = [i for i, width in enumerate(widths) if width == 1.0]
    spacing = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.02, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=(0.9 + 0.66 * len(places), 0.55 + 0.68 * len(rows)), layout=spacing)
    axes = figure.subplots(len(rows), len(widths), squeeze=False, gridspec_kw={"width_ratios": widths})
    for ax in axes.flat:
        ax.set_axis_off()
    for (label, slices), line in zip(rows, axes, strict=True):
        _label(line[0], label)
        for place, picture in zip(places, slices, strict=False):
            _picture(line[place], picture)
    first = 0
    for count, phase in zip(counts, phases, strict=True):
        axes[0][first].set_title(f"{phase.name}, base", fontsize=8, color=SOFT, loc="left", pad=3)
        axes[0][first + count - 1].set_title("apex", fontsize=8, color=SOFT, loc="right", pad=3)
        first += count + 1
    _foot(figure, footer(runs), SHOWS_REAL if shows_real else "")
    return figure


# --- parts ------------------------------------------------------------------------------------------
def _picture(ax: Any, picture: np.ndarray, below: str = "") -> None:
    ax.set_axis_off()
    ax.imshow(picture, interpolation="none")
    if below:
        ax.text(0.5, -0.05, below, transform=ax.transAxes, ha="center", va="top", fontsize=8, color=SOFT)


def _label(ax: Any, text: str) -> None:
    ax.text(-0.1, 0.5, text, transform=ax.transAxes, ha="right", va="center", fontsize=9)


def _foot(figure: Figure, text: str, alarm: str = "") -> None:
    """Which runs, in small letters; what must not be overlooked stands in red."""
    words = f"{alarm} · {text}" if alarm else text
    figure.supxlabel(words, fontsize=6, color=ALARM if alarm else SOFT, ha="left", x=0.01)
