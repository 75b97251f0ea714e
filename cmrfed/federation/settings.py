"""The settings of the federation: strategies, quorum, compression, secure aggregation. Loads no torch."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cmrfed.core.settings.choices import OrInstalled, settings_registry
from cmrfed.core.settings.config import Section
from cmrfed.core.settings.registry import Registry

if TYPE_CHECKING:
    from flwr.serverapp.strategy import FedAvg

Compression = Literal["none", "fp16", "int8"]
"""none: a reply carries weights, float32. Otherwise their change, one number of fewer bits for each weight."""


class StrategySettings(Section):
    """Base of the settings of every strategy; a subclass is named by its ``name: Literal["fedavg"]``."""

    name: str = Field(max_length=100)
    needs_mean_only: ClassVar[bool] = False
    """Whether it needs the weighted mean of the replies, and nothing else of them: others exclude secure sums."""

    def build(self, everyone: Mapping[str, Any]) -> "FedAvg":
        """Flower's strategy, of a plugin; the project's own are in `cmrfed.federation.server.strategy`.

        Its memory between rounds is its ``m_t``, ``v_t`` and ``momentum_vector``, as in Flower's own; with any other
        memory, a run that is resumed goes on without it.

        Args:
            everyone: Arguments of Flower's `FedAvg` that each strategy is to pass on.
        """
        raise NotImplementedError


class FedAvgConfig(StrategySettings):
    """Weighted mean of the sites' weights (McMahan et al., arXiv 1602.05629)."""

    needs_mean_only: ClassVar[bool] = True

    name: Literal["fedavg"] = "fedavg"


class FedProxConfig(StrategySettings):
    """FedAvg, and a term μ/2 ‖w - global‖² in every site's loss (Li et al., arXiv 1812.06127)."""

    needs_mean_only: ClassVar[bool] = True

    name: Literal["fedprox"]
    proximal_mu: float = Field(0.01, gt=0)
    """μ, the weight of the proximal term."""


class FedAvgMConfig(StrategySettings):
    """SGD with momentum on the server, the mean change being the gradient (Hsu et al., arXiv 1909.06335)."""

    needs_mean_only: ClassVar[bool] = True

    name: Literal["fedavgm"]
    server_learning_rate: float = Field(1.0, gt=0)
    """Server learning rate; 1 applies the averaged update unchanged."""
    server_momentum: float = Field(0.9, ge=0, lt=1)
    """Server momentum."""


class FedOptConfig(StrategySettings):
    """What the adaptive strategies share (Reddi et al., arXiv 2003.00295)."""

    needs_mean_only: ClassVar[bool] = True

    server_learning_rate: float = Field(0.01, gt=0)
    """Server learning rate η: roughly the change of each weight per round."""
    beta_1: float = Field(0.9, ge=0, lt=1)
    """β₁: decay of the first moment."""
    beta_2: float = Field(0.99, ge=0, lt=1)
    """β₂: decay of the second moment."""
    tau: float = Field(1e-3, gt=0)
    """τ: adaptivity; smaller values adapt more strongly."""


class FedAdamConfig(FedOptConfig):
    """Adam on the server (Reddi et al., arXiv 2003.00295)."""

    name: Literal["fedadam"]


class FedYogiConfig(FedOptConfig):
    """Yogi on the server (Reddi et al., arXiv 2003.00295)."""

    name: Literal["fedyogi"]


class TrimmedMeanConfig(StrategySettings):
    """Coordinate-wise trimmed mean (Yin et al., arXiv 1803.01498); sites are weighted equally."""

    name: Literal["trimmed-mean"]
    trim_fraction: float = Field(0.34, gt=0, lt=0.5)
    """Fraction of replies trimmed at each end, rounded down to whole replies."""


class KrumConfig(StrategySettings):
    """Krum: the single update closest to its neighbours (Blanchard et al., NeurIPS 2017)."""

    name: Literal["krum"]
    malicious_sites: int = Field(0, ge=0)
    """Number f of Byzantine sites tolerated; needs at least 2f + 3 replies."""


STRATEGIES: Registry[type[StrategySettings]] = settings_registry(
    "cmrfed.strategies",
    "strategy",
    "name",
    StrategySettings,
    (FedAvgConfig, FedProxConfig, FedAvgMConfig, FedAdamConfig, FedYogiConfig, TrimmedMeanConfig, KrumConfig),
)
StrategyConfig = Annotated[
    FedAvgConfig | FedProxConfig | FedAvgMConfig | FedAdamConfig | FedYogiConfig | TrimmedMeanConfig | KrumConfig,
    Field(discriminator="name"),
    OrInstalled(STRATEGIES, "name"),
]


class SecureAggregation(Section):
    """The server sees the sum of the updates and no single one ([secure aggregation](docs/secure-aggregation.md))."""

    threshold: int = Field(ge=2)
    """Number of sites needed to reconstruct the masks; with fewer, the round fails and reveals nothing."""


class FederationConfig(Section):
    """Participation, time-outs and aggregation."""

    sites: int = Field(3, ge=1)
    """Number of sites; set by data.partition, so leave it out."""
    strategy: StrategyConfig = FedAvgConfig()
    """Aggregation strategy."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Fraction of sites sampled per round, at least ``min_sites``."""
    min_sites: int = Field(2, ge=1)
    """Quorum: smallest number of valid replies for a round to be aggregated."""
    round_timeout_s: float = Field(3600.0, gt=0)
    """Time-out of a round, in seconds."""
    connect_timeout_s: float = Field(60.0, gt=0)
    """Time to wait for all sites to connect before starting with those available, in seconds."""
    retries: int = Field(2, ge=0)
    """Retries of unresponsive sites when the quorum is missed."""
    weighting: Literal["patients", "equal"] = "patients"
    """Aggregation weight of a site: its number of patients, which discloses that number to the server, or equal."""
    compression: Compression = "none"
    """Compression of replies: none sends full weights; fp16 and int8 send quantised updates. Requests are never
    compressed."""

    secure_aggregation: Literal[False] | SecureAggregation = False
    """false, or {threshold: N}: secure aggregation, with which the server learns only the sum of the updates."""

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
        if not self.strategy.needs_mean_only:
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
