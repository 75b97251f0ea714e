"""How replies become the next global weights: Flower's own strategies, by name, with a state that can be saved."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedProx, FedTrimmedAvg, FedYogi
from flwr.serverapp.strategy import Krum as FlowerKrum
from torch import Tensor

from cmrfed.core.errors import FederationError
from cmrfed.core.rng import numpy_generator
from cmrfed.federation.messages import WEIGHT, State
from cmrfed.federation.settings import (
    FedAdamConfig,
    FedAvgConfig,
    FedAvgMConfig,
    FedProxConfig,
    FedYogiConfig,
    KrumConfig,
    StrategyConfig,
    TrimmedMeanConfig,
)

_EVERYONE: dict[str, Any] = {"min_train_nodes": 1, "min_available_nodes": 1, "weighted_by_key": WEIGHT}


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


def make_strategy(config: StrategyConfig) -> FedAvg:
    """Make Flower's strategy."""
    match config:
        case FedProxConfig():
            return FedProx(proximal_mu=config.proximal_mu, **_EVERYONE)
        case FedAvgMConfig():
            return FedAvgM(
                server_learning_rate=config.server_learning_rate, server_momentum=config.server_momentum, **_EVERYONE
            )
        case FedAdamConfig():
            return FedAdam(**_adaptive(config))
        case FedYogiConfig():
            return FedYogi(**_adaptive(config))
        case TrimmedMeanConfig():
            return FedTrimmedAvg(beta=config.trim_fraction, **_EVERYONE)
        case KrumConfig():
            return UpdateKrum(num_malicious_nodes=config.malicious_sites, **_EVERYONE)
        case FedAvgConfig():
            return FedAvg(**_EVERYONE)
        case _:
            return config.build(_EVERYONE)


def _adaptive(config: FedAdamConfig | FedYogiConfig) -> dict[str, Any]:
    betas = {"beta_1": config.beta_1, "beta_2": config.beta_2}
    return {"eta": config.server_learning_rate, "tau": config.tau, **betas, **_EVERYONE}


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
        self.config, self.strategy = config, make_strategy(config)
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
        if self.config.needs_mean_only:
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
