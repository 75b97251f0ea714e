"""Every membership attack where the answer is known: all of it learned by heart, or nothing learned at all."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm

from cmrfed.evaluation.anatomy.comparison import ALPHA, holm
from cmrfed.evaluation.features.extractors import PhantomFeatures
from cmrfed.evaluation.features.phantom_cnn import PhantomCnn
from cmrfed.evaluation.privacy import membership
from cmrfed.evaluation.privacy.black_box import SOURCES as BLACK_BOX
from cmrfed.evaluation.privacy.black_box import leakage
from cmrfed.evaluation.privacy.membership import Scores, excludes_chance, p_value
from cmrfed.evaluation.privacy.white_box import SOURCES, untrained
from cmrfed.evaluation.slices import slices_of_cohort
from tests.attack_world import aucs, learned_by_heart, textured
from tests.evaluation_world import cohort

SEEDS = (0, 1, 2)
POWERFUL = {
    "noise": {"loss", "sima", "calibrated-loss"},
    "flow": {"loss", "sima", "calibrated-loss"},
    "latent": {"loss", "calibrated-loss"},
}
"""Family => attacks that find what was learned by heart, as measured; the rest has less power (docs/evaluation.md)."""
CONTROLS = 40
"""Patients of each side against a generator that learned from nobody."""
COUNT = 24
"""Patients of each cohort against a synthetic set."""


def furthest(patients: int, tests: int) -> float:
    """How far from 0.5 the mean AUC of all seeds may lie: beyond, by chance, in one of a hundred rounds of ``tests``.

    Under no effect an AUC of m against n patients has variance (m + n + 1) / 12mn (Mann and Whitney 1947).
    """
    spread = np.sqrt((2 * patients + 1) / (12 * patients**2) / len(SEEDS))
    return float(norm.ppf(1 - 0.01 / (2 * tests)) * spread)


# --- white box ------------------------------------------------------------------------------------
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("family", sorted(POWERFUL))
def test_what_was_learned_by_heart_is_found_and_nothing_else(tmp_path, family):
    found, control = {name: [] for name in SOURCES}, {name: [] for name in SOURCES}
    for seed in SEEDS:
        folder = tmp_path / str(seed)
        members, others = textured(folder / "members", 0, seed), textured(folder / "others", 60, seed)
        strangers = [textured(folder / f"strangers {k}", 60 + 60 * k, seed) for k in (1, 2)]
        references = [learned_by_heart(s, family, seed + 10 * k, steps=150) for k, s in enumerate(strangers, 1)]
        target = learned_by_heart(members, family, seed)
        for attack, estimate in aucs(target, members, others, references).items():
            found[attack].append(estimate.value)
        sides = [textured(folder / f"control {k}", 240 + 60 * k, seed, count=CONTROLS) for k in (0, 1)]
        for attack, estimate in aucs(untrained(target, seed), *sides, references).items():
            control[attack].append(estimate.value)
    for name, values in (("learned by heart", found), ("untrained", control)):
        print(family, name, {attack: [round(v, 2) for v in each] for attack, each in values.items()})
    assert {attack: found[attack] for attack in POWERFUL[family] if min(found[attack]) < 0.95} == {}
    limit = furthest(CONTROLS, 3 * len(SOURCES))
    away = {attack: np.mean(values) - 0.5 for attack, values in control.items()}
    assert {attack: d for attack, d in away.items() if abs(d) > limit} == {}


# --- black box ------------------------------------------------------------------------------------
@pytest.fixture
def no_control_hides_a_value(monkeypatch):
    """Of 24 controls one fails by chance in every fourth round, and its attack is then shown without a value."""
    monkeypatch.setattr(membership, "CONTROL_ERROR", 0.0)


def attacked(folder, seed, copied):
    """What is found in copies of the training patients, or in fresh ones."""
    starts = {"training": 0, "hold-out": 100, "fresh": 200}
    made = {name: cohort(folder / name, range(1000 * seed + s, 1000 * seed + s + COUNT)) for name, s in starts.items()}
    train, held, fresh = (replace(slices_of_cohort(c), name=name) for name, c in made.items())
    drawn = train if copied else fresh
    synthetic = replace(drawn, name="synthetic", owners=np.char.add("s", drawn.owners.astype(str)))
    torch.manual_seed(seed)
    extractor = PhantomFeatures(PhantomCnn(styles=3))
    features = {s.name: extractor(s.images) for s in (synthetic, train, held)}
    records = (made["training"].patients, made["hold-out"].patients)
    return leakage(synthetic, train, held, features, "features", records, None, seed)


def scores_of(found):
    """Attack => scores, of both spaces."""
    scored = found.select_series("leakage.scores")
    assert {(s.attack, s.space) for s in scored} == {(a, s) for s in ("pixels", "features") for a in BLACK_BOX}
    return {f"{s.attack}.{s.space}": Scores(*map(np.array, s.groups.values())) for s in scored}


@pytest.mark.usefixtures("no_control_hides_a_value")
@pytest.mark.parametrize("seed", SEEDS)
def test_every_black_box_attack_calls_copies_a_leak(tmp_path, seed):
    found = attacked(tmp_path, seed, copied=True)
    rows = [found.find(f"leakage.auc.{name}") for name in scores_of(found)]
    assert [row for row in rows if row.value < 0.95 or not excludes_chance(row.low, row.high)] == []
    for space in ("pixels", "features"):
        assert found.find(f"leakage.adversarial-accuracy.{space}").low > 0
        assert found.find(f"leakage.patients-copied.{space}").low > 0


@pytest.mark.usefixtures("no_control_hides_a_value")
def test_no_black_box_attack_calls_fresh_patients_a_leak(tmp_path):
    """Each within chance over the seeds together, and none of any seed beyond it once their number is counted."""
    values, chances, others = {}, {}, {}
    for seed in SEEDS:
        found = attacked(tmp_path / str(seed), seed, copied=False)
        for name, scores in scores_of(found).items():
            values.setdefault(name, []).append((found.find(f"leakage.auc.{name}").value, len(scores.members)))
            chances[seed, name] = p_value(scores)
        for row in found.metrics:
            if row.measure in ("adversarial-accuracy", "patients-copied"):
                others.setdefault(row.id, []).append((row.value, (row.high - row.low) / (2 * 1.96)))
    print({name: [round(v, 2) for v, _ in each] for name, each in values.items()})
    for name, each in values.items():
        assert abs(np.mean([v for v, _ in each]) - 0.5) < furthest(each[0][1], len(values)), name
    for name, each in others.items():
        value, spread = np.mean([v for v, _ in each]), np.sqrt(np.sum([s**2 for _, s in each])) / len(each)
        assert value <= norm.ppf(1 - 0.01 / len(others)) * spread, name
    assert [key for key, p in zip(chances, holm(list(chances.values())), strict=True) if p < ALPHA] == []
