"""What a site allows: its own file, which beats every request of a server."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from cmrfed.core.artifacts import OWNER_ALONE, write_bytes
from cmrfed.core.errors import DataError, PrivacyBudgetExhausted, PrivacyError, SiteRefused
from cmrfed.core.settings.config import Section
from cmrfed.core.settings.strict_yaml import read_mapping
from cmrfed.core.settings.validation import problems
from cmrfed.privacy.event import PrivacyEvent, Unit
from cmrfed.privacy.settings import MOST_DRAWS

if TYPE_CHECKING:
    from cmrfed.privacy.ledger.ledger import History

ROOM_FOR_RETRIES = 1.25
"""Cap of a simulated site over the recipe's target: a round that a crash cut short is paid twice."""


class MayLeave(Section):
    """What of the site's patients may reach the server beside noised updates: each of it has no noise."""

    patient_count: bool = False
    """The number of patients."""
    losses: bool = False
    """Training losses, number of slices and duration: each depends on the patients in a step."""
    error_details: bool = False
    """Error messages about the site's data; otherwise the server learns only that an error occurred."""


class Limits(Section):
    """Limits on the requests that the site accepts: each is checked before anything is trained or spent."""

    model_config = ConfigDict(strict=True)

    batch_size: int = Field(1024, ge=1, le=MOST_DRAWS)
    """Slices in memory at once: in private training those of one patient (noise multiplicity, slices of a
    public subspace), otherwise the batch size."""
    simulated_patients: int = Field(512, ge=1, le=MOST_DRAWS)
    """Simulated patients for a public gradient subspace; they are kept on the site's disk."""
    local_steps: int = Field(10_000, ge=1, le=100_000)
    """Optimizer steps per round."""
    rounds: int = Field(10_000, ge=1, le=100_000)
    """Rounds per stage of a run."""
    parameters: int = Field(1_000_000_000, ge=1, le=100_000_000_000)
    """Parameters of a network, including its autoencoder."""
    threads: int = Field(64, ge=1, le=1024)
    """CPU threads; never more than the machine has."""
    memory_gib: float = Field(64, gt=0, le=100_000)
    """Memory of one step in GiB, estimated on random arrays before any patient data are read."""
    round_seconds: float = Field(86_400, gt=0, le=10_000_000)
    """Duration of a round in seconds, estimated on random arrays before any patient data are read."""

    @classmethod
    def of_simulation(cls) -> "Limits":
        """Each as large as it can be: who simulates sites asks for what their own machine can do."""
        return cls(
            batch_size=MOST_DRAWS,
            simulated_patients=MOST_DRAWS,
            local_steps=100_000,
            rounds=100_000,
            parameters=100_000_000_000,
            threads=1024,
            memory_gib=100_000,
            round_seconds=10_000_000,
        )

    def check(self, **asked: float) -> None:
        """Refuse what is larger than a limit.

        Args:
            asked: By the name of the limit; what is asked must follow from the request and the machine alone.

        Raises:
            SiteRefused: One is.
        """
        for name, value in asked.items():
            if not value <= getattr(self, name):
                raise SiteRefused(
                    "the request is larger than the site's policy allows",
                    got=f"limits.{name}: {value:,.6g}",
                    expected=f"at most {getattr(self, name):,.6g}",
                    do="ask for less, or let the site raise its limit",
                )


