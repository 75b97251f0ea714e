"""The guarantee that everything rests on: one patient moves the sum before noise by at most C."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cmrfed.generators.settings import DDPMConfig, FlowConfig, SegmenterNetwork
from cmrfed.generators.trainable import make_trainable
from cmrfed.privacy.dpsgd.mechanism import MechanismConfig, PrivateSGD
from cmrfed.privacy.event import PrivacyEvent
from cmrfed.training.batches import stage_inputs
from cmrfed.training.private import train_only
from cmrfed.training.rehearsal import made_up_slices
from tests.generator_world import random_condition, tiny_config, tiny_generator

EVENT = PrivacyEvent(noise_multiplier=1.0, sampling_rate=1.0, steps=1, run="r", stage="s", round=1, digest="d")
ROUNDING = 1e-4
"""Relative: sums of some records in fp32."""
SCALES = [0.0, 1e-6, 1.0, 30.0, 1e6, 1e25, float("nan"), float("inf")]
"""Of one patient's losses."""


def networks():
    mlp = st.tuples(st.just("mlp"), st.integers(1, 6), st.booleans())
    conv = st.tuples(st.just("conv"), st.sampled_from([2, 4]), st.booleans())
    return st.one_of(mlp, conv)


def build(kind, width, frozen):
    if kind == "mlp":
        module = nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.Tanh(), nn.Linear(width, 16))
    else:
        parts = [nn.Conv2d(1, width, 3, padding=1), nn.GroupNorm(2, width), nn.SiLU(), nn.Conv2d(width, 1, 1)]
        module = nn.Sequential(*parts, nn.Flatten())
    next(module.parameters()).requires_grad_(not frozen)
    return module


def clipped_sum(module, config, records, losses):
    step = PrivateSGD(module, torch.optim.AdamW([p for p in module.parameters() if p.requires_grad]), EVENT, 1, config)
    step._accumulate(records, losses)
    sums = [torch.zeros_like(p) if p.summed_grad is None else p.summed_grad for p in step.parameters]
    for parameter in step.parameters:
        parameter.summed_grad = None
    return torch.cat([s.flatten() for s in sums]).double()


@settings(max_examples=60, deadline=None)
@given(
    net=networks(),
    patients=st.integers(1, 6),
    draws=st.integers(1, 4),
    clip=st.sampled_from([1e-3, 0.1, 1.0, 50.0]),
    scales=st.lists(st.sampled_from(SCALES), min_size=6, max_size=6),
    precision=st.sampled_from(["fp32", "bf16"]),
    seed=st.integers(0, 2**20),
)
def test_one_patient_moves_the_sum_by_at_most_the_bound(net, patients, draws, clip, scales, precision, seed):
    torch.manual_seed(seed)
    module = build(*net)
    data = torch.randn(patients, draws, 1, 4, 4)

    def losses(patient):
        return (module(data[patient]) - data[patient].flatten(1)).square().mean(1) * scales[patient]

    config = MechanismConfig(clip_norm=clip, declared_patients=3, precision=precision)
    everyone = clipped_sum(module, config, list(range(patients)), losses)
    assert everyone.isfinite().all()
    for left_out in range(patients):
        without = clipped_sum(module, config, [p for p in range(patients) if p != left_out], losses)
        assert float((everyone - without).norm()) <= clip * (1 + ROUNDING * patients)


@pytest.mark.parametrize("process", [DDPMConfig(), FlowConfig()], ids=["ddpm", "flow"])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_one_patient_moves_the_sum_of_a_latent_generator_by_at_most_the_bound(process, scale):
    """Its autoencoder sees each image by itself, so nobody moves the latent of another."""
    generator, patients = tiny_generator("latent", process), 3
    images = torch.rand(patients, 2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def losses(patient):
        rng = torch.Generator().manual_seed(patient)
        return generator.loss(images[patient], random_condition(2, seed=patient), rng) * scale

    config = MechanismConfig(clip_norm=0.1, declared_patients=3, precision="fp32")
    everyone = clipped_sum(generator.network, config, list(range(patients)), losses)
    assert everyone.norm() > 0.05
    for left_out in range(patients):
        without = clipped_sum(generator.network, config, [p for p in range(patients) if p != left_out], losses)
        assert float((everyone - without).norm()) <= 0.1 * (1 + ROUNDING * patients)


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_one_patient_moves_the_sum_of_an_autoencoder_by_at_most_the_bound(scale):
    """All its weights are trained, and each image goes through them by itself."""
    model, patients = make_trainable("autoencoder", tiny_config("latent")), 3
    images = torch.rand(patients, 2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def losses(patient):
        return model.loss(images[patient], random_condition(2), torch.Generator().manual_seed(patient)) * scale

    config = MechanismConfig(clip_norm=0.1, declared_patients=3, precision="fp32")
    everyone = clipped_sum(model.network, config, list(range(patients)), losses)
    slow = sum(clipped_by_hand(model.network, losses(patient), 0.1) for patient in range(patients))
    assert torch.allclose(everyone, slow, atol=1e-6)
    for left_out in range(patients):
        without = clipped_sum(model.network, config, [p for p in range(patients) if p != left_out], losses)
        assert float((everyone - without).norm()) <= 0.1 * (1 + ROUNDING * patients)


@pytest.mark.parametrize("trained", [("*",), ("model.0.*", "model.2.*")])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_one_patient_moves_the_sum_of_a_segmenter_by_at_most_the_bound(scale, trained):
    """Whatever a patient's slices and masks are, and however few parameters are trained."""
    model, patients = make_trainable("segmenter", tiny_config(segmenter=SegmenterNetwork(channels=(4, 8)))), 3
    train_only(model.network, trained)
    batches = [made_up_slices(2, 16, torch.Generator().manual_seed(patient)) for patient in range(patients)]

    def losses(patient):
        return model.loss(*stage_inputs(batches[patient], "segmenter", 0), torch.Generator()) * scale

    config = MechanismConfig(clip_norm=0.1, declared_patients=3, precision="fp32")
    everyone = clipped_sum(model.network, config, list(range(patients)), losses)
    slow = sum(clipped_by_hand(model.network, losses(patient), 0.1) for patient in range(patients))
    assert torch.allclose(everyone, slow, atol=1e-6)
    assert everyone.norm() > 0.05
    for left_out in range(patients):
        without = clipped_sum(model.network, config, [p for p in range(patients) if p != left_out], losses)
        assert float((everyone - without).norm()) <= 0.1 * (1 + ROUNDING * patients)


def clipped_by_hand(network, losses, bound):
    gradients = torch.autograd.grad(losses.mean(), [p for p in network.parameters() if p.requires_grad])
    flat = torch.cat([g.flatten() for g in gradients]).double()
    return flat * min(1.0, bound / float(flat.norm()))
