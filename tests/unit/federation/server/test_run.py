"""The round loop: aggregation over real sites, spoilt and lost replies, quorum, participation, resumption."""

import gc
import json
import pickle
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from cmrfed.core.artifacts import digest_state, load_state, read_json
from cmrfed.core.errors import ConfigError, FederationError
from cmrfed.core.rng import fold
from cmrfed.federation.local_grid import LocalGrid
from cmrfed.federation.messages import decode_reply, to_array_record, to_state
from cmrfed.federation.server.run import FederatedRun
from cmrfed.federation.site.folder import SiteRecord
from cmrfed.federation.site.site import Site
from cmrfed.generators.generator import Generator
from cmrfed.generators.settings import FlowConfig
from tests.federation_world import OPEN, FaultyGrid, federated_run, make_sites, site_roots, tiny_cohort, tiny_stage


def metrics(run_dir: Path, number: int, stage: str = "image") -> dict:
    return read_json(run_dir / stage / f"round-{number:04d}" / "metrics.json")


def tensors(run_dir: Path, number: int, name: str, stage: str = "image") -> dict[str, torch.Tensor]:
    return load_state(run_dir / stage / f"round-{number:04d}" / f"{name}.safetensors")[0]


def reply_of(root: Path, number: int) -> dict[str, torch.Tensor]:
    (path,) = root.glob(f"state/*/image/round-{number:04d}/reply.safetensors")
    return load_state(path)[0]


def close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return set(left) == set(right) and all(torch.allclose(left[n], right[n], atol=1e-6) for n in left)


# --- the plain case -----------------------------------------------------------------------------
@pytest.mark.parametrize(("weighting", "weights"), [("patients", (1, 2, 3)), ("equal", (1, 1, 1))])
def test_the_global_weights_are_the_weighted_mean_of_the_replies(tmp_path: Path, weighting: str, weights) -> None:
    roots = make_sites(tmp_path)
    federated_run(tmp_path, tiny_stage(rounds=1), weighting=weighting).start_or_resume()
    replies = [reply_of(root, 1) for root in roots]
    mean = {
        n: sum(w * r[n].double() for w, r in zip(weights, replies, strict=True)).float() / sum(weights)
        for n in replies[0]
    }
    assert close(tensors(tmp_path, 1, "global"), mean)


def test_without_rounds_no_site_is_asked_and_the_generator_is_the_start(tmp_path: Path) -> None:
    start = Generator(tiny_stage().generator, 7)
    start.save(tmp_path / "start")
    stage = replace(tiny_stage(rounds=0), start=tmp_path / "start")
    result = federated_run(tmp_path, stage).start_or_resume()  # there are no sites
    made = Generator.load(result.generators["image"]).network.state_dict()
    assert digest_state(made) == digest_state(start.network.state_dict()) == result.digests["image"]


def test_the_average_of_the_weights_warms_up_and_is_what_the_generator_holds(tmp_path: Path) -> None:
    make_sites(tmp_path)
    stage = tiny_stage(rounds=2, ema_decay=0.15)
    run = federated_run(tmp_path, stage)
    result = run.start_or_resume()
    average = dict(Generator(stage.generator, fold(run.seed, "init", "image")).network.state_dict())
    for number in (1, 2):
        decay = min(0.15, (1 + number) / (10 + number))
        new = tensors(tmp_path, number, "global")
        average = {n: decay * average[n] + (1 - decay) * new[n] for n in new}
    assert close(tensors(tmp_path, 2, "ema"), average)
    loaded = Generator.load(result.generators["image"]).network.state_dict()
    assert digest_state(loaded) == digest_state(tensors(tmp_path, 2, "ema"))


def test_averages_with_further_decays_are_generators_beside_the_stages_own(tmp_path: Path) -> None:
    make_sites(tmp_path)
    run = federated_run(tmp_path, tiny_stage(rounds=2, ema_decay=0.15, extra_ema_decays=[0.0, 0.1]))
    first = dict(Generator(run.stages[0].generator, fold(run.seed, "init", "image")).network.state_dict())
    run.start_or_resume()
    for folder, limit in {"image": 0.15, "image-ema-0.0": 0.0, "image-ema-0.1": 0.1}.items():
        average = first
        for number in (1, 2):
            decay, new = min(limit, (1 + number) / (10 + number)), tensors(tmp_path, number, "global")
            average = {n: decay * average[n] + (1 - decay) * new[n] for n in new}
        assert close(Generator.load(tmp_path / "generators" / folder).network.state_dict(), average), folder


