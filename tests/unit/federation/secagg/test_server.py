"""Secure sums over real sites: exact whoever leaves and when, nothing below the threshold, nothing asked twice."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from pydantic import ValidationError

from cmrfed.core.artifacts import load_state, read_json, write_json
from cmrfed.core.errors import FederationError, SiteRefused
from cmrfed.core.settings.digests import digested
from cmrfed.federation.identity import Identity, make_identities
from cmrfed.federation.messages import PublicKeys, decode_reply, encode_job, to_array_record, to_state
from cmrfed.federation.secagg.arithmetic import encode, join, new_secret, public_key
from cmrfed.federation.secagg.client import MaskStep, ShareStep, SiteMasking, UnmaskStep
from cmrfed.federation.secagg.server import SecureRound
from cmrfed.federation.settings import FederationConfig
from cmrfed.federation.site.answers import answer_step
from cmrfed.federation.site.site import Site, answer_train
from cmrfed.privacy.ledger.ledger import PrivacyLedger
from cmrfed.training.loop import LocalResult, LocalTrainer
from tests.federation_world import OPEN, FaultyGrid, federated_run, make_sites, site_roots, tiny_request, tiny_stage

PHASES = ["train", "train.shares", "train.masked", "train.unmask"]
Spoil = Callable[[int, str, RecordDict], RecordDict | None]


@pytest.fixture(autouse=True)
def quick_training(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Training is no matter here: each site moves its weights by draws of its own."""
    trained: list[str] = []

    def run(self: LocalTrainer, *_: object, **__: object) -> LocalResult:
        trained.append(str(self.style))
        rng = torch.Generator().manual_seed(self.style)
        with torch.no_grad():
            for weight in self.generator.network.parameters():
                weight += 0.01 * torch.randn(weight.shape, generator=rng)
        return LocalResult([0.5], 1, 0.0)

    monkeypatch.setattr(LocalTrainer, "run", run)
    return trained


def secure_run(run_dir: Path, sites: int, spoil: Spoil = lambda site, kind, content: content, **settings: object):
    threshold = sites // 2 + 1
    grid = FaultyGrid(run_dir, sites, spoil)
    settings = {"min_sites": threshold, "retries": 0, "secure_aggregation": {"threshold": threshold}, **settings}
    return federated_run(run_dir, tiny_stage(rounds=1), grid=grid, sites=sites, **settings)


def losing(phase: str, *lost: int) -> Spoil:
    return lambda site, kind, content: None if kind == phase and site in lost else content


def update_of(root: Path) -> dict[str, torch.Tensor]:
    (path,) = root.glob("state/*/image/round-0001/reply.safetensors")
    return load_state(path)[0]


def result(run_dir: Path, number: int = 1) -> dict[str, torch.Tensor]:
    return load_state(run_dir / "image" / f"round-{number:04d}" / "global.safetensors")[0]


def told(run_dir: Path) -> dict:
    return read_json(run_dir / "image" / "round-0001" / "metrics.json")


def error_of(run_dir: Path, run, weights: dict[int, int]) -> float:
    """Largest distance of the new weights from the plain weighted mean of what the sites keep."""
    old = run._initial(run.stages[0])["global"]
    updates = {
        site: update_of(root) for site, root in enumerate(site_roots(run_dir, max(weights) + 1)) if site in weights
    }
    worst, new = 0.0, result(run_dir)
    for name in old:
        mean = sum(w * updates[site][name].double() for site, w in weights.items()) / sum(weights.values())
        exact = old[name].double() + mean
        rounding = exact.abs() * 2.0**-24  # of float32, in which the new weights are kept
        worst = max(worst, float(((new[name].double() - exact).abs() - rounding).max()))
    return worst


