"""Private training in a public subspace: the directions, the coordinates, and what a trainer does with them."""

import pytest
import torch
from pydantic import ValidationError

from cmrfed.data import public
from cmrfed.generators.settings import FlowConfig
from cmrfed.privacy.dpsgd.mechanism import MechanismConfig, PrivateSGD
from cmrfed.privacy.event import PrivacyEvent
from cmrfed.privacy.settings import PrivateTraining, Subspace
from cmrfed.training import subspace
from cmrfed.training.private import PrivateTrainer, train_only
from cmrfed.training.settings import TrainingConfig
from cmrfed.training.subspace import Coordinates, LastDirections, _gradients, _strongest, public_directions
from tests.generator_world import blob_cohort, tiny_generator

TRAINING = TrainingConfig(rounds=2, local_steps=2, precision="fp32", learning_rate=1e-2)
FEW = Subspace(rank=3, patients=6, scanners=2, draws=2)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return blob_cohort(tmp_path_factory.mktemp("blobs") / "c")


@pytest.fixture(autouse=True)
def simulated(cohort, monkeypatch):
    """Blobs instead of the phantom."""
    monkeypatch.setattr(subspace, "_cohort", lambda config, size_px: cohort)


def event(steps=2):
    return PrivacyEvent(
        noise_multiplier=1.0, sampling_rate=1.0, steps=steps, run="r", stage="image", round=1, digest="", unit="patient"
    )


# --- directions -----------------------------------------------------------------------------------
def test_the_directions_are_the_first_right_singular_vectors():
    gradients = torch.randn(9, 200, generator=torch.Generator().manual_seed(0)) * torch.linspace(5, 0.1, 9)[:, None]
    found, expected = _strongest(gradients, 4), torch.linalg.svd(gradients, full_matrices=False)[2][:4]
    assert torch.allclose((found * expected).sum(1).abs(), torch.ones(4), atol=1e-5)
    assert torch.allclose(found @ found.T, torch.eye(4), atol=1e-6)


def test_patients_that_agree_give_fewer_directions():
    one = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    assert _strongest(torch.cat([one, 2 * one, -one]), 3).shape == (1, 50)


def test_sites_with_the_same_weights_find_the_same_directions(cohort):
    first, second, other = tiny_generator(seed=1), tiny_generator(seed=1), tiny_generator(seed=2)
    found = public_directions(first, "image", FEW, TRAINING)
    assert found.shape == (3, sum(p.numel() for p in first.network.parameters()))
    assert torch.equal(found, public_directions(second, "image", FEW, TRAINING))
    assert not torch.equal(found, public_directions(other, "image", FEW, TRAINING))
    spread = _gradients(first, cohort, "image", FEW, TRAINING)
    assert (spread @ found.T).norm() > 0.8 * spread.norm(), "they hold most of what simulated patients say"


def test_what_was_found_last_is_found_again_where_nothing_differs_and_in_nothing_else(monkeypatch):
    searches = []
    search = subspace.public_directions
    monkeypatch.setattr(subspace, "public_directions", lambda *asked: searches.append(asked) or search(*asked))
    find, generator = LastDirections(), tiny_generator(seed=1)
    first = find(generator, "image", FEW, TRAINING)
    assert find(tiny_generator(seed=1), "image", FEW, TRAINING) is first
    assert len(searches) == 1
    others = [
        (tiny_generator(seed=2), "image", FEW, TRAINING),
        (generator, "autoencoder", FEW, TRAINING),
        (generator, "image", FEW.model_copy(update={"rank": 2}), TRAINING),
        (generator, "image", FEW, TRAINING.model_copy(update={"augment": None})),
    ]
    for asked in others:
        assert torch.equal(find(*asked), search(*asked))
    train_only(generator.network, ("*conv*",))
    assert find(generator, "image", FEW, TRAINING).shape[1] < first.shape[1]
    assert len(searches) == 2 + len(others)
    assert LastDirections()._found is None, "another one remembers nothing of it"


@pytest.mark.parametrize("wrong", [{"rank": 6, "patients": 6}, {"patients": 5, "scanners": 6}])
def test_too_few_simulated_patients_are_refused(wrong):
    with pytest.raises(ValidationError, match="rank < patients and scanners <= patients"):
        Subspace(**{"rank": 3, "patients": 6, "scanners": 2, **wrong})