def test_each_round_is_recorded_and_old_tensors_are_dropped(tmp_path: Path) -> None:
    make_sites(tmp_path)
    federated_run(tmp_path, tiny_stage(rounds=4)).start_or_resume()
    kept = sorted(p.parent.name for p in tmp_path.glob("image/*/global.safetensors"))
    assert kept == ["round-0003", "round-0004"]
    for number in (1, 2, 3, 4):
        record = metrics(tmp_path, number)
        assert (record["stage"], record["round"]) == ("image", number)
        assert {s["status"] for s in record["sites"].values()} == {"ok"}
        assert record["bytes_down"] > 3 * 4 * sum(w.numel() for w in tensors(tmp_path, 4, "global").values())
    assert read_json(tmp_path / "image" / "LATEST")["round"] == 4


def test_two_stages_start_from_seeds_of_their_own(tmp_path: Path) -> None:
    make_sites(tmp_path)
    result = federated_run(tmp_path, tiny_stage("mask"), tiny_stage("image")).start_or_resume()
    assert set(result.generators) == {"mask", "image"}
    assert all((folder / "unet").is_dir() for folder in result.generators.values())


def test_a_stage_starts_from_the_weights_of_a_saved_generator(tmp_path: Path) -> None:
    make_sites(tmp_path)
    stage = tiny_stage(rounds=1, learning_rate=1e-30)
    start = Generator(stage.generator, seed=77)
    start.save(tmp_path / "start")
    federated_run(tmp_path, replace(stage, start=tmp_path / "start")).start_or_resume()
    assert close(tensors(tmp_path, 1, "global"), start.network.state_dict())


def test_times_in_training_may_follow_another_law_than_at_the_start(tmp_path: Path) -> None:
    make_sites(tmp_path)
    stage = tiny_stage(rounds=1)
    Generator(stage.generator.model_copy(update={"process": FlowConfig(timestep_sampling="uniform")})).save(
        tmp_path / "start"
    )
    stage = replace(stage, start=tmp_path / "start")
    assert stage.generator.process == FlowConfig(timestep_sampling="logit_normal")
    federated_run(tmp_path, stage).start_or_resume()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"styles": 5}, r"does not fit the recipe\. Got: styles = 5\. Expected: styles = 8\. Do: .*cmrfed pretrain"),
        ({"codec": "mask", "condition_masks": 2}, r"Got: codec = mask; condition_masks = 2\. Expected: codec = pixel"),
    ],
)
def test_a_generator_that_does_not_fit_is_no_start(tmp_path: Path, changes: dict, message: str) -> None:
    make_sites(tmp_path)
    stage = tiny_stage()
    Generator(stage.generator.model_copy(update=changes)).save(tmp_path / "start")
    with pytest.raises(ConfigError, match=message):
        federated_run(tmp_path, replace(stage, start=tmp_path / "start")).start_or_resume()
    assert not (tmp_path / "generators").exists()


def test_the_order_of_arrival_does_not_matter(tmp_path: Path) -> None:
    digests = []
    for name, grid in (("a", None), ("b", lambda *_: _[2])):
        make_sites(tmp_path / name)
        faulty = FaultyGrid(tmp_path / name, 3, grid) if grid else None
        digests.append(
            federated_run(tmp_path / name, tiny_stage(steps=1), grid=faulty).start_or_resume().digests["image"]
        )
    assert digests[0] == digests[1]


# --- faults -------------------------------------------------------------------------------------
def _with(content: RecordDict, change: Callable[[dict[str, torch.Tensor], str], None]) -> RecordDict:
    """The message with other weights: ``change`` gets them, and the name of the first."""
    state = to_state(content.array_records["arrays"])
    change(state, next(iter(state)))
    content["arrays"] = to_array_record(state)
    return content


def _nan(content: RecordDict) -> RecordDict:
    return _with(content, lambda state, name: state[name].view(-1)[:1].fill_(float("nan")))


