import math

import pytest

from cmrfed.sweep.results import run
from cmrfed.sweep.summary import Level, _level, curves, knee, over_seeds
from cmrfed.sweep.table import read_table
from tests.sweep_world import give_orders, make_sweep, nothing_shared, stub


def levels(*values, half=0.01):
    """Levels at ε 1, 2, 4, … and ∞."""
    places = [2.0**i for i in range(len(values) - 1)] + [math.inf]
    return [
        Level(e, v, v - half, v + half, 1) if v is not None else Level(e) for e, v in zip(places, values, strict=True)
    ]


@pytest.mark.parametrize(
    ("question", "values", "words"),
    [
        ("utility", (0.5, 0.6, 0.79, 0.8), "Knee at ε = 4: down to there utility is not shown to be worse than at"),
        ("utility", (0.5, 0.6, 0.79, 0.8), "at ε = 2 it is worse (0.6 (0.59 to 0.61))"),
        ("utility", (0.79, 0.8, 0.79, 0.8), "No knee: at no ε is utility shown to be worse than at ε = ∞"),
        ("utility", (0.5, 0.6, 0.7, 0.8), "No knee within these ε: at ε = 4 it is worse"),
        ("utility", (0.8, 0.5, 0.8, 0.8), "utility is worse than at ε = ∞ (0.8 (0.79 to 0.81)) at ε = 2, but not"),
        ("utility", (None, 0.5, None, 0.8), "No knee can be named: 2 of 4 ε"),
        ("utility", (0.9, 0.8, 0.9, 0.8), "At ε = 1, 4 it is even shown to be better."),
        ("fidelity", (5.0, 3.0, 1.0, 1.0), "Knee at ε = 4"),
        ("leakage", (0.5, 0.5, 0.7, 0.9), "Knee at ε = 2: up to there leakage is not shown to be worse than at ε = 1"),
    ],
)  # fmt: skip
def test_the_knee_in_words(question, values, words):
    assert words in knee(question, levels(*values))


def test_values_without_intervals_name_no_knee():
    assert "0 of 3 ε" in knee("utility", [Level(e, 0.5) for e in (1.0, 2.0, math.inf)])


def test_an_interval_over_seeds_is_students():
    value, low, high = over_seeds([(0.7, 0.1, 0.9), (0.8, 0.1, 0.9), (0.9, 0.1, 0.9)])
    assert value == pytest.approx(0.8)
    assert high - value == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)
    assert value - low == pytest.approx(high - value)
    assert over_seeds([(0.7, 0.1, 0.9)]) == (0.7, 0.1, 0.9)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("summary")
    sweep, folder = make_sweep(tmp_path), tmp_path / "run"
    give_orders(sweep, folder)
    run(sweep, folder, 4, command=stub, prepare=nothing_shared)
    return folder


def test_the_table_reads_back_the_same_from_csv_and_parquet(table):
    first, second = read_table(table / "results.csv"), read_table(table / "results.parquet")
    assert first == second
    assert len(first) == 36
    assert {row["recipe_digest"] for row in first if row["epsilon"] == 8.0 and row["seed"] == 1} == {
        row["recipe_digest"] for row in second if row["epsilon"] == 8.0 and row["seed"] == 1
    }
    private = next(row for row in first if row["epsilon"] == 2.0)
    assert (private["sigma_image"], private["noise_to_signal"], private["declared_patients"]) == (8.0, 4.0, 20)
    assert private["version.torch"] == "1"
    missing = [row for row in first if row["value"] is None]
    assert len(missing) == 12
    assert {row["unavailable"] for row in missing} == {"too few. Do: hold out more"}


def test_curves_by_family_with_intervals_over_seeds(table):
    found = curves(read_table(table / "results.csv"))
    assert [(c.question, c.panel) for c in found] == [
        (q, f) for f in ("ddpm", "fm") for q in ("utility", "fidelity", "leakage")
    ]
    utility = found[0]
    assert [level.epsilon for level in utility.levels] == [2.0, 8.0, math.inf]
    assert utility.levels[0].value == pytest.approx(0.505)
    assert utility.levels[0].over == "2 seeds"
    assert utility.levels[0].reference == pytest.approx(0.9)
    assert found[1].levels[0].reference is None
    assert found[2].levels[0].reason == "too few. Do: hold out more"
    assert found[2].knee.startswith("No knee can be named: 0 of 3")


def test_the_page_is_one_file_and_names_figures_and_knees(table):
    page = (table / "report.html").read_text()
    for words in ("Not for release", "Knee", "family fm, epsilon 2, seed 1", "2 seeds", "No patient was involved"):
        assert words in page
    assert "default-src 'none'" in page
    assert 'src="http' not in page
    for name in ("utility", "fidelity"):
        for kind in ("svg", "pdf"):
            assert (table / "figures" / f"{name}-against-epsilon.{kind}").stat().st_size > 1000
    assert not (table / "figures" / "leakage-against-epsilon.svg").exists()
    assert "no point has a value" in page


def test_leakage_is_one_attack_at_all_points_and_chance_does_not_choose_it():
    about = {"question": "leakage", "unavailable": None, "status": "finished", "reason": "", "noise_to_signal": None}

    def row(name, value):
        return {
            **about,
            "metric_id": f"leakage.auc.{name}",
            "value": value,
            "low": value - 0.1,
            "high": value + 0.1,
            "seed": 0,
        }

    rows = [row("nearest-neighbour.pixels", 0.9), row("calibrated-neighbour.pixels", 0.4)]
    level = _level("leakage", 2.0, [rows])
    assert (level.value, level.low, level.high) == (0.4, pytest.approx(0.3), pytest.approx(0.5))
    assert level.reference == 0.5
    assert _level("leakage", 2.0, [rows[:1]]).reason == "membership was not attacked"