# --- exactness ----------------------------------------------------------------------------------
@pytest.mark.parametrize("sites", [3, 5])
@pytest.mark.parametrize("weighting", ["patients", "equal"])
def test_the_sum_is_the_plain_one_to_fixed_point_precision(tmp_path: Path, sites: int, weighting: str) -> None:
    make_sites(tmp_path, sites)
    run = secure_run(tmp_path, sites, weighting=weighting)
    run.start_or_resume()
    assert error_of(tmp_path, run, {i: i + 1 if weighting == "patients" else 1 for i in range(sites)}) <= 2.0**-33
    assert {site["status"] for site in told(tmp_path)["sites"].values()} == {"ok"}
    assert all(site["loss"] == 0.5 and site["spent"] for site in told(tmp_path)["sites"].values())
    size = sum(weight.numel() for weight in result(tmp_path).values())
    assert 8 * size * sites < told(tmp_path)["bytes_up"] < 8 * size * sites + 20_000 * sites
    assert not list(tmp_path.rglob("pending-*"))
    assert not (tmp_path / ".replies").exists()


@pytest.mark.parametrize("lost", [(1,), (0, 4)])
@pytest.mark.parametrize("phase", PHASES)
def test_whoever_leaves_at_any_step_the_sum_is_that_of_those_who_sent_theirs(tmp_path: Path, phase: str, lost) -> None:
    make_sites(tmp_path, 5)
    run = secure_run(tmp_path, 5, losing(phase, *lost))
    run.start_or_resume()
    inside = [i for i in range(5) if i not in lost or phase == "train.unmask"]
    assert error_of(tmp_path, run, {i: i + 1 for i in inside}) <= 2.0**-33
    status = [told(tmp_path)["sites"][f"site-{i}"]["status"] for i in range(5)]
    assert status == ["ok" if i in inside else "missing" for i in range(5)]
    if phase in PHASES[1:3]:
        assert f"left the secure sum at step {phase[6:]}" in told(tmp_path)["sites"][f"site-{lost[0]}"]["reason"]


@pytest.mark.parametrize("phase", PHASES)
def test_of_three_sites_one_may_leave_at_any_step(tmp_path: Path, phase: str) -> None:
    make_sites(tmp_path, 3)
    run = secure_run(tmp_path, 3, losing(phase, 2))
    run.start_or_resume()
    inside = (0, 1, 2) if phase == "train.unmask" else (0, 1)
    assert error_of(tmp_path, run, {i: i + 1 for i in inside}) <= 2.0**-33


def test_a_site_that_leaves_at_the_masked_step_and_another_at_the_last(tmp_path: Path) -> None:
    make_sites(tmp_path, 5)

    def spoil(site: int, kind: str, content: RecordDict) -> RecordDict | None:
        return None if (site, kind) in {(3, "train.masked"), (1, "train.unmask")} else content

    run = secure_run(tmp_path, 5, spoil)
    run.start_or_resume()
    assert error_of(tmp_path, run, {0: 1, 1: 2, 2: 3, 4: 5}) <= 2.0**-33


@pytest.mark.parametrize("strategy", ["fedprox", "fedavgm", "fedadam", "fedyogi"])
def test_the_other_means_get_the_same_mean(tmp_path: Path, strategy: str) -> None:
    ends = []
    for name, run in (("plain", federated_run), ("secure", secure_run)):
        make_sites(tmp_path / name)
        if name == "plain":
            run(tmp_path / name, tiny_stage(rounds=1), strategy={"name": strategy}).start_or_resume()
        else:
            run(tmp_path / name, 3, strategy={"name": strategy}).start_or_resume()
        ends.append(result(tmp_path / name))
    assert all(torch.allclose(ends[0][n], ends[1][n], atol=1e-5) for n in ends[0])


# --- the threshold ------------------------------------------------------------------------------
@pytest.mark.parametrize("phase", PHASES[1:])
def test_below_the_threshold_the_round_fails_and_says_why(tmp_path: Path, phase: str) -> None:
    make_sites(tmp_path, 5)
    message = rf"stopped at step {phase[6:]}, and no update is known.*Got: 2 answers \(site-3, site-4\).*at least 3"
    with pytest.raises(FederationError, match=message):
        secure_run(tmp_path, 5, losing(phase, 0, 1, 2)).start_or_resume()
    assert not list(tmp_path.rglob("global.safetensors"))


