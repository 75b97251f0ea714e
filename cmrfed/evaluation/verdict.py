"""The verdict on each axis as data: its level, and the numbers that decide it. The words are the catalogue's."""

import statistics
from collections.abc import Callable

import numpy as np

from cmrfed.evaluation.anatomy.comparison import ALPHA, holm
from cmrfed.evaluation.privacy.membership import Scores, excludes_chance, p_value
from cmrfed.evaluation.results.catalogue import attack_words, level_word, say
from cmrfed.evaluation.results.result import CLAIM_REFUTED, CONTROL_FAILED, Axis, Findings, Level, Metric, Verdict

UTILITY_GOOD, UTILITY_FAIR = 0.97, 0.90
SHAPE_GOOD, SHAPE_FAIR = 0.25, 0.75
MANY_COPIES = 0.05
FEWER_VALID = 0.05
"""Points below the share of real masks from which on synthetic ones are no longer good."""


def verdicts(found: Findings) -> tuple[Verdict, ...]:
    """A verdict on each axis; one whose numbers are missing is not measured."""
    rules: tuple[Callable[[Findings], Verdict], ...] = (_fidelity, _anatomy, _memorisation, _leakage, _utility)
    return tuple(rule(found) for rule in rules)


def _verdict(axis: Axis, level: Level, text: str, rule: str = "") -> Verdict:
    return Verdict(axis=axis, level=level, word=level_word(axis, level), text=text, rule=rule)


def _measured(found: Findings, key: str, **fields: str | None) -> list[Metric]:
    return [metric for metric in found.select(key, **fields) if metric.value is not None]


def _number(metric: Metric) -> float:
    return 0.0 if metric.value is None else metric.value


def _fidelity(found: Findings) -> Verdict:
    """Good: KID within the interval of real against real. Fair: below that of blurred real images. Poor: above."""
    made, real, blurred = (_measured(found, "fidelity.kid", arm=arm) for arm in _KID_ARMS)
    if not (made and real and blurred):
        return _verdict("fidelity", "not-measured", say("fidelity.missing"))
    kid, least, bad = (_number(each[0]) for each in (made, real, blurred))
    top = least if real[0].high is None else real[0].high
    level: Level = "good" if kid <= top else "fair" if kid <= bad else "poor"
    text = say("fidelity", name=made[0].name, kid=kid, real=least, top=top, blurred=bad)
    return _verdict("fidelity", level, text, say("fidelity.rule"))


_KID_ARMS = ("synthetic", "training", "blurred-training")


def _anatomy(found: Findings) -> Verdict:
    shapes = _measured(found, "anatomy.shape-distance")
    excess = [_number(shape) - (shape.reference or 0.0) for shape in shapes]
    if not excess:
        return _verdict("anatomy", "not-measured", say("anatomy.missing"))
    middle, worst = statistics.median(excess), max(excess)
    level: Level = (
        "good" if middle <= SHAPE_GOOD and worst <= SHAPE_FAIR else "fair" if middle <= SHAPE_FAIR else "poor"
    )
    text = say("anatomy", middle=middle, worst=worst)
    valid = next(iter(_measured(found, "anatomy.valid-masks", arm="synthetic")), None)
    if valid is not None and valid.reference is not None:
        drawn = _measured(found, "anatomy.valid-masks", arm="as-drawn")
        before = say("anatomy.drawn", drawn=_number(drawn[0])) if drawn else ""
        text += say("anatomy.valid", valid=_number(valid), drawn=before, real=valid.reference)
        level = "fair" if level == "good" and _number(valid) < valid.reference - FEWER_VALID else level
    return _verdict("anatomy", level, text, say("anatomy.rule", good=SHAPE_GOOD, fair=SHAPE_FAIR))


def _memorisation(found: Findings) -> Verdict:
    nearer, copies = (_measured(found, f"memorisation.{m}") for m in ("nearer-to-training", "copies"))
    if not nearer or not copies:
        return _verdict("memorisation", "not-measured", say("memorisation.missing"))
    copied = max(map(_number, copies))
    leaning = [m for m in nearer if m.low is not None and m.low > (m.reference or 0.5)]
    many = [m for m in copies if m.low is not None and m.low > (m.reference or 0.0)]
    level: Level = "none-found"
    if leaning or many:
        level = "strong-sign" if many and copied > MANY_COPIES else "some-sign"
    shares = ", ".join(say("memorisation.share", value=m.value, space=m.space) for m in nearer)
    text = say("memorisation", shares=shares, copied=copied)
    return _verdict("memorisation", level, text, say("memorisation.rule", many=MANY_COPIES))


def _leakage(found: Findings) -> Verdict:
    attacks = _measured(found, "leakage.auc")
    count = sum(m.unavailable_code == CONTROL_FAILED for m in found.select("leakage.auc"))
    failed = say("leakage.failed", count=count) if count else ""
    if not attacks:
        return _verdict("leakage", "not-measured", say("leakage.missing", failed=failed))
    hits = [m for m in attacks if excludes_chance(m.low, m.high)]
    extra = [m for key in ("adversarial-accuracy", "patients-copied") for m in _measured(found, f"leakage.{key}")]
    also = [m for m in extra if m.low is not None and m.low > 0]
    names = [say("leakage.hit", attack=attack_words(m.model_dump()), value=m.value) for m in hits]
    names += [say("leakage.also", name=m.name, value=m.value) for m in also]
    words = say("leakage.found", names=", ".join(names)) if names else say("leakage.nothing")
    text = say("leakage", attacks=len(attacks), hits=len(hits), found=words, failed=failed)
    return _verdict("leakage", _leakage_level(found, attacks, bool(names)), text, say("leakage.rule"))


def _leakage_level(found: Findings, attacks: list[Metric], sign: bool) -> Level:
    if any(warning.code == CLAIM_REFUTED for warning in found.warnings):
        return "claim-refuted"
    if min(holm([p_value(_scores(found, metric)) for metric in attacks])) < ALPHA:
        return "identified"
    return "some-sign" if sign else "none-found"


def _scores(found: Findings, metric: Metric) -> Scores:
    (series,) = found.select_series("leakage.scores", attack=metric.attack, space=metric.space)
    return Scores(np.array(series.groups["members"]), np.array(series.groups["others"]))


def _added(gain: Metric | None) -> str:
    """What the synthetic set adds to all real slices, where that was measured."""
    if gain is None or gain.value is None:
        return ""
    low, high, where = gain.low, gain.high, "around"
    if low is not None and high is not None and (low > 0 or high < 0):
        where = "above" if low > 0 else "below"
    return say("utility.added", gain=gain.value, where=say(f"utility.{where}"))


def _utility(found: Findings) -> Verdict:
    ratio = found.find("utility.dice-ratio.synthetic.holdout")
    if ratio is None or ratio.value is None:
        return _verdict("utility", "not-measured", say("utility.missing"))
    level: Level = "good" if ratio.value >= UTILITY_GOOD else "fair" if ratio.value >= UTILITY_FAIR else "poor"
    site = found.find("utility.dice-gain.site-synthetic.holdout")
    alone = say("utility.site", gain=site.value) if site and site.value is not None else ""
    added = _added(found.find("utility.dice-gain.both.holdout"))
    text = say("utility", ratio=ratio.value, added=added, site=alone)
    return _verdict("utility", level, text, say("utility.rule", good=UTILITY_GOOD, fair=UTILITY_FAIR))