def test_public_patients_are_drawn_once_and_again_when_damaged(tmp_path):
    config = public.PublicPatients(patients=2, scanners=1)
    first = public.public_patients(config, 16, 5, tmp_path)
    folder = first.root.parent
    assert [p.name for p in tmp_path.glob("[!.]*")] == [folder.name]
    made = (first.root / "cohort.json").stat().st_mtime_ns
    assert (public.public_patients(config, 16, 5, tmp_path).root / "cohort.json").stat().st_mtime_ns == made
    assert public.public_patients(config, 16, 6, tmp_path).digest != first.digest
    (first.root / "cohort.json").write_text("torn")
    assert public.public_patients(config, 16, 5, tmp_path).digest == first.digest
    assert not (folder / "scans").exists()


# --- coordinates ----------------------------------------------------------------------------------
def linear():
    """A network of 6 weights, its directions (2, 6), and losses of one record."""
    torch.manual_seed(0)
    network, data = torch.nn.Linear(3, 2, bias=False), torch.randn(4, 3)
    directions = torch.linalg.qr(torch.randn(6, 2))[0].T.contiguous()
    return network, directions, lambda record: network(data * (1 + record)).square().mean(1)


def test_the_gradient_by_z_is_that_of_the_loss_along_the_directions():
    network, directions, losses_of = linear()
    coordinates = Coordinates(network, directions)
    slope = torch.autograd.grad(coordinates.losses(losses_of, 1), coordinates.z)[0]
    start, steps = network.weight.detach().clone(), []
    for k in range(2):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                network.weight.copy_(start + sign * 1e-2 * directions[k].view_as(start))
            ends.append(float(losses_of(1).mean().detach()))
        steps.append((ends[0] - ends[1]) / 2e-2)
    assert torch.allclose(slope, torch.tensor(steps), atol=1e-4)


def test_weights_move_along_the_directions_alone():
    network, directions, _ = linear()
    coordinates, start = Coordinates(network, directions), network.weight.detach().clone()
    with torch.no_grad():
        coordinates.z.copy_(torch.tensor([0.5, -2.0]))
    coordinates.move()
    shift = (network.weight.detach() - start).flatten()
    assert torch.allclose(shift, 0.5 * directions[0] - 2.0 * directions[1], atol=1e-6)


def test_a_record_without_a_finite_gradient_contributes_nothing():
    network, directions, losses_of = linear()
    coordinates = Coordinates(network, directions)
    step = PrivateSGD(coordinates, torch.optim.SGD([coordinates.z]), event(), 2, MechanismConfig(declared_patients=2))
    notes = step._accumulate([0, 1], lambda i: coordinates.losses(lambda r: losses_of(r) * (torch.inf if r else 1), i))
    assert notes.not_finite == 1
    assert torch.isfinite(coordinates.z.summed_grad).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_one_patient_moves_the_sum_by_at_most_the_bound(scale):
    network, directions, losses_of = linear()
    coordinates = Coordinates(network, directions)
    config = MechanismConfig(clip_norm=0.5, declared_patients=2)
    step = PrivateSGD(coordinates, torch.optim.SGD([coordinates.z]), event(), 1, config)
    step._accumulate([0], lambda i: coordinates.losses(lambda r: losses_of(r) * scale, i))
    assert coordinates.z.summed_grad.norm() <= 0.5 * (1 + 1e-5)


# --- the trainer ----------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", ["mask", "image"])
def test_a_trainer_moves_named_weights_within_the_subspace(cohort, stage):
    generator = tiny_generator("mask" if stage == "mask" else "pixel", FlowConfig() if stage == "image" else None)
    privacy = PrivateTraining(
        sampling_rate=1.0,
        draws=2,
        declared_patients=6,
        subspace=FEW,
        trained=("*conv*",),
        unit="patient",
        noise_multiplier=1.0,
    )
    before = {n: p.detach().clone() for n, p in generator.network.named_parameters()}
    trainer = PrivateTrainer(generator, cohort, stage, 0, TRAINING, privacy, event())
    directions = public_directions(generator, stage, FEW, TRAINING)
    assert trainer.keeps_optimizer_state is False
    assert trainer.steps.parameters[0].shape == (3,), "three numbers are released"
    trainer.run(0, 2)
    after = dict(generator.network.named_parameters())
    assert all(torch.equal(before[n], after[n]) for n in before if "conv" not in n)
    moved = train_only(generator.network, ("*conv*",))
    names = [n for n, p in generator.network.named_parameters() if p.requires_grad]
    shift = torch.cat([(p.detach() - before[n]).flatten() for n, p in zip(names, moved, strict=True)])
    assert shift.norm() > 0
    assert torch.allclose((shift @ directions.T) @ directions, shift, atol=1e-5)