@pytest.mark.parametrize("phase", PHASES)
def test_after_too_few_the_same_command_goes_on_and_nobody_trains_twice(
    tmp_path: Path, quick_training: list[str], phase: str
) -> None:
    make_sites(tmp_path, 3)
    with pytest.raises(FederationError, match=r"misses its quorum|stopped at step"):
        secure_run(tmp_path, 3, losing(phase, 0, 1)).start_or_resume()
    run = secure_run(tmp_path, 3)
    run.start_or_resume()
    assert error_of(tmp_path, run, {0: 1, 1: 2, 2: 3}) <= 2.0**-33
    assert sorted(quick_training) == ["0", "1", "2"]


def test_a_site_that_answers_a_repeated_step_saves_the_round(tmp_path: Path) -> None:
    make_sites(tmp_path, 3)
    lost: set[str] = set()

    def spoil(site: int, kind: str, content: RecordDict) -> RecordDict | None:
        if kind in PHASES[1:] and site > 0 and f"{kind}{site}" not in lost:
            lost.add(f"{kind}{site}")
            return None
        return content

    run = secure_run(tmp_path, 3, spoil, retries=1)
    run.start_or_resume()
    assert len(lost) == 6
    assert error_of(tmp_path, run, {0: 1, 1: 2, 2: 3}) <= 2.0**-33


def test_a_server_that_dies_before_the_sum_is_unmasked_asks_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_sites(tmp_path, 3)
    original = SecureRound._unmask

    def die(self: SecureRound, *args: object) -> None:
        original(self, *args)  # the sites have answered
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(SecureRound, "_unmask", die)
        with pytest.raises(KeyboardInterrupt):
            secure_run(tmp_path, 3, losing("train.masked", 0)).start_or_resume()
    kinds: list[str] = []

    def listen(site: int, kind: str, content: RecordDict) -> RecordDict:
        kinds.append(kind)
        return content

    run = secure_run(tmp_path, 3, listen)
    run.start_or_resume()
    assert set(kinds) == {"query", "train.unmask"}
    assert error_of(tmp_path, run, {1: 2, 2: 3}) <= 2.0**-33
    assert told(tmp_path)["sites"]["site-0"]["status"] == "missing"
    assert told(tmp_path)["sites"]["site-1"]["loss"] == 0.5


