"""How replies become the next global weights: Flower's own strategies, by name, with a state that can be saved."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedProx, FedTrimmedAvg, FedYogi
from flwr.serverapp.strategy import Krum as FlowerKrum
from pydantic import Field, model_validator
from torch import Tensor

from cmrfed.core.config import Section
from cmrfed.core.errors import FederationError
from cmrfed.core.rng import numpy_generator
from cmrfed.federation.compression import Compression
from cmrfed.federation.messages import WEIGHT, State

_EVERYONE: dict[str, Any] = {"min_train_nodes": 1, "min_available_nodes": 1, "weighted_by_key": WEIGHT}


class FedAvgConfig(Section):
    """Weighted mean of the sites' weights (McMahan et al., arXiv 1602.05629)."""

    name: Literal["fedavg"] = "fedavg"

    def build(self) -> FedAvg:
        """Make Flower's strategy."""
        return FedAvg(**_EVERYONE)


class FedProxConfig(Section):
    """FedAvg, and a term μ/2 ‖w - global‖² in every site's loss (Li et al., arXiv 1812.06127)."""

    name: Literal["fedprox"]
    proximal_mu: float = Field(0.01, gt=0)
    """μ, the weight of the term."""

    def build(self) -> FedAvg:
        """Make Flower's strategy."""
        return FedProx(proximal_mu=self.proximal_mu, **_EVERYONE)


class FedAvgMConfig(Section):
    """SGD with momentum on the server, the mean change being the gradient (Hsu et al., arXiv 1909.06335)."""

    name: Literal["fedavgm"]
    server_learning_rate: float = Field(1.0, gt=0)
    """Factor of the mean change; 1 takes it over as it is."""
    server_momentum: float = Field(0.9, ge=0, lt=1)
    """Share of the last change that is kept in the next."""

    def build(self) -> FedAvg:
        """Make Flower's strategy."""
        return FedAvgM(
            server_learning_rate=self.server_learning_rate, server_momentum=self.server_momentum, **_EVERYONE
        )


class _FedOptConfig(Section):
    server_learning_rate: float = Field(0.01, gt=0)
    """Step of the server, about the change of each weight in a round."""
    beta_1: float = Field(0.9, ge=0, lt=1)
    """Decay of the running mean of the changes."""
    beta_2: float = Field(0.99, ge=0, lt=1)
    """Decay of the running mean of their squares."""
    tau: float = Field(1e-3, gt=0)
    """Floor of the denominator: small values adapt strongly."""

    def _settings(self) -> dict[str, Any]:
        betas = {"beta_1": self.beta_1, "beta_2": self.beta_2}
        return {"eta": self.server_learning_rate, "tau": self.tau, **betas, **_EVERYONE}


class FedAdamConfig(_FedOptConfig):
    """Adam on the server (Reddi et al., arXiv 2003.00295)."""

    name: Literal["fedadam"]

    def build(self) -> FedAvg:
        """Make Flower's strategy."""
        return FedAdam(**self._settings())


class FedYogiConfig(_FedOptConfig):
    """Yogi on the server (Reddi et al., arXiv 2003.00295)."""

    name: Literal["fedyogi"]

    def build(self) -> FedAvg:
        """Make Flower's strategy."""
        return FedYogi(**self._settings())


class TrimmedMeanConfig(Section):
    """Mean per weight without the extremes (Yin et al., arXiv 1803.01498); every site counts the same."""

    name: Literal["trimmed-mean"]
    trim_fraction: float = Field(0.34, gt=0, lt=0.5)
    """Share of the replies cut off at each end; rounded down to whole replies."""

    def build(self) -> FedAvg:
        """Make Flower's strategy."""
        return FedTrimmedAvg(beta=self.trim_fraction, **_EVERYONE)


class KrumConfig(Section):
    """The one reply that lies closest to its neighbours (Blanchard et al., NeurIPS 2017)."""

    name: Literal["krum"]
    malicious_sites: int = Field(0, ge=0)
    """Sites that may send anything; needs at least 2 × this + 3 replies."""

    def build(self) -> FedAvg:
        """Make Flower's strategy."""
        return UpdateKrum(num_malicious_nodes=self.malicious_sites, **_EVERYONE)


class UpdateKrum(FlowerKrum):
    """Flower's Krum on updates instead of weights.

    Its distances are ‖x‖² + ‖y‖² - 2xy in float32, which for weights that differ little is rounding noise; shifted by
    the global weights, a common constant, the distances are the same in theory and exact in practice.
    """

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember the global weights."""
        self._centre = {name: array.numpy().astype(np.float64) for name, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Shift, select, shift back."""
        replies = list(replies)
        for reply in replies:
            record = next(iter(reply.content.array_records.values()))
            for name, centre in self._centre.items():
                record[name] = Array(record[name].numpy() - centre)
        chosen, metrics = super().aggregate_train(server_round, replies)
        if chosen is not None:
            chosen = ArrayRecord({n: Array(chosen[n].numpy() + c) for n, c in self._centre.items()})
        return chosen, metrics


