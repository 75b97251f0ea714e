import pytest

from cmrfed.sweep.headline import HEADLINE, headline
from cmrfed.sweep.results import run
from cmrfed.sweep.summary import number, over_seeds
from cmrfed.sweep.table import read_table
from tests.sweep_world import give_orders, make_sweep, nothing_shared, stub


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("headline")
    sweep, folder = make_sweep(tmp_path), tmp_path / "run"
    failing = next(point.name for point in sweep.points if point.name.startswith("family-fm.epsilon-2.seed-1"))
    give_orders(sweep, folder, **{failing: {"error": "no memory"}})
    run(sweep, folder, 2, command=stub, prepare=nothing_shared)
    return folder


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_a_row_for_each_choice_but_the_seed_with_the_mean_over_seeds(folder):
    text, table = (folder / HEADLINE).read_text(), read_table(folder / "results.csv")
    heads, _, *lines = cells(text)
    expected = [[f, e, "2"] for f in ("ddpm", "fm") for e in ("inf", "8", "2")]
    assert [line[:3] for line in lines] == [*expected[:-1], ["fm", "2", "1 of 2"]]
    line = dict(zip(heads, lines[1], strict=True))
    measured = [
        (row["value"], row["low"], row["high"])
        for row in table
        if row["axis.family"] == "ddpm" and row["epsilon"] == 8 and row["metric_id"] == "utility.dice.synthetic.holdout"
    ]
    value, low, high = over_seeds(measured)
    assert line["Dice, synthetic only"] == f"{number(value)} ({number(low)} to {number(high)})"
    digests = {row["recipe_digest"][:12] for row in table if row["axis.family"] == "ddpm" and row["epsilon"] == 8}
    assert set(line["digests"].split(", ")) == digests
    assert len(digests) == 2
    assert "Not for release" in text


def test_what_has_no_value_is_unavailable_and_says_why(folder):
    text = (folder / HEADLINE).read_text()
    heads, _, *lines = cells(text)
    last = dict(zip(heads, lines[-1], strict=True))
    assert last["Dice, real only"] == "unavailable"
    assert "- fm, 2: a point is failed: no memory" in text
    assert "Dice, real only was not measured" in text


def test_no_claim_is_put_together_where_one_point_has_none(folder):
    table = [row | {"epsilon_claimed": None} for row in read_table(folder / "results.csv")]
    assert all(line[3] == "none" for line in cells(headline("s", table))[2:])
