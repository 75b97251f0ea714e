import math

import pytest
import torch

from cmrfed.core.artifacts import load_state, save_state
from cmrfed.core.errors import DataError
from cmrfed.data.draws import gather
from cmrfed.generators.generator import Generator
from cmrfed.training.batches import stage_inputs
from cmrfed.training.loop import LocalTrainer, optimizer_state, restore_optimizer
from cmrfed.training.settings import TrainingConfig
from tests.generator_world import blob_cohort, ddpm, same_weights, tiny_config

SETTINGS = {"rounds": 3, "local_steps": 2, "batch_size": 2, "precision": "fp32", "warmup_steps": 1}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return blob_cohort(tmp_path_factory.mktemp("data") / "c")


def trainer(cohort, stage="image", style=0, seed=3, **settings):
    config = tiny_config("mask", ddpm("sample")) if stage == "mask" else tiny_config()
    return LocalTrainer(Generator(config, 1), cohort, stage, style, TrainingConfig(**{**SETTINGS, **settings}), seed)


def weights(made):
    return {n: t.clone() for n, t in made.generator.network.state_dict().items()}


# --- the learning rate --------------------------------------------------------------------------
def test_the_rate_warms_up_and_falls_along_a_half_cosine():
    config = TrainingConfig(rounds=10, local_steps=10, learning_rate=2e-3, warmup_steps=4)
    for step in range(100):
        warm = (step + 1) / 5 if step < 4 else 1
        cosine = 0.01 + 0.99 * (1 + math.cos(math.pi * step / 100)) / 2
        assert config.rate_at(step) == pytest.approx(2e-3 * warm * cosine)
    assert config.rate_at(99) == pytest.approx(2e-5, rel=0.05)
    assert config.rate_at(1000) == pytest.approx(2e-5), "rounds beyond the last keep the lowest rate"


def test_each_step_uses_its_own_rate(cohort):
    made = trainer(cohort)
    made.run(3, 1)
    assert made.optimizer.param_groups[0]["lr"] == made.config.rate_at(3)


# --- the same bits ------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", ["mask", "image"])
def test_repeating_a_run_of_steps_gives_the_same_bits(cohort, stage):
    first, second = trainer(cohort, stage), trainer(cohort, stage)
    torch.manual_seed(1)
    one = first.run(2, 2)
    torch.manual_seed(2)  # the global stream has no part in it
    assert second.run(2, 2).losses == one.losses
    assert same_weights(weights(first), weights(second))
    assert one.items == 4
    assert one.seconds > 0


def test_what_is_drawn_depends_on_seed_style_and_step(cohort):
    losses = [
        trainer(cohort, **who).run(step, 1).losses[0]
        for who, step in (({}, 0), ({}, 1), ({"seed": 4}, 0), ({"style": 1}, 0))
    ]
    assert len(set(losses)) == 4


def test_an_interruption_with_the_state_on_disk_changes_no_bit(cohort, tmp_path):
    whole = trainer(cohort)
    whole.run(0, 4)
    before = trainer(cohort)
    before.run(0, 2)
    save_state(tmp_path / "optimizer", optimizer_state(before.optimizer))
    after = trainer(cohort)
    after.generator.network.load_state_dict(weights(before))
    restore_optimizer(after.optimizer, load_state(tmp_path / "optimizer")[0])
    after.run(2, 2)
    assert same_weights(weights(after), weights(whole))
    assert same_weights(optimizer_state(after.optimizer), optimizer_state(whole.optimizer))


def test_without_the_moments_the_weights_would_differ(cohort):
    whole, forgetful = trainer(cohort), trainer(cohort)
    whole.run(0, 4)
    forgetful.run(0, 2)
    fresh = trainer(cohort)
    fresh.generator.network.load_state_dict(weights(forgetful))
    fresh.run(2, 2)
    assert not same_weights(weights(fresh), weights(whole))


def test_bf16_trains_float32_weights(cohort):
    made = trainer(cohort, precision="bf16")
    assert math.isfinite(made.run(0, 1).losses[0])
    assert {t.dtype for t in weights(made).values()} == {torch.float32}


# --- FedProx --------------------------------------------------------------------------------------
def gradients(made, monkeypatch, **run):
    """The gradients of one step, as they are before clipping."""
    seen = []

    def keep(parameters, limit):
        seen.extend(p.grad.clone() for p in parameters)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", keep)
    made.run(0, 1, **run)
    return seen


def test_the_proximal_term_is_the_gradient_of_half_mu_times_the_squared_distance(cohort, monkeypatch):
    anchor = {n: t + 0.1 * torch.randn(t.shape) for n, t in weights(trainer(cohort)).items()}
    held = trainer(cohort)
    free = gradients(trainer(cohort), monkeypatch)
    with_term = gradients(held, monkeypatch, anchor=anchor, proximal_mu=0.3)
    start = trainer(cohort).generator.network
    distance = sum((p - anchor[n]).square().sum() for n, p in start.named_parameters())
    expected = torch.autograd.grad(0.5 * 0.3 * distance, list(start.parameters()))
    for total, data, term in zip(with_term, free, expected, strict=True):
        assert torch.allclose(total - data, term, atol=1e-6)


def test_without_mu_the_anchor_changes_nothing(cohort):
    plain, anchored = trainer(cohort), trainer(cohort)
    plain.run(0, 1)
    anchored.run(0, 1, anchor={n: t + 1 for n, t in weights(anchored).items()}, proximal_mu=0.0)
    assert same_weights(weights(plain), weights(anchored))


def test_gradients_are_clipped(cohort):
    made = trainer(cohort, max_grad_norm=1e-3)
    made.run(0, 1)
    total = torch.stack([p.grad.norm() for p in made.parameters]).norm()
    assert total <= 1.001e-3


# --- what a stage learns --------------------------------------------------------------------------
def test_the_mask_stage_learns_a_slice_from_its_neighbours_and_the_image_stage_an_image_from_its_mask(cohort):
    batch = gather(cohort, cohort.rows[:6])
    raw, cond = stage_inputs(batch, "mask", 2)
    assert torch.equal(raw, batch.mask)
    assert torch.equal(cond.masks, torch.stack([batch.basal, batch.ed], 1))
    assert cond.style.tolist() == [2] * 6
    raw, cond = stage_inputs(batch, "image", 0)
    assert torch.equal(raw, batch.image)
    assert torch.equal(cond.masks[:, 0], batch.mask)
    assert torch.equal(cond.position, batch.position)


@pytest.mark.parametrize("stage", ["mask", "image"])
def test_the_loss_falls(cohort, stage):
    losses = trainer(cohort, stage, rounds=40, batch_size=8, learning_rate=3e-3, augment=None).run(0, 40).losses
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


# --- errors ---------------------------------------------------------------------------------------
def test_a_site_without_patients_is_refused(cohort):
    with pytest.raises(DataError, match=r"cohort blobs is empty.*at least one patient.*add patients"):
        trainer(cohort.select([]))


def test_a_site_whose_masks_are_missing_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"blobs has patients without masks\. Got: 4 of 4, such as p00.*annotate"):
        trainer(blob_cohort(tmp_path / "c", has_mask=False))


def test_a_cohort_of_another_size_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"another size than the generator\. Got: 24 px\. Expected: 16 px"):
        trainer(blob_cohort(tmp_path / "c", size=24))
