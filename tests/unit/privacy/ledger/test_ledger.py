import json
import math
import multiprocessing
import re

import pytest

from cmrfed.core.errors import PrivacyError, SiteRefused
from cmrfed.privacy.accountant import epsilon
from cmrfed.privacy.event import PrivacyEvent
from cmrfed.privacy.ledger.chain import Chain
from cmrfed.privacy.ledger.ledger import PrivacyLedger


def event(number=1, sigma=5.0, stage="mask", run="r", unit="patient"):
    return PrivacyEvent(
        noise_multiplier=sigma,
        sampling_rate=1.0,
        steps=2,
        run=run,
        stage=stage,
        round=number,
        digest=f"d{number}",
        unit=unit,
    )


@pytest.fixture
def ledger(tmp_path):
    return PrivacyLedger.create(tmp_path)


def lines(root):
    return [json.loads(line) for line in (root / "ledger.jsonl").read_text().splitlines()]


def test_reserve_and_commit_are_lines_of_a_chain(ledger, tmp_path):
    ticket = ledger.reserve(event())
    ledger.commit(ticket)
    ledger.commit(ticket)
    found = lines(tmp_path)
    assert [line["kind"] for line in found] == ["open", "reserve", "commit"]
    assert [line["previous"] for line in found][1:] == [line["hash"] for line in found][:-1]
    assert ticket.permit() == event()
    assert [p.committed for p in ledger.history().payments] == [True]


def test_a_reservation_without_commit_is_spent(ledger):
    ledger.reserve(event(1))
    ledger.commit(ledger.reserve(event(2)))
    spent = ledger.spent(1e-3)
    assert spent.total == epsilon([event(1), event(2)], 1e-3)
    assert (spent.rows[0].reservations, spent.rows[0].uncommitted, spent.rows[0].steps) == (2, 1, 4)


def test_a_repeated_request_is_not_reserved_twice(ledger):
    first = ledger.reserve(event())
    again = ledger.reserve(event())
    assert (first.fresh, again.fresh, again.number, again.committed) == (True, False, first.number, False)
    ledger.commit(first)
    assert ledger.reserve(event()).committed
    assert len(ledger.history().events) == 1
    with pytest.raises(PrivacyError, match=r"paid for earlier.*answer from the stored reply"):
        again.permit()


def test_a_lost_reply_is_paid_for_again(ledger):
    first = ledger.reserve(event())
    second = ledger.reserve(event(), again=True)
    assert second.fresh
    assert second.number > first.number
    assert ledger.spent(1e-3).total == epsilon([event(), event()], 1e-3)


def test_a_request_cannot_change_its_costs(ledger):
    ledger.reserve(event(sigma=5.0))
    with pytest.raises(PrivacyError, match="reserved before with other costs"):
        ledger.reserve(event(sigma=50.0))


def test_a_check_that_refuses_writes_nothing(ledger, tmp_path):
    def refuse(history):
        raise SiteRefused("no")

    with pytest.raises(SiteRefused):
        ledger.reserve(event(), check=refuse)
    assert len(lines(tmp_path)) == 1


def test_spent_is_shown_by_run_and_stage_and_composed_over_all(ledger):
    for run, stage in [("a", "mask"), ("a", "image"), ("b", "mask")]:
        ledger.reserve(event(stage=stage, run=run))
    spent = ledger.spent(1e-3)
    assert [(row.run, row.stage) for row in spent.rows] == [("a", "mask"), ("a", "image"), ("b", "mask")]
    assert spent.total == epsilon([event()] * 3, 1e-3)
    assert spent.total.prv > spent.rows[0].epsilon.prv
    assert spent.unit == "patient"


