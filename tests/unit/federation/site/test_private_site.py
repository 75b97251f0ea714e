"""A site under privacy: it pays before it trains, keeps to its own policy, and lets nothing out beside the update."""

import stat
import subprocess
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, Context, RecordDict

from cmrfed.core.artifacts import digest_state
from cmrfed.core.device import HOST
from cmrfed.core.errors import FederationError, PrivacyError
from cmrfed.federation.messages import StageJob, TrainReply, decode_info, decode_reply, encode_job, to_array_record
from cmrfed.federation.site.answers import answer_hello
from cmrfed.federation.site.audit import audit_site
from cmrfed.federation.site.folder import SiteRecord
from cmrfed.federation.site.site import Site, _StateFolder, answer_train
from cmrfed.privacy.ledger.journal import Journal
from cmrfed.privacy.ledger.ledger import PrivacyLedger
from cmrfed.privacy.ledger.memory import COPY
from cmrfed.privacy.policy import SitePolicy
from cmrfed.privacy.settings import PrivateTraining, Subspace
from cmrfed.training import subspace
from cmrfed.training.private import PrivateTrainer
from cmrfed.training.subspace import FindDirections
from tests.federation_world import tiny_cohort, tiny_request

CLOSED = SitePolicy(epsilon_cap=8.0, delta=1e-2, smallest_cohort=1)
ASKED = PrivateTraining(
    unit="patient", noise_multiplier=2.0, sampling_rate=0.5, noise_multiplicity=2, declared_patients=6, clip_norm=0.5
)


def request(number: int = 1, weights_seed: int = 0, **changes: object) -> tuple[StageJob, dict[str, torch.Tensor]]:
    return tiny_request(number, weights_seed, **{"privacy": ASKED, **changes})


def make_site(root: Path, policy: SitePolicy = CLOSED, *, has_mask: bool = True) -> Site:
    cohort = tiny_cohort(root / "cohort", 6, has_mask=has_mask)
    return Site.register(root / "site", SiteRecord(name="ward", cohort=str(cohort.root)), policy)


pytestmark = pytest.mark.usefixtures("kept_audits")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


def context(site: Site) -> Context:
    return Context(1, 2, {"site-root": str(site.root)}, RecordDict(), {})


def answer(
    site: Site,
    job: StageJob,
    weights: dict[str, torch.Tensor],
    find_directions: FindDirections = subspace.public_directions,
) -> TrainReply:
    return decode_reply(answer_train(context(site), encode_job(job, to_array_record(weights)), find_directions))


def paid(site: Site) -> list[bool]:
    """Whether each payment was committed."""
    return [payment.committed for payment in PrivacyLedger(site.root).history().payments]


def forbid_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrivateTrainer, "run", lambda *_: pytest.fail("it trained"))


# --- what leaves --------------------------------------------------------------------------------
def test_the_reply_holds_the_update_and_what_was_spent_and_nothing_else(site: Site) -> None:
    job, weights = request()
    content = answer_train(context(site), encode_job(job, to_array_record(weights)))
    assert dict(content.metric_records["metrics"]) == {}
    assert set(content.config_records["reply"]) == {"site", "status", "key", "reason", "spent"}
    reply = decode_reply(content)
    assert digest_state(reply.arrays or {}) != job.model_digest
    assert reply.spent is not None
    assert reply.spent.unit == "patient"
    expected = PrivacyLedger(site.root).spent(CLOSED.delta).total
    assert (reply.spent.at[0].prv, reply.spent.at[0].rdp) == (expected.prv, expected.rdp)


def test_what_the_ledger_tells_does_not_depend_on_the_patients(tmp_path: Path) -> None:
    """The same requests give the same words, whoever is at the site; only the update differs."""
    small = Site.register(
        tmp_path / "s",
        SiteRecord(name="ward", cohort=str(tiny_cohort(tmp_path / "elsewhere" / "few", 2).root)),
        CLOSED,
    )
    large = make_site(tmp_path)
    few, many = (answer(site, *request()) for site in (small, large))
    assert few.spent is not None
    assert many.spent is not None
    assert (few.key, few.metrics, few.spent.at) == (many.key, many.metrics, many.spent.at)


def test_the_number_of_patients_stays_unless_the_policy_lets_it_out(tmp_path: Path) -> None:
    assert decode_info(answer_hello(context(make_site(tmp_path / "a")))).patients is None
    telling = CLOSED.model_copy(update={"may_leave": CLOSED.may_leave.model_copy(update={"patient_count": True})})
    assert decode_info(answer_hello(context(make_site(tmp_path / "b", telling)))).patients == 6


