"""Metrics and membership inference attacks that other distributions offer ([plugins](docs/plugins.md)).

A recipe names those to compute (`evaluation.installed_metrics`, `evaluation.attacks.installed`); none is imported
otherwise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cmrfed.core.errors import ConfigError, EvaluationError
from cmrfed.core.settings.registry import Registry
from cmrfed.evaluation.results.catalogue import Measure, register
from cmrfed.evaluation.results.result import Findings
from cmrfed.evaluation.settings import AttackConfig

if TYPE_CHECKING:
    from cmrfed.evaluation.slices import SliceSet

Access = Literal["black-box", "white-box"]


@dataclass(frozen=True)
class Sets:
    """What a metric sees: the three sets, of one slice size, and the seed of the evaluation."""

    synthetic: "SliceSet"
    train: "SliceSet"
    holdout: "SliceSet"
    seed: int


@dataclass(frozen=True)
class InstalledMetric:
    """A metric.

    Args:
        measures: What it measures; keys of its own, on one of the five axes.
        compute: Makes its metrics with :func:`cmrfed.evaluation.results.catalogue.metric`.
    """

    measures: tuple[Measure, ...]
    compute: Callable[[Sets], Findings]


@dataclass(frozen=True)
class InstalledAttack:
    """A membership inference attack; scored by patient, matched and controlled as the evaluation's own are.

    Args:
        access: black-box: the synthetic images alone; white-box: the saved generator.
        about: What its score is, in half a sentence with its source.
        score: One number for each slice, higher for one that looks more like a member's. Which slices are members' is
            not told. Black box: ``score(targets (N, D), released (M, D)) -> (N,)``, vectors of pixels or features of
            the patients' slices and of the synthetic ones. White box: ``score(probe, slices, seed) -> Tensor (B,)``,
            with the `Probe` and `Slices` of :mod:`cmrfed.evaluation.privacy.white_box`.
    """

    access: Access
    about: str
    score: Callable[..., Any]


def _is(kind: type) -> Callable[[str, object], str | None]:
    return lambda name, part: None if isinstance(part, kind) else f"{part!r}, which is no {kind.__name__}"


METRICS: Registry[InstalledMetric] = Registry("cmrfed.metrics", "metric", fault=_is(InstalledMetric))
ATTACKS: Registry[InstalledAttack] = Registry("cmrfed.attacks", "attack", fault=_is(InstalledAttack))


def check_installed(metrics: Sequence[str], attacks: AttackConfig) -> None:
    """See that all that is asked for is installed and will be computed.

    Raises:
        ConfigError: A metric or an attack is not installed or cannot be loaded, or attacks with its access are off.
    """
    for name in metrics:
        METRICS.get(name)
    for name in attacks.installed:
        access = ATTACKS.get(name).access
        setting = "black_box" if access == "black-box" else "white_box"
        if not getattr(attacks, setting):
            raise ConfigError(
                f"attack {name} is asked for, and {access} attacks are turned off",
                got=f"evaluation.attacks.{setting} = false",
                do=f"set evaluation.attacks.{setting} to true, or take {name} out of evaluation.attacks.installed",
            )


def installed_metrics(names: Sequence[str], sets: Sets) -> Findings:
    """Compute the installed metrics of these names.

    Raises:
        ConfigError: One is not installed or cannot be loaded, or measures what another one does.
        EvaluationError: One failed.
    """
    found = Findings()
    for name in names:
        part = METRICS.get(name)
        try:
            for measure in part.measures:
                register(measure)
        except ValueError as error:
            do = "uninstall one of the two, or ask its authors for other keys"
            raise ConfigError(f"metric {name} cannot be used", got=error, do=do) from None
        try:
            found += part.compute(sets)
        except Exception as error:
            raise _failed("metric", name, f"{type(error).__name__}: {error}", "installed_metrics") from error
    return found


def installed_attacks(config: AttackConfig, access: Access) -> dict[str, InstalledAttack]:
    """The installed attacks that the settings name, of one access."""
    named = {name: ATTACKS.get(name) for name in config.installed}
    return {name: attack for name, attack in named.items() if attack.access == access}


def attack_scores(name: str, attack: InstalledAttack, count: int, *inputs: Any) -> np.ndarray:
    """What the attack makes of its inputs: scores (N,) of ``count`` slices.

    Raises:
        EvaluationError: It failed, or gave something else than that many finite numbers.
    """
    from torch import Tensor  # here: who only looks whether a part is installed does not wait for it

    from cmrfed.core.device import to_host

    try:
        scores = attack.score(*inputs)
        scores = np.asarray(to_host(scores) if isinstance(scores, Tensor) else scores, np.float64)
    except Exception as error:
        raise _failed("attack", name, f"{type(error).__name__}: {error}", "attacks.installed") from error
    if scores.shape != (count,) or not np.isfinite(scores).all():
        got = f"shape {scores.shape}" if scores.shape != (count,) else "NaN or infinity"
        raise _failed("attack", name, f"{got} for {count} slices", "attacks.installed")
    return scores


def _failed(noun: str, name: str, got: str, setting: str) -> EvaluationError:
    registry: Registry[Any] = METRICS if noun == "metric" else ATTACKS
    origin = next((plugin.distribution for plugin in registry.plugins if plugin.name == name), "this process")
    return EvaluationError(
        f"{noun} {name} of {origin} failed",
        got=got,
        do=f"report it to its authors; without it in evaluation.{setting} the evaluation goes on",
    )
