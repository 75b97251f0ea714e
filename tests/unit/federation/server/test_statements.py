"""What a coordinator remembers of its sites' ledgers, and which replies it does not use."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cmrfed.core.errors import FederationError
from cmrfed.federation.messages import Spent, TrainReply
from cmrfed.federation.server.statements import FILE, Statements, read_statements
from cmrfed.privacy.ledger.statement import Loss
from cmrfed.privacy.policy import SitePolicy
from cmrfed.privacy.settings import STRICT_DELTA, PrivateTraining
from tests.federation_world import federated_run, make_sites, tiny_stage


def spent(prv: float | None, name: str, delta: float = 0.01, rdp: float | None = None) -> Spent:
    loose = rdp if rdp is not None else prv and prv * 1.1
    strict = prv and prv * 1.5
    return Spent(
        unit="patient" if prv is not None else "none",
        at=(Loss(delta=delta, prv=prv, rdp=loose), Loss(delta=STRICT_DELTA, prv=strict, rdp=strict and strict * 1.1)),
        ledger_hash=name * 64,
    )


def reply(key: str, said: Spent | None, site: str = "ward") -> TrainReply:
    return TrainReply(site, "ok", key, spent=said)


def test_the_largest_is_kept_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / FILE
    assert Statements(path).last("ward") is None
    assert Statements(path).hear(reply("k1", spent(1.0, "a"))) is None
    assert Statements(path).hear(reply("k2", spent(2.0, "b"))) is None
    assert Statements(path).hear(reply("k3", spent(1.5, "c"))) is not None
    heard = read_statements(path)["ward"]
    assert [loss.prv for loss in heard.largest.at] == [2.0, 3.0]
    assert Statements(path).last("ward") == "b" * 64, "what is not believed is not asked for"


@pytest.mark.parametrize(
    ("later", "words"),
    [
        (spent(1.0, "b"), "says less than before: ε = 1.000 at δ = 0.01, and ε = 2.000 earlier"),
        (spent(2.0, "b", rdp=2.1), "says less than before"),
        (spent(2.5, "a"), "has not grown"),
        (spent(1.9, "b", delta=0.001), "says less than before"),
        (spent(1.5, "b", delta=0.1), "ε = 2.250 at δ = 0.001, and ε = 3.000 earlier"),
    ],
)
def test_a_ledger_that_fell_or_did_not_grow_is_set_aside(later: Spent, words: str) -> None:
    statements = Statements()
    statements.hear(reply("k1", spent(2.0, "a")))
    assert words in (statements.hear(reply("k2", later)) or "")


@pytest.mark.parametrize("later", [spent(2.0, "b"), spent(2.5, "b"), spent(1.99, "b", rdp=2.2), spent(None, "b")])
def test_honest_ledgers_are_used(later: Spent) -> None:
    statements = Statements()
    statements.hear(reply("k1", spent(2.0, "a")))
    strict = later.at[1].model_copy(update={"prv": later.at[1].prv and 3.0, "rdp": later.at[1].rdp and 3.3})
    assert statements.hear(reply("k2", later.model_copy(update={"at": (later.at[0], strict)}))) is None


def test_a_repeated_request_may_be_answered_with_what_was_said_then() -> None:
    statements = Statements()
    for key, said in (("k1", spent(1.0, "a")), ("k2", spent(2.0, "b")), ("k1", spent(1.0, "a"))):
        assert statements.hear(reply(key, said)) is None
    assert statements.hear(reply("k1", spent(1.0, "c"))) is not None


def test_a_site_may_change_its_delta_and_each_is_compared_with_its_own() -> None:
    statements = Statements()
    statements.hear(reply("k1", spent(2.0, "a", delta=0.005)))
    strict = spent(2.0, "a").at[1]
    for key, name, prv in (("k2", "b", 1.2), ("k3", "c", 1.3)):  # at a larger δ, ε is lower by right
        said = spent(prv, name, delta=0.05)
        assert statements.hear(reply(key, said.model_copy(update={"at": (said.at[0], strict)}))) is None
    fell = spent(1.1, "d", delta=0.05)
    assert "ε = 1.300 earlier" in (
        statements.hear(reply("k4", fell.model_copy(update={"at": (fell.at[0], strict)}))) or ""
    )


def test_one_without_a_bound_may_not_find_one_again() -> None:
    statements = Statements()
    statements.hear(reply("k1", spent(None, "a")))
    assert statements.hear(reply("k2", spent(None, "a"))) is None, "nothing is promised, and nothing is compared"
    assert "ε = ∞ earlier" in (statements.hear(reply("k3", spent(1.0, "c"))) or "")


def test_joined_statements_hold_for_both() -> None:
    one, two = spent(1.0, "a", delta=0.05), spent(2.0, "b", delta=0.01)
    both = one.joined(two)
    assert (both.at[0].delta, both.at[0].prv, both.ledger_hash) == (0.05, 2.0, "b" * 64)
    assert one.joined(two.model_copy(update={"unit": "slice"})).unit == "none"
    assert not one.joined(spent(None, "c")).bounded


# --- a whole run ------------------------------------------------------------------------------------
ASKED = PrivateTraining(
    unit="patient", noise_multiplier=4.0, sampling_rate=1.0, noise_multiplicity=1, declared_patients=3, clip_norm=0.5
)


def test_a_site_that_was_restored_as_a_whole_is_left_out_and_the_run_says_why(tmp_path: Path) -> None:
    """Nothing at the site knows that it is older: the coordinator does."""
    roots = make_sites(tmp_path, 2, SitePolicy(epsilon_cap=50.0, delta=1e-2, smallest_cohort=1))
    two, three = (replace(tiny_stage(rounds=n, steps=1), privacy=ASKED) for n in (1, 2))
    federated_run(tmp_path, two, sites=2, weighting="equal").start_or_resume()
    fresh = tmp_path / "fresh"
    make_sites(fresh, 2, SitePolicy(epsilon_cap=50.0, delta=1e-2, smallest_cohort=1))
    shutil.rmtree(roots[0])
    shutil.copytree(fresh / "sites" / "00", roots[0])
    with pytest.raises(FederationError, match=r"site-0: refused \(the coordinator has received a later state"):
        federated_run(tmp_path, three, sites=2, min_sites=2, weighting="equal").start_or_resume()
