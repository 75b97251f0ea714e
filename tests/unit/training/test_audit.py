"""The audit of a stage goes through the trainer itself, and catches faults in how it is put together."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cmrfed.core.device import HOST
from cmrfed.data.draws import gather
from cmrfed.generators.settings import FlowConfig
from cmrfed.privacy.settings import PrivateTraining, Subspace
from cmrfed.training import batches, private, reader
from cmrfed.training.audit import audit_training, check_trainer
from cmrfed.training.settings import TrainingConfig
from tests.generator_world import ddpm, tiny_config

TRAINING = TrainingConfig(rounds=2, local_steps=3, warmup_steps=1, learning_rate=1e-2)


def failed(stage="image", training=TRAINING, **asked):
    settings = {
        "sampling_rate": 0.5,
        "noise_multiplicity": 2,
        "declared_patients": 20,
        "clip_norm": 0.7,
        "unit": "patient",
    }
    privacy = PrivateTraining(**settings | asked, noise_multiplier=1.1)
    config = tiny_config("mask", ddpm("sample")) if stage == "mask" else tiny_config("pixel", FlowConfig())
    checks = check_trainer(stage, config, training, privacy, HOST)
    return [f"{check.name}: {check.measured}" for check in checks if check.p_value < 1e-6]


@pytest.mark.parametrize(
    ("stage", "asked"),
    [
        ("image", {}),
        ("mask", {}),
        ("mask", {"unit": "slice"}),
        ("image", {"unit": "slice", "trained": ("*norm*", "*conv_out*")}),
        ("image", {"subspace": Subspace(rank=2, patients=3, scanners=1)}),
        ("image", {"sampling_rate": 0.01}),
    ],
)
def test_the_real_trainer_passes(stage, asked):
    assert failed(stage, **asked) == []


def test_plain_sgd_passes_too():
    assert failed(training=TRAINING.model_copy(update={"optimizer": "sgd", "weight_decay": 0.01})) == []


def test_a_stage_is_audited_by_its_step_and_its_trainer():
    privacy = PrivateTraining(
        sampling_rate=0.5, noise_multiplicity=2, declared_patients=20, unit="patient", noise_multiplier=1.1
    )
    row = audit_training("image", tiny_config("pixel", FlowConfig()), TRAINING, privacy, HOST).row("image")
    assert row.passed
    names = " ".join(check.name for check in row.checks)
    for word in ("noise", "sampling", "clipping", "restart", "optimizer", "trainer", "without records", "state"):
        assert word in names


# --- planted faults -----------------------------------------------------------------------------
class Trainer(private.PrivateTrainer):
    pass


class NeighboursInPatients(Trainer):
    """Draws come from the cohort, not from the patient."""

    def _losses(self, record):
        rows = np.concatenate(self.records)
        kept, self.records = self.records, [rows for _ in self.records]
        try:
            return super()._losses(record)
        finally:
            self.records = kept


class OneStrangerInABatch(Trainer):
    def _losses(self, record):
        kept = self.records[record]
        self.records[record] = np.append(kept[:1], self.records[record - 1][:1])
        try:
            return super()._losses(record)
        finally:
            self.records[record] = kept


class SlicesAsRecords(Trainer):
    def __init__(self, *args):
        super().__init__(*args)
        self.records = [rows[i : i + 1] for rows in self.records for i in range(len(rows))]
        self.steps.records = len(self.records)


class RecordTwice(Trainer):
    def __init__(self, *args):
        super().__init__(*args)
        self.records = self.records + self.records
        self.steps.records = len(self.records)


class WeightedBySlices(Trainer):
    def _losses(self, record):
        return super()._losses(record) * len(self.records[record]) / 3


class RealNumberOfPatients(Trainer):
    def __init__(self, *args):
        super().__init__(*args)
        self.steps.optimizer.expected_batch_size = 0.5 * len(self.records)


class BoundOfOrdinaryTraining(Trainer):
    def __init__(self, *args):
        super().__init__(*args)
        self.steps.optimizer.max_grad_norm = self.config.max_grad_norm


class HalfTheNoise(Trainer):
    def __init__(self, *args):
        super().__init__(*args)
        self.steps.optimizer.noise_multiplier /= 2


class MoreDraws(Trainer):
    def __init__(self, *args):
        super().__init__(*args)
        self.draws += 1


class PatternsIgnored(Trainer):
    def __init__(self, *args):
        super().__init__(*args)
        for parameter in self.generator.network.parameters():
            parameter.requires_grad_(True)


class FrozenMoves(Trainer):
    def run(self, *args):
        result = super().run(*args)
        for parameter in self.generator.network.parameters():
            if not parameter.requires_grad:
                parameter.data.add_(1e-3)
        return result


class AveragesBehindTheStep(Trainer):
    def run(self, *args):
        before = [p.detach().clone() for p in self.generator.network.parameters()]
        result = super().run(*args)
        for parameter, old in zip(self.generator.network.parameters(), before, strict=True):
            parameter.data.lerp_(old, 0.1)
        return result


class WrongRate(Trainer):
    def _step(self, rate):
        return super()._step(2 * rate)


class MomentsForgotten(Trainer):
    def _step(self, rate):
        notes = super()._step(rate)
        for state in self.optimizer.state.values():
            state["exp_avg"].zero_()
        return notes


class LooksBefore(Trainer):
    """Reads everybody once, outside of any step, to learn what is worth a step."""

    def run(self, *args):
        for record in range(len(self.records)):
            self._losses(record)
        return super().run(*args)


class SkipsDullSteps(Trainer):
    def _step(self, rate):
        if self.steps.steps_left % 2:
            return super()._step(rate)
        self.steps.steps_left -= 1
        return private.StepNotes(0, 0, 0, None)


FAULTY = [kind for kind in Trainer.__subclasses__() if kind is not PatternsIgnored]


@pytest.mark.parametrize("kind", FAULTY, ids=lambda kind: kind.__name__)
def test_a_fault_in_the_trainer_is_caught(kind, monkeypatch):
    monkeypatch.setattr(private, "PrivateTrainer", kind)
    trained = {"trained": ("*conv*",)} if kind is FrozenMoves else {}
    assert failed(**trained), kind


def test_patterns_that_are_ignored_are_noticed(monkeypatch):
    monkeypatch.setattr(private, "PrivateTrainer", PatternsIgnored)
    assert "other parameters require gradients" in " ".join(failed(trained=("*bias",)))


def test_neighbours_of_a_slice_are_noticed(monkeypatch):
    class SeesNeighbours(Trainer):
        def __init__(self, *args):
            super().__init__(*args)
            self.alone = False

    monkeypatch.setattr(private, "PrivateTrainer", SeesNeighbours)
    assert "with its neighbours" in " ".join(failed("mask", unit="slice"))


def test_an_augmentation_that_mixes_patients_is_noticed(monkeypatch):
    kept = []

    def keeps(cohort, rows):
        kept.append(gather(cohort, rows))
        return kept[-1]

    def blends(batch, config, rng, *, with_images=True):
        other = kept[-2] if len(kept) > 1 else batch
        return replace(batch, image=0.9 * batch.image + 0.1 * other.image)

    monkeypatch.setattr(reader, "gather", keeps)
    monkeypatch.setattr(batches, "augment", blends)
    assert "two records" in " ".join(failed()) or "several records" in " ".join(failed())


def test_directions_that_are_not_public_are_noticed(monkeypatch):
    class Drifts(private.Coordinates):
        @torch.no_grad()
        def move(self):
            super().move()
            self._moved[0].add_(1e-3)

    monkeypatch.setattr(private, "Coordinates", Drifts)
    assert failed(subspace=Subspace(rank=2, patients=3, scanners=1))