def _shape(content: RecordDict) -> RecordDict:
    return _with(content, lambda state, name: state.update({name: torch.zeros(7, 1)}))


def _dtype(content: RecordDict) -> RecordDict:
    return _with(content, lambda state, name: state.update({name: state[name].double()}))


def _fewer(content: RecordDict) -> RecordDict:
    return _with(content, lambda state, name: state.pop(name))


def _torn(content: RecordDict) -> RecordDict:
    whole = content.array_records["arrays"]["weights"]
    content["arrays"] = ArrayRecord({"weights": Array(whole.dtype, whole.shape, whole.stype, whole.data[:-9])})
    return content


def _pickled(content: RecordDict) -> RecordDict:
    content["arrays"] = ArrayRecord({"weights": Array("object", (1,), "pickle", pickle.dumps([1]))})
    return content


def _other_request(content: RecordDict) -> RecordDict:
    content.config_records["reply"]["key"] = "f" * 64
    return content


def _other_name(content: RecordDict) -> RecordDict:
    content.config_records["reply"]["site"] = "site-1"
    return content


def _nan_loss(content: RecordDict) -> RecordDict:
    content.metric_records["metrics"]["loss"] = float("nan")
    return content


def _some_metrics(content: RecordDict) -> RecordDict:
    content["metrics"] = MetricRecord({"loss": 0.1})
    return content


def _no_word_of_the_ledger(content: RecordDict) -> RecordDict:
    del content.config_records["reply"]["spent"]
    return content


def _empty(content: RecordDict) -> RecordDict:
    return RecordDict()


def _nothing(content: RecordDict) -> None:
    return None


FAULTS = [
    (_nan, "set aside", "holds NaN or infinity"),
    (_shape, "set aside", r"has shape \(7, 1\), expected"),
    (_dtype, "set aside", "is torch.float64, expected torch.float32"),
    (_fewer, "set aside", "lacks or adds weights"),
    (_torn, "set aside", "reply cannot be read"),
    (_pickled, "set aside", "reply cannot be read.*expected one array 'weights' of safetensors"),
    (_other_request, "set aside", "answers another request: got digest ffffffffffff"),
    (_other_name, "set aside", "calls itself 'site-1', and was 'site-2' before"),
    (_nan_loss, "set aside", "all finite"),
    (_some_metrics, "set aside", "its metrics are not"),
    (_no_word_of_the_ledger, "set aside", "cannot be read.*spent"),
    (_empty, "set aside", "reply cannot be read"),
    (_nothing, "missing", "no answer in time"),
]


def spoil_site_2(fault):
    return lambda site, kind, content: fault(content) if site == 2 and kind == "train" else content


@pytest.mark.parametrize(("fault", "status", "reason"), FAULTS, ids=lambda v: getattr(v, "__name__", None))
def test_a_bad_reply_is_left_out_with_a_reason_and_the_run_goes_on(tmp_path: Path, fault, status, reason) -> None:
    roots = make_sites(tmp_path)
    federated_run(tmp_path, tiny_stage(rounds=1), grid=FaultyGrid(tmp_path, 3, spoil_site_2(fault))).start_or_resume()
    told = metrics(tmp_path, 1)["sites"]
    assert [told[f"site-{i}"]["status"] for i in range(3)] == ["ok", "ok", status]
    assert told["site-2"]["loss"] is None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(told["site-2"]["reason"])
    first, second = reply_of(roots[0], 1), reply_of(roots[1], 1)
    assert close(tensors(tmp_path, 1, "global"), {n: (first[n] + 2 * second[n]) / 3 for n in first})


def test_a_site_that_refuses_is_recorded_and_the_run_goes_on(tmp_path: Path) -> None:
    roots = make_sites(tmp_path)
    bare = tiny_cohort(tmp_path / "bare", 2, has_mask=False)
    Site.register(roots[0], SiteRecord(name="site-0", cohort=str(bare.root)), OPEN)
    federated_run(tmp_path, tiny_stage(rounds=1)).start_or_resume()
    told = metrics(tmp_path, 1)["sites"]["site-0"]
    assert told["status"] == "refused"
    assert "without masks" in told["reason"]


