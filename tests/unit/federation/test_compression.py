"""Fewer bits: how far off a weight may be, that coins are fair, and that a reply is the same bytes however often."""

from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrfed.core.artifacts import digest_json, digest_state, load_state, read_json
from cmrfed.core.settings.digests import digested
from cmrfed.federation.compression import SCALES, compress, expand
from cmrfed.federation.messages import to_array_record, to_state
from cmrfed.federation.settings import FederationConfig
from cmrfed.federation.site.folder import SiteRecord
from cmrfed.federation.site.site import Site, answer_train
from cmrfed.privacy.policy import SitePolicy
from cmrfed.privacy.settings import PrivateTraining
from cmrfed.training.loop import LocalTrainer
from tests.federation_world import (
    FaultyGrid,
    federated_run,
    make_sites,
    random_state,
    tiny_cohort,
    tiny_request,
    tiny_stage,
)

KINDS = ["fp16", "int8"]


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def both(seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    old, step = random_state(seed), random_state(seed + 1)
    return {n: old[n] + 1e-3 * step[n] for n in old}, old


# --- arithmetic ---------------------------------------------------------------------------------
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20), st.integers(0, 9))
@settings(deadline=None)
def test_a_byte_is_off_by_less_than_a_step_and_a_half_by_a_2048th(values: list[float], seed: int) -> None:
    new = {"a": torch.tensor(values)}
    old = {"a": torch.zeros(len(values))}
    for kind in KINDS:
        back = expand(compress(new, old, kind, draws(seed)), old, kind)["a"].double()
        exact, largest = new["a"].double(), new["a"].double().abs().max()
        step = largest / 127 * (1 + 1e-6) + 1e-44 if kind == "int8" else exact.abs() * 2**-11 + largest * 2**-24 + 1e-44
        assert bool(((back - exact).abs() <= step).all()), kind


def test_bytes_are_right_on_average() -> None:
    new = {"a": torch.linspace(-1, 1, 41)}
    old, rng, count = {"a": torch.zeros(41)}, draws(), 4000
    total = sum(expand(compress(new, old, "int8", rng), old, "int8")["a"].double() for _ in range(count))
    sigmas = (total / count - new["a"]).abs() / ((1 / 127) / 2 / count**0.5)  # a coin deviates by half a step at most
    assert float(sigmas.max()) < 4.5, "one of 41 such means is beyond once in 3,600 tests"
    nearest = torch.round(new["a"] * 127) / 127
    assert float(((nearest - new["a"]).abs() / ((1 / 127) / 2 / count**0.5)).max()) > 10, "the nearest byte is not"


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_stay_where_they_are_stay_there_bit_for_bit(kind: str) -> None:
    _, old = both()
    assert digest_state(expand(compress(old, old, kind, draws()), old, kind)) == digest_state(old)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_does_not_become_finite(kind: str, bad: float) -> None:
    new, old = both()
    new["a"][0, 0] = bad
    back = expand(compress(new, old, kind, draws()), old, kind)
    assert not bool(torch.isfinite(back["a"]).all())


def test_tiny_and_huge_changes_fit_into_halves() -> None:
    old = {"a": torch.zeros(2), "b": torch.zeros(2)}
    new = {"a": torch.tensor([1e-30, 3e-31]), "b": torch.tensor([1e30, -7e29])}
    back = expand(compress(new, old, "fp16", draws()), old, "fp16")
    assert all(torch.allclose(back[n], new[n], rtol=2**-10, atol=0) for n in new)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(SCALES), "lacks or adds weights: /scales"),
        (lambda s: s.update(extra=s["a"]), "lacks or adds weights: extra"),
        (
            lambda s: s.update({SCALES: s[SCALES][:1]}),
            r"/scales is torch.float32 \(1,\), expected torch.float32 \(2,\)",
        ),
        (lambda s: s.update(a=s["a"].float()), r"a is torch.float32 \(3, 2\), expected torch.int8 \(3, 2\)"),
        (lambda s: s.update(a=s["a"][:1]), r"a is torch.int8 \(1, 2\), expected"),
    ],
)
def test_what_was_not_compressed_here_is_not_expanded(change, message: str) -> None:
    new, old = both()
    sent = compress(new, old, "int8", draws())
    change(sent)
    with pytest.raises(ValueError, match=message):
        expand(sent, old, "int8")


# --- at a site ----------------------------------------------------------------------------------
def answer(site: Site, **changes: object) -> bytes:
    from cmrfed.federation.messages import encode_job

    job, weights = tiny_request(**changes)
    context = Context(1, 2, {"site-root": str(site.root)}, RecordDict(), {})
    return answer_train(context, encode_job(job, to_array_record(weights))).array_records["arrays"]["weights"].data


@pytest.mark.parametrize("kind", KINDS)
def test_a_repeated_request_gets_the_same_bytes_without_training(tmp_path: Path, monkeypatch, kind: str) -> None:
    site = Site.open(make_sites(tmp_path)[1])
    first = answer(site, compression=kind)
    monkeypatch.setattr(LocalTrainer, "run", lambda *_, **__: pytest.fail("it trained again"))
    assert answer(site, compression=kind) == first
    stored = load_state(site.root / "state" / "r" / "image" / "round-0001" / "reply.safetensors")[0]
    assert {str(t.dtype) for n, t in stored.items() if n != SCALES} == {
        "torch.float16" if kind == "fp16" else "torch.int8"
    }


