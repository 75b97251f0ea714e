"""metrics.json of a round: who answered, and what the sites let leave. Its one reader and its one writer."""

from pathlib import Path
from typing import Final, Literal

from pydantic import ConfigDict, Field

from cmrfed.core.artifacts import write_json
from cmrfed.core.settings.config import Section
from cmrfed.core.settings.validation import read_versioned
from cmrfed.federation.messages import Spent
from cmrfed.generators.stages import StageName

FILE = "metrics.json"
SCHEMA_VERSION: Final = 2
"""Version 0.1 wrote the same without a number, which counts as 1."""

Status = Literal["ok", "refused", "missing", "set aside"]
"""What became of a request: its reply was used; the site declined; no reply came; the reply could not be used."""


class SiteRound(Section):
    """What one site did in a round; losses and times are None where it keeps them to itself."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    loss: float | None = None
    """Mean over the local steps."""
    first_loss: float | None = None
    last_loss: float | None = None
    items: float | None = None
    """Slices that were trained on."""
    seconds: float | None = None
    """Of local training."""
    status: Status
    reason: str | None = None
    """Why the reply was not used; None where it was."""
    spent: Spent | None = None
    """What the site's patients have paid, over all runs, as its ledger said with this reply."""


class RoundMetrics(Section):
    """One round of one stage."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    schema_version: Literal[2] = SCHEMA_VERSION
    stage: StageName
    round: int = Field(ge=1)
    """From 1."""
    seconds: float | None
    """Of the whole round; None in private training, since it depends on how many patients were in the steps."""
    sites: dict[str, SiteRound]
    """Name of each site that was asked → what it did."""
    bytes_down: int = Field(ge=0)
    """Weights that were sent to sites."""
    bytes_up: int = Field(ge=0)
    """Weights that came back."""

    @property
    def answered(self) -> dict[str, SiteRound]:
        """The sites whose replies were used."""
        return {name: site for name, site in self.sites.items() if site.status == "ok"}

    def write(self, folder: Path) -> Path:
        """Write metrics.json into the folder of the round."""
        return write_json(folder / FILE, self.model_dump(mode="json"))


def read_round_metrics(path: Path) -> RoundMetrics:
    """Read a metrics.json, of this version or of 0.1.

    Raises:
        DataError: It is missing, damaged, or was written by a later version.
    """
    return read_versioned(path, RoundMetrics, SCHEMA_VERSION, do="restore the folder of the run from a copy")


def read_rounds(run_dir: Path, stage: str) -> list[RoundMetrics]:
    """All rounds of a stage that lie in a run folder, in order; none where there is none.

    Raises:
        DataError: One is damaged, or was written by a later version.
    """
    found = [read_round_metrics(path) for path in run_dir.glob(f"{stage}/round-*/{FILE}")]
    return sorted(found, key=lambda metrics: metrics.round)
