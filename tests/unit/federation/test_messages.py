"""Requests and replies survive the records; what does not fit is refused by name."""

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from cmrfed.core.artifacts import digest_state
from cmrfed.core.errors import FederationError, SiteRefused
from cmrfed.federation.messages import (
    SiteInfo,
    StageJob,
    TrainReply,
    decode_info,
    decode_job,
    decode_reply,
    encode_info,
    encode_job,
    encode_refusal,
    encode_reply,
    to_array_record,
    to_state,
)
from tests.federation_world import NOTHING_PROMISED, random_state, tiny_stage


def make_job(**changes: object) -> StageJob:
    stage = tiny_stage(rounds=9)
    plain = {
        "run": "demo-1",
        "experiment": "e" * 64,
        "seed": 1,
        "stage": "image",
        "round": 3,
        "generator": stage.generator,
        "training": stage.training,
        "model_digest": digest_state(random_state(0)),
    }
    return StageJob(**{**plain, **changes})


def make_reply(**changes: object) -> TrainReply:
    metrics = {"loss": 0.5, "first_loss": 1.0, "last_loss": 0.1, "items": 8.0, "seconds": 0.2}
    return TrainReply(
        **{
            "site": "a",
            "status": "ok",
            "key": "k",
            "arrays": random_state(0),
            "metrics": metrics,
            "spent": NOTHING_PROMISED,
            **changes,
        }
    )


def test_weights_survive_the_record_bit_for_bit_and_in_order_of_name() -> None:
    state = {"b": torch.tensor([1e-40, -0.0, 3.0]), "a": torch.randn(2, 3, 4).half()}
    back = to_state(to_array_record(state))
    assert list(back) == ["a", "b"]
    assert all(torch.equal(back[n], state[n]) and back[n].dtype == state[n].dtype for n in state)


def test_a_job_survives_the_record() -> None:
    job = make_job()
    back, state = decode_job(encode_job(job, to_array_record(random_state(0))))
    assert back == job
    assert back.key == job.key
    assert digest_state(state) == job.model_digest


def test_each_client_gets_records_of_its_own() -> None:
    shared = to_array_record(random_state(0))
    first, second = encode_job(make_job(), shared), encode_job(make_job(), shared)
    del first.array_records["arrays"]["weights"]
    assert "weights" in second.array_records["arrays"]
    assert "weights" in shared


def test_threads_do_not_change_the_key_but_everything_else_does() -> None:
    job = make_job()
    assert make_job(threads=7).key == job.key
    changes = [{"round": 4}, {"seed": 2}, {"run": "demo-2"}, {"stage": "mask"}, {"proximal_mu": 0.1}]
    changes += [{"model_digest": "0"}, {"experiment": "f"}, {"training": tiny_stage(rounds=9, steps=5).training}]
    assert len({make_job(**change).key for change in changes} | {job.key}) == len(changes) + 1


def test_another_reading_of_the_configuration_is_refused_and_both_digests_are_named() -> None:
    content = encode_job(make_job(), to_array_record(random_state(0)))
    content.config_records["config"]["config-digest"] = "0123"
    with pytest.raises(SiteRefused, match=rf"configuration differs.*Got: {make_job().config_digest}.*Expected: 0123"):
        decode_job(content)


def test_other_weights_than_announced_are_refused() -> None:
    with pytest.raises(SiteRefused, match="digest of the weights differs"):
        decode_job(encode_job(make_job(), to_array_record(random_state(1))))


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"config": ConfigRecord({"job": "{}"})}),
        RecordDict({"config": ConfigRecord({"job": "not json"}), "arrays": ArrayRecord()}),
    ],
)
def test_a_request_that_cannot_be_read_is_refused(content: RecordDict) -> None:
    with pytest.raises(SiteRefused, match=r"request cannot be read.*same version"):
        decode_job(content)


@pytest.mark.parametrize("run", ["../escape", "", "a/b", ".hidden", "x" * 101])
def test_a_run_name_cannot_leave_its_folder(run: str) -> None:
    with pytest.raises(ValueError, match="run"):
        make_job(run=run)


def test_a_reply_for_aggregation_has_one_array_record_and_one_metric_record() -> None:
    content = encode_reply(make_reply())
    assert (len(content.array_records), len(content.metric_records)) == (1, 1)
    back = decode_reply(content)
    assert (back.site, back.status, back.key) == ("a", "ok", "k")
    assert back.metrics == make_reply().metrics


def test_a_refusal_travels_with_its_reason_and_without_weights() -> None:
    content = encode_reply(TrainReply("a", "refused", "k", "no masks"))
    assert not content.array_records
    assert decode_reply(content) == TrainReply("a", "refused", "k", "no masks")


@pytest.mark.parametrize("lost", ["arrays", "metrics", "reply"])
def test_a_reply_without_a_record_cannot_be_read(lost: str) -> None:
    content = encode_reply(make_reply())
    del content[lost]
    with pytest.raises(FederationError, match=rf"reply cannot be read.*{lost}"):
        decode_reply(content)


def test_a_metric_that_is_a_list_cannot_be_read() -> None:
    content = encode_reply(make_reply())
    content["metrics"] = MetricRecord({"loss": [1.0, 2.0]})
    with pytest.raises(FederationError, match="reply cannot be read"):
        decode_reply(content)


def test_introductions() -> None:
    info = SiteInfo(name="st-anna", style=2, patients=31)
    assert decode_info(encode_info(info)) == info
    with pytest.raises(FederationError, match=r"refused.*no cohort"):
        decode_info(encode_refusal("no cohort"))
    with pytest.raises(FederationError, match="introduction cannot be read"):
        decode_info(RecordDict({"site": ConfigRecord({"info": '{"name": "../x", "style": 0, "patients": 1}'})}))
