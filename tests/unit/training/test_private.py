"""Private training of a generator: what is trained, what stays, and that nobody can repeat its draws."""

import pytest
import torch

from cmrfed.core.errors import ConfigError, PrivacyError
from cmrfed.generators.generator import Generator
from cmrfed.generators.settings import FlowConfig
from cmrfed.privacy.event import PrivacyEvent
from cmrfed.privacy.settings import PrivateTraining
from cmrfed.training.private import PrivateTrainer, train_only
from cmrfed.training.settings import TrainingConfig
from tests.generator_world import blob_cohort, ddpm, tiny_config

CONFIG = TrainingConfig(rounds=1, local_steps=2, precision="fp32", learning_rate=1e-2)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory):
    return blob_cohort(tmp_path_factory.mktemp("blobs") / "c")


def made(cohort, *, kind=None, codec="pixel", stage="image", unit="patient", sigma=1.0, config=CONFIG, **asked):
    privacy = PrivateTraining(
        **{"sampling_rate": 1.0, "noise_multiplicity": 2, "declared_patients": 6, **asked},
        unit=unit,
        noise_multiplier=sigma,
    )
    event = PrivacyEvent(
        noise_multiplier=sigma,
        sampling_rate=privacy.sampling_rate,
        steps=2,
        run="r",
        stage=stage,
        round=1,
        digest="",
        unit=unit,
    )
    generator = Generator(tiny_config(codec, kind or FlowConfig()), seed=1)
    return PrivateTrainer(generator, cohort, stage, 0, config, privacy, event)


def weights(trainer):
    return {n: p.detach().clone() for n, p in trainer.generator.network.named_parameters()}


@pytest.mark.parametrize(
    ("stage", "codec", "kind"),
    [
        ("image", "pixel", FlowConfig()),
        ("image", "pixel", ddpm("epsilon")),
        ("image", "pixel", ddpm("v_prediction")),
        ("mask", "mask", ddpm("sample")),
    ],
)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_every_generator_trains_privately_with_either_optimizer(cohort, stage, codec, kind, optimizer):
    config = CONFIG.model_copy(update={"optimizer": optimizer})
    trainer = made(cohort, stage=stage, codec=codec, kind=kind, config=config)
    before = weights(trainer)
    result = trainer.run(0, 2)
    assert len(result.losses) == 2
    assert result.items == 2 * 2 * len(cohort)
    after = weights(trainer)
    assert all(torch.isfinite(w).all() for w in after.values())
    assert any(not torch.equal(before[n], after[n]) for n in before)


def test_two_runs_of_the_same_request_differ(cohort):
    first, second = made(cohort), made(cohort)
    first.run(0, 2)
    second.run(0, 2)
    assert any(not torch.equal(a, b) for a, b in zip(weights(first).values(), weights(second).values(), strict=True))


def test_only_the_named_parameters_move(cohort):
    trainer = made(cohort, trained=("*norm*", "unet.conv_out.*"))
    before = weights(trainer)
    trainer.run(0, 2)
    moved = {n for n, w in weights(trainer).items() if not torch.equal(before[n], w)}
    assert moved
    assert all("norm" in n or n.startswith("unet.conv_out.") for n in moved)


def test_a_name_that_matches_nothing_is_refused(cohort):
    with pytest.raises(ConfigError, match=r"no parameter has such a name.*Got: \*lora\*"):
        made(cohort, trained=("*lora*",))


def test_all_parameters_are_trained_by_default():
    network = Generator(tiny_config("pixel", FlowConfig())).network
    assert train_only(network, ("*",)) == list(network.parameters())


def test_records_are_patients_or_slices(cohort):
    assert len(made(cohort).records) == len(cohort)
    assert sorted(row for rows in made(cohort).records for row in rows) == sorted(cohort.rows)
    single = made(cohort, unit="slice").records
    assert [len(rows) for rows in single] == [1] * len(cohort.rows)
    assert sorted(int(rows[0]) for rows in single) == sorted(cohort.rows)


def test_where_slices_are_the_unit_a_slice_does_not_see_its_neighbours(cohort, monkeypatch):
    seen = []
    monkeypatch.setattr("cmrfed.training.batches.stage_inputs", lambda batch, *_: seen.append(batch) or 1 / 0)
    for unit, hidden in (("slice", True), ("patient", False)):
        trainer = made(cohort, stage="mask", codec="mask", kind=ddpm("sample"), unit=unit, noise_multiplicity=30)
        with pytest.raises(ZeroDivisionError):
            trainer._losses(1)
        batch = seen.pop()
        assert bool((batch.basal == -1).all() and (batch.ed == -1).all()) == hidden


def test_no_more_steps_than_were_paid_for(cohort):
    trainer = made(cohort)
    trainer.run(0, 2)
    with pytest.raises(PrivacyError, match="no step that was paid for is left"):
        trainer.run(2, 1)


def test_a_round_without_any_patient_in_it_is_a_normal_round(cohort):
    trainer = made(cohort, sampling_rate=1e-9)
    before = weights(trainer)
    result = trainer.run(0, 2)
    assert result.losses == []
    assert result.items == 0
    assert any(not torch.equal(before[n], w) for n, w in weights(trainer).items()), "noise alone"


def test_bf16_keeps_weights_and_clipping_in_float32(cohort):
    trainer = made(cohort, config=CONFIG.model_copy(update={"precision": "bf16"}))
    trainer.run(0, 1)
    assert {w.dtype for w in weights(trainer).values()} == {torch.float32}
