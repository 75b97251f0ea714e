import json
import math

import pytest

from cmrfed.core.errors import ConfigError, PrivacyError
from cmrfed.privacy.accountant import epsilon
from cmrfed.privacy.event import ADJACENCY
from cmrfed.privacy.ledger.ledger import PrivacyLedger
from cmrfed.privacy.ledger.statement import read_statement, statement_text
from cmrfed.privacy.policy import SitePolicy
from tests.unit.privacy.ledger.test_ledger import damage_drop, event

DELTA = 0.05


@pytest.fixture
def ledger(tmp_path):
    SitePolicy(epsilon_cap=4.0, delta=DELTA).save(tmp_path / "policy.yaml")
    return PrivacyLedger.create(tmp_path)


def shown(root, **options):
    found = read_statement(root, **options)
    return found, statement_text(found)


def row_of(text, stage):
    return next(line for line in text.splitlines() if line.split()[1:2] == [stage])


def test_a_fresh_site_has_spent_nothing_and_has_its_whole_cap(ledger, tmp_path):
    found, text = shown(tmp_path)
    assert (found.guarantee, found.left, found.stages, found.repairs) == (True, 4.0, (), ())
    assert "Nothing has been spent" in text
    assert "Cap: ε = 4 (PRV) at δ = 0.05; left: 4.000." in text
    assert "Repairs: none." in text
    assert f"Last hash: {ledger.spent(DELTA).last_hash}" in text


def test_what_was_spent_is_that_of_the_accountant_at_both_deltas(ledger, tmp_path):
    ledger.commit(ledger.reserve(event(1)))
    ledger.reserve(event(2))
    ledger.reserve(event(1, sigma=3.0, stage="image"))
    found, text = shown(tmp_path)
    mask, image = found.stages
    assert (mask.reservations, mask.uncommitted, mask.steps) == (2, 1, 4)
    assert (image.reservations, image.uncommitted, image.steps) == (1, 1, 2)
    everything = [event(1), event(2), event(1, sigma=3.0)]
    for got, events in ((mask.alone, everything[:2]), (image.alone, everything[2:]), (found.total, everything)):
        want = [epsilon(events, delta) for delta in (DELTA, 1e-3)]
        assert [(g.delta, g.prv, g.rdp) for g in got] == [(w.delta, w.prv, w.rdp) for w in want]
    assert found.left == 4.0 - found.total[0].prv
    assert found.adjacency == ADJACENCY["patient"]
    assert row_of(text, "mask").split()[2:6] == ["patient", "2", "1", "4"]
    assert "Total for a patient: ε ≤ " in text
    assert text.count("ε PRV, δ=0.05") == text.count("ε RDP, δ=0.05") == text.count("ε PRV, δ=0.001") == 1
    assert "weaker" not in text


def test_what_is_shown_is_never_below_what_was_computed(ledger, tmp_path):
    ledger.reserve(event())
    found, text = shown(tmp_path)
    words = row_of(text, "mask").split()[-3:]
    exact = (found.stages[0].alone[0].prv, found.stages[0].alone[0].rdp, found.stages[0].alone[1].prv)
    assert all(0 <= float(word) - value < 1e-3 for word, value in zip(words, exact, strict=True))
    left = float(text.split("left: ")[1].split(".\n")[0])
    assert 0 <= found.left - left < 1e-3


def test_slices_are_called_weaker_wherever_their_epsilon_is_shown(ledger, tmp_path):
    ledger.reserve(event(unit="slice"))
    found, text = shown(tmp_path)
    assert found.guarantee
    assert "weaker" in found.adjacency
    assert "weaker" in found.stages[0].adjacency
    spent = [line for line in text.splitlines() if line.startswith(("Total", "Unit", "r "))]
    assert len(spent) == 4
    assert all("weaker" in line for line in spent)


def without_privacy(ledger, root):
    ledger.reserve(event(1))
    ledger.reserve(event(2, sigma=0, stage="image", unit="none"))


def mixed(ledger, root):
    ledger.reserve(event(1))
    ledger.reserve(event(2, stage="image", unit="slice"))


