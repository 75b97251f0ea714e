"""The verdict: a word for each axis, the numbers behind it and the rule that gave it."""

import statistics

import numpy as np

from cmrfed.evaluation.anatomy import AS_DRAWN, VALID
from cmrfed.evaluation.compared import ALPHA, holm
from cmrfed.evaluation.membership import SCORES, Scores, p_value, told_apart
from cmrfed.evaluation.result import Axis, Findings, Metric

UTILITY_GOOD, UTILITY_FAIR = 0.97, 0.90
SHAPE_GOOD, SHAPE_FAIR = 0.25, 0.75
MANY_COPIES = 0.05


def verdict(found: Findings) -> dict[str, str]:
    """Axis => verdict in words. An axis whose numbers are missing is "not measured"."""
    rules = {
        "fidelity": _fidelity,
        "anatomy": _anatomy,
        "memorisation": _memorisation,
        "leakage": _leakage,
        "utility": _utility,
    }
    return {axis: rule(found) for axis, rule in rules.items()}


def _starting(found: Findings, axis: Axis, start: str) -> list[Metric]:
    return [m for m in found.metrics if m.axis == axis and m.name.startswith(start) and m.value is not None]


def _fidelity(found: Findings) -> str:
    """Good: KID within the interval of real against real. Fair: below that of blurred real images. Poor: above."""
    kids = _starting(found, "fidelity", "KID")
    floor = next((m for m in kids if m.name.endswith(", training against hold-out")), None)
    blurred = next((m for m in kids if "blurred" in m.name), None)
    if len(kids) < 3 or floor is None or blurred is None:
        return "Not measured: there is no KID with both of its yardsticks."
    kid, real, bad = kids[0].value or 0.0, floor.value or 0.0, blurred.value or 0.0
    top = floor.high if floor.high is not None else real
    word = "Good" if kid <= top else "Fair" if kid <= bad else "Poor"
    return (
        f"{word}: {kids[0].name} is {kid:.4f}; real patients against real ones have {real:.4f} (up to {top:.4f}), "
        f"slightly blurred real images {bad:.4f}. "
        "Rule: good up to the upper end for real patients, fair up to the value for blurred ones, poor above."
    )


def _anatomy(found: Findings) -> str:
    shapes = [m for m in found.metrics if m.axis == "anatomy" and m.unit == "SD of hold-out patients"]
    excess = [(m.value or 0.0) - (m.reference or 0.0) for m in shapes if m.value is not None]
    if not excess:
        return "Not measured: no shape could be compared."
    middle, worst = statistics.median(excess), max(excess)
    word = "Good" if middle <= SHAPE_GOOD and worst <= SHAPE_FAIR else "Fair" if middle <= SHAPE_FAIR else "Poor"
    valid, drawn = found.find(VALID), found.find(VALID + AS_DRAWN)
    share = ""
    if valid is not None and valid.value is not None and valid.reference is not None:
        before = f" ({drawn.value:.0%} as drawn)" if drawn is not None and drawn.value is not None else ""
        share = f" {valid.value:.0%} of synthetic masks are valid{before}, {valid.reference:.0%} of real ones."
        word = "Fair" if word == "Good" and valid.value < valid.reference - 0.05 else word
    return (
        f"{word}: shapes lie {middle:.2f} standard deviations of the hold-out's patients further off than real "
        f"ones do (median; at worst {worst:.2f}).{share} "
        f"Rule: good with a median up to {SHAPE_GOOD}, none above {SHAPE_FAIR}, and valid masks at most 5 points below "
        f"real ones; fair with a median up to {SHAPE_FAIR}; else poor."
    )


