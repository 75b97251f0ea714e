"""What one round of private training costs: the facts that accounting needs, and which request it answered."""

from typing import Literal

from pydantic import Field, model_validator

from cmrfed.core.settings.config import Section

Unit = Literal["patient", "slice", "none"]
"""Whose presence is hidden. "slice" is weaker: a patient has many slices. "none" is training without privacy."""

ADJACENCY = {
    "patient": "add or remove one patient",
    "slice": "add or remove one slice as it was prepared: weaker than a patient, who has many",
    "none": "not differentially private",
}


class PrivacyEvent(Section):
    """``steps`` releases of a Poisson-subsampled Gaussian mechanism (arXiv 1908.10530)."""

    noise_multiplier: float = Field(ge=0)
    """Standard deviation of the noise over the clipping bound; 0 is no noise, and no privacy."""
    sampling_rate: float = Field(gt=0, le=1)
    """Probability of each patient (or slice) to be in a step: public, never derived from the data."""
    steps: int = Field(ge=1)
    run: str
    stage: str
    round: int = Field(ge=0)
    digest: str
    """Digest of the request: the same run, stage, round and digest is the same request."""
    unit: Unit = "patient"

    @model_validator(mode="after")
    def _noise_is_meant(self) -> "PrivacyEvent":
        if self.unit == "none" and self.noise_multiplier:
            raise ValueError("unit none has no noise: set noise_multiplier to 0, or unit to patient")
        return self

    @property
    def request(self) -> tuple[str, str, int, str]:
        """What makes a repeated request recognisable."""
        return self.run, self.stage, self.round, self.digest