StrategyConfig = Annotated[
    FedAvgConfig | FedProxConfig | FedAvgMConfig | FedAdamConfig | FedYogiConfig | TrimmedMeanConfig | KrumConfig,
    Field(discriminator="name"),
]


_MEANS = (FedAvgConfig, FedProxConfig, FedAvgMConfig, _FedOptConfig)
"""Strategies that need the weighted mean of the replies, and nothing else of them."""


class SecureAggregation(Section):
    """The server sees the sum of the updates and no single one ([secure aggregation](docs/secure-aggregation.md))."""

    threshold: int = Field(ge=2)
    """So many sites together can take masks out; with fewer, a round fails and reveals nothing."""


class FederationConfig(Section):
    """Who takes part, how long to wait, and how replies are aggregated."""

    sites: int = Field(3, ge=1)
    """Leave it out: data.partition sets it."""
    strategy: StrategyConfig = FedAvgConfig()
    """How replies become the next global weights."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of the sites that is asked in a round, but never fewer than ``min_sites``."""
    min_sites: int = Field(2, ge=1)
    """Quorum: the fewest usable replies that make a round."""
    round_timeout_s: float = Field(3600.0, gt=0)
    """Seconds that a round waits for replies."""
    connect_timeout_s: float = Field(60.0, gt=0)
    """Seconds to wait for all sites before starting with those that are there."""
    retries: int = Field(2, ge=0)
    """How often a site that did not answer is asked again when the quorum is missed."""
    weighting: Literal["patients", "equal"] = "patients"
    """What a site counts in the mean. Its number of patients becomes known to the server with "patients"."""
    compression: Compression = "none"
    """How replies travel: whole weights, or their change in halves (fp16) or bytes (int8). Requests stay whole."""

    secure_aggregation: Literal[False] | SecureAggregation = False
    """false, or {threshold: N}: the server sees the sum of the updates alone."""

    @property
    def secure_threshold(self) -> int | None:
        """Sites that can take masks out together; None: there are none."""
        return self.secure_aggregation.threshold if self.secure_aggregation else None

    @property
    def asked(self) -> int:
        """Sites asked in a round when all are there."""
        return max(self.min_sites, math.ceil(self.fraction * self.sites))

    @property
    def proximal_mu(self) -> float:
        """Weight of FedProx's term at the sites."""
        return self.strategy.proximal_mu if isinstance(self.strategy, FedProxConfig) else 0.0

    @model_validator(mode="after")
    def _fits(self) -> "FederationConfig":
        if self.min_sites > self.sites:
            raise ValueError(f"min_sites is {self.min_sites}, but there are only {self.sites} site(s)")
        strategy = self.strategy
        if isinstance(strategy, TrimmedMeanConfig) and int(strategy.trim_fraction * self.min_sites) < 1:
            least = math.ceil(1 / strategy.trim_fraction)
            raise ValueError(
                f"trim_fraction {strategy.trim_fraction} cuts nothing off: set min_sites to {least} or more"
            )
        if isinstance(strategy, KrumConfig) and self.min_sites < 2 * strategy.malicious_sites + 3:
            raise ValueError(
                f"krum against {strategy.malicious_sites} malicious site(s) needs min_sites of "
                f"{2 * strategy.malicious_sites + 3} or more"
            )
        return self

    @model_validator(mode="after")
    def _can_be_summed(self) -> "FederationConfig":
        if not self.secure_aggregation:
            return self
        threshold = self.secure_aggregation.threshold
        if not isinstance(self.strategy, _MEANS):
            raise ValueError(
                f"secure_aggregation shows the server the sum alone, and {self.strategy.name} needs each reply: take "
                "fedavg, fedprox, fedavgm, fedadam or fedyogi, or set secure_aggregation to false"
            )
        if self.compression != "none":
            raise ValueError("secure_aggregation sends masked 64-bit numbers: set compression to none")
        if not self.asked < 2 * threshold:
            raise ValueError(
                f"secure_aggregation.threshold {threshold} is no majority of the {self.asked} sites of a round: set it "
                f"to {self.asked // 2 + 1} or more"
            )
        if self.min_sites < threshold:
            raise ValueError(f"min_sites is {self.min_sites}: set it to secure_aggregation.threshold, {threshold}")
        return self


def choose(names: Sequence[str], count: int, seed: int, stage: str, round_number: int) -> list[str]:
    """Choose the participants of a round: a function of its arguments, whatever the order of the names."""
    names = sorted(names)
    draws = numpy_generator(seed, "participants", stage, round_number)
    return sorted(draws.choice(names, min(count, len(names)), replace=False).tolist())


