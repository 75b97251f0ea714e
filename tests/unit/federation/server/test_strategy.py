"""Aggregation against slow, obvious formulas; robustness; exact resumption; who is asked."""

import sys

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from cmrfed.core.errors import FederationError
from cmrfed.federation.local_grid import LocalGrid
from cmrfed.federation.server.strategy import Aggregator, _flat, _message, choose, put_aside
from cmrfed.federation.settings import FederationConfig, StrategyConfig
from tests.federation_world import random_state
from tests.plugin_world import install

STRATEGIES = ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "trimmed-mean", "krum"]
WEIGHTS = [1.0, 2.0, 5.0, 3.0, 1.0]


def aggregator(name: str, **settings: float) -> Aggregator:
    LocalGrid([])  # gives this process the identity that Flower's messages ask for
    return Aggregator(TypeAdapter(StrategyConfig).validate_python({"name": name, **settings}))


def flat(state: dict[str, torch.Tensor]) -> np.ndarray:
    return np.concatenate([state[n].numpy().astype(np.float64).ravel() for n in sorted(state)])


def replies_of(round_number: int, current: dict[str, torch.Tensor], sites: int = 5):
    out = []
    for site in range(sites):
        step = random_state(100 * round_number + site)
        out.append(({n: current[n] + 0.1 * step[n] for n in current}, WEIGHTS[site]))
    return out


def mean_of(replies) -> np.ndarray:
    total = sum(w for _, w in replies)
    return sum(w / total * flat(state) for state, w in replies)


class Slow:
    """Each strategy in float64, written down from its paper."""

    def __init__(self, name: str) -> None:
        self.name, self.m, self.v = name, None, None

    def step(self, t: int, x: np.ndarray, replies) -> np.ndarray:
        delta = mean_of(replies) - x
        if self.m is None:
            self.m, self.v = np.zeros_like(x), np.zeros_like(x)
        return getattr(self, self.name.replace("-", "_"))(t, x, delta, replies)

    def fedavg(self, t, x, delta, replies):
        return x + delta

    fedprox = fedavg

    def fedavgm(self, t, x, delta, replies):
        self.m = 0.9 * self.m + delta
        return x + 1.0 * self.m

    def fedadam(self, t, x, delta, replies):
        self.m = 0.9 * self.m + 0.1 * delta
        self.v = 0.99 * self.v + 0.01 * delta**2
        rate = 0.01 * np.sqrt(1 - 0.99 ** (t + 1)) / (1 - 0.9 ** (t + 1))
        return x + rate * self.m / (np.sqrt(self.v) + 1e-3)

    def fedyogi(self, t, x, delta, replies):
        self.m = 0.9 * self.m + 0.1 * delta
        self.v = self.v - 0.01 * delta**2 * np.sign(self.v - delta**2)
        return x + 0.01 * self.m / (np.sqrt(self.v) + 1e-3)

    def trimmed_mean(self, t, x, delta, replies):
        values = np.sort(np.stack([flat(state) for state, _ in replies]), axis=0)
        cut = int(0.34 * len(values))
        return values[cut : len(values) - cut].mean(0)

    def krum(self, t, x, delta, replies):
        points = [flat(state) for state, _ in replies]
        nearest = max(1, len(points) - 0 - 2)
        scores = [sum(sorted(((p - q) ** 2).sum() for q in points)[1 : nearest + 1]) for p in points]
        return points[int(np.argmin(scores))]


@pytest.mark.parametrize("name", STRATEGIES)
def test_three_rounds_follow_the_formula(name: str) -> None:
    fast, slow, current = aggregator(name), Slow(name), random_state(0)
    reference = flat(current)
    for t in (1, 2, 3):
        replies = replies_of(t, current)
        reference = slow.step(t, flat(current), replies)
        current = fast.aggregate(t, current, replies)
        np.testing.assert_allclose(flat(current), reference, rtol=2e-5, atol=2e-6)
        assert {n: (w.dtype, w.shape) for n, w in current.items()} == {
            n: (w.dtype, w.shape) for n, w in random_state(0).items()
        }


@pytest.mark.parametrize("name", STRATEGIES)
def test_resumed_from_its_saved_state_it_gives_the_same_bits(name: str) -> None:
    whole, current = aggregator(name), random_state(0)
    for t in (1, 2, 3, 4):
        current = whole.aggregate(t, current, replies_of(t, current))
        if t == 2:
            saved, weights = {k: v.clone() for k, v in whole.state_dict().items()}, current
    resumed = aggregator(name)
    resumed.load_state_dict(saved)
    for t in (3, 4):
        weights = resumed.aggregate(t, weights, replies_of(t, weights))
    assert all(torch.equal(weights[n], current[n]) for n in current)


@pytest.mark.parametrize("name", ["trimmed-mean", "krum"])
def test_robust_strategies_resist_one_site_that_sends_a_huge_update(name: str) -> None:
    current = random_state(0)
    honest = replies_of(1, current)
    attacked = [*honest[:4], ({n: current[n] + 1000 * (w - current[n]) for n, w in honest[4][0].items()}, 1e6)]
    options = {"malicious_sites": 1} if name == "krum" else {}
    result = flat(aggregator(name, **options).aggregate(1, current, attacked))
    low = np.min([flat(s) for s, _ in honest[:4]], axis=0)
    high = np.max([flat(s) for s, _ in honest[:4]], axis=0)
    assert np.all((result >= low - 1e-6) & (result <= high + 1e-6))
    plain = flat(aggregator("fedavg").aggregate(1, current, attacked))
    assert np.abs(plain - flat(current)).max() > 10


