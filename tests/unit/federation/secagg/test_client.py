"""What a site and the server accept of each other in a secure sum, before anything is computed with it."""

import json

import pytest
from flwr.app import ConfigRecord, RecordDict

from cmrfed.core.errors import FederationError, SiteRefused
from cmrfed.federation.secagg.client import MOST_TEXT, ShareStep, decode_answer, decode_step, encode_answer, encode_step

KEYS = {name: {"seal": "0" * 64, "mask": "1" * 64} for name in ("a", "b")}
STEP = {"run": "r", "stage": "mask", "round": 1, "key": "a" * 64, "session": "b" * 32, "threshold": 2, "keys": KEYS}


def as_sent(text: str) -> RecordDict:
    return RecordDict({"step": ConfigRecord({"json": text})})


def test_a_step_survives_its_journey() -> None:
    step = ShareStep.model_validate(STEP)
    assert decode_step("shares", encode_step(step)) == step


@pytest.mark.parametrize(
    "change",
    [
        {"round": 10**9},
        {"threshold": 10**6},
        {"keys": {"../etc": KEYS["a"]}},
        {"keys": {f"site-{i}": KEYS["a"] for i in range(1025)}},
        {"session": "b" * 33},
    ],
)
def test_a_step_out_of_bounds_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(SiteRefused, match="the step of a secure sum cannot be read"):
        decode_step("shares", as_sent(json.dumps(STEP | change)))


def test_a_step_is_not_parsed_before_its_length_is_known() -> None:
    with pytest.raises(SiteRefused, match=r"1,000,001 characters, expected at most 1,000,000 characters"):
        decode_step("shares", as_sent(" " * (MOST_TEXT + 1)))


@pytest.mark.parametrize("share", ["", "not hex", "AB", "0" * 321])
def test_a_share_that_is_not_hex_sets_its_site_aside(share: str) -> None:
    with pytest.raises(FederationError, match="a share that is not written in hex"):
        decode_answer(encode_answer("a", {"b": share}), "a")