class Aggregator:
    """A Flower strategy without its round loop, so that rounds can be saved and resumed.

    The strategy sees all weights as one array: it works by element, or (Krum) by distance over all of them.

    Args:
        config: Which strategy.
    """

    def __init__(self, config: StrategyConfig) -> None:
        self.config, self.strategy = config, config.build()
        # 0: `configure_train` notes the global weights but samples nobody; `choose` does that
        self.strategy.fraction_train = 0.0

    def aggregate(
        self, round_number: int, current: State, replies: Sequence[tuple[State | Path, float]]
    ) -> dict[str, Tensor]:
        """Turn replies into the next global weights.

        Args:
            round_number: 1 for the first round.
            current: The global weights that the sites started from.
            replies: Each site's weights (or the file that `put_aside` made of them) and what it counts, in order of
                the site's name; validated before. Of a mean, memory holds one at a time.

        Returns:
            Weights of the same names, shapes and dtypes as ``current``, in order of name.

        Raises:
            FederationError: A weight is no longer finite.
        """
        self.strategy.configure_train(round_number, _flat(current), ConfigRecord(), cast(Grid, None))
        if isinstance(self.config, _MEANS):
            messages = [_message(2, *_mean(replies))]
        else:
            messages = [_message(node, _values(reply), weight) for node, (reply, weight) in enumerate(replies, 2)]
        arrays, _ = self.strategy.aggregate_train(round_number, messages)
        if arrays is None:
            raise AssertionError("the strategy gave no weights although it had replies")
        weights = _unflat(arrays, current)
        if bad := [name for name, weight in weights.items() if not bool(torch.isfinite(weight).all())]:
            raise FederationError(
                f"strategy {self.config.name} diverged in round {round_number}",
                got=f"NaN or infinity in {bad[0]}",
                do="lower its server_learning_rate, or take fedavg",
            )
        return weights

    # --- state: FedAvgM keeps a list, FedAdam and FedYogi dicts -------------------------------------
    def state_dict(self) -> dict[str, Tensor]:
        """The strategy's memory, each moment over all weights in order of name; empty for FedAvg."""
        moments = {moment: getattr(self.strategy, moment, None) or {} for moment in ("m_t", "v_t")}
        flat = {moment: values[_ALL] for moment, values in moments.items() if values}
        if momentum := getattr(self.strategy, "momentum_vector", None):
            flat["momentum_vector"] = momentum[0]
        return {moment: torch.from_numpy(np.asarray(value)) for moment, value in flat.items()}

    def load_state_dict(self, flat: State) -> None:
        """Put back what `state_dict` gave."""
        for moment, value in flat.items():
            array = value.numpy()
            setattr(self.strategy, moment, [array] if moment == "momentum_vector" else {_ALL: array})


_ALL = "weights"


def _flat(state: State) -> ArrayRecord:
    """All weights, in order of name, as one array."""
    return ArrayRecord({_ALL: Array(_concatenated(state))})


def _concatenated(state: State) -> np.ndarray:
    return cast(np.ndarray, torch.cat([state[name].detach().reshape(-1) for name in sorted(state)]).numpy())


def _unflat(record: ArrayRecord, like: State) -> dict[str, Tensor]:
    """The weights of one array again, named, shaped and typed like ``like``."""
    names = sorted(like)
    parts = torch.from_numpy(record[_ALL].numpy()).split([like[name].numel() for name in names])
    return {
        name: part.view_as(like[name]).to(like[name].dtype).clone() for name, part in zip(names, parts, strict=True)
    }


def put_aside(state: State, path: Path) -> Path:
    """Write all weights of a reply, in order of name, for `Aggregator.aggregate`; the file outlives no round."""
    np.save(path, _concatenated(state))
    return path


def _values(reply: State | Path) -> np.ndarray:
    return cast(np.ndarray, np.load(reply)) if isinstance(reply, Path) else _concatenated(reply)


def _mean(replies: Sequence[tuple[State | Path, float]]) -> tuple[np.ndarray, float]:
    """The weighted mean and the sum of the weights: the bits of Flower's own mean, which holds all replies at once."""
    total = sum(weight for _, weight in replies)
    mean: np.ndarray | None = None
    for reply, weight in replies:
        part = _values(reply) * (weight / total)
        mean = part if mean is None else np.add(mean, part, out=mean)
    if mean is None:
        raise AssertionError("there is no mean of no replies")
    return mean, total


def _message(node: int, values: np.ndarray, weight: float) -> Message:
    content = RecordDict({"arrays": ArrayRecord({_ALL: Array(values)}), "metrics": MetricRecord({WEIGHT: weight})})
    return Message(content, dst_node_id=node, message_type="train")
