"""Is every record in every step with probability q, whatever it holds and whoever else is in it?"""

import numpy as np

from cmrfed.privacy.audit.checks import Check, Finding, binomial_p, normal_p, squares_p, worst_of, yes_or_no
from cmrfed.privacy.audit.tape import Tape

_COMMON = 300.0
"""Expected hits of a sum of products, for it to be near a normal one."""


def check_sampling(tape: Tape) -> list[Check]:
    """All lines on who takes part."""
    rate, seen = tape.event.sampling_rate, tape.seen
    twice = [f"a record was read {seen.max()} times in a step"] if seen.max(initial=0) > 1 else []
    checks = [yes_or_no("sampling: records read twice in a step", "none", twice), rates(tape)]
    present = seen > 0
    if rate == 1:
        return checks
    return [*checks, spread(present, rate), together(present, rate)]


def rates(tape: Tape) -> Check:
    """How often records were seen: all of them, each kind, each half of the site and each record."""
    present, rate = tape.seen > 0, tape.event.sampling_rate
    count = present.shape[1]
    kinds = len(tape.canaries)
    parts = {"all": present, "first half of the site": present[:, : count // 2]}
    parts |= {tape.canaries[kind].name: present[:, kind::kinds] for kind in range(min(kinds, count))}
    parts |= {f"record {record + 1}": present[:, record : record + 1] for record in range(count)}
    parts = {name: part for name, part in parts.items() if part.size}
    hits, sizes = np.array([p.sum() for p in parts.values()]), np.array([p.size for p in parts.values()])
    found = [
        Finding(name, f"{h / size:.4f}", float(p))
        for name, h, size, p in zip(parts, hits, sizes, binomial_p(hits, sizes, rate), strict=True)
    ]
    return worst_of("sampling: share of steps that a record is in", f"q = {rate:g}", found)


def empty_steps(tape: Tape) -> Check:
    """How many steps nobody was in."""
    steps, count = tape.seen.shape
    share = (1 - tape.event.sampling_rate) ** count
    empty = int((tape.seen.sum(1) == 0).sum())
    found = Finding(f"{count} records, {steps} steps", str(empty), float(binomial_p(np.array(empty), steps, share)))
    return worst_of("a site of few records: steps without any", f"{share * steps:.1f}", [found])


def spread(present: np.ndarray, rate: float) -> Check:
    """Variance of batch sizes, and of how often each record came, over that of independent draws."""
    steps, count = present.shape
    found = []
    for name, sums, trials in (("batch sizes", present.sum(1), count), ("turns of records", present.sum(0), steps)):
        variance = trials * rate * (1 - rate)
        scores = (sums - trials * rate) ** 2 / variance
        if variance >= 5:
            p_value = float(squares_p(scores.sum(), len(scores)))
        elif len(scores) >= 500:  # many records, each seldom drawn: a normal law with the exact variance
            exact = 2 + (1 - 6 * rate * (1 - rate)) / variance
            p_value = float(normal_p((scores.sum() - len(scores)) / np.sqrt(len(scores) * exact)))
        else:
            continue
        found.append(Finding(name, f"{scores.mean():.3f}", p_value))
    return worst_of("sampling: variance / that of independent draws", "1.000", found)


def together(present: np.ndarray, rate: float) -> Check:
    """How many records two steps share, and how many steps two records: exact binomial laws."""
    found = []
    for name, matrix in (("records in two steps", present), ("steps of two records", present.T)):
        few = matrix[:300].astype(float)
        rows, columns = np.triu_indices(len(few), 1)
        if not len(rows):
            continue
        shared = (few @ few.T)[rows, columns]
        p_values = binomial_p(shared, matrix.shape[1], rate**2)
        worst = int(np.argmin(p_values))
        p_value = min(1.0, float(p_values[worst]) * len(rows))
        found.append(Finding(f"of {matrix.shape[1]} {name}", f"{shared[worst]:.0f} shared", p_value))
    expected = f"{rate**2:.3g} of them"
    return worst_of("sampling: independent draws", expected, [*found, *_neighbours(present, rate)])


def _neighbours(present: np.ndarray, rate: float) -> list[Finding]:
    """Products of successive steps of a record, and of neighbouring records of a step."""
    scores = present - rate
    found = []
    for name, products in (
        ("successive steps", scores[1:] * scores[:-1]),
        ("neighbouring records", scores[:, 1:] * scores[:, :-1]),
    ):
        if products.size * min(rate, 1 - rate) ** 2 < _COMMON:
            continue
        score = float(products.sum()) / (np.sqrt(products.size) * rate * (1 - rate))
        found.append(Finding(name, f"{score / np.sqrt(products.size):+.3f} correlated", float(normal_p(score))))
    return found