def test_a_server_that_lost_its_sum_gets_no_second_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_sites(tmp_path, 3)
    monkeypatch.setattr("cmrfed.federation.secagg.server.MaskedSum.save", lambda *_: None)
    with monkeypatch.context() as dying:
        dying.setattr("cmrfed.federation.secagg.server.decode", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            secure_run(tmp_path, 3).start_or_resume()
    with pytest.raises(FederationError, match=r"refused \(this update is part of a sum already; from a second sum"):
        secure_run(tmp_path, 3).start_or_resume()


def another_run(run_dir: Path, spoil: Spoil = lambda site, kind, content: content, **settings: object):
    """The same recipe under another name, in another folder, at the same sites."""
    grid = FaultyGrid(run_dir, 3, spoil)
    settings = {"min_sites": 2, "retries": 0, "secure_aggregation": {"threshold": 2}, **settings}
    run = federated_run(run_dir, tiny_stage(rounds=1), grid=grid, sites=3, **settings)
    run.run_id, run.run_dir = "other-run", run_dir / "other"
    return run


def test_the_same_update_in_a_run_of_another_name_is_in_no_second_sum(tmp_path: Path) -> None:
    """A sum over three sites and one over two of them would differ by the update of the third."""
    make_sites(tmp_path, 3)
    secure_run(tmp_path, 3).start_or_resume()
    with pytest.raises(FederationError, match=r"refused \(this update is part of a sum already; from a second sum"):
        another_run(tmp_path, losing("train", 2)).start_or_resume()
    assert not list((tmp_path / "other").rglob("global.safetensors"))


def test_an_update_of_which_no_mask_was_taken_out_may_be_in_another_sum(tmp_path: Path) -> None:
    make_sites(tmp_path, 3)
    with pytest.raises(FederationError, match="stopped at step masked"):
        secure_run(tmp_path, 3, losing("train.masked", 0, 1)).start_or_resume()
    another_run(tmp_path).start_or_resume()
    assert list((tmp_path / "other").rglob("global.safetensors"))


def test_draws_of_a_secure_sum_are_those_of_its_request_alone(tmp_path: Path) -> None:
    site = Site.open(make_sites(tmp_path, 3)[0])
    plain = [tiny_request(run=name)[0] for name in ("r", "other")]
    summed = [
        tiny_request(secure_threshold=2, **change)[0] for change in ({}, {"run": "other"}, {"proximal_mu": 1e-30})
    ]
    assert site._seed(plain[0]) == site._seed(plain[1])
    assert len({site._seed(job) for job in [plain[0], *summed]}) == 4
    assert site._seed(summed[0]) == site._seed(tiny_request(secure_threshold=2, threads=4)[0]), (
        "repeated, it is the same"
    )


# --- what the server sees -----------------------------------------------------------------------
def test_what_reaches_the_server_is_masked_and_no_update(tmp_path: Path) -> None:
    make_sites(tmp_path, 3)
    seen: dict[str, list] = {}

    def listen(site: int, kind: str, content: RecordDict) -> RecordDict:
        seen.setdefault(kind, []).append((site, content))
        return content

    secure_run(tmp_path, 3, listen).start_or_resume()
    assert all(not content.array_records for _, content in seen["train"])
    assert all("keys" in content.config_records["reply"] for _, content in seen["train"])
    for site, content in seen["train.masked"]:
        numbers = to_state(content.array_records["numbers"])["masked"].numpy().view(np.uint64)
        update = update_of(site_roots(tmp_path, 3)[site])
        plain = encode(torch.cat([update[n].reshape(-1) for n in sorted(update)]).numpy(), site + 1)
        ones = np.unpackbits(numbers.view(np.uint8)).mean()
        assert abs(ones - 0.5) < 6 * 0.5 / (64 * numbers.size) ** 0.5
        assert abs(np.unpackbits((numbers - plain).view(np.uint8)).mean() - 0.5) < 6 * 0.5 / (64 * numbers.size) ** 0.5
        assert not np.isin(numbers, plain).any()


def test_a_masked_update_of_another_length_leaves_the_round(tmp_path: Path) -> None:
    make_sites(tmp_path, 3)

    def spoil(site: int, kind: str, content: RecordDict) -> RecordDict:
        if kind == "train.masked" and site == 2:
            content["numbers"] = to_array_record({"masked": torch.zeros(3, dtype=torch.int64)})
        return content

    run = secure_run(tmp_path, 3, spoil)
    run.start_or_resume()
    assert "another shape" in told(tmp_path)["sites"]["site-2"]["reason"]
    assert error_of(tmp_path, run, {0: 1, 1: 2}) <= 2.0**-33


def test_shares_that_do_not_fit_give_an_error_and_no_weights(tmp_path: Path) -> None:
    make_sites(tmp_path, 3)

    def spoil(site: int, kind: str, content: RecordDict) -> RecordDict:
        if kind == "train.unmask" and site == 0:
            texts = content.config_records["answer"]["texts"]
            content.config_records["answer"]["texts"] = [
                text[:-2] + ("00" if text[-2:] != "00" else "01") for text in texts
            ]
        return content

    with pytest.raises(FederationError, match=r"the secure sum of round 1 .* cannot be read.*Do: look for a site"):
        secure_run(tmp_path, 3, spoil).start_or_resume()
    assert not list(tmp_path.rglob("global.safetensors"))


def test_an_update_beyond_the_range_leaves_the_round_and_is_never_clipped(tmp_path: Path, monkeypatch) -> None:
    make_sites(tmp_path, 3)

    def run(self: LocalTrainer, *_: object, **__: object) -> LocalResult:
        with torch.no_grad():
            next(self.generator.network.parameters()).fill_(99.0 if self.style == 1 else 0.01)
        return LocalResult([0.5], 1, 0.0)

    monkeypatch.setattr(LocalTrainer, "run", run)
    secure_run(tmp_path, 3).start_or_resume()
    reason = told(tmp_path)["sites"]["site-1"]["reason"]
    assert "cannot be part of a secure sum" in reason
    assert "finite numbers within ±16" in reason


# --- at one site --------------------------------------------------------------------------------
SESSION, OTHER = "0" * 32, "1" * 32


class Ward:
    """Three sites with an update each, in one session, up to the masked step."""

    def __init__(self, folder: Path) -> None:
        self.roots = make_sites(folder, 3)
        make_identities(self.roots)
        self.job, weights = tiny_request(secure_threshold=2)
        self.where = {"run": "r", "stage": "image", "round": 1, "key": self.job.key}
        content = encode_job(self.job, to_array_record(weights), session=SESSION)
        self.replies = [decode_reply(answer_train(self.context(i), content)) for i in range(3)]
        self.sites = {f"site-{i}": self.masking(i) for i in range(3)}
        self.weights = weights

    def context(self, number: int) -> Context:
        return Context(1, 2, {"site-root": str(self.roots[number])}, RecordDict(), {})

    def masking(self, number: int) -> SiteMasking:
        return SiteMasking(f"site-{number}", self.roots[number] / "state" / "r" / "image", 1, self.job.key)

    def share_step(self, session: str = SESSION, **changes: object) -> ShareStep:
        keys = {name: site.open(session, 2, private=False) for name, site in self.sites.items()}
        return ShareStep(**{**self.where, "session": session, "threshold": 2, "keys": keys, **changes})

    def mask_steps(self, session: str = SESSION, weight: int = 1) -> dict[str, MaskStep]:
        step = self.share_step(session)
        sealed = {name: site.share(step) for name, site in self.sites.items()}
        return {
            name: MaskStep(
                **self.where,
                session=session,
                weight=weight,
                sealed={o: t[name] for o, t in sealed.items() if o != name},
            )
            for name in self.sites
        }

    def unmask_step(self, *dropped: str, session: str = SESSION) -> UnmaskStep:
        survivors = tuple(name for name in self.sites if name not in dropped)
        return UnmaskStep(**self.where, session=session, survivors=survivors, dropped=dropped)


@pytest.fixture
def ward(tmp_path: Path) -> Ward:
    return Ward(tmp_path)


def test_the_update_stays_and_keys_leave(ward: Ward) -> None:
    assert all(reply.arrays is None and reply.keys and reply.spent for reply in ward.replies)
    assert ward.replies[0].keys == ward.sites["site-0"].open(SESSION, 2, private=False), "asked again, the same keys"
    assert ward.replies[0].keys != ward.sites["site-0"].open(OTHER, 2, private=False)
    assert (ward.sites["site-0"].secure.stat().st_mode & 0o777) == 0o700


def test_a_repeated_step_gets_the_same_answer(ward: Ward) -> None:
    step = ward.share_step()
    assert ward.sites["site-0"].share(step) == ward.masking(0).share(step)
    steps = ward.mask_steps()
    assert np.array_equal(ward.sites["site-1"].masked(steps["site-1"], 2), ward.masking(1).masked(steps["site-1"], 2))
    assert ward.sites["site-1"].unmask(ward.unmask_step("site-2")) == ward.masking(1).unmask(ward.unmask_step("site-2"))


def test_no_site_answers_two_unlike_requests_to_unmask(ward: Ward) -> None:
    for name, step in ward.mask_steps().items():
        ward.sites[name].masked(step, 1)
    first = ward.sites["site-0"].unmask(ward.unmask_step())
    for other in (ward.unmask_step("site-1"), ward.unmask_step("site-2")):
        with pytest.raises(SiteRefused, match=r"answered before for another request.*Do: repeat the first request"):
            ward.masking(0).unmask(other)
    assert ward.masking(0).unmask(ward.unmask_step()) == first


def test_no_update_is_in_two_sums(ward: Ward) -> None:
    steps = ward.mask_steps()
    for name in ward.sites:
        ward.sites[name].masked(steps[name], 1)
    ward.sites["site-0"].unmask(ward.unmask_step())
    with pytest.raises(
        SiteRefused, match=r"part of a sum already; from a second sum with other sites it could be derived"
    ):
        ward.sites["site-0"].open(OTHER, 2, private=False)
    assert ward.sites["site-1"].open(OTHER, 2, private=False), "this one has not answered"
    with pytest.raises(SiteRefused, match="knows no such session"):
        ward.sites["site-1"].unmask(ward.unmask_step())


def test_an_unmask_request_is_kept_when_the_round_is_long_gone(ward: Ward) -> None:
    steps = ward.mask_steps()
    for name in ward.sites:
        ward.sites[name].masked(steps[name], 1)
    ward.sites["site-0"].unmask(ward.unmask_step())
    for number in (2, 3, 4):
        Site.open(ward.roots[0]).train_round(*tiny_request(number))
    assert not ward.sites["site-0"].round.exists()
    content = encode_job(ward.job, to_array_record(ward.weights), session=OTHER)
    reply = decode_reply(answer_train(ward.context(0), content))
    assert (reply.status, reply.keys) == ("refused", None)
    assert "part of a sum already" in reply.reason


def test_a_dropped_sites_key_and_a_survivors_seed_are_never_both_given(ward: Ward) -> None:
    step = ward.share_step()
    for name, one in ward.mask_steps().items():
        ward.sites[name].masked(one, 1)
    given = {name: ward.sites[name].unmask(ward.unmask_step("site-2")) for name in ("site-0", "site-1")}
    private = {name: read_json(site.secure / "session.json") for name, site in ward.sites.items()}
    for name in ward.sites:
        secret = join({step.place(giver): bytes.fromhex(given[giver][name]) for giver in given}).hex()
        assert secret == private[name]["mask" if name == "site-2" else "own"]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"threshold": 3}, "another threshold than before"),
        ({"session": OTHER}, "knows no such session"),
        ({"keys": {}}, "other keys of this site"),
    ],
)
def test_shares_are_for_the_session_that_was_begun(ward: Ward, changes: dict, fault: str) -> None:
    step = ward.share_step().model_copy(update=changes)
    with pytest.raises(SiteRefused, match=fault):
        ward.sites["site-0"].share(step)


