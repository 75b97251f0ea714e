import numpy as np
import pytest

from cmrfed.core.errors import EvaluationError
from cmrfed.evaluation.privacy.memorisation import closer_share, memorisation, repeated_patients
from cmrfed.evaluation.privacy.nearest import Neighbours, neighbours
from cmrfed.evaluation.settings import MemorisationConfig
from tests.evaluation_world import sliced


def flat(slices):
    return slices.images.reshape(len(slices), -1)


def judged(synthetic, train, holdout):
    features = {s.name: flat(s)[:, ::7].astype(float) for s in (synthetic, train, holdout)}
    return memorisation(synthetic, train, holdout, features, "thin", MemorisationConfig(draws=5))[0]


@pytest.fixture
def sets(tmp_path):
    return [sliced(tmp_path / n, range(a, a + 6), n) for n, a in (("synthetic", 0), ("train", 20), ("holdout", 40))]


def test_blocks_give_what_a_plain_loop_gives(monkeypatch):
    monkeypatch.setattr("cmrfed.evaluation.privacy.nearest.BLOCK", 3)
    rng = np.random.default_rng(0)
    x, y, owners = rng.normal(size=(8, 5)), rng.normal(size=(11, 5)), np.array(list("bacabcabcab"))
    found = neighbours(x, y, owners)
    assert found.patients.tolist() == ["a", "b", "c"]
    for i, query in enumerate(x):
        gaps = [np.sqrt(np.mean((query - other) ** 2)) for other in y]
        for p, name in enumerate("abc"):
            best = min((g, k) for k, g in enumerate(gaps) if owners[k] == name)
            assert (found.distance[i, p], found.row[i, p]) == (pytest.approx(best[0], rel=1e-5), best[1])
        assert found.nearest()[1][i] == int(np.argmin(gaps))


def test_unequal_set_sizes_do_not_lean_the_share():
    """Train has ten times the patients: counting all would give 10/11, equal choices give a half."""
    rng = np.random.default_rng(0)
    train, held = (Neighbours(rng.random((400, p)), np.zeros((400, p), int), np.arange(p)) for p in (100, 10))
    won, count = closer_share(train, held, 20, rng)
    assert count == 10
    assert won.mean() == pytest.approx(0.5, abs=0.04)
    assert (train.distance.min(1) < held.distance.min(1)).mean() > 0.85


def test_unrelated_sets_show_no_copying(sets):
    found = judged(*sets)
    assert found.find("memorisation.copies.pixels").value <= 0.1
    assert found.find("memorisation.constant-images").value == 0
    assert 0.2 < found.find("memorisation.nearer-to-training.pixels").value < 0.8


def test_copies_are_found(sets):
    synthetic, train, holdout = sets
    noise = np.random.default_rng(0).normal(0, 0.01, synthetic.images.shape)
    synthetic.images[:] = train.images + noise
    found = judged(synthetic, train, holdout)
    assert found.find("memorisation.copies.pixels").value == 1
    nearer = found.find("memorisation.nearer-to-training.pixels")
    assert nearer.value > 0.95
    assert nearer.low > 0.5
    assert found.find("memorisation.distance-ratio.pixels").value < 0.3


def test_duplicates_and_constant_images_are_counted(sets):
    synthetic, train, holdout = sets
    synthetic.images[:] = synthetic.images[:1]
    synthetic.images[synthetic.owners == synthetic.owners[0]] = 0.25
    found = judged(synthetic, train, holdout)
    assert found.find("memorisation.duplicates.pixels").value == pytest.approx(5 / 6)
    assert found.find("memorisation.constant-images").value == pytest.approx(1 / 6)
    assert [w.text for w in found.warnings] == ["6 of 36 synthetic images are constant"]


def test_a_patient_scanned_into_both_sets_is_left_out_and_named(sets):
    _, train, holdout = sets
    holdout.images[holdout.owners == "p041"] = train.images[train.owners == "p023"] + 0.003
    assert repeated_patients(train, holdout) == ["p041"]
    assert "p041" in judged(*sets).warnings[0].text


def test_a_holdout_that_is_the_training_set_is_refused(sets):
    with pytest.raises(EvaluationError, match=r"every hold-out patient is also in the training cohort.*disjoint"):
        repeated_patients(sets[1], sets[1])


def test_one_synthetic_patient_has_no_duplicates_to_find(sets):
    one = sets[0].of_patients(["p000"])
    metric = judged(one, *sets[1:]).find("memorisation.duplicates.pixels")
    assert "at least two" in metric.unavailable
