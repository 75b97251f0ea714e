"""The main numbers of a sweep as one Markdown table, for papers: a row for each choice of all axes but the seed."""

from collections.abc import Mapping, Sequence

from cmrfed.evaluation.results.catalogue import HEADINGS, word
from cmrfed.sweep.paid import NOT_FOR_RELEASE
from cmrfed.sweep.summary import ASKED, MEASURES, Level, answers, by_point, epsilon_text, has, over_seeds
from cmrfed.sweep.table import AXIS, Row

HEADLINE = "headline.md"
_SHOWN_DIGEST = 12

LEGEND = (
    "Dice is that of segmenters on hold-out patients, trained on the real slices that the point itself trained on, or "
    "on synthetic slices alone; of other data sets, of synthetic slices alone. Value and 95 % interval: of one seed "
    "over patients, of several their mean and Student's t over seeds. ε is what the sites' ledgers let each point "
    "claim by itself. Each digest is the one in a point's run.json."
)


def headline(sweep: str, table: Sequence[Row]) -> str:
    """The main numbers of a sweep's table in Markdown.

    Args:
        sweep: Its name.
        table: Rows as `table.rows` makes them.

    Returns:
        Title, who may see it, table, and how to read it. What has no value is "unavailable", with the reason below.
    """
    axes = [name for name in table[0] if name.startswith(AXIS) and name != f"{AXIS}seed"]
    metrics = _metrics(table)
    groups: dict[tuple[str, ...], list[list[Row]]] = {}
    for rows in by_point(table).values():
        groups.setdefault(tuple(str(rows[0][axis] or "–") for axis in axes), []).append(rows)
    heads = [*(axis.removeprefix(AXIS) for axis in axes), "seeds", "ε claimed", *metrics, "digests"]
    lines, reasons = [_line(heads), _line(["---"] * len(heads))], dict[str, None]()
    for labels, points in groups.items():
        cells = []
        for name, wanted in metrics.items():
            level = _cell(name, wanted, points)
            cells.append(level.words)
            reasons |= dict.fromkeys([f"{', '.join(labels)}: {level.reason}"] if level.reason else [])
        digests = ", ".join(rows[0]["recipe_digest"][:_SHOWN_DIGEST] for rows in points)
        finished = [rows for rows in points if rows[0]["status"] == "finished"]
        seeds = str(len(finished)) + (f" of {len(points)}" if len(finished) < len(points) else "")
        lines.append(_line([*labels, seeds, _claimed(finished), *cells, digests]))
    notes = ["", *(f"- {reason}" for reason in reasons)] if reasons else []
    return "\n".join([f"# {sweep}", "", f"{NOT_FOR_RELEASE}.", "", *lines, *notes, "", LEGEND, ""])


Wanted = Mapping[str, str | None]
"""Columns that the row of a metric has."""


def _metrics(table: Sequence[Row]) -> dict[str, Wanted]:
    """Heading → the row of the table that is shown below it."""
    synthetic = {"question": "utility", "measure": "dice", "arm": "synthetic", "structure": None}
    tests = dict.fromkeys((row["test"], row["segmenter"]) for row in table if has(row, synthetic))
    others: dict[str, Wanted] = {
        HEADINGS["dice-external"].format(test=word("test", test) + (f" ({segmenter})" if segmenter else "")): {
            **synthetic,
            "test": test,
            "segmenter": segmenter,
        }
        for test, segmenter in tests
        if (test, segmenter) != ("holdout", None)
    }
    kid = next((str(row["metric"]) for row in table if answers("fidelity", row)), MEASURES["fidelity"])
    return {
        HEADINGS["dice-real"]: {"metric_id": "utility.dice.real.holdout"},
        HEADINGS["dice-synthetic"]: ASKED["utility"],
        HEADINGS["dice-ratio"]: {"metric_id": "utility.dice-ratio.synthetic.holdout"},
        **others,
        kid: ASKED["fidelity"],
        MEASURES["leakage"]: ASKED["leakage"],
    }


def _cell(name: str, wanted: Wanted, points: Sequence[list[Row]]) -> Level:
    found, reasons = [], []
    for rows in points:
        row = next((row for row in rows if has(row, wanted)), None)
        if rows[0]["status"] != "finished":
            reasons.append(f"a point is {rows[0]['status']}" + (f": {rows[0]['reason']}" if rows[0]["reason"] else ""))
        elif row is None:
            reasons.append(f"{name} was not measured")
        elif row["value"] is None:
            reasons.append(f"{name}: {row['unavailable']}")
        else:
            found.append((row["value"], row["low"], row["high"]))
    value, low, high = over_seeds(found) if found else (None, None, None)
    return Level(points[0][0]["epsilon"], value, low, high, len(found), "; ".join(dict.fromkeys(reasons)))


def _claimed(points: Sequence[list[Row]]) -> str:
    """The largest claim of finished points; "none" where nothing is promised."""
    if not points:
        return "–"
    if points[0][0]["epsilon"] == 0:
        return "0: no patient took part"
    claims = [rows[0]["epsilon_claimed"] for rows in points]
    return "none" if any(claim is None for claim in claims) else epsilon_text(max(claims))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