def test_a_roster_that_is_too_small_too_large_or_doubled_is_refused(ward: Ward) -> None:
    step, site = ward.share_step(), ward.sites["site-0"]
    alone = {"site-0": step.keys["site-0"]}
    more = {f"site-{i}": PublicKeys(seal=f"{i:064x}", mask=f"{i + 100:064x}") for i in range(3, 5)}
    for keys, fault in (
        (alone, "fewer sites than the threshold"),
        ({**step.keys, **more}, "half the sites or less"),
        ({**alone, "site-1": step.keys["site-1"], "site-2": step.keys["site-1"]}, "occurs twice"),
    ):
        with pytest.raises(SiteRefused, match=fault):
            site.share(step.model_copy(update={"keys": keys}))
    site.share(step)
    changed = {**step.keys, "site-2": more["site-3"]}
    with pytest.raises(SiteRefused, match="answered before for another request"):
        site.share(step.model_copy(update={"keys": changed}))


def test_a_masked_step_is_answered_for_one_set_of_sites_and_one_weight(ward: Ward) -> None:
    step = ward.mask_steps()["site-2"]
    site = ward.sites["site-2"]
    fewer = step.model_copy(update={"sealed": {"site-0": step.sealed["site-0"]}})
    for bad, fault in (
        (step.model_copy(update={"weight": 2}), "neither 1 nor the number of patients"),
        (step.model_copy(update={"sealed": {}}), "fewer sites than the threshold"),
        (step.model_copy(update={"sealed": {"site-9": "00"}}), "sites that take no part"),
        (step.model_copy(update={"sealed": {**step.sealed, "site-2": "00"}}), "sites that take no part"),
        (
            step.model_copy(update={"sealed": dict(zip(step.sealed, reversed(step.sealed.values()), strict=True))}),
            "cannot be opened",
        ),
    ):
        with pytest.raises(SiteRefused, match=fault):
            site.masked(bad, 3)
    site.masked(step.model_copy(update={"weight": 3}), 3)
    for other in (step, fewer):
        with pytest.raises(SiteRefused, match="answered before for another request"):
            site.masked(other, 3)