def test_below_the_quorum_the_run_stops_and_says_why_for_each_site(tmp_path: Path) -> None:
    make_sites(tmp_path)

    def spoil(site: int, kind: str, content: RecordDict) -> RecordDict | None:
        if kind != "train" or site == 0:
            return content
        return _nan(content) if site == 1 else None

    grid = FaultyGrid(tmp_path, 3, spoil)
    message = (
        r"round 1 of the image stage misses its quorum.*Got: 1 usable of 3.*site-1: set aside.*NaN.*site-2: missing"
    )
    with pytest.raises(FederationError, match=message):
        federated_run(tmp_path, grid=grid, retries=1).start_or_resume()
    assert grid.asked == [[0, 1, 2], [0, 1, 2], [2]], "hello, round, and again the one that may still answer"
    assert not (tmp_path / "image").exists()


def test_a_site_that_answers_at_the_second_request_saves_the_round_and_trains_once(tmp_path: Path) -> None:
    make_sites(tmp_path)
    lost = []

    def spoil(site: int, kind: str, content: RecordDict) -> RecordDict | None:
        if kind == "train" and site == 2 and not lost:
            lost.append(to_state(content.array_records["arrays"]))
            return None
        return content

    grid = FaultyGrid(tmp_path, 3, spoil)
    result = federated_run(tmp_path, tiny_stage(rounds=1), grid=grid, min_sites=3).start_or_resume()
    make_sites(tmp_path / "calm")
    calm = federated_run(tmp_path / "calm", tiny_stage(rounds=1), min_sites=3).start_or_resume()
    assert result.digests == calm.digests
    assert digest_state(lost[0]) == digest_state(reply_of(site_roots(tmp_path, 3)[2], 1))


def test_after_a_missed_quorum_the_same_command_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    make_sites(tmp_path / "a")
    make_sites(tmp_path / "b")
    seen = []

    def spoil(site: int, kind: str, content: RecordDict) -> RecordDict | None:
        seen.append(site)
        return None if kind == "train" and len(seen) > 6 and site > 0 else content

    with pytest.raises(FederationError, match="round 2"):
        federated_run(tmp_path / "a", grid=FaultyGrid(tmp_path / "a", 3, spoil), retries=0).start_or_resume()
    resumed = federated_run(tmp_path / "a").start_or_resume()
    assert resumed.digests == federated_run(tmp_path / "b").start_or_resume().digests


def test_too_few_connected_sites_are_an_error_that_names_them_and_why_others_stay_out(tmp_path: Path) -> None:
    roots = make_sites(tmp_path, 3)
    (roots[0] / "site.json").unlink()
    grid = FaultyGrid(tmp_path, 3, lambda site, kind, content: None if site == 2 else content)
    message = r"too few sites are connected. Got: 1 \(site-1\); .*in its own log.*; .*no answer. Expected: at least 2"
    with pytest.raises(FederationError, match=message):
        federated_run(tmp_path, grid=grid).start_or_resume()


def test_a_site_that_connects_late_is_waited_for(tmp_path: Path) -> None:
    make_sites(tmp_path)
    hellos = []

    def spoil(site: int, kind: str, content: RecordDict) -> RecordDict | None:
        hellos.append(site)
        return None if kind == "query" and site == 2 and hellos.count(2) < 2 else content

    federated_run(tmp_path, grid=FaultyGrid(tmp_path, 3, spoil), connect_timeout_s=20.0).start_or_resume()
    assert set(metrics(tmp_path, 1)["sites"]) == {"site-0", "site-1", "site-2"}


def test_two_sites_of_one_name_are_an_error(tmp_path: Path) -> None:
    roots = make_sites(tmp_path)
    Site.register(roots[1], SiteRecord(name="site-0", cohort=str(tmp_path / "cohort")), OPEN)
    with pytest.raises(FederationError, match=r"two sites have the same name.*site-0"):
        federated_run(tmp_path).start_or_resume()


