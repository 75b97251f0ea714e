"""What a coordinator may ask of a site: every number has bounds, and what is refused costs no patient."""

import math
from pathlib import Path

import pytest
import torch

from cmrfed.federation.messages import MOST_TEXT, StageJob
from cmrfed.federation.site.site import Site
from cmrfed.privacy.settings import PrivateTraining
from tests.unit.federation.site.test_private_site import ASKED, answer, make_site, paid, request


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


def hostile(path: str, value: object, **changes: object) -> tuple[StageJob, dict[str, torch.Tensor]]:
    """A request with one value that its own model would refuse, as a program could send it."""
    job, weights = request(**changes)
    section, _, name = path.rpartition(".")
    if not section:
        return job.model_copy(update={name: value}), weights
    return job.model_copy(update={section: getattr(job, section).model_copy(update={name: value})}), weights


# --- noise that vanishes --------------------------------------------------------------------------
@pytest.mark.parametrize("clip_norm", [7.1e-46, 1e-44, 1e-40, 1e-7])
@pytest.mark.parametrize("decoded", [True, False], ids=["as a message", "as a call"])
def test_a_request_whose_noise_float32_cannot_hold_is_refused_and_costs_nothing(
    site: Site, clip_norm: float, decoded: bool
) -> None:
    """C rounds up to the least float32 and σ·C to 0: the release would be a sum without noise, for a finite ε."""
    job, weights = request()
    zero = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    training = job.training.model_copy(update={"optimizer": "sgd", "learning_rate": 1e38, "warmup_steps": 0})
    asked = ASKED.model_copy(update={"clip_norm": clip_norm, "declared_patients": 1, "noise_multiplier": 1.0})
    job = job.model_copy(update={"training": training, "privacy": asked})
    if decoded:
        reply = answer(site, job, zero)
        assert (reply.status, reply.arrays) == ("refused", None)
        assert "privacy.clip_norm: Input should be greater than or equal to 0.000001" in reply.reason
        assert "training.learning_rate: Input should be less than or equal to 1000" in reply.reason
    else:
        with pytest.raises(ValueError, match="clip_norm"):
            site.train_round(job, zero)
    assert paid(site) == []


OUTSIDE = [
    ("privacy.clip_norm", 0.9e-6),
    ("privacy.clip_norm", 1.1e6),
    ("privacy.noise_multiplier", 0.009),
    ("privacy.noise_multiplier", 1.1e4),
    ("privacy.sampling_rate", 1e-10),
    ("privacy.noise_multiplicity", 10**13),
    ("privacy.noise_multiplicity", 0),
    ("privacy.declared_patients", 10**8),
    ("privacy.trained", ("*",) * 101),
    ("privacy.trained", ("*" * 201,)),
    ("training.learning_rate", 1e4),
    ("training.learning_rate", 0.0),
    ("training.weight_decay", 101.0),
    ("training.local_steps", 10**6),
    ("training.batch_size", 10**9),
    ("training.rounds", 10**9),
    ("training.warmup_steps", 10**9),
    ("training.extra_ema_decays", (0.5,) * 21),
    ("round", 10),
    ("round", 0),
    ("seed", 2**64),
    ("seed", 10**4000),
    ("proximal_mu", 1e7),
    ("threads", 10**6),
    ("secure_threshold", 10**6),
    ("experiment", "e" * 10**6),
    ("run", "r" * 101),
    ("run", "../x"),
]


@pytest.mark.parametrize(("path", "value"), OUTSIDE, ids=lambda value: str(value)[:30])
def test_a_value_outside_its_bounds_is_refused_and_costs_nothing(site: Site, path: str, value: object) -> None:
    reply = answer(site, *hostile(path, value))
    assert (reply.status, reply.arrays) == ("refused", None)
    assert "the request cannot be read" in reply.reason
    assert len(reply.reason) < 1000
    assert paid(site) == []


def test_a_request_of_megabytes_is_not_even_parsed(site: Site) -> None:
    reply = answer(site, *hostile("experiment", "e" * (MOST_TEXT + 1)))
    assert f"expected at most {MOST_TEXT:,} characters" in reply.reason


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["clip_norm", "noise_multiplier", "sampling_rate"])
def test_numbers_that_are_not_finite_are_no_numbers(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        PrivateTraining.model_validate(ASKED.model_dump() | {name: value})