def test_without_privacy_the_coins_repeat_and_differ_between_sites(tmp_path: Path) -> None:
    sent = []
    for folder, name in (("x", "one"), ("y", "one"), ("z", "two")):
        cohort = tiny_cohort(tmp_path / folder / "cohort")
        policy = SitePolicy.of_simulation("none", None, 1e-3)
        sent.append(
            answer(
                Site.register(tmp_path / folder, SiteRecord(name=name, cohort=str(cohort.root)), policy),
                compression="int8",
            )
        )
    assert sent[0] == sent[1]
    assert sent[0] != sent[2]


def test_under_privacy_no_seed_decides_the_coins(tmp_path: Path) -> None:
    """Nobody is drawn and there is next to no noise, so that the coins alone could differ."""
    closed = SitePolicy(epsilon_cap=None, delta=1e-2, smallest_cohort=1, permitted_units=("patient", "none"))
    cohort = tiny_cohort(tmp_path / "cohort")
    site = Site.register(tmp_path / "s", SiteRecord(name="ward", cohort=str(cohort.root)), closed)
    asked = PrivateTraining(
        unit="patient",
        noise_multiplier=1.0,
        sampling_rate=0.5,
        noise_multiplicity=1,
        declared_patients=6,
        clip_norm=0.5,
    )
    job, old = tiny_request(compression="int8", privacy=asked)
    new = {n: w + torch.linspace(0, 1e-3, w.numel()).view_as(w) for n, w in old.items()}
    sent = [digest_state(site._sent(job, new, old)) for _ in range(2)]
    assert sent[0] != sent[1]


# --- a run --------------------------------------------------------------------------------------
def metrics(run_dir: Path) -> dict:
    return read_json(run_dir / "image" / "round-0001" / "metrics.json")


def test_halves_halve_and_bytes_quarter_what_goes_up_and_nothing_changes_what_goes_down(tmp_path: Path) -> None:
    told = {}
    stage = tiny_stage(rounds=1)
    for kind in ("none", *KINDS):
        make_sites(tmp_path / kind)
        federated_run(tmp_path / kind, stage, compression=kind).start_or_resume()
        told[kind] = metrics(tmp_path / kind)
    assert len({m["bytes_down"] for m in told.values()}) == 1
    header = 3 * 8192  # names and shapes: they do not shrink, and weigh next to nothing beside millions of weights
    whole = told["none"]["bytes_up"]
    assert abs(told["fp16"]["bytes_up"] - whole / 2) < header
    assert abs(told["int8"]["bytes_up"] - whole / 4) < header
    assert told["int8"]["bytes_up"] < 0.3 * whole


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_is_that_of_whole_replies_up_to_rounding_and_repeats(tmp_path: Path, kind: str) -> None:
    stage, ends = tiny_stage(rounds=2), []
    for name, compression in (("a", kind), ("b", kind), ("whole", "none")):
        make_sites(tmp_path / name)
        ends.append(federated_run(tmp_path / name, stage, compression=compression).start_or_resume().digests["image"])
    assert ends[0] == ends[1] != ends[2]
    first, plain = (load_state(tmp_path / n / "image" / "round-0001" / "global.safetensors")[0] for n in ("a", "whole"))
    for name in plain:
        assert float((first[name] - plain[name]).abs().max()) <= 1e-4, name


def test_a_compressed_reply_that_holds_nan_or_the_wrong_type_is_set_aside(tmp_path: Path) -> None:
    def spoil(site: int, kind: str, content: RecordDict) -> RecordDict:
        if kind == "train" and site > 0:
            state = to_state(content.array_records["arrays"])
            name = next(iter(sorted(set(state) - {SCALES})))
            state |= {SCALES: state[SCALES] * float("nan")} if site == 1 else {name: state[name].float()}
            content["arrays"] = to_array_record(state)
        return content

    make_sites(tmp_path)
    federated_run(
        tmp_path, tiny_stage(rounds=1), grid=FaultyGrid(tmp_path, 3, spoil), compression="int8", min_sites=1
    ).start_or_resume()
    told = metrics(tmp_path)["sites"]
    assert [told[f"site-{i}"]["status"] for i in range(3)] == ["ok", "set aside", "set aside"]
    assert "holds NaN or infinity" in told["site-1"]["reason"]
    assert "is torch.float32" in told["site-2"]["reason"]


# --- what stays as it was -----------------------------------------------------------------------
def test_the_default_is_in_no_digest_and_another_is_in_all() -> None:
    assert "compression" not in digested(FederationConfig())
    plain, (other, _) = tiny_request()[0], tiny_request(compression="fp16")
    assert "compression" not in digested(plain)
    assert (plain.key, plain.config_digest) != (other.key, other.config_digest)
    assert digest_json(FederationConfig(compression="fp16").model_dump(mode="json")) != digest_json(
        FederationConfig().model_dump(mode="json")
    )


def test_by_default_a_reply_carries_whole_weights(tmp_path: Path) -> None:
    site = Site.open(make_sites(tmp_path)[1])
    job, weights = tiny_request()
    reply = site.train_round(job, weights)
    assert {n: (w.dtype, w.shape) for n, w in (reply.arrays or {}).items()} == {
        n: (w.dtype, w.shape) for n, w in weights.items()
    }