def test_who_tries_weights_does_not_learn_how_many_patients_there_are(ward: Ward) -> None:
    site, step = ward.sites["site-2"], ward.mask_steps()["site-2"]
    for weight in range(2, 9):
        with pytest.raises(SiteRefused, match="neither 1 nor the number of patients"):
            site.masked(step.model_copy(update={"weight": weight}), None)
    site.masked(step, None)


def test_under_privacy_every_site_counts_one(ward: Ward) -> None:
    for site in ward.sites.values():
        site.open(OTHER, 2, private=True)
    step = ward.mask_steps(OTHER, weight=3)["site-2"]
    with pytest.raises(SiteRefused, match="neither 1 nor the number of patients"):
        ward.sites["site-2"].masked(step, 3)


def test_unmasking_is_for_those_who_took_part_and_enough_of_them(ward: Ward) -> None:
    site, steps = ward.sites["site-0"], ward.mask_steps()
    with pytest.raises(SiteRefused, match="has sent no masked update"):
        site.unmask(ward.unmask_step())
    site.masked(steps["site-0"], 1)
    for survivors, dropped, fault in (
        (("site-0", "site-1"), (), "other sites than those that are in the sum"),
        (("site-0", "site-1", "site-2"), ("site-2",), "other sites than those that are in the sum"),
        (("site-1", "site-2"), ("site-0",), "this site among those that sent nothing"),
        (("site-0",), ("site-1", "site-2"), "fewer sites than the threshold"),
    ):
        step = UnmaskStep(**ward.where, session=SESSION, survivors=survivors, dropped=dropped)
        with pytest.raises(SiteRefused, match=fault):
            site.unmask(step)
    assert not site.marker.exists()


