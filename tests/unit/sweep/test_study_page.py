"""The tables of docs/study.md are what the sweeps' files say, and every digest in them is that of a run."""

import math
import re
from pathlib import Path

from cmrfed.config.experiment import Experiment
from cmrfed.core.artifacts import read_json
from cmrfed.privacy.accountant import epsilon
from cmrfed.sweep.headline import headline
from cmrfed.sweep.paid import planned_events
from cmrfed.sweep.table import read_table

DOCS = Path(__file__).parents[3] / "docs"
FILES = DOCS / "img" / "study"
DIGEST = re.compile(r"\b[0-9a-f]{12}\b")


def shown() -> list[str]:
    """Rows of the page that name a run."""
    lines = (DOCS / "study.md").read_text().splitlines()
    return [line for line in lines if line.startswith("| ") and DIGEST.search(line)]


def test_every_row_is_that_of_a_table():
    found = [headline(path.stem, read_table(path)).splitlines() for path in sorted(FILES.glob("*.parquet"))]
    assert found
    assert len(shown()) > 10
    for line in shown():
        assert any(line in lines for lines in found), line


def test_every_digest_of_the_study_is_that_of_a_run_which_is_kept():
    records = {record["digest"][:12]: record for record in read_json(FILES / "study-runs.json")}
    assert {row["recipe_digest"][:12] for row in finished()} == set(records)
    named = {digest for line in shown() for digest in DIGEST.findall(line)}
    assert named
    assert named <= set(records)


def test_a_record_says_itself_what_it_is_the_digest_of():
    for record in read_json(FILES / "study-runs.json"):
        assert Experiment.model_validate(record["experiment"]).digest == record["digest"]


# --- what the text says -----------------------------------------------------------------------------
SYNTHETIC, REAL = (f"utility.dice.{arm}.holdout" for arm in ("synthetic", "real"))
KID = "fidelity.kid.synthetic.phantom-cnn-v1"


def finished() -> list[dict]:
    """Rows of all points of the study, which was run in two parts."""
    rows = [row for path in sorted(FILES.glob("*.parquet")) for row in read_table(path)]
    assert {row["sweep"] for row in rows} == {"study"}
    return [row for row in rows if row["status"] == "finished"]


def dice(training: str, metric: str, epsilon: str = "inf") -> list[float]:
    """Of DDPM from the phantom, in order of the seeds."""
    asked = {"axis.training": training, "axis.start": "phantom", "axis.epsilon": epsilon, "axis.family": "ddpm"}
    rows = [row for row in finished() if row["metric_id"] == metric and asked.items() <= row.items()]
    return [row["value"] for row in sorted(rows, key=lambda row: row["seed"])]


def between(differences: list[float]) -> str:
    """The least and the largest, as the page writes them."""
    return " to ".join(f"{end:+.3f}".replace("0.", ".") for end in (min(differences), max(differences)))


def test_what_federation_buys_is_what_the_table_says():
    text, alone = " ".join((DOCS / "study.md").read_text().split()), [f"site {i} alone" for i in range(3)]
    together = dice("federated", SYNTHETIC)
    assert len(together) == 3
    for metric in (REAL, SYNTHETIC):
        pairs = [a - b for site in alone for a, b in zip(together, dice(site, metric), strict=True)]
        assert f"is worth {between(pairs)} more" in text
    private = dice("federated", SYNTHETIC, "8")
    loss = [a - b for site in alone for a, b in zip(dice(site, REAL), private, strict=True)]
    assert f"better by {min(loss):.2f} to {max(loss):.2f}".replace("0.", ".") in text


def test_what_the_patients_paid_is_all_private_points_composed():
    runs = [Experiment.model_validate(record["experiment"]) for record in read_json(FILES / "study-runs.json")]
    private = [run for run in runs if run.privacy.private]
    events = [event for i, run in enumerate(private) for event in planned_events(run, str(i))]
    loss = epsilon(events, min(run.privacy.target_delta for run in private)).prv
    text = " ".join((DOCS / "study.md").read_text().split())
    assert (
        f"Over the {len(private)} private points the patients paid at most ε = {math.ceil(loss * 1000) / 1000}" in text
    )


def test_what_the_public_start_buys_is_what_the_tables_say():
    text = " ".join((DOCS / "study.md").read_text().split())
    for metric, private in ((SYNTHETIC, True), (SYNTHETIC, False), (KID, False)):
        ends = {}
        for start in ("nothing", "phantom"):
            values = [
                row["value"]
                for row in finished()
                if row["metric_id"] == metric
                and (row["axis.start"], row["axis.training"], row["seed"]) == (start, "federated", 0)
                and row["axis.epsilon"] != "0"
                and (row["axis.epsilon"] != "inf") == private
            ]
            assert len(values) == (9 if private else 3)
            ends[start] = " to ".join(
                f"{v:.3f}".lstrip("0") if v < 1 else f"{v:.2f}" for v in (min(values), max(values))
            )
        assert re.search(rf"{ends['nothing']}( after 12 rounds)?, against {ends['phantom']}", text), ends


def test_what_attacks_see_is_what_the_table_says():
    text = " ".join((DOCS / "study.md").read_text().split())
    seen: dict[str, list[bool]] = {}
    for row in finished():
        if row["measure"] == "auc" and row["low"] is not None:
            training = row["axis.training"].replace("0", "").replace("1", "").replace("2", "")
            level = "finite" if row["axis.epsilon"] not in ("0", "inf") else row["axis.epsilon"]
            start = "" if row["axis.start"] == "phantom" else " from nothing"
            seen.setdefault(f"{training} {level}{start}", []).append(row["low"] > 0.5)
    counts = {key: (sum(found), len(found)) for key, found in seen.items()}
    words = ("zero", "one", "two", "three", "four")
    for key, where in (
        ("federated finite", "at finite ε"),
        ("federated 0", "at ε = 0"),
        ("federated finite from nothing", "at finite ε where images start from nothing"),
        ("federated inf from nothing", "of these without privacy"),
        ("federated inf", "on the federation's sets without privacy"),
        ("central inf", "on those of central training"),
        ("site  alone inf", "on those of hospitals alone"),
    ):
        assert f"{words[counts[key][0]]} of {counts[key][1]} {where}" in text