def noiseless(ledger, root):
    ledger.reserve(event(1, sigma=0))


def repaired(ledger, root):
    ledger.reserve(event(1))
    ledger.reserve(event(2))
    damage_drop(root)
    ledger.repair("an editor lost a line")


@pytest.mark.parametrize(
    ("spend", "why"),
    [
        (without_privacy, "1 of 2 stage(s) trained without privacy (unit none)"),
        (mixed, "the units are mixed"),
        (noiseless, "there was no noise"),
        (repaired, "1 line(s) of the ledger were lost or unreadable"),
    ],
)
def test_no_guarantee_is_said_with_its_reason_and_no_total(ledger, tmp_path, spend, why):
    spend(ledger, tmp_path)
    found, text = shown(tmp_path)
    assert (found.guarantee, len(found.reasons), found.left) == (False, 1, 0.0)
    assert [(loss.prv, loss.rdp) for loss in found.total] == [(None, None)] * 2
    assert f"No guarantee: {why}" in text
    assert "Total" not in text
    assert "nothing is left: the site refuses to train" in text


def test_repairs_are_shown_with_their_reasons(ledger, tmp_path):
    repaired(ledger, tmp_path)
    found, text = shown(tmp_path)
    assert (found.unreadable_lines, found.repairs) == (1, ("an editor lost a line",))
    assert "Repaired: an editor lost a line" in text
    assert math.isfinite(found.stages[0].alone[0].prv)


def test_without_a_policy_the_delta_is_said_to_stand_in(tmp_path):
    PrivacyLedger.create(tmp_path).reserve(event())
    found, text = shown(tmp_path)
    assert [loss.delta for loss in found.total] == [1e-3]
    assert (found.policy, found.epsilon_cap, found.left) == (False, None, None)
    assert "There is no policy.yaml: the site's own δ and its cap are unknown, and δ = 0.001 stands in." in text
    assert text.count("δ=") == 2
    assert [loss.delta for loss in read_statement(tmp_path, 0.01).total] == [0.01, 1e-3]
    with pytest.raises(PrivacyError, match="δ must be a probability"):
        read_statement(tmp_path, 0.0)


def test_a_site_without_a_cap_says_so(tmp_path):
    SitePolicy(epsilon_cap=None, delta=1e-3).save(tmp_path / "policy.yaml")
    PrivacyLedger.create(tmp_path)
    found, text = shown(tmp_path)
    assert (found.policy, found.left) == (True, None)
    assert "Cap: none" in text


def test_the_delta_of_a_policy_is_not_overruled(ledger, tmp_path):
    with pytest.raises(ConfigError, match=r"Got: --delta 0\.1. Expected: δ = 0\.05"):
        read_statement(tmp_path, 0.1)


def test_both_deltas_speak_of_one_state_of_a_ledger_that_grows_meanwhile(ledger, tmp_path, monkeypatch):
    honest, asked = PrivacyLedger.spent, []

    def spent(self, delta):
        found = honest(self, delta)
        asked.append(delta)
        if len(asked) == 1:  # another process spends between the two readings
            ledger.reserve(event())
        return found

    monkeypatch.setattr(PrivacyLedger, "spent", spent)
    found = read_statement(tmp_path)
    assert asked == [DELTA, 1e-3] * 2
    assert [loss.prv for loss in found.total] == [epsilon([event()], delta).prv for delta in (DELTA, 1e-3)]


def test_json_has_null_for_infinity(ledger, tmp_path):
    without_privacy(ledger, tmp_path)
    tree = json.loads(read_statement(tmp_path).model_dump_json())
    assert tree["total"] == [{"delta": d, "prv": None, "rdp": None} for d in (DELTA, 1e-3)]
    assert tree["stages"][0]["alone"][0]["prv"] == epsilon([event()], DELTA).prv
    assert tree["stages"][1]["alone"][0]["prv"] is None


def test_a_folder_that_is_no_site_is_left_as_it_is(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(PrivacyError, match="has no privacy ledger"):
            read_statement(folder)
    assert not (tmp_path / "nowhere").exists()
