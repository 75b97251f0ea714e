"""What patients pay over all points: the sum of the research ledger is the composition by hand."""

import math

import pytest

from cmrfed.privacy.accountant import epsilon
from cmrfed.privacy.event import PrivacyEvent
from cmrfed.privacy.ledger.ledger import PrivacyLedger
from cmrfed.sweep.paid import NOTICE, planned_events, settle, would_pay
from cmrfed.sweep.results import run
from cmrfed.sweep.work import states
from tests.sweep_world import give_orders, make_sweep, nothing_shared, stub

SMALL = "name: s\nrecipe: base.yaml\ngrid: {epsilon: [inf, 8, 2], seed: [0, 1]}"


def event(**changes):
    usual = {"noise_multiplier": 1.0, "sampling_rate": 0.5, "steps": 3, "run": "r", "stage": "image", "round": 1}
    return PrivacyEvent(**(usual | {"digest": "d"} | changes))


@pytest.fixture
def sweep(tmp_path):
    return make_sweep(tmp_path, SMALL)


def go(sweep, folder):
    return run(sweep, folder, 2, command=stub, prepare=nothing_shared)


def test_the_total_is_the_composition_of_all_private_points(sweep, tmp_path):
    folder = tmp_path / "run"
    give_orders(sweep, folder)
    go(sweep, folder)
    by_hand = [e for point in sweep.points for e in planned_events(point.experiment, point.name)]
    assert len(by_hand) == 8, "two stages of four private points"
    (paid,) = settle(sweep.points, folder)
    assert paid.total[0] == epsilon(by_hand, 0.01)
    assert paid.total[1] == epsilon(by_hand, 0.001)
    assert (paid.private, paid.other) == (4, 2)
    assert paid.total[0].prv > 8, "more than any one point"
    ledger = PrivacyLedger(folder / "research" / "phantom").history()
    assert ledger.epsilon(0.01) == paid.total[0]
    assert "nothing is promised at all" in paid.words


def test_the_dry_run_says_what_the_ledger_says_later(sweep, tmp_path):
    (planned,) = would_pay(sweep.points)
    give_orders(sweep, tmp_path / "run")
    go(sweep, tmp_path / "run")
    (paid,) = settle(sweep.points, tmp_path / "run")
    assert planned.total == paid.total
    assert "would pay" in planned.words


def test_adding_up_again_adds_nothing(sweep, tmp_path):
    folder = tmp_path / "run"
    give_orders(sweep, folder)
    go(sweep, folder)
    before = (folder / "research" / "phantom" / "ledger.jsonl").read_bytes()
    settle(sweep.points, folder)
    assert (folder / "research" / "phantom" / "ledger.jsonl").read_bytes() == before


def test_a_round_that_was_paid_twice_counts_twice_and_the_worst_site_counts(sweep, tmp_path):
    folder = tmp_path / "run"
    give_orders(sweep, folder)
    state = go(sweep, folder)[2]
    (first,) = settle(sweep.points, folder)
    ledger = PrivacyLedger(state.folder / "sites" / "01")
    again = ledger.history().events[0]
    ledger.reserve(again, again=True)
    (second,) = settle(sweep.points, folder)
    by_hand = [*PrivacyLedger(folder / "research" / "phantom").history().events]
    assert second.epsilon > first.epsilon
    extra = [e for point in sweep.points for e in planned_events(point.experiment, "")] + [again]
    assert second.total[0] == epsilon(extra, 0.01) == epsilon(by_hand, 0.01)


def test_what_a_deleted_or_former_point_cost_is_not_forgotten(sweep, tmp_path):
    import shutil

    folder = tmp_path / "run"
    give_orders(sweep, folder)
    standing = go(sweep, folder)
    (before,) = settle(sweep.points, folder)
    shutil.rmtree(standing[-1].folder)
    assert settle(sweep.points, folder)[0].total == before.total
    fewer = make_sweep(tmp_path, "name: s\nrecipe: base.yaml\ngrid: {epsilon: [inf]}")
    assert settle(fewer.points, folder)[0].private == 4
    assert settle(fewer.points, folder)[0].total[1] == before.total[1]


def test_a_damaged_ledger_leaves_no_total(sweep, tmp_path):
    folder = tmp_path / "run"
    give_orders(sweep, folder)
    state = go(sweep, folder)[2]
    path = state.folder / "sites" / "00" / "ledger.jsonl"
    path.write_text(path.read_text().replace("reserve", "reverse", 1))
    (paid,) = settle(sweep.points, folder)
    assert paid.epsilon is None
    assert "unavailable" in paid.words
    assert "is damaged" in paid.words
    PrivacyLedger(path.parent).repair("an edit in a test")
    (repaired,) = settle(sweep.points, folder)
    assert math.isinf(repaired.epsilon)
    assert "unbounded" in repaired.words


@pytest.mark.parametrize("content", [None, "{", '{"experiment": {"name": 3}}'])
def test_a_run_whose_record_cannot_be_read_leaves_no_total(sweep, tmp_path, content):
    folder = tmp_path / "run"
    give_orders(sweep, folder)
    path = go(sweep, folder)[2].folder / "run.json"
    path.unlink() if content is None else path.write_text(content)
    (paid,) = settle(sweep.points, folder)
    assert paid.epsilon is None
    assert "unavailable" in paid.words
    assert "run.json" in paid.words


def test_different_units_give_no_total(sweep, tmp_path):
    folder = tmp_path / "run"
    give_orders(sweep, folder)
    state = go(sweep, folder)[2]
    PrivacyLedger(state.folder / "sites" / "00").reserve(event(unit="slice", run="other"))
    (paid,) = settle(sweep.points, folder)
    assert paid.problem == ""
    assert math.isinf(paid.epsilon)
    assert "unbounded" in paid.words


def test_every_folder_says_not_for_release(sweep, tmp_path):
    folder = tmp_path / "run"
    give_orders(sweep, folder)
    go(sweep, folder)
    (paid,) = settle(sweep.points, folder)
    total = f"{math.ceil(paid.epsilon * 1000) / 1000:.3f}"
    for place in [folder, *(s.folder for s in states(sweep, folder))]:
        text = (place / NOTICE).read_text()
        assert text.startswith("Not for release")
        assert total in text
    assert f"ε = {total}" in (folder / "report.html").read_text()
    assert all(b"not for release" in path.read_bytes() for path in (folder / "figures").glob("*.svg"))
    for line in (folder / "results.csv").read_text().splitlines()[1:]:
        assert line.startswith("s,not for release,")


def test_more_noise_costs_less(sweep):
    points = {point.epsilon: point.experiment for point in sweep.points}
    sigma = {eps: planned_events(points[eps], "")[0].noise_multiplier for eps in (2.0, 8.0)}
    assert sigma[2.0] > sigma[8.0]
    losses = [epsilon([event(noise_multiplier=s)], 0.01).prv for s in (0.5, 0.7, 1.0, 2.0, 4.0)]
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == len(losses)
