"""White-box membership inference: does a saved generator tell training patients from others?

All families are asked for the noise in an array x = α x_0 + σ ε, at times that `Process.time_of_step` gives: the step
itself in diffusion, and the time with the noise σ / α of the cosine schedule in other families. A latent generator is
attacked in its latent space.

Attackers know masks, phase and position, but not the site: the sites take turns over slices and draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cmrfed.core.device import HOST, to_device, to_host
from cmrfed.core.errors import EvaluationError
from cmrfed.core.progress import track
from cmrfed.core.rng import fold, torch_generator
from cmrfed.data.cohort import Cohort, PatientRecord
from cmrfed.data.draws import gather
from cmrfed.evaluation.installed import Access, attack_scores, installed_attacks
from cmrfed.evaluation.privacy.membership import (
    FEWEST,
    Attack,
    Claim,
    Scores,
    attack_findings,
    ceiling_series,
    matched,
    too_few,
)
from cmrfed.evaluation.privacy.memorisation import repeated_patients
from cmrfed.evaluation.results.catalogue import unavailable
from cmrfed.evaluation.results.result import Findings
from cmrfed.evaluation.settings import AttackConfig
from cmrfed.evaluation.slices import slices_of_cohort
from cmrfed.generators.condition import Condition
from cmrfed.generators.generator import Generator
from cmrfed.generators.stages import drawn_by
from cmrfed.training.batches import stage_inputs

TIMES = (25, 50, 75, 100, 125, 150, 175, 200)
"""Of 1000, at which the loss is averaged; low ones tell most."""
NEAR = 100
"""The time of the attacks that need one alone."""
STRIDE = 10
"""Between the deterministic steps of SecMI."""
BATCH = 64
FEWEST_REFERENCES = 2
SPACE: Access = "white-box"
"""How these attacks have access, in ids."""
SOURCES = {
    "loss": "minus the error of the predicted noise, t ≤ 200, same noise for all patients (arXiv 2302.03262)",
    "sima": f"minus the norm of the noise that is seen in the clean image at t = {NEAR} (arXiv 2509.25003)",
    "pia": f"minus the change of the predicted noise from t = 0 to {NEAR}, 4-norm (arXiv 2305.18355)",
    "secmi": f"minus the error of a step there and back at t = {NEAR} (arXiv 2302.01316)",
    "calibrated-loss": "the loss score less its mean under the reference generators (arXiv 2111.08440)",
}
"""Attack → its score."""


@dataclass(frozen=True)
class Slices:
    """Encoded slices (B, …) and the conditions of each."""

    clean: Tensor
    cond: Condition
    number: Tensor
    """Of each slice in the whole, (B,): decides which style comes first."""


class Probe:
    """Asks a generator for the noise in an array, whatever it predicts."""

    def __init__(self, generator: Generator) -> None:
        self.generator, self.process = generator, generator.process
        self.styles = generator.config.styles

    def _time(self, step: int) -> Tensor:
        return torch.tensor(self.process.time_of_step(step), dtype=torch.float64, device=HOST)

    def level(self, step: int) -> tuple[float, float]:
        """α and σ at a step 0 … 999 of diffusion."""
        alpha, sigma = self.process.alpha_sigma(self._time(step))
        return float(alpha), float(sigma)

    def noise(self, array: Tensor, step: int, slices: Slices, draw: int = 0) -> Tensor:
        """The noise that the generator predicts in an array (B, …)."""
        time, style = self._time(step), (slices.number + draw) % self.styles
        cond = Condition(slices.cond.masks, slices.cond.phase, slices.cond.position, style)
        planes = self.generator.network.condition_planes(cond)
        times = torch.full((len(array),), float(time), device=array.device)
        out = self.generator.network(array, times, planes)
        return self.process.to_noise(out, array, time)

    def moved(self, array: Tensor, noise: Tensor, start: int, end: int) -> Tensor:
        """A deterministic step (DDIM, arXiv 2010.02502) from one step of diffusion to another, either way."""
        (a, s), (b, r) = self.level(start), self.level(end)
        return b * (array - s * noise) / a + r * noise


def _mean_square(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1)


def loss_score(probe: Probe, slices: Slices, noises: int, seed: int) -> Tensor:
    """Minus the mean squared error of the predicted noise over all `TIMES` and draws, (B,)."""
    total = torch.zeros(len(slices.clean), device=slices.clean.device)
    for time in TIMES:
        a, s = probe.level(time)
        for draw in range(noises):
            shape = slices.clean.shape[1:]
            noise = torch.randn(shape, generator=torch_generator(seed, "attack", time, draw))[None]
            noise = to_device(noise, slices.clean.device)
            total -= _mean_square(probe.noise(a * slices.clean + s * noise, time, slices, draw) - noise)
    return total / (len(TIMES) * noises)


def sima_score(probe: Probe, slices: Slices) -> Tensor:
    """Minus the norm of the noise that is seen in the clean array, (B,)."""
    return -_mean_square(probe.noise(slices.clean, NEAR, slices)).sqrt()


def pia_score(probe: Probe, slices: Slices) -> Tensor:
    """Minus the 4-norm between the noise seen at time 0 and that seen after adding it, (B,)."""
    first, (a, s) = probe.noise(slices.clean, 0, slices), probe.level(NEAR)
    again = probe.noise(a * slices.clean + s * first, NEAR, slices)
    return -(first - again).flatten(1).norm(p=4, dim=1)


def secmi_score(probe: Probe, slices: Slices) -> Tensor:
    """Minus the squared error of one deterministic step up and back down, from where such steps lead, (B,)."""
    array = slices.clean
    for time in range(0, NEAR, STRIDE):
        array = probe.moved(array, probe.noise(array, time, slices), time, time + STRIDE)
    up = probe.moved(array, probe.noise(array, NEAR, slices), NEAR, NEAR + STRIDE)
    back = probe.moved(up, probe.noise(up, NEAR + STRIDE, slices), NEAR + STRIDE, NEAR)
    return -_mean_square(back - array)


# --- by patient -------------------------------------------------------------------------------------
def _rows(cohort: Cohort, patients: Sequence[str], count: int) -> list[np.ndarray]:
    """Up to ``count`` rows of each patient, spread evenly."""
    numbers = [cohort.patient_ids.index(p) for p in patients]
    every = [np.asarray(cohort.rows_of[i]) for i in numbers]
    return [rows[np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))] for rows in every]


def _slices(generator: Generator, cohort: Cohort, rows: np.ndarray, first: int) -> Slices:
    raw, cond = stage_inputs(gather(cohort, rows), drawn_by(generator.config).name, style=0)
    number, device = torch.arange(first, first + len(rows), device=HOST), generator.device
    return Slices(generator.codec.encode(to_device(raw, device)), to_device(cond, device), to_device(number, device))


@torch.no_grad()
def _loss_of(generator: Generator, slices: Slices, config: AttackConfig, seed: int) -> Tensor:
    return loss_score(Probe(generator), slices, config.noise_samples, seed)


@torch.no_grad()
def _scored(target: Generator, slices: Slices, config: AttackConfig, seed: int) -> dict[str, Tensor]:
    probe = Probe(target)
    return {
        "loss": loss_score(probe, slices, config.noise_samples, seed),
        "sima": sima_score(probe, slices),
        "pia": pia_score(probe, slices),
        "secmi": secmi_score(probe, slices),
        **{
            name: torch.from_numpy(attack_scores(name, each, len(slices.clean), probe, slices, seed))
            for name, each in installed_attacks(config, SPACE).items()
        },
    }


def patient_scores(
    target: Generator,
    references: Sequence[Generator],
    cohort: Cohort,
    patients: Sequence[str],
    config: AttackConfig,
    seed: int,
    name: str,
) -> dict[str, np.ndarray]:
    """Attack → score of each patient, mean over slices: (P,)."""
    rows = _rows(cohort, patients, config.slices)
    every, owners = np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(r) for r in rows])
    parts: dict[str, list[Tensor]] = {}
    with track(f"evaluation: white box, {name}", len(every)) as bar:
        for start in range(0, len(every), BATCH):
            slices = _slices(target, cohort, every[start : start + BATCH], start)
            found = _scored(target, slices, config, seed)
            if references:
                usual = torch.stack([_loss_of(r, slices, config, seed) for r in references]).mean(0)
                found["calibrated-loss"] = found["loss"] - usual
            for attack, values in found.items():
                parts.setdefault(attack, []).append(to_host(values))
            bar.advance(len(slices.clean))
    whole = {attack: torch.cat(values).double().numpy() for attack, values in parts.items()}
    return {attack: np.bincount(owners, values) / np.bincount(owners) for attack, values in whole.items()}


def untrained(generator: Generator, seed: int) -> Generator:
    """The same configuration and codec with random weights: a generator that has learned from nobody."""
    fresh = Generator(generator.config, fold(seed, "untrained") % 2**31)
    fresh.codec = generator.codec
    return fresh.to(generator.device).eval()


def _check(generator: Generator, cohorts: Sequence[Cohort], references: Sequence[Generator]) -> None:
    for cohort in cohorts:
        if cohort.size_px != generator.config.size_px:
            raise EvaluationError(
                f"cohort {cohort.name} is of another size than the generator that is attacked",
                got=f"{cohort.size_px} px",
                expected=f"{generator.config.size_px} px",
                do=f"prepare it with --size {generator.config.size_px}",
            )
    for reference in references:
        mine, theirs = ((g.config.codec, g.config.size_px, g.config.condition_masks) for g in (generator, reference))
        if mine != theirs:
            raise EvaluationError(
                "a reference generator makes something else than the one that is attacked",
                got=theirs,
                expected=f"codec, size and condition masks {mine}",
                do="give references of the same stage and size, trained on patients of neither cohort",
            )


def _masked(cohort: Cohort) -> list[PatientRecord]:
    return [record for record in cohort.patients if record.has_mask]


def white_box(
    generator: Path | Generator,
    references: Sequence[Path],
    train: Cohort,
    holdout: Cohort,
    config: AttackConfig,
    claim: Claim | None,
    seed: int = 0,
    device: torch.device = HOST,
) -> Findings:
    """Attack a saved generator.

    Args:
        generator: Folder of the generator; or the generator, where it is loaded already.
        references: Folders of generators like it, trained on patients of neither cohort.
        train: Patients that the generator learned from.
        holdout: Patients that nothing has learned from; those who are in training by their images are left out.
        config: Effort.
        claim: (ε, δ) of the generator, if it has one.
        seed: Decides the patients that are compared, the noise and the untrained weights.
        device: Where generators compute.

    Raises:
        EvaluationError: The generator or a reference is of another size.
    """
    target = (generator if isinstance(generator, Generator) else Generator.load(generator)).to(device)
    others = [Generator.load(path).to(device) for path in references]
    _check(target, (train, holdout), others)
    again = repeated_patients(slices_of_cohort(train), slices_of_cohort(holdout))
    fresh_patients = [record for record in _masked(holdout) if record.patient_id not in again]
    members, outsiders = matched(_masked(train), fresh_patients, np.random.default_rng(seed))
    if len(members) < FEWEST:
        reason = (
            f"{len(members)} pairs of training and hold-out patients with masks have the same group and vendor; "
            f"{FEWEST} are needed. Do: hold out more patients of the groups and vendors that are trained on"
        )
        return Findings(metrics=(unavailable("leakage.membership", reason, {"space": SPACE}),))
    used = others if len(others) >= FEWEST_REFERENCES else []
    sides = ((train, members, "members"), (holdout, outsiders, "others"))
    found = [patient_scores(target, used, c, p, config, seed, name) for c, p, name in sides]
    fresh = untrained(target, seed)
    control = [patient_scores(fresh, used, c, p, config, seed, f"{name}, untrained") for c, p, name in sides]
    out = too_few(SPACE, len(outsiders)) + ceiling_series(claim) + _missing_references(len(others))
    sources = SOURCES | {name: each.about for name, each in installed_attacks(config, SPACE).items()}
    for attack in found[0]:
        scores, empty = (Scores(part[0][attack], part[1][attack]) for part in (found, control))
        words = f"up to {config.slices} slices of each patient; {sources[attack]}"
        out += attack_findings(Attack(attack, SPACE, scores, empty, "an untrained generator", words), claim)
    return out


def _missing_references(count: int) -> Findings:
    if count >= FEWEST_REFERENCES:
        return Findings()
    reason = (
        f"{count} reference generator(s); {FEWEST_REFERENCES} are needed. "
        "Do: give --reference twice or more: generators like this one, trained on patients of neither cohort"
    )
    return Findings(metrics=(unavailable("leakage.auc", reason, {"attack": "calibrated-loss", "space": SPACE}),))
