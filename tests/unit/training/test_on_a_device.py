"""Training and drawing on an accelerator: the CPU's numbers but for rounding, and no wait in a step."""

import numpy as np
import pytest
import torch
from torch import nn

from cmrfed.core.device import HOST, to_device, to_host
from cmrfed.core.errors import PrivacyError
from cmrfed.data.draws import gather
from cmrfed.generators.generator import Generator
from cmrfed.generators.settings import FlowConfig, SamplerConfig
from cmrfed.privacy.dpsgd.mechanism import MechanismConfig, PrivateSGD
from cmrfed.privacy.event import PrivacyEvent
from cmrfed.privacy.settings import PrivateTraining, Subspace
from cmrfed.training import autoencoder, subspace
from cmrfed.training.autoencoder import train_autoencoder
from cmrfed.training.loop import LocalTrainer
from cmrfed.training.private import PrivateTrainer
from cmrfed.training.reader import SliceReader
from cmrfed.training.settings import AutoencoderTraining, TrainingConfig
from cmrfed.training.subspace import public_directions
from tests.fake_device import STATE, counted_waits, noise_by_seed
from tests.generator_world import (
    TINY_AUTOENCODER,
    blob_cohort,
    ddpm,
    random_condition,
    tiny_autoencoder,
    tiny_config,
    tiny_generator,
)

