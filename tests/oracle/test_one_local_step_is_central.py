"""With one local step a round, plain SGD and equal weights, federated training is DP-SGD on the union of all patients.

The noise of a site is that of its own guarantee; the server's mean averages it over the sites.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmrfed.core.artifacts import load_state
from cmrfed.core.rng import fold
from cmrfed.data.cohort import Cohort
from cmrfed.data.draws import gather
from cmrfed.federation.server.run import StageSpec
from cmrfed.federation.server.strategy import Aggregator
from cmrfed.federation.settings import FedAvgConfig
from cmrfed.generators.generator import Generator
from cmrfed.privacy.event import PrivacyEvent
from cmrfed.privacy.policy import SitePolicy
from cmrfed.privacy.settings import PrivateTraining
from cmrfed.training.batches import stage_inputs
from cmrfed.training.private import PrivateTrainer
from tests.federation_world import federated_run, make_sites, tiny_cohort, tiny_stage

RATE, DECLARED, SIGMA, SITES, SEED = 0.5, 4, 0.3, 3, 5
OPEN = SitePolicy(epsilon_cap=None, delta=1e-2, smallest_cohort=1)


def asked(clip_norm: float) -> PrivateTraining:
    return PrivateTraining(
        unit="patient",
        noise_multiplier=SIGMA,
        sampling_rate=RATE,
        noise_multiplicity=1,
        declared_patients=DECLARED,
        clip_norm=clip_norm,
    )


def losses(generator: Generator, cohort: Cohort, rows: Sequence[int], style: int, scale: float = 1.0) -> Tensor:
    """Losses of all slices of a patient; times and noise follow from who it is."""
    raw, cond = stage_inputs(gather(cohort, np.asarray(rows)), "image", style)
    return scale * generator.loss(raw, cond, torch.Generator().manual_seed(int(rows[0])))


@contextmanager
def known_draws(noise_scale: float = 1.0, loss_scale: float = 1.0) -> Iterator[list[Tensor]]:
    """Every patient is in every step, and all noise is known: yields it, in the order in which it is added."""
    added: list[Tensor] = []
    random = torch.Generator().manual_seed(1)

    def noise(std: float, reference: Tensor, generator: torch.Generator, secure_mode: bool) -> Tensor:
        assert secure_mode
        added.append(noise_scale * std * torch.randn(reference.shape, generator=random))
        return added[-1]

    def of_patient(self: PrivateTrainer, record: int) -> Tensor:
        return losses(self.generator, self.cohort, self.records[record], self.style, loss_scale)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("opacus.optimizers.optimizer._generate_noise", noise)
        patch.setattr("cmrfed.privacy.dpsgd.mechanism.poisson_sample", lambda count, rate: list(range(count)))
        patch.setattr(PrivateTrainer, "_losses", of_patient)
        yield added


# --- equal to central ---------------------------------------------------------------------------
def patient_gradients(stage: StageSpec, weights: dict[str, Tensor], cohort: Cohort) -> list[list[Tensor]]:
    """Gradient of each patient of the union, float64; site i has i + 1 of them, and style i."""
    generator = Generator(stage.generator)
    generator.network.load_state_dict(weights)
    parameters, out = list(generator.network.parameters()), []
    for number in range(len(cohort)):
        style = next(site for site in range(SITES) if number < (site + 1) * (site + 2) // 2)
        loss = losses(generator, cohort, cohort.rows_of[number], style).mean()
        out.append([g.double() for g in torch.autograd.grad(loss, parameters)])
    return out


def norm(gradient: Sequence[Tensor]) -> float:
    return float(torch.cat([g.flatten() for g in gradient]).norm())


def central_step(
    weights: dict[str, Tensor], gradients: list[list[Tensor]], noise: list[list[Tensor]], clip: float, rate: float
) -> dict[str, Tensor]:
    """One step of DP-SGD in one place, its noise being the mean over sites; in float64, by the book."""
    new = {}
    for number, (name, weight) in enumerate(weights.items()):
        signal = sum(g[number] * min(1.0, clip / norm(g)) for g in gradients) / (SITES * RATE * DECLARED)
        averaged = torch.stack([n[number].double() for n in noise]).mean(0) / (RATE * DECLARED)
        new[name] = weight.double() - rate * (signal + averaged)
    return new


def test_the_servers_new_weights_are_those_of_central_training_with_noise_averaged_over_sites(tmp_path: Path) -> None:
    make_sites(tmp_path, SITES, OPEN)
    cohort = Cohort.open(tmp_path / "cohort")
    stage = tiny_stage(rounds=2, steps=1, optimizer="sgd", learning_rate=0.5, warmup_steps=0, augment=None)
    network = Generator(stage.generator, fold(SEED, "init", "image")).network
    names, weights = [n for n, _ in network.named_parameters()], dict(network.state_dict())
    assert set(names) == set(weights)
    clip = float(np.median([norm(g) for g in patient_gradients(stage, weights, cohort)]))  # half of them are clipped
    with known_draws() as added:
        run = federated_run(tmp_path, replace(stage, privacy=asked(clip)), weighting="equal", sites=SITES)
        assert run.seed == SEED
        run.start_or_resume()
    assert len(added) == 2 * SITES * len(names)
    for number in (1, 2):
        noise = [[added.pop(0) for _ in names] for _ in range(SITES)]
        weights = {name: weights[name] for name in names}
        rate = stage.training.rate_at(number - 1)
        central = central_step(weights, patient_gradients(stage, weights, cohort), noise, clip, rate)
        new = load_state(tmp_path / "image" / f"round-{number:04d}" / "global.safetensors")[0]
        assert max(float((new[n] - weights[n]).abs().max()) for n in names) > 1e-2
        assert max(float((new[n].double() - central[n]).abs().max()) for n in names) < 1e-6
        weights = new


# --- sensitivity of the mean --------------------------------------------------------------------
@pytest.fixture(scope="module")
def everyone(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return tiny_cohort(tmp_path_factory.mktemp("all") / "cohort", 12)


STAGE = tiny_stage(rounds=1, steps=1, optimizer="sgd", warmup_steps=0, augment=None)
START = Generator(STAGE.generator, 3)


def reply(cohort: Cohort, style: int, clip: float) -> dict[str, Tensor]:
    """Weights of a site after one step, whose learning rate is 1 / C: so that rounding is small beside the bound."""
    generator = Generator(STAGE.generator, 3)
    training = STAGE.training.model_copy(update={"learning_rate": 1 / clip})
    facts = {"noise_multiplier": SIGMA, "sampling_rate": RATE, "steps": 1, "run": "r", "stage": "image"}
    event = PrivacyEvent(**facts, round=1, digest="")
    PrivateTrainer(generator, cohort, "image", style, training, asked(clip), event).run(0, 1)
    return {name: weight.detach() for name, weight in generator.network.state_dict().items()}


def mean(replies: Sequence[dict[str, Tensor]]) -> Tensor:
    """What the server makes of the replies, flat."""
    start = dict(START.network.state_dict())
    new = Aggregator(FedAvgConfig()).aggregate(1, start, [(r, 1.0) for r in replies])
    return torch.cat([new[name].double().flatten() for name in sorted(new)])


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 3), min_size=1, max_size=4),
    clip=st.sampled_from([1e-3, 0.1, 1.0, 30.0]),
    scale=st.sampled_from([0.0, 1.0, 1e6]),
    data=st.data(),
)
def test_one_patient_moves_the_mean_update_by_at_most_the_bound_over_the_sites(everyone, sizes, clip, scale, data):
    site = data.draw(st.integers(0, len(sizes) - 1))
    ids = list(everyone.patient_ids)
    cohorts = [everyone.select([ids.pop() for _ in range(size)]) for size in sizes]
    removed = data.draw(st.sampled_from(cohorts[site].patient_ids))
    fewer = everyone.select([p for p in cohorts[site].patient_ids if p != removed])
    with known_draws(noise_scale=0.0, loss_scale=scale):
        replies = [reply(cohort, style, clip) for style, cohort in enumerate(cohorts)]
        without = [*replies[:site], reply(fewer, site, clip), *replies[site + 1 :]]
    moved = float((mean(replies) - mean(without)).norm())
    bound = 1 / (len(sizes) * RATE * DECLARED)  # learning rate · C = 1
    assert moved <= bound * (1 + 1e-3)
    if scale > 1:
        assert moved >= bound * (1 - 1e-3), "a patient whose gradient is clipped moves it by exactly that much"