class SitePolicy(Section):
    """The content of policy.yaml."""

    epsilon_cap: float | None = Field(gt=0)
    """Cap on ε (PRV accounting), composed over everything in which the site's patients ever take part; null or none,
    written explicitly, means no cap and no guarantee."""
    delta: float = Field(gt=0, lt=1)
    """δ of the guarantee; choose it well below 1 / number of patients."""
    smallest_cohort: int = Field(10, ge=1)
    """Smallest number of patients with which the site takes part."""
    permitted_stages: tuple[str, ...] = ("mask", "image")
    """Stages that may be trained here: segmentation masks (mask), images for masks (image), the image autoencoder
    (autoencoder), the segmenter that labels public patients (segmenter)."""
    permitted_units: tuple[Unit, ...] = ("patient",)
    """Privacy units that the site accepts: patient, slice, or none, which is training without privacy."""
    secure_threshold: int | None = Field(None, ge=2)
    """Require secure aggregation with at least this threshold of sites; null does not require it."""
    hide_round_time: bool = Field(True, strict=True)
    """Give private rounds a duration that is independent of the sampled patients (timing side channel)."""
    limits: Limits = Limits()
    """Limits on the requests that the site accepts."""
    may_leave: MayLeave = MayLeave()
    """Information about patients, beyond noised updates, that the server may receive."""

    @field_validator("epsilon_cap", "delta", "smallest_cohort", "secure_threshold", mode="before")
    @classmethod
    def _is_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse text, which would be taken for a number where it looks like one; the word none means null."""
        may_be_null = info.field_name in ("epsilon_cap", "secure_threshold")
        if may_be_null and isinstance(value, str) and value.lower() == "none":
            return None
        if isinstance(value, str):
            words = "{got} is text to YAML; a number is written in plain decimals: 8, 0.001 or 1.0e-5"
            raise PydanticCustomError("no_number", words, {"got": repr(value[:60])})
        return value

    @model_validator(mode="after")
    def _means_something(self) -> "SitePolicy":
        if self.epsilon_cap is not None and "none" in self.permitted_units:
            raise ValueError("permitted_units: none costs an infinite ε, so it needs epsilon_cap: null")
        return self

    @classmethod
    def of_simulation(cls, unit: Unit, epsilon: float | None, delta: float) -> "SitePolicy":
        """The policy of a simulated site: it permits the recipe, and `ROOM_FOR_RETRIES` where that is private."""
        all_may = unit == "none"
        return cls(
            epsilon_cap=epsilon * ROOM_FOR_RETRIES if epsilon else None,
            delta=delta,
            smallest_cohort=1,
            permitted_stages=("segmenter", "autoencoder", "mask", "image"),
            permitted_units=(unit,),
            hide_round_time=False,
            limits=Limits.of_simulation(),
            may_leave=MayLeave(patient_count=all_may, losses=all_may, error_details=True),
        )

    def save(self, path: Path) -> None:
        """Write policy.yaml."""
        write_bytes(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False).encode(), OWNER_ALONE)

    @classmethod
    def load(cls, path: Path) -> "SitePolicy":
        """Read policy.yaml.

        Raises:
            PrivacyError: It is missing, or says something that cannot be followed.
        """
        try:
            tree = read_mapping(path, "policy", error=PrivacyError, plain_numbers=True)
            return cls.model_validate(tree)
        except FileNotFoundError:
            raise PrivacyError(
                f"{path} is missing", expected="the site's own privacy policy", do="write epsilon_cap and delta into it"
            ) from None
        except ValidationError as error:
            raise PrivacyError(f"{path} cannot be followed", got=problems(error), do="correct it") from None

    def check(self, event: PrivacyEvent, history: "History", patients: int) -> None:
        """Refuse what the site does not allow, before anything is trained or spent.

        Args:
            event: What the next round would cost.
            history: What was spent; inside `PrivacyLedger.reserve`, so that no other process can spend in between.
            patients: At the site. The number itself is in no message: it may not leave.

        Raises:
            SiteRefused: Unit or stage is not permitted.
            DataError: The cohort is too small. The words of this error stay at the site: they depend on its patients.
            PrivacyBudgetExhausted: The round would exceed the cap.
        """
        if event.unit not in self.permitted_units:
            raise _not_permitted("privacy unit", event.unit, self.permitted_units)
        if event.stage not in self.permitted_stages:
            raise _not_permitted("stage", event.stage, self.permitted_stages)
        if patients < self.smallest_cohort:
            raise DataError(
                "the site has fewer patients than its policy asks for",
                expected=f"at least {self.smallest_cohort}",
                do="go on with the other sites",
            )
        self._check_budget(event, history)

    def check_delta(self, declared_patients: int) -> None:
        """Refuse a request that declares so many patients that the site's δ promises nothing to each of them.

        Publishing one patient in full is (0, 1/N)-private, so δ must be below 1/N.

        Raises:
            SiteRefused: δ is above 1/N.
        """
        if self.delta > 1 / declared_patients:
            raise SiteRefused(
                "the site's delta is above 1 / declared_patients: it would promise nothing",
                got=f"delta {self.delta:g}, {declared_patients} declared patients",
                expected=f"at most {1 / declared_patients:.3g}",
                do="let the site lower delta in its policy.yaml, or correct declared_patients",
            )

    def check_sum(self, threshold: int | None) -> None:
        """Refuse a request whose reply the server would see by itself, where the site wants none seen so.

        Args:
            threshold: Sites that can take out the masks of the sum; None: the reply travels as it is.

        Raises:
            SiteRefused: It is less than what the policy asks for.
        """
        if self.secure_threshold is not None and (threshold or 0) < self.secure_threshold:
            raise SiteRefused(
                "the site's policy lets updates leave inside secure sums alone",
                got=f"a threshold of {threshold} sites" if threshold else "a request without secure aggregation",
                expected=f"a threshold of at least {self.secure_threshold} sites",
                do=f"set federation.secure_aggregation to {{threshold: {self.secure_threshold}}}",
            )

    def _check_budget(self, event: PrivacyEvent, history: "History") -> None:
        if self.epsilon_cap is None:
            return
        after = history.epsilon(self.delta, extra=[event]).prv
        if after > self.epsilon_cap:
            before = history.epsilon(self.delta).prv
            raise PrivacyBudgetExhausted(
                "the round would exceed the site's privacy budget; nothing was trained",
                got=f"ε = {after:.3f} after it, {before:.3f} before it, at δ = {self.delta:g}",
                expected=f"at most {self.epsilon_cap:g} over all runs",
                do="stop this site here, or start a run with fewer steps or more noise",
            )


def _not_permitted(what: str, got: str, permitted: tuple[str, ...]) -> SiteRefused:
    return SiteRefused(
        f"the site's policy does not permit this {what}",
        got=got,
        expected=" or ".join(permitted) or "none at all",
        do="change the recipe, or go on with the other sites",
    )