def test_a_site_that_crashes_is_missing_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_sites(tmp_path)
    monkeypatch.setattr(
        "cmrfed.federation.site.site._StateFolder.save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(FederationError, match=r"site-0: missing .the site failed: OSError.*No space left"):
        federated_run(tmp_path).start_or_resume()


# --- participation and resumption ---------------------------------------------------------------
def test_with_partial_participation_some_sites_are_asked_each_round(tmp_path: Path) -> None:
    make_sites(tmp_path)
    federated_run(tmp_path, tiny_stage(rounds=6, steps=1), fraction=0.5, min_sites=1).start_or_resume()
    asked = [set(metrics(tmp_path, number)["sites"]) for number in range(1, 7)]
    assert {len(names) for names in asked} == {2}
    assert set.union(*asked) == {"site-0", "site-1", "site-2"}


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam", "fedyogi"])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_stopped_after_any_round_it_resumes_to_the_same_bits(tmp_path: Path, monkeypatch, strategy, fraction) -> None:
    settings = {"strategy": {"name": strategy}, "fraction": fraction, "min_sites": 1}
    make_sites(tmp_path / "whole")
    whole = federated_run(tmp_path / "whole", tiny_stage(rounds=4), **settings).start_or_resume()
    make_sites(tmp_path / "parts")
    original = FederatedRun._round
    for _ in range(4):
        calls = []

        def once(self, *args, calls=calls):
            if calls:
                raise KeyboardInterrupt
            calls.append(1)
            return original(self, *args)

        monkeypatch.setattr(FederatedRun, "_round", once)
        try:
            parts = federated_run(tmp_path / "parts", tiny_stage(rounds=4), **settings).start_or_resume()
        except KeyboardInterrupt:
            continue
    assert parts.digests == whole.digests
    for name in ("ema", "strategy"):
        assert digest_state(tensors(tmp_path / "parts", 4, name)) == digest_state(tensors(tmp_path / "whole", 4, name))


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    make_sites(tmp_path)
    first = federated_run(tmp_path).start_or_resume()
    grid = FaultyGrid(tmp_path, 3, lambda *_: pytest.fail("nobody is asked"))
    assert federated_run(tmp_path, grid=grid).start_or_resume().digests == first.digests


def test_a_folder_of_another_experiment_is_refused(tmp_path: Path) -> None:
    make_sites(tmp_path)
    run = federated_run(tmp_path)
    run.start_or_resume()
    run.digest = "e" * 64
    with pytest.raises(
        FederationError, match=r"another experiment.*Got: digest dddd.*Expected: digest eeee.*--run-dir"
    ):
        run.start_or_resume()


def test_metrics_are_plain_json(tmp_path: Path) -> None:
    make_sites(tmp_path)
    federated_run(tmp_path, tiny_stage(rounds=1)).start_or_resume()
    text = (tmp_path / "image" / "round-0001" / "metrics.json").read_text()
    json.loads(text, parse_constant=lambda constant: pytest.fail(constant))


# --- memory -------------------------------------------------------------------------------------
def test_the_server_holds_the_arrays_of_one_reply_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_sites(tmp_path)
    alive: list[weakref.ref] = []
    most = 0

    def decode(content: RecordDict):
        nonlocal most
        reply = decode_reply(content)
        alive.extend(weakref.ref(tensor) for tensor in list(reply.arrays.values())[:1])
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))
        return reply

    monkeypatch.setattr("cmrfed.federation.server.exchange.decode_reply", decode)
    federated_run(tmp_path, tiny_stage(rounds=1)).start_or_resume()
    assert len(alive) == 3
    assert most == 1


def test_what_a_killed_run_left_of_its_replies_goes(tmp_path: Path) -> None:
    make_sites(tmp_path)
    (tmp_path / ".replies").mkdir()
    (tmp_path / ".replies" / "site-0.npy").write_bytes(b"torn")
    federated_run(tmp_path, tiny_stage(rounds=1)).start_or_resume()
    assert not (tmp_path / ".replies").exists()


def test_a_grid_refuses_what_flowers_grid_over_a_network_would_lose(tmp_path: Path) -> None:
    grid = LocalGrid(make_sites(tmp_path))
    message = Message(RecordDict(), dst_node_id=next(iter(grid.get_node_ids())), message_type="query")
    for wrong in (iter([message]), [], (message for message in [message])):
        with pytest.raises(TypeError, match="needs a list of messages"):
            list(grid.send_and_receive(wrong))
    assert len(list(grid.send_and_receive([message]))) == 1
