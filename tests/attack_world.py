"""Patients whose grain is theirs alone, and generators that learned it by heart."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cmrfed.data.cohort import Cohort, PatientRecord, PreparedPatient, Volume, write_cohort
from cmrfed.data.draws import gather
from cmrfed.data.labels import Phase
from cmrfed.evaluation.privacy.membership import Scores, auc
from cmrfed.evaluation.privacy.white_box import patient_scores
from cmrfed.evaluation.results.result import Estimate
from cmrfed.evaluation.settings import AttackConfig
from cmrfed.generators.generator import Generator
from cmrfed.generators.settings import BackboneConfig
from cmrfed.training.batches import stage_inputs
from tests.generator_world import SIZE_PX, ddpm, heart, tiny_generator

QUICK = AttackConfig(noise_samples=2)
FAMILIES = {
    "noise": ("pixel", ddpm("epsilon")),
    "velocity": ("pixel", ddpm("v_prediction")),
    "clean": ("pixel", ddpm("sample")),
    "flow": ("pixel", None),
    "latent": ("latent", ddpm("sample")),
}


def textured(
    path: Path, first: int, seed: int = 0, count: int = 10, smooth: Sequence[int] = (), also: Sequence[int] = ()
) -> Cohort:
    """Patients of one slice per phase whose grain is theirs alone, so that it can be learned by heart only.

    Those who are ``smooth`` have little of it: any generator finds them easy. Shapes repeat after six patients: cohorts
    that are to differ in nothing but grain begin at multiples of six.
    """
    patients = []
    for number in (*range(first, first + count), *also):
        random, name, volumes = np.random.default_rng([seed, number]), f"p{number:03d}", []
        for phase in Phase:
            mask = heart(number, phase, 0.3)[None]
            grain = random.normal(0, 0.04 if number in smooth else 0.4, mask.shape)
            image = np.array([-0.8, 0.6, -0.2, 0.7])[mask] + grain
            volumes.append(Volume(name, phase, np.clip(image, -1, 1).astype(np.float32), mask, None))
        patients.append(PreparedPatient(PatientRecord(patient_id=name, group="AB"[number % 2]), tuple(volumes)))
    return write_cohort(path, patients, name=path.name, source="t", size_px=SIZE_PX, labels=(1, 2, 3), preparation={})


def learned_by_heart(cohort: Cohort, family: str, seed: int, steps: int = 600) -> Generator:
    """A generator that saw every slice of a few patients in every step."""
    codec, process = FAMILIES[family]
    size = BackboneConfig(channels=(16, 32), norm_groups=4, patch_px=1 if codec == "latent" else 2)
    generator = tiny_generator(codec, process, seed, backbone=size)
    raw, cond = stage_inputs(gather(cohort, np.concatenate([np.asarray(r) for r in cohort.rows_of])), "image", style=0)
    optimizer, rng = torch.optim.AdamW(generator.network.parameters()), torch.Generator().manual_seed(seed)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / steps) + 1e-5
        optimizer.zero_grad()
        generator.loss(raw, cond, rng).mean().backward()
        optimizer.step()
    return generator.eval()


def aucs(
    generator: Generator, members: Cohort, others: Cohort, references: Sequence[Generator] = ()
) -> dict[str, Estimate]:
    """Attack => AUC on all patients of both cohorts."""
    scores = [patient_scores(generator, references, c, c.patient_ids, QUICK, 0, c.name) for c in (members, others)]
    return {attack: auc(Scores(scores[0][attack], scores[1][attack])) for attack in scores[0]}
