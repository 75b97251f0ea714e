"""The rounds of one stage on disk: whole or absent, so that a run can be killed at any moment and resumed.

Folder::

    LATEST                                     {"round", "experiment"}: the last finished round
    round-0007/{global,ema,strategy}.safetensors, metrics.json
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from cmrfed.core.artifacts import load_state, new_folder, save_state, write_json
from cmrfed.core.errors import FederationError
from cmrfed.core.settings.config import Section
from cmrfed.core.settings.validation import read_model
from cmrfed.federation.server.metrics import FILE as METRICS
from cmrfed.federation.server.metrics import RoundMetrics, read_round_metrics

if TYPE_CHECKING:
    from torch import Tensor

KEPT_ROUNDS = 2
_TENSORS = ("global", "ema", "strategy")

ServerState = dict[str, Mapping[str, "Tensor"]]
"""State dictionaries by "global", "ema" and "strategy"."""


class Latest(Section):
    """The content of LATEST."""

    round: int = Field(ge=1)
    experiment: str
    """Digest of the experiment."""


class RoundStore:
    """Reads and writes the rounds of one stage.

    Args:
        path: Folder of the stage.
        experiment: Digest of the experiment; a folder of another one is refused.
    """

    def __init__(self, path: Path, experiment: str) -> None:
        self.path, self.experiment = path, experiment

    def folder(self, number: int) -> Path:
        """Folder of a round."""
        return self.path / f"round-{number:04d}"

    def latest(self) -> int:
        """Number of the last finished round; 0 when there is none.

        Raises:
            FederationError: The folder belongs to another experiment.
        """
        if not (self.path / "LATEST").is_file():
            return 0
        latest = read_model(self.path / "LATEST", Latest, do="restore the folder of the run from a copy")
        if latest.experiment != self.experiment:
            raise FederationError(
                f"{self.path} belongs to another experiment",
                got=f"digest {latest.experiment[:12]} in the folder",
                expected=f"digest {self.experiment[:12]}, that of this recipe and seed",
                do="choose another --run-dir, or run the recipe that began this folder",
            )
        return latest.round

    def load(self, number: int) -> ServerState:
        """Read the tensors of a round."""
        return {name: load_state(self.folder(number) / f"{name}.safetensors")[0] for name in _TENSORS}

    def save(self, number: int, state: ServerState, metrics: RoundMetrics) -> None:
        """Write a round, then name it in LATEST, then drop the tensors of old rounds; metrics stay."""
        with new_folder(self.folder(number)) as part:
            for name in _TENSORS:
                save_state(part / f"{name}.safetensors", state[name])
            metrics.write(part)
        write_json(self.path / "LATEST", Latest(round=number, experiment=self.experiment).model_dump())
        for old in sorted(self.path.glob("round-*"))[:-KEPT_ROUNDS]:
            for name in _TENSORS:
                (old / f"{name}.safetensors").unlink(missing_ok=True)

    def metrics(self) -> list[RoundMetrics]:
        """The metrics of all finished rounds, in order."""
        numbers = range(1, self.latest() + 1)
        return [read_round_metrics(self.folder(n) / METRICS) for n in numbers]
