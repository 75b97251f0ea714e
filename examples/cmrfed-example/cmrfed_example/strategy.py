"""A strategy: the median of each weight over the sites (Yin et al., arXiv 1803.01498)."""

from collections.abc import Mapping
from typing import Any, Literal

from flwr.serverapp.strategy import FedAvg, FedMedian

from cmrfed.federation.settings import StrategySettings


class MedianSettings(StrategySettings):
    """It needs each reply, so it does not go with secure aggregation."""

    name: Literal["median"] = "median"

    def build(self, everyone: Mapping[str, Any]) -> FedAvg:
        """Make Flower's strategy."""
        return FedMedian(**everyone)