def test_losses_leave_where_the_policy_lets_them(tmp_path: Path) -> None:
    telling = CLOSED.model_copy(update={"may_leave": CLOSED.may_leave.model_copy(update={"losses": True})})
    everyone = ASKED.model_copy(update={"sampling_rate": 1.0})
    reply = answer(make_site(tmp_path, telling), *request(privacy=everyone))
    assert set(reply.metrics or {}) == {"loss", "first_loss", "last_loss", "items", "seconds"}


def test_words_about_the_data_stay_in_the_sites_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = make_site(tmp_path, has_mask=False)
    reply = answer(site, *request())
    assert reply.status == "refused"
    assert "p00" not in reply.reason
    assert "6" not in reply.reason
    assert "in its own log" in reply.reason
    assert "patients without masks" in caplog.text


def test_a_failure_inside_says_nothing_outside(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise ValueError("patient p03 has 7 slices")

    job, weights = request()
    audit_site(site.root, job, HOST)  # on made-up patients, and kept: what follows is the round itself
    monkeypatch.setattr(PrivateTrainer, "run", crash)
    with pytest.raises(FederationError, match="in its own log") as caught:
        answer_train(context(site), encode_job(job, to_array_record(weights)))
    assert "p03" not in str(caught.value)
    assert caught.value.__cause__ is None


# --- paying -------------------------------------------------------------------------------------
def test_it_pays_before_the_first_gradient(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, original = [], PrivateTrainer.run

    def run(self: PrivateTrainer, first: int, steps: int):
        seen.append(paid(site))
        return original(self, first, steps)

    job, weights = request()
    audit_site(site.root, job, HOST)  # on made-up patients, which nobody pays for
    monkeypatch.setattr(PrivateTrainer, "run", run)
    site.train_round(job, weights)
    assert seen == [[False]]
    assert paid(site) == [True]


def test_a_repeated_request_is_answered_from_the_stored_reply_and_costs_nothing(site: Site, monkeypatch) -> None:
    first = site.train_round(*request())
    forbid_training(monkeypatch)
    again = Site.open(site.root).train_round(*request())
    assert digest_state(again.arrays or {}) == digest_state(first.arrays or {})
    assert again.spent == first.spent
    assert paid(site) == [True]


def test_an_old_round_with_other_settings_loses_no_answer_and_is_paid_anew(site: Site, monkeypatch) -> None:
    first = {number: site.train_round(*request(number)) for number in (1, 2, 3)}
    other = request(2, privacy=ASKED.model_copy(update={"clip_norm": 0.25}))
    changed = site.train_round(*other)
    assert paid(site) == [True] * 4
    forbid_training(monkeypatch)
    for job, expected in (
        (request(3), first[3]),
        (request(2), first[2]),
        (other, changed),
        (request(2), first[2]),
        (request(3), first[3]),
    ):
        again = Site.open(site.root).train_round(*job)
        assert digest_state(again.arrays or {}) == digest_state(expected.arrays or {})
        assert again.spent == expected.spent
    assert paid(site) == [True] * 4, "nothing is trained or paid twice"


def test_rounds_go_on_from_the_answer_that_was_asked_for_last(site: Site) -> None:
    state = _StateFolder(site.root / "state" / "r" / "image")
    for number in (1, 2, 3, 4):
        job = request(number, weights_seed=number)[0]
        state.save(job, TrainReply("ward", "ok", job.key), {"round": torch.tensor([number])})
    changed = request(2, weights_seed=9)[0]
    state.save(changed, TrainReply("ward", "ok", changed.key), {"round": torch.tensor([20])})
    assert state.optimizer_before(3) == {"round": torch.tensor([20])}
    assert sorted(p.name for p in state.path.glob("round-*")) == ["round-0002", "round-0003", "round-0004"]
    assert state.optimizer_before(5) == {"round": torch.tensor([4])}
    last = request(6)[0]
    state.save(last, TrainReply("ward", "ok", last.key), {"round": torch.tensor([6])})
    assert sorted(p.name for p in state.path.glob("round-*")) == ["round-0004", "round-0006"]


def test_replies_moments_and_policies_are_the_owners_alone(site: Site) -> None:
    Journal(site.root).start()
    site.train_round(*request())
    found = [path for path in site.root.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert {"reply.safetensors", "optimizer.safetensors", "policy.yaml", "journal.jsonl"} <= {p.name for p in found}
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in found} == {path.name: 0o600 for path in found}
    assert stat.S_IMODE(site.root.stat().st_mode) == 0o700


def test_a_round_that_died_before_its_reply_was_stored_is_paid_twice(site: Site, monkeypatch) -> None:
    with monkeypatch.context() as dying:
        dying.setattr(
            "cmrfed.federation.site.site._StateFolder.save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            site.train_round(*request())
    reply = site.train_round(*request())
    assert paid(site) == [False, True]
    twice = PrivacyLedger(site.root).history().epsilon(CLOSED.delta).prv
    assert reply.spent is not None
    assert reply.spent.at[0].prv == twice


def test_what_cannot_be_trained_costs_nothing_however_often_it_is_asked(tmp_path: Path) -> None:
    site = make_site(tmp_path, has_mask=False)
    assert [answer(site, *request()).status for _ in range(2)] == ["refused", "refused"]
    assert paid(site) == []


def test_rounds_stages_and_runs_add_up(site: Site) -> None:
    for job in (request(1), request(2), request(1, run="another")):
        site.train_round(*job)
    events = PrivacyLedger(site.root).history().events
    assert [(e.run, e.round, e.steps) for e in events] == [("r", 1, 2), ("r", 2, 2), ("another", 1, 2)]


def test_training_without_privacy_is_in_the_ledger_too_and_ends_every_guarantee(tmp_path: Path) -> None:
    policy = SitePolicy(epsilon_cap=None, delta=1e-2, smallest_cohort=1, permitted_units=("patient", "none"))
    site = make_site(tmp_path, policy)
    site.train_round(*request(privacy=None))
    reply = site.train_round(*request(2))
    assert reply.spent is not None
    assert reply.spent.unit == "none"
    assert not reply.spent.bounded


# --- refusing -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("policy", "changes", "reason"),
    [
        ({}, {"privacy": None}, r"does not permit this privacy unit.*Got: none.*Expected: patient"),
        ({}, {"privacy": ASKED.model_copy(update={"unit": "slice"})}, r"Got: slice.*Expected: patient"),
        ({"permitted_stages": ("mask",)}, {}, r"does not permit this stage.*Got: image"),
        ({"smallest_cohort": 7}, {}, r"^the site cannot use its data or its settings; the reason is in its own log"),
        ({"epsilon_cap": 0.5}, {}, r"would exceed the site's privacy budget; nothing was trained"),
    ],
)
def test_the_policy_beats_the_request_in_a_normal_reply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: dict, changes: dict, reason: str
) -> None:
    site = make_site(tmp_path, CLOSED.model_copy(update=policy))
    forbid_training(monkeypatch)
    reply = answer(site, *request(**changes))
    assert reply.status == "refused"
    assert reply.arrays is None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(reply.reason)
    assert paid(site) == [], "a refusal costs nothing"


def test_a_site_that_wants_secure_sums_alone_answers_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(tmp_path, CLOSED)
    assert answer(site, *request()).status == "ok"
    CLOSED.model_copy(update={"secure_threshold": 3}).save(site.root / "policy.yaml")
    forbid_training(monkeypatch)
    for threshold, got in ((None, "without secure aggregation"), (2, "a threshold of 2 sites")):
        reply = answer(Site.open(site.root), *request(secure_threshold=threshold))
        assert (reply.status, reply.arrays) == ("refused", None), "not even what it answered before"
        assert got in reply.reason
        assert "at least 3 sites" in reply.reason
    assert paid(site) == [True]
    SitePolicy.load(site.root / "policy.yaml").check_sum(3)


def test_it_stops_at_the_cap_and_never_beyond(tmp_path: Path) -> None:
    site = make_site(tmp_path, CLOSED.model_copy(update={"epsilon_cap": 2.5}))
    replies = [answer(site, *request(number)) for number in range(1, 10)]
    answered = [reply.status for reply in replies]
    assert "refused" in answered
    assert answered == sorted(answered), "once refused, always refused"
    assert len(paid(site)) == answered.count("ok") > 0
    assert PrivacyLedger(site.root).history().epsilon(CLOSED.delta).prv <= 2.5


def test_a_site_without_a_policy_takes_no_part(site: Site) -> None:
    (site.root / "policy.yaml").unlink()
    reason = answer(Site.open(site.root), *request()).reason
    assert reason.startswith("policy.yaml is missing"), "without the path of the site's folder"
    assert str(site.root) not in reason


def test_a_site_whose_ledger_is_gone_refuses_and_cannot_be_registered_again(site: Site) -> None:
    site.train_round(*request())
    for name in ("ledger.jsonl", "ledger.head"):
        (PrivacyLedger(site.root).folder / name).unlink()
    reason = answer(Site.open(site.root), *request(2)).reason
    assert "its privacy ledger is gone" in reason
    assert str(site.root.parent) not in reason
    with pytest.raises(PrivacyError, match=r"its privacy ledger is gone.*--repair \"what happened\""):
        Site.register(site.root, site.record, CLOSED)


def test_a_reply_whose_line_the_ledger_lacks_stops_the_site(site: Site) -> None:
    """Ledger and copy are restored together; the stored reply is newer."""
    files = [*(PrivacyLedger(site.root).folder / n for n in ("ledger.jsonl", "ledger.head")), site.root / COPY]
    site.train_round(*request())
    saved = {path: path.read_bytes() for path in files}
    site.train_round(*request(2))
    for path, data in saved.items():
        path.write_bytes(data)
    for number in (1, 2, 3):  # what was answered before is not answered either
        reason = answer(Site.open(site.root), *request(number)).reason
        assert "older than what the site remembers" in reason
        assert "a stored reply" in reason
        assert str(site.root.parent) not in reason
    with pytest.raises(PrivacyError, match="older than what the site remembers"):
        Site.register(site.root, site.record, CLOSED)


def test_a_coordinator_that_knows_a_later_ledger_is_told_and_nothing_is_trained(site: Site, monkeypatch) -> None:
    told = site.train_round(*request()).spent
    assert told is not None
    forbid_training(monkeypatch)
    job, weights = request(2)
    content = encode_job(job, to_array_record(weights), ledger="f" * 64)
    reply = decode_reply(answer_train(context(site), content))
    assert (reply.status, paid(site)) == ("refused", [True])
    assert "received a later state of this site's privacy ledger" in reply.reason
    again = encode_job(request()[0], to_array_record(weights), ledger=told.ledger_hash)
    assert decode_reply(answer_train(context(site), again)).status == "ok"


def test_registering_again_keeps_policy_and_ledger(site: Site) -> None:
    site.train_round(*request())
    again = Site.register(site.root, site.record, SitePolicy(epsilon_cap=None, delta=0.5))
    assert again.policy == CLOSED
    assert paid(again) == [True]


# --- public directions ----------------------------------------------------------------------------
def test_rounds_in_public_directions_begin_anew_and_move_along_them_alone(site: Site, monkeypatch) -> None:
    """The optimizer's state of the round before belongs to other directions: it is not taken up."""
    monkeypatch.setattr(subspace, "_cohort", lambda config, size_px: site.cohort)
    found, search = [], subspace.public_directions

    def noted(*asked: object) -> torch.Tensor:
        found.append(search(*asked))
        return found[-1]

    few = ASKED.model_copy(update={"subspace": Subspace(rank=2, patients=4, scanners=2, draws=2)})
    for number in (1, 2):
        job, weights = request(number, weights_seed=number, privacy=few)
        reply = answer(site, job, weights, noted)
        assert reply.status == "ok"
        directions = found[-1]
        shift = torch.cat([((reply.arrays or {})[name] - start).flatten() for name, start in weights.items()])
        assert shift.norm() > 0
        assert torch.allclose((shift @ directions.T) @ directions, shift, atol=1e-5)
    assert paid(site) == [True, True]


def test_a_full_disk_loses_no_payment_and_leaves_nothing_half_written(small_disk: Path, tmp_path: Path) -> None:
    cohort = tiny_cohort(tmp_path / "cohort", 6)
    site = Site.register(small_disk / "site", SiteRecord(name="ward", cohort=str(cohort.root)), CLOSED)
    Journal(site.root).start()
    with pytest.raises(FederationError, match="the reason is in its own log"):
        answer_train(context(site), encode_job(*_packed(request())))
    assert paid(site) == [False]  # reserved before training, and it stays
    assert not list(site.root.glob("state/*/*/round-*"))
    assert [e.kind for e in Journal(site.root).read()] == ["failed"]
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)  # somebody makes room
    assert answer(site, *request()).status == "ok"
    assert paid(site) == [False, True]


def _packed(asked: tuple[StageJob, dict[str, torch.Tensor]]) -> tuple[StageJob, ArrayRecord]:
    return asked[0], to_array_record(asked[1])
