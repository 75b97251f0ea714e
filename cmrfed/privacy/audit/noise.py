"""Is what is left of the releases, without the clipped gradients, the noise that was promised?

Every value has to be an independent standard normal one: scale, mean and shape are tested in each kind of tensor and in
each step, independence across numbers, tensors and steps.
"""

import numpy as np
from scipy import fft, stats

from cmrfed.privacy.audit.canaries import Tensors
from cmrfed.privacy.audit.checks import Check, Finding, correlation_p, normal_p, squares_p, worst_of

LEAST_PAIRS = 3000
"""Fewer products than this are far from normal at the level of an alarm."""


def check_noise(noise: np.ndarray) -> list[Check]:
    """All lines on noise.

    Args:
        noise: float64 (T, D) in units of σ·C, of successive steps of one object.
    """
    return [scale(noise), mean(noise), shape(noise), independent_numbers(noise), independent_steps(noise)]


def scale(noise: np.ndarray) -> Check:
    """Sums of squares: of all, by kind of tensor, by step, and of each number."""
    squares, parts = noise**2, _parts(noise)
    totals = np.array([squares.reshape(-1)[part].sum() for part in parts.values()])
    sizes = np.array([len(part) for part in parts.values()])
    found = _findings(parts, np.sqrt(totals / sizes), squares_p(totals, sizes), "{:.3f}")
    overall = f"{_root_mean_square(noise):.3f}; least likely: "
    return worst_of("noise: standard deviation / (σ·C)", "1.000", found, overall)


def mean(noise: np.ndarray) -> Check:
    """Means: of all, by kind of tensor, by step, and of each number."""
    parts = _parts(noise)
    totals = np.array([noise.reshape(-1)[part].sum() for part in parts.values()])
    sizes = np.array([len(part) for part in parts.values()])
    found = _findings(parts, totals / sizes, normal_p(totals / np.sqrt(sizes)), "{:+.3f}")
    overall = f"{noise.mean():+.4f}; least likely: "
    return worst_of("noise: mean / (σ·C)", "0.000", found, overall)


def _parts(noise: np.ndarray) -> dict[str, np.ndarray]:
    """Places in the flat noise: all, of each kind of tensor, of each step, and of each number over all steps."""
    places = np.arange(noise.size).reshape(noise.shape)
    parts = {"all": places.ravel(), **{name: places[:, some].ravel() for name, some in Tensors.places().items()}}
    parts |= {f"step {number + 1}": places[number] for number in range(len(noise))}
    return parts | {f"number {place + 1}": places[:, place] for place in range(noise.shape[1])}


def _findings(parts: dict[str, np.ndarray], values: np.ndarray, p_values: np.ndarray, form: str) -> list[Finding]:
    return [Finding(name, form.format(v), float(p)) for name, v, p in zip(parts, values, p_values, strict=True)]


def shape(noise: np.ndarray) -> Check:
    """Kolmogorov and Smirnov's distance from the normal law, and the largest value."""
    parts = {"all": noise, **{name: noise[:, places] for name, places in Tensors.places().items()}}
    found: list[Finding] = []
    for name, part in parts.items():
        distance = stats.kstest(part.ravel(), "norm")
        found.append(Finding(name, f"distance {distance.statistic:.4f}", float(distance.pvalue)))
        largest = float(np.abs(part).max())
        below = part.size * np.log1p(-2 * stats.norm.sf(largest))  # log of the chance that all are smaller
        p_value = 2 * min(np.exp(below), -np.expm1(below))
        found.append(Finding(name, f"largest {largest:.2f} of {part.size}", float(p_value)))
    return worst_of("noise: normal law", "distance near 0", found)


def independent_numbers(noise: np.ndarray) -> Check:
    """Correlation of numbers at every distance within a step: noise that is used twice, in a tensor or in two."""
    count = noise.shape[1]
    sums = _lagged(noise, noise).sum(0)[1:count]
    return _by_lag("noise: correlation of the numbers of a step", sums, len(noise), count, noise)


def independent_steps(noise: np.ndarray) -> Check:
    """Correlation of every two steps, and of successive ones at every distance."""
    name, count = "noise: correlation of steps", noise.shape[1]
    size = np.linalg.norm(noise, axis=1)
    rows, columns = np.triu_indices(len(noise), 1)
    if not len(rows):
        return worst_of(name, "0", [])
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = ((noise @ noise.T) / np.outer(size, size))[rows, columns]
    p_values = correlation_p(correlations, count)
    worst = int(np.argmin(p_values))
    pair = Finding(
        f"steps {rows[worst] + 1} and {columns[worst] + 1}",
        f"{correlations[worst]:+.3f}",
        min(1.0, float(p_values[worst]) * len(rows)),
    )
    sums = _lagged(noise[:-1], noise[1:]).sum(0)
    shifted = [_by_lag(name, part, len(noise) - 1, count, noise) for part in (sums[1:count], sums[: -count - 1 : -1])]
    others = [Finding("successive steps, shifted", check.measured, check.p_value) for check in shifted]
    return worst_of(name, "0", [pair, *others])


def _lagged(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Sums of left[:, i] · right[:, i + k], by k (T, size): k counts from 0, and negative ones from the end."""
    size = fft.next_fast_len(2 * left.shape[1], real=True)
    return np.asarray(fft.irfft(np.conj(fft.rfft(left, size)) * fft.rfft(right, size), size))


def _by_lag(name: str, sums: np.ndarray, steps: int, count: int, noise: np.ndarray) -> Check:
    """The largest of standardised sums of products at distances 1, 2, …, where they are of enough pairs."""
    pairs = steps * (count - 1 - np.arange(len(sums)))
    enough = pairs >= LEAST_PAIRS
    power = float((noise**2).mean())
    if not enough.any() or not np.isfinite(power) or not power:
        return worst_of(name, "0", [Finding("all", "no noise", 0.0)] if enough.any() else [])
    scores = sums[enough] / np.sqrt(pairs[enough]) / power
    worst = int(np.argmax(np.abs(scores)))
    p_value = min(1.0, float(normal_p(scores[worst])) * int(enough.sum()))
    about = f"{worst + 1} apart"
    return worst_of(name, "0", [Finding(about, f"{scores[worst] / np.sqrt(pairs[enough][worst]):+.3f}", p_value)])


def finely_spaced(noise: np.ndarray) -> Check:
    """Numbers of one step that are equal but for the sign: of noise in 16 bits, on a grid, or used again.

    Args:
        noise: float64 (D,), of the first step from weights 0 and without a record: nothing has been rounded yet.
    """
    _, repeats = np.unique(np.abs(noise), return_counts=True)
    pairs = int((repeats * (repeats - 1) // 2).sum())
    p_value = float(stats.poisson.sf(pairs - 1, 0.5)) if pairs else 1.0
    about = f"of {len(noise)} numbers"
    return worst_of("noise: equal numbers", "none", [Finding(about, f"{pairs} pairs", p_value)])


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))