def test_what_cannot_be_read_is_refused_in_a_normal_answer(ward: Ward) -> None:
    content = answer_step(ward.context(0), RecordDict(), "unmask")
    assert "the step of a secure sum cannot be read" in str(content.config_records["answer"]["reason"])


@pytest.mark.parametrize("session", ["", "../../x", "None"])
def test_a_request_without_a_session_is_refused(ward: Ward, session: str) -> None:
    content = encode_job(ward.job, to_array_record(ward.weights), session=session)
    reply = decode_reply(answer_train(ward.context(0), content))
    assert "names no session" in reply.reason


def test_a_repeated_round_in_a_new_session_is_neither_trained_nor_paid_again(ward: Ward, quick_training) -> None:
    trained = len(quick_training)
    content = encode_job(ward.job, to_array_record(ward.weights), session=OTHER)
    assert decode_reply(answer_train(ward.context(0), content)).status == "ok"
    assert len(quick_training) == trained
    assert len(PrivacyLedger(ward.roots[0]).history().events) == 1


# --- whose keys they are ------------------------------------------------------------------------
def test_a_server_that_puts_its_own_keys_in_place_of_a_sites_gets_no_shares(ward: Ward) -> None:
    """It would unseal what the others share with that site, and know every mask that they have in common with it."""
    step = ward.share_step()
    secret = new_secret()
    forged = PublicKeys(seal=public_key(secret).hex(), mask=public_key(new_secret()).hex())
    signed = step.keys["site-1"].signature
    for keys in (forged, forged.model_copy(update={"signature": signed})):
        swapped = step.model_copy(update={"keys": {**step.keys, "site-1": keys}})
        for name in ("site-0", "site-2"):
            with pytest.raises(SiteRefused, match=r"as those of site-1 for a secure sum were not signed by site-1"):
                ward.sites[name].share(swapped)
            assert not (ward.sites[name].secure / "shares.json").exists()


