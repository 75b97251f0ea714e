import pytest

from cmrfed.core.errors import ConfigError, DataError
from cmrfed.pipeline.privacy.plan import PrivacyPlan
from cmrfed.sweep.forecast import asked, forecast, forecast_text
from cmrfed.sweep.results import run
from tests.sweep_world import give_orders, make_sweep, nothing_shared, stub


@pytest.fixture
def recipe(tmp_path):
    make_sweep(tmp_path)
    return tmp_path / "base.yaml"


def test_every_site_has_its_delta_and_its_noise(recipe):
    found = forecast(recipe, [20, 40, 60], 8.0, assignments=["privacy.delta=null"])
    assert found.feasible
    assert [s.experiment.privacy.target_delta for s in found.sites] == [pytest.approx(n**-1.1) for n in (20, 40, 60)]
    sigma = [s.sigma["image"] for s in found.sites]
    assert sigma == sorted(sigma), "a smaller δ takes more noise"
    rows = asked(found)
    assert rows[0]["noise_multiplier"] == pytest.approx(sigma[-1], abs=1e-4)
    own = rows[0]["by_site"]
    assert own[0] == pytest.approx(3 * own[2]), "a third of the patients, three times the noise for the signal"
    text = forecast_text(found)
    assert "feasible." in text
    assert "site 0 has" not in text


def test_equal_sites_are_as_the_plan_of_a_run_has_them(recipe):
    found = forecast(recipe, [30, 30, 30], 4.0)
    planned = PrivacyPlan(found.sites[0].experiment).rows
    asked_for = [row["noise_to_signal"] for row in asked(found)]
    three = found.sites[0].experiment.federation.asked
    assert [row.noise_to_signal for row in planned] == [pytest.approx(value, abs=0.01) for value in asked_for]
    assert three == 3


def test_what_cannot_be_met_says_what_could(recipe):
    found = forecast(recipe, [20, 40], 1e-6)
    assert not found.feasible
    assert "NOT feasible" in forecast_text(found)
    assert "a target of at least" in forecast_text(found)


def test_a_single_small_site(recipe):
    assert "smallest_cohort" in forecast_text(forecast(recipe, [6], 8.0))


@pytest.mark.parametrize(("patients", "epsilon"), [([], 8.0), ([0], 8.0), ([20], 0.0)])
def test_nothing_to_plan(recipe, patients, epsilon):
    with pytest.raises(ConfigError, match="nothing to plan"):
        forecast(recipe, patients, epsilon)


def test_a_forecast_lies_between_measured_points_or_is_unavailable(recipe, tmp_path):
    sweep, folder = make_sweep(tmp_path), tmp_path / "run"
    give_orders(sweep, folder)
    run(sweep, folder, 4, command=stub, prepare=nothing_shared)
    outside = forecast(recipe, [20] * 3, 8.0, table=folder / "results.csv").expected
    assert all("unavailable" in line for line in outside[1:])
    assert "lies outside what was measured, 1.00 to 4.00" in outside[1]
    noise = max(row["noise_to_signal"] for row in asked(forecast(recipe, [20] * 3, 8.0)))
    count = round(20 * noise / 2)  # noise of about 2 × the signal
    inside = forecast(recipe, [count] * 3, 8.0, table=folder / "results.parquet").expected
    assert "(ε = 8, noise 1.00) and" in inside[1]
    assert "unavailable: the table has no private point" in inside[3]


def test_a_table_of_another_recipe_or_of_other_steps_forecasts_nothing(recipe, tmp_path):
    sweep, folder = make_sweep(tmp_path), tmp_path / "run"
    give_orders(sweep, folder)
    run(sweep, folder, 4, command=stub, prepare=nothing_shared)
    table = folder / "results.csv"
    assert "not of other" in forecast(recipe, [20], 8.0, assignments=["name=other"], table=table).expected[0]
    longer = ["mask.training.rounds=9"]
    assert "steps" in forecast(recipe, [20], 8.0, assignments=longer, table=table).expected[0]


def test_a_file_that_is_no_table(recipe, tmp_path):
    with pytest.raises(ConfigError, match="there is no table"):
        forecast(recipe, [20], 8.0, table=tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no column"):
        forecast(recipe, [20], 8.0, table=tmp_path / "other.csv")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="is not the table of a sweep"):
        forecast(recipe, [20], 8.0, table=tmp_path / "torn.parquet")
