import gc

import pytest
import torch

from cmrfed.privacy.event import PrivacyEvent
from cmrfed.privacy.settings import PrivateTraining
from cmrfed.training.loop import LocalTrainer, Trainer
from cmrfed.training.private import PrivateTrainer
from cmrfed.training.rehearsal import needed_bytes
from cmrfed.training.settings import TrainingConfig
from tests.generator_world import blob_cohort, tiny_generator

PRIVACY = PrivateTraining(
    sampling_rate=1.0, noise_multiplicity=2, declared_patients=6, unit="patient", noise_multiplier=1.0
)
EVENT = PrivacyEvent(
    noise_multiplier=1.0, sampling_rate=1.0, steps=2, run="r", stage="mask", round=1, digest="", unit="patient"
)


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


@pytest.mark.parametrize("private", [False, True])
def test_an_estimate_of_memory_leaves_no_memory_taken(tmp_path, private):
    cohort, config = blob_cohort(tmp_path / "c"), TrainingConfig(precision="fp32")

    def trainer() -> Trainer:
        if private:
            return PrivateTrainer(tiny_generator("mask"), cohort, "mask", 0, config, PRIVACY, EVENT)
        return LocalTrainer(tiny_generator("mask"), cohort, "mask", 0, config, seed=0)

    first = trainer().needed_bytes()  # what torch keeps for good is there after the first
    before = live_tensors()
    assert [trainer().needed_bytes() for _ in range(3)] == [first] * 3
    assert live_tensors() == before


def test_what_is_saved_for_the_backward_pass_counts_once_and_by_the_number_of_slices():
    network, x = torch.nn.Linear(4, 8, bias=False), torch.ones(1, 4)

    def losses() -> torch.Tensor:
        return network(x).exp().sum(1)  # saves x (16 bytes) and the exponential (32 bytes)

    weights = 12 * 4 * 32
    assert needed_bytes(network, losses, 1) == weights + 3 * 48
    assert needed_bytes(network, losses, 5) == weights + 3 * 48 * 5