def _memorisation(found: Findings) -> str:
    nearer = _starting(found, "memorisation", "Nearer to training")
    copies = _starting(found, "memorisation", "Copies")
    if not nearer or not copies:
        return "Not measured: there are no distances."
    copied = max(m.value or 0.0 for m in copies)
    leaning = [m for m in nearer if m.low is not None and m.low > (m.reference or 0.5)]
    many = [m for m in copies if m.low is not None and m.low > (m.reference or 0.0)]
    word = "No sign of copying found"
    if leaning or many:
        word = "Strong sign of copying" if many and copied > MANY_COPIES else "Some sign of memorisation"
    shares = ", ".join(f"{m.value:.0%} in {m.name[m.name.rindex('(') + 1 : -1]}" for m in nearer)
    return (
        f"{word}: slices that lie nearer to training than to hold-out patients: {shares} (50% expected); "
        f"copies: {copied:.1%} (1% expected). This is no guarantee of privacy. "
        "Rule: some sign if an interval lies above what is expected; strong if also more than "
        f"{MANY_COPIES:.0%} are copies."
    )


def _leakage(found: Findings) -> str:
    attacks = _starting(found, "leakage", "AUC, ")
    failed = [m for m in found.metrics if m.axis == "leakage" and "failed its control" in (m.unavailable or "")]
    without = f" {len(failed)} attack(s) failed their control and say nothing." if failed else ""
    if not attacks:
        return f"Not measured: no membership attack could be made.{without} Nothing is known of leakage."
    chances = holm([p_value(_scores(found, m.name.removeprefix("AUC, "))) for m in attacks])
    hits = [m for m in attacks if told_apart(m.low, m.high)]
    extra = [m for start in ("Adversarial", "Patients copied") for m in _starting(found, "leakage", start)]
    also = [m for m in extra if m.low is not None and m.low > 0]
    names = ", ".join([f"{m.name[5:]} (AUC {m.value:.2f})" for m in hits] + [f"{m.name} ({m.value:.2f})" for m in also])
    said = f"found by {names}." if names else "none was better than chance; that they were not is no proof of privacy."
    word = "Some sign of leakage" if names else "Members were not told from others"
    word = "Members can be told from others" if min(chances) < ALPHA else word
    word = "The privacy claim does not hold" if any(t.startswith("the claim (") for t in found.warnings) else word
    return (
        f"{word}: of {len(attacks)} membership attacks, {len(hits)} told training patients from others: {said}"
        f"{without} Rule: some sign if an interval leaves out what is expected (by chance one in twenty does); members "
        "can be told from others if one of all attacks together does so with an error of one in twenty (Holm); a claim "
        "fails where members are found more often than its ε and δ allow."
    )


def _scores(found: Findings, attack: str) -> Scores:
    groups = found.series[SCORES + attack]
    return Scores(np.array(groups["members"]), np.array(groups["others"]))


def _added(gain: Metric | None) -> str:
    """What the synthetic set adds to all real slices, where that was measured."""
    if gain is None or gain.value is None:
        return ""
    low, high = gain.low, gain.high
    where = "holds 0"
    if low is not None and high is not None and (low > 0 or high < 0):
        where = "lies above 0" if low > 0 else "lies below 0"
    return f"; adding synthetic to real slices changes Dice by {gain.value:+.3f} (the interval over patients {where})"


def _utility(found: Findings) -> str:
    ratio = found.find("Dice ratio synthetic / real, hold-out")
    gain = found.find("Dice gain of adding synthetic, hold-out")
    if ratio is None or ratio.value is None:
        return "Not measured: no segmenter was trained, or the real one found nothing."
    word = "Good" if ratio.value >= UTILITY_GOOD else "Fair" if ratio.value >= UTILITY_FAIR else "Poor"
    site = found.find("Dice gain of adding synthetic to the patients of one site, hold-out")
    alone = f"; for a site with its own patients alone by {site.value:+.3f}" if site and site.value is not None else ""
    return (
        f"{word}: a segmenter trained on synthetic slices alone reaches {ratio.value:.3f} of the Dice of one trained "
        f"on real slices{_added(gain)}{alone}. "
        f"Rule: good from {UTILITY_GOOD}, fair from {UTILITY_FAIR}, else poor."
    )