@pytest.mark.parametrize("units", [(), ("patient", "patient"), ("slice",), ("patient", "slice"), ("none",)])
def test_totals_are_those_of_the_whole_statement(ledger, units):
    for number, unit in enumerate(units):
        ledger.reserve(event(number, unit=unit, sigma=0.0 if unit == "none" else 5.0))
    totals = ledger.totals(1e-2, 1e-3)
    whole = [ledger.spent(delta) for delta in (1e-2, 1e-3)]
    assert totals.losses == tuple(spent.total for spent in whole)
    assert {(totals.unit, totals.last_hash)} == {(spent.unit, spent.last_hash) for spent in whole}


def test_an_empty_ledger_has_spent_nothing(ledger):
    assert ledger.spent(1e-3).total.prv == 0


def test_mixed_units_and_training_without_privacy_are_no_guarantee(ledger):
    ledger.reserve(event(1))
    ledger.reserve(event(2, unit="slice"))
    spent = ledger.spent(1e-3)
    assert (spent.unit, spent.total.prv) == ("none", math.inf)
    assert spent.rows[0].epsilon.prv < math.inf


def test_a_ledger_that_is_gone_is_not_a_new_one(tmp_path):
    with pytest.raises(PrivacyError, match="has no privacy ledger"):
        PrivacyLedger(tmp_path).history()
    PrivacyLedger.create(tmp_path)
    with pytest.raises(PrivacyError, match="has a privacy ledger already"):
        PrivacyLedger.create(tmp_path)


def test_a_commit_needs_its_reservation(ledger, tmp_path):
    other = PrivacyLedger.create(tmp_path / "other")
    other.reserve(event(7))
    with pytest.raises(PrivacyError, match="no reservation 1"):
        ledger.commit(other.reserve(event(7)))


# --- crashes ------------------------------------------------------------------------------------
@pytest.mark.parametrize("written", [0, 1, 50, -1])
def test_an_append_that_a_crash_interrupted_is_finished(ledger, tmp_path, written):
    ledger.reserve(event(1))
    before = (tmp_path / "ledger.jsonl").read_bytes()
    ledger.reserve(event(2))
    line = (tmp_path / "ledger.jsonl").read_bytes()[len(before) :]
    (tmp_path / "ledger.jsonl").write_bytes(before + line[:written])
    assert ledger.history().events == (event(1), event(2))
    assert (tmp_path / "ledger.jsonl").read_bytes() == before + line


def test_a_crash_while_the_ledger_is_made_leaves_a_ledger(ledger, tmp_path):
    (tmp_path / "ledger.jsonl").unlink()
    assert ledger.history().events == ()


# --- damage -------------------------------------------------------------------------------------
def damage_edit(root):
    path = root / "ledger.jsonl"
    path.write_text(path.read_text().replace('"noise_multiplier":5.0', '"noise_multiplier":9.0', 1))


def damage_cut(root):
    path = root / "ledger.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))


def damage_drop(root):
    path = root / "ledger.jsonl"
    kept = path.read_text().splitlines(keepends=True)
    path.write_text("".join([kept[0], *kept[2:]]))


def damage_file(root):
    (root / "ledger.jsonl").unlink()


def damage_head(root):
    (root / "ledger.head").unlink()


@pytest.mark.parametrize("damage", [damage_edit, damage_cut, damage_drop, damage_file, damage_head])
def test_damage_stops_the_site_until_a_repair_and_the_loss_is_unbounded_from_then_on(ledger, tmp_path, damage):
    for number in range(1, 4):
        ledger.reserve(event(number))
    damage(tmp_path)
    for call in (ledger.history, lambda: ledger.reserve(event(9)), lambda: ledger.spent(1e-3)):
        with pytest.raises(PrivacyError, match="is damaged"):
            call()
    found = {path.name: path.read_bytes() for path in tmp_path.glob("ledger.[jh]*")}
    assert ledger.repair("the disk was full").unbounded >= 1
    spent = ledger.spent(1e-3)
    assert (spent.unit, spent.total.prv, spent.repairs) == ("none", math.inf, ("the disk was full",))
    for end in ("jsonl", "head"):
        assert (tmp_path / f"ledger.damaged-1.{end}").read_bytes() == found.get(f"ledger.{end}", b"")
    ledger.commit(ledger.reserve(event(9)))
    assert ledger.spent(1e-3).total.prv == math.inf