def test_krum_chooses_well_among_updates_far_smaller_than_the_weights() -> None:
    """In float32, ‖x‖² + ‖y‖² - 2xy of the weights themselves would be noise here."""
    current = {"a": torch.full((4000,), 30.0)}
    rng = torch.Generator().manual_seed(0)
    steps = [1e-3 * torch.randn(4000, generator=rng) for _ in range(4)] + [3e-3 * torch.randn(4000, generator=rng)]
    steps[2] = sum(steps[:2]) / 2  # the centre of the others
    result = aggregator("krum", malicious_sites=1).aggregate(1, current, [({"a": 30.0 + s}, 1.0) for s in steps])
    assert torch.equal(result["a"], 30.0 + steps[2])


def test_a_strategy_that_diverges_says_so() -> None:
    current = random_state(0)
    huge = [({n: torch.full_like(w, 3e38) for n, w in current.items()}, 1.0)] * 3
    with pytest.raises(FederationError, match=r"fedavgm diverged in round 1.*Do: lower its server_learning_rate"):
        aggregator("fedavgm", server_learning_rate=9.0).aggregate(1, current, huge)


@given(st.permutations([f"site-{i}" for i in range(7)]), st.integers(1, 7), st.integers(0, 50))
def test_participants_depend_on_seed_stage_and_round_only(names: list[str], count: int, number: int) -> None:
    chosen = choose(names, count, 3, "mask", number)
    assert chosen == choose(sorted(names), count, 3, "mask", number)
    assert len(set(chosen)) == count
    assert set(chosen) <= set(names)


def test_every_site_is_asked_in_the_long_run() -> None:
    names = [f"site-{i}" for i in range(5)]
    counts = dict.fromkeys(names, 0)
    for number in range(400):
        for name in choose(names, 2, 0, "image", number):
            counts[name] += 1
    assert all(120 <= count <= 200 for count in counts.values())


@settings(max_examples=30)
@given(st.integers(1, 20), st.floats(0.01, 1))
def test_never_fewer_than_the_quorum_are_asked(sites: int, fraction: float) -> None:
    config = FederationConfig(sites=sites, min_sites=min(2, sites), fraction=fraction)
    assert config.min_sites <= config.asked <= sites
    assert config.asked >= fraction * sites


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"sites": 2, "min_sites": 3}, "only 2 site"),
        ({"strategy": {"name": "trimmed-mean", "trim_fraction": 0.2}}, "cuts nothing off: set min_sites to 5"),
        ({"sites": 9, "min_sites": 4, "strategy": {"name": "krum", "malicious_sites": 1}}, "min_sites of 5 or more"),
        ({"strategy": {"name": "fedavg", "server_momentum": 0.5}}, "server_momentum"),
        ({"strategy": {"name": "fedsgd"}}, "fedsgd"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings_: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FederationConfig(**settings_)


# --- one reply at a time ------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedyogi"])
def test_a_mean_of_one_reply_at_a_time_has_the_bits_of_flowers_mean_of_all(tmp_path, name: str) -> None:
    current, by_file, at_once = random_state(0), aggregator(name), aggregator(name).strategy
    at_once.fraction_train = 0.0
    replies = replies_of(1, current)
    files = [(put_aside(state, tmp_path / f"{i}.npy"), weight) for i, (state, weight) in enumerate(replies)]
    new = by_file.aggregate(1, current, files)
    at_once.configure_train(1, _flat(current), ConfigRecord(), None)
    messages = [
        _message(node, flat(state).astype(np.float32), weight) for node, (state, weight) in enumerate(replies, 2)
    ]
    arrays, _ = at_once.aggregate_train(1, messages)
    assert flat(new).astype(np.float32).tobytes() == arrays["weights"].numpy().astype(np.float32).tobytes()


@pytest.mark.parametrize("name", STRATEGIES)
def test_replies_may_lie_in_files(tmp_path, name: str) -> None:
    current = random_state(0)
    replies = replies_of(1, current)
    files = [(put_aside(state, tmp_path / f"{i}.npy"), weight) for i, (state, weight) in enumerate(replies)]
    first, second = (aggregator(name).aggregate(1, current, given) for given in (replies, files))
    assert all(torch.equal(first[n], second[n]) for n in current)


# --- plugins ----------------------------------------------------------------------------------------
MEDIAN = """
from typing import Literal
from flwr.serverapp.strategy import FedMedian
from cmrfed.federation.settings import StrategySettings

class Median(StrategySettings):
    name: Literal["median"] = "median"

    def build(self, everyone):
        return FedMedian(**everyone)
"""


@pytest.fixture
def median(tmp_path, monkeypatch):
    install(tmp_path, "cmrfed.strategies", "paint-median", {"median": "paint_median:Median"}, MEDIAN)
    monkeypatch.syspath_prepend(tmp_path)
    yield {"name": "median"}
    sys.modules.pop("paint_median", None)


def test_a_strategy_of_a_plugin_aggregates_and_is_written_by_its_name(median):
    config = FederationConfig(strategy=median)
    assert config.model_dump(mode="json")["strategy"] == {"name": "median"}
    replies = [({"w": torch.tensor([value, 1.0])}, 1.0) for value in (0.0, 2.0, 100.0)]
    LocalGrid([])  # gives this process the identity that Flower's messages ask for
    after = Aggregator(config.strategy).aggregate(1, {"w": torch.zeros(2)}, replies)
    assert after["w"].tolist() == [2.0, 1.0]


def test_a_strategy_that_needs_each_reply_has_no_secure_sums(median):
    with pytest.raises(ValidationError, match="the sum alone, and median needs each reply"):
        FederationConfig(strategy=median, secure_aggregation={"threshold": 2})