def test_a_server_with_a_key_of_its_own_is_no_site(ward: Ward, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    write_json(tmp_path / "server" / "site.json", {"name": "site-1"})
    make_identities([tmp_path / "server"])
    step = ward.share_step()
    forged = PublicKeys(seal="ab" * 32, mask="cd" * 32)
    other = step.model_copy(update={"keys": {**step.keys, "site-1": forged}})
    by_server = Identity.of_site(tmp_path / "server").sign(other.statement("site-1"))
    for name, fault in (("site-1", "were not signed by site-1"), ("site-9", "cannot check who site-9 is")):
        kept = {other: k for other, k in step.keys.items() if other != "site-1"}
        keys = {**kept, name: forged.model_copy(update={"signature": by_server})}
        with pytest.raises(SiteRefused, match=fault):
            ward.sites["site-0"].share(step.model_copy(update={"keys": keys}))


@pytest.mark.parametrize("name", ["../site-1", "../../../other/peers/x", "", "a/b"])
def test_a_name_leads_to_no_other_file(ward: Ward, name: str) -> None:
    step = ward.share_step()
    kept = {other: k for other, k in step.keys.items() if other != "site-1"}
    keys = {**kept, name: PublicKeys(seal="ab" * 32, mask="cd" * 32)}
    with pytest.raises(SiteRefused, match="cannot check who"):
        ward.sites["site-0"].share(step.model_copy(update={"keys": keys}))


def test_a_signature_is_for_one_session_of_one_request(ward: Ward) -> None:
    step = ward.share_step()
    for change in ({"session": OTHER}, {"round": 2}, {"key": "0" * 64}, {"threshold": 3}, {"run": "other"}):
        other = step.model_copy(update=change)
        with pytest.raises(SiteRefused, match="were not signed by site-1"):
            ward.sites["site-0"].identity.verify("site-1", other.statement("site-1"), step.keys["site-1"].signature)
    ward.sites["site-0"].identity.verify("site-1", step.statement("site-1"), step.keys["site-1"].signature)


def test_a_server_in_the_middle_of_a_whole_round_learns_no_sum(tmp_path: Path) -> None:
    make_sites(tmp_path, 3)

    def swap(site: int, kind: str, content: RecordDict) -> RecordDict:
        if kind == "train" and site == 1:
            told = PublicKeys.model_validate_json(str(content.config_records["reply"]["keys"]))
            mine = told.model_copy(update={"mask": public_key(new_secret()).hex()})
            content.config_records["reply"]["keys"] = mine.model_dump_json()
        return content

    with pytest.raises(FederationError, match=r"stopped at step shares.*not signed by site-1"):
        secure_run(tmp_path, 3, swap).start_or_resume()
    assert not list(tmp_path.rglob("masked.json"))


def test_a_site_without_a_key_refuses_with_what_to_do(ward: Ward) -> None:
    (ward.roots[0] / "identity" / "node" / "node.key").unlink()
    content = encode_job(ward.job, to_array_record(ward.weights), session=OTHER)
    reply = decode_reply(answer_train(ward.context(0), content))
    assert "no key to sign its part of a secure sum with" in reply.reason
    assert "kit that was provisioned" in reply.reason


def test_signing_costs_little(ward: Ward) -> None:
    step, site = ward.share_step(), ward.sites["site-0"]
    start = time.process_time()
    for _ in range(20):
        site.identity.verify(
            "site-1", step.statement("site-1"), site.identity.sign(b"") and step.keys["site-1"].signature
        )
    assert (time.process_time() - start) / 20 < 0.1, "a signature and its check: some ms for each site of a round"


# --- settings -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": {"name": "krum"}, "min_sites": 3}, "shows the server the sum alone, and krum needs each reply"),
        ({"strategy": {"name": "trimmed-mean"}, "min_sites": 3}, "and trimmed-mean needs each reply: take fedavg"),
        ({"compression": "int8"}, "set compression to none"),
        ({"secure_aggregation": {"threshold": 1}}, "greater than or equal to 2"),
        ({"sites": 5, "min_sites": 5}, "threshold 2 is no majority of the 5 sites of a round: set it to 3 or more"),
        ({"min_sites": 1}, "set it to secure_aggregation.threshold, 2"),
        ({"secure_aggregation": True}, "secure_aggregation"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FederationConfig(**{"secure_aggregation": {"threshold": 2}, **settings})


def test_the_default_is_in_no_digest() -> None:
    assert "secure_aggregation" not in digested(FederationConfig(secure_aggregation=False))
    assert "secure_threshold" not in digested(tiny_request()[0])
    assert FederationConfig(secure_aggregation={"threshold": 2}).model_dump()["secure_aggregation"] == {"threshold": 2}
    assert tiny_request()[0].key != tiny_request(secure_threshold=2)[0].key


def test_sites_that_count_too_much_are_an_error_before_anyone_pays(tmp_path: Path) -> None:
    run = secure_run(tmp_path, 3)
    job, weights = tiny_request(secure_threshold=2)
    with pytest.raises(FederationError, match=r"count too much for a secure sum.*weighting=equal"):
        SecureRound(run.grid, run.roster, job, weights, {"a": 2**26, "b": 1})
    assert OPEN.may_leave.patient_count
