"""The tables of docs/study.md are what the sweeps' files say, and every digest in them is that of a run."""

import re
from pathlib import Path

from cmrfed.artifacts import read_json
from cmrfed.experiment import Experiment
from cmrfed.sweep.headline import headline
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
    table = [row for row in read_table(FILES / "study.parquet") if row["status"] == "finished"]
    assert {row["recipe_digest"][:12] for row in table} == set(records)
    named = {digest for line in shown() if "federated | phantom" in line for digest in DIGEST.findall(line)}
    assert named
    assert named <= set(records)


def test_a_record_says_itself_what_it_is_the_digest_of():
    for record in read_json(FILES / "study-runs.json"):
        assert Experiment.model_validate(record["experiment"]).digest == record["digest"]