def test_lines_that_keep_their_hash_are_salvaged(ledger, tmp_path):
    for number in range(1, 4):
        ledger.reserve(event(number))
    damage_drop(tmp_path)
    history = ledger.repair("an editor lost a line")
    assert history.events == (event(2), event(3))
    assert history.unbounded == 1


def test_blank_lines_at_the_end_cost_nothing_but_need_a_repair(ledger, tmp_path):
    ledger.reserve(event())
    with (tmp_path / "ledger.jsonl").open("a") as handle:
        handle.write("\n\n")
    with pytest.raises(PrivacyError, match="line 3 is torn, edited or out of place"):
        ledger.history()
    history = ledger.repair("opened in an editor")
    assert (history.events, history.unbounded) == ((event(),), 0)


def test_an_older_head_does_not_hide_later_lines(ledger, tmp_path):
    ledger.reserve(event(1))
    old = (tmp_path / "ledger.head").read_bytes()
    ledger.reserve(event(2))
    ledger.reserve(event(3))
    (tmp_path / "ledger.head").write_bytes(old)
    with pytest.raises(PrivacyError, match="do not end with the head, which is line 2"):
        ledger.history()
    assert ledger.repair("head restored from a copy").events == (event(1), event(2), event(3))


def test_a_second_repair_keeps_what_the_first_knew(ledger, tmp_path):
    ledger.reserve(event(1))
    ledger.reserve(event(2))
    damage_drop(tmp_path)
    ledger.repair("first")
    with (tmp_path / "ledger.jsonl").open("a") as handle:
        handle.write("\n")
    history = ledger.repair("second")
    assert history.events == (event(2),)
    assert history.unbounded == 1
    assert ledger.spent(1e-3).repairs == ("first", "second")
    assert len(list(tmp_path.glob("ledger.damaged-*"))) == 4


@pytest.mark.parametrize("done", ["head", "nothing"])
def test_a_crash_in_the_middle_of_a_repair_forgets_nothing(ledger, tmp_path, done, monkeypatch):
    ledger.reserve(event(1))
    ledger.reserve(event(2))
    damage_drop(tmp_path)

    def crash(self, survey, kind, body):
        if done == "head":
            file = (tmp_path / "ledger.jsonl").read_bytes()
            replace(self, survey, kind, body)
            (tmp_path / "ledger.jsonl").write_bytes(file)
        raise KeyboardInterrupt

    replace = Chain.replace_damaged
    monkeypatch.setattr(Chain, "replace_damaged", crash)
    with pytest.raises(KeyboardInterrupt):
        ledger.repair("first")
    monkeypatch.undo()
    history = ledger.repair("again")
    assert event(2) in history.events
    assert history.unbounded >= 1


def test_damage_names_the_command_that_repairs_it(tmp_path):
    root = tmp_path / "heart centre"
    PrivacyLedger.create(root).reserve(event())
    damage_edit(root)
    with pytest.raises(PrivacyError, match=re.escape(f"cmrfed ledger '{root}' --repair \"what happened\"")):
        PrivacyLedger(root).history()


def test_repair_needs_damage_and_a_reason(ledger, tmp_path):
    with pytest.raises(PrivacyError, match="nothing to repair"):
        ledger.repair("because")
    with pytest.raises(PrivacyError, match="needs a reason"):
        ledger.repair("  ")
    with pytest.raises(PrivacyError, match="has no privacy ledger"):
        PrivacyLedger(tmp_path / "nowhere").repair("because")
    assert not (tmp_path / "nowhere").exists()


def _spend(root, first):
    for number in range(first, first + 10):
        PrivacyLedger(root).reserve(event(number))


def test_processes_at_once_lose_nothing(ledger, tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_spend, args=(tmp_path, 100 * k)) for k in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(ledger.history().events) == 30