TRAINING = TrainingConfig(rounds=2, local_steps=2, batch_size=4, precision="fp32", learning_rate=2e-3)
CLOSE = 2e-5
"""Largest difference of weights and images after a few steps in float32: docs/devices.md."""
KINDS = {
    "image, ddpm v": ("image", "pixel", ddpm("v_prediction"), "ddim"),
    "mask, flow": ("mask", "mask", FlowConfig(), "euler"),
    "image, latent flow": ("image", "latent", FlowConfig(), "heun"),
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return blob_cohort(tmp_path_factory.mktemp("blobs") / "c")


def made(kind, device):
    _, codec, process, _ = KINDS[kind]
    settings = tiny_config(codec, process, mask_dropout=0.1, condition_dropout=0.1)
    return Generator(settings, 1, tiny_autoencoder() if codec == "latent" else None).to(device)


def trained(kind, device, cohort, steps=3):
    generator = made(kind, device)
    with noise_by_seed(), counted_waits() as waits:
        losses = LocalTrainer(generator, cohort, KINDS[kind][0], 1, TRAINING, seed=7).run(0, steps).losses
        return generator, losses, dict(waits)


def weights(generator):
    return {name: to_host(tensor) for name, tensor in generator.network.state_dict().items()}


def farthest(left, right):
    return max(float((left[name].double() - right[name].double()).abs().max()) for name in left)


# --- batches --------------------------------------------------------------------------------------
@pytest.mark.parametrize("free", [1 << 30, 100], ids=["kept", "sent"])
def test_a_device_gets_what_the_files_hold(fake_device, cohort, free):
    STATE.free = free
    some = cohort.select(cohort.patient_ids[1:4])
    reader = SliceReader(some, fake_device)
    drawn = [some.rows[::2], some.rows[[3, 0, 3]], some.rows[-4:], some.rows[:1], some.rows]
    found = [reader.read(rows) for rows in drawn]
    assert reader.kept is (free > 100)
    for rows, *batches in zip(drawn, found, reader.batches(drawn), strict=True):
        expected = gather(some, rows)
        for batch in batches:
            for name, tensor in vars(batch).items():
                assert tensor.device == fake_device
                assert torch.equal(to_host(tensor), getattr(expected, name)), name
                assert tensor.dtype == getattr(expected, name).dtype


def test_batches_are_read_ahead_where_the_cohort_does_not_fit(fake_device, cohort, monkeypatch):
    STATE.free = 100
    reader, read = SliceReader(cohort, fake_device), []
    original = reader._read
    monkeypatch.setattr(reader, "_read", lambda rows: (read.append(len(read)), original(rows))[1])
    batches = reader.batches(cohort.rows[i : i + 2] for i in range(5))
    next(batches)
    batches.close()  # the thread ends with it
    assert read == [0, 1, 2]


# --- steps ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_a_device_trains_and_draws_as_the_cpu_does(fake_device, cohort, kind):
    masks = 2 if KINDS[kind][0] == "mask" else 1
    results = []
    for device in (HOST, fake_device):
        generator, losses, waits = trained(kind, device, cohort)
        with counted_waits() as drawing:
            drawn = generator.eval().sample(
                random_condition(3, masks),
                [1, 2, 3],
                sampler=SamplerConfig(name=KINDS[kind][3], steps=3),
                shared_seeds=[1, 1, 1],
                shared=0.5,
            )
            counted = dict(drawing)
        results.append((weights(generator), losses, drawn, waits, counted))
    (own, losses, drawn, *_), (there, other_losses, other_drawn, waits, drawing) = results
    assert farthest(own, there) < CLOSE
    assert losses == pytest.approx(other_losses, abs=CLOSE)
    assert other_drawn.device == HOST
    assert (drawn - other_drawn).abs().max() < CLOSE
    assert waits == {"to the host": 1}, "the losses, once for all steps"
    assert drawing == {"to the host": 1}, "the samples, once a batch"


def test_the_same_seed_on_the_same_device_gives_the_same_weights(fake_device, cohort):
    first, second = (weights(trained("image, ddpm v", fake_device, cohort, 2)[0]) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_gradient_of_a_step_is_that_of_float64(fake_device, cohort):
    gradients = []
    for device, dtype in ((HOST, torch.float64), (fake_device, torch.float32)):
        generator = made("image, ddpm v", HOST).to(dtype).to(device)
        raw = to_device(gather(cohort, cohort.rows[:4]).image.to(dtype), device)
        condition = random_condition(4).to(device)
        with noise_by_seed():
            generator.loss(raw, condition, torch.Generator().manual_seed(5)).mean().backward()
        gradients.append({n: to_host(p.grad).double() for n, p in generator.network.named_parameters()})
    exact, found = gradients
    size = max(float(g.abs().max()) for g in exact.values())
    assert farthest(exact, found) < 1e-5 * size


def test_more_memory_draws_in_larger_batches(fake_device):
    generator, sizes = tiny_generator().to(fake_device).eval(), []
    for STATE.free in (1 << 18, 1 << 30):
        seen = []
        generator.sample(random_condition(9), range(9), batch_size=4, on_batch=seen.append)
        sizes.append(seen)
    assert sizes[1] == [9]
    assert len(sizes[0]) > 1


def test_an_autoencoder_is_trained_there(fake_device, cohort, monkeypatch):
    monkeypatch.setattr(autoencoder, "STANDARD_IMAGES", 64)
    settings = AutoencoderTraining(steps=2, batch_size=2, precision="fp32")
    with noise_by_seed():
        own, there = (train_autoencoder(TINY_AUTOENCODER, settings, cohort, 3, d).weights for d in (HOST, fake_device))
    assert farthest(own, there) < CLOSE


# --- privately ------------------------------------------------------------------------------------
def event(steps=2):
    return PrivacyEvent(
        noise_multiplier=1.0, sampling_rate=1.0, steps=steps, run="r", stage="image", round=1, digest="", unit="patient"
    )


def private_step(device, layers):
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    module.load_state_dict(layers)
    module.to(device)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return module, PrivateSGD(module, optimizer, event(), 5, MechanismConfig(clip_norm=0.5, declared_patients=5))


def test_clipped_sums_are_those_of_float64_and_a_step_waits_twice(fake_device):
    torch.manual_seed(0)
    layers, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(5, 3, 4) * 3
    x[4, 1, 2] = torch.nan
    module, step = private_step(fake_device, layers.state_dict())
    there = to_device(x, fake_device)
    with counted_waits() as waits:
        notes = step._accumulate([0, 1, 2, 4], lambda record: module(there[record]).square().flatten())
        assert dict(waits) == {"to the host": 2}, "the notes of all records, and the guard of the module's state"
    exact, sums = layers.double(), [torch.zeros_like(p) for p in layers.double().parameters()]
    for record in (0, 1, 2):
        gradient = torch.autograd.grad(exact(x[record].double()).square().mean(), exact.parameters())
        norm = float(torch.cat([g.flatten() for g in gradient]).norm())
        sums = [s + g * min(1.0, 0.5 / (norm + 1e-6)) for s, g in zip(sums, gradient, strict=True)]
    assert (notes.sampled, notes.not_finite) == (4, 1)
    for parameter, expected in zip(step.parameters, sums, strict=True):
        assert torch.allclose(to_host(parameter.summed_grad), expected, atol=1e-6)


def test_noise_of_a_device_without_a_known_generator_comes_from_the_host(fake_device):
    module, step = private_step(fake_device, nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).state_dict())
    before = [to_host(p).clone() for p in module.parameters()]
    assert step.noise_source.startswith(("torch cpu generator", "torchcsprng"))
    with counted_waits() as waits:
        step.step(lambda _: module(torch.zeros(1, 4, device=fake_device)).flatten() * 0)
        assert sum(waits.values()) == 2
    moved = torch.cat([(to_host(p) - b).flatten() for p, b in zip(module.parameters(), before, strict=True)])
    assert moved.std() == pytest.approx(0.1 * 0.5 / 5, rel=0.5)  # rate · σ · C / (q · N)
    assert (moved != 0).all()


@pytest.mark.parametrize("rank", [None, 3], ids=["weights", "subspace"])
def test_a_site_trains_privately_there(fake_device, cohort, monkeypatch, rank):
    monkeypatch.setattr(subspace, "_cohort", lambda config, size_px: cohort)
    found = rank and Subspace(rank=rank, patients=6, scanners=2, draws=2)
    privacy = PrivateTraining(
        unit="patient", noise_multiplier=1.0, clip_norm=1.0, sampling_rate=1.0, declared_patients=6,
        noise_multiplicity=2, trained=("*",), subspace=found,
    )  # fmt: skip
    generator = tiny_generator().to(fake_device)
    before = weights(generator)
    trainer = PrivateTrainer(generator, cohort, "image", 0, TRAINING, privacy, event(1))
    assert trainer.needed_bytes() > 0
    assert trainer.rehearse() > 0
    with counted_waits() as waits:
        result = trainer.run(0, 1)
        per_record = result.items // privacy.noise_multiplicity if rank else 0  # the guard of the network's weights
        assert sum(waits.values()) == 2 + per_record
    assert np.isfinite(result.losses).all()
    assert farthest(before, weights(generator)) > 0
    with pytest.raises(PrivacyError, match="no step that was paid for is left"):
        trainer.run(1, 1)


def test_public_directions_are_the_same_there(fake_device, cohort, monkeypatch):
    monkeypatch.setattr(subspace, "_cohort", lambda config, size_px: cohort)
    few = Subspace(rank=2, patients=6, scanners=2, draws=2)
    with noise_by_seed():
        own, there = (
            to_host(public_directions(tiny_generator().to(d), "image", few, TRAINING)) for d in (HOST, fake_device)
        )
    assert torch.allclose((own * there).sum(1).abs(), torch.ones(2), atol=1e-3)
