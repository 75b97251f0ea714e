"""One patient under two names is found by what images show, and different patients are not taken for one."""

import numpy as np
import pytest
from scipy import ndimage

from cmrfed.data.cohort import PatientRecord, PreparedPatient, Volume, write_cohort
from cmrfed.data.labels import Phase
from cmrfed.data.overlap import Same, shared_patients, without_shared

SIZE = 48


def scan(seed, size=SIZE):
    """Volumes (Z, H, W) at ED and ES of structures as smooth as anatomy is."""
    random = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(random.normal(size=(5, size, size)), (0, 2.5, 2.5)) for _ in Phase]
    return [np.clip(field / (2 * field.std()), -1, 1).astype(np.float32) for field in fields]


def saved_again(volumes, seed=0):
    """The same scan from another file: moved, of other contrast, clipped, noisy."""
    random = np.random.default_rng(seed)
    move, gain = random.uniform(-3, 3, 2), random.uniform(0.85, 1.15)

    def changed(image):
        moved = ndimage.shift(image, move, order=1, mode="nearest")
        return np.clip(gain * moved + 0.05 + random.normal(0, 0.02, image.shape), -1, 1)

    return [np.stack([changed(image) for image in volume]) for volume in volumes]


def written(folder, scans, size=SIZE):
    def patients():
        for name, volumes in scans.items():
            parts = [Volume(name, phase, v, np.ones(v.shape), None) for phase, v in zip(Phase, volumes, strict=True)]
            yield PreparedPatient(PatientRecord(patient_id=name), tuple(parts))

    return write_cohort(folder, patients(), name=folder.name, source="x", size_px=size, labels=[1], preparation={})


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    return written(tmp_path_factory.mktemp("o") / "public", {f"p{k}": scan(k) for k in range(6)})


def test_different_patients_are_nobody_s_copies(public, tmp_path):
    others = written(tmp_path / "others", {f"p{k}": scan(100 + k) for k in range(6)})
    assert shared_patients(public, others) == []
    assert without_shared(others, [public]) == (others, [])


def test_the_same_files_under_other_names_are_found(public, tmp_path):
    others = written(tmp_path / "others", {"x": scan(50), "y": scan(4), "z": scan(2)})
    assert shared_patients(public, others) == [Same("p4", "y", 1.0), Same("p2", "z", 1.0)]


def test_one_equal_slice_is_enough(public, tmp_path):
    mixed = [np.concatenate([own[:4], other[4:]]) for own, other in zip(scan(60), scan(3), strict=True)]
    assert [s.first for s in shared_patients(public, written(tmp_path / "c", {"x": mixed}))] == ["p3"]


@pytest.mark.parametrize("seed", range(3))
def test_scans_that_were_saved_again_are_found_whatever_they_are_called(public, tmp_path, seed):
    others = written(tmp_path / "c", {"p1": scan(70), "new": saved_again(scan(5), seed), "p5": scan(71)})
    [same] = shared_patients(public, others)
    assert (same.first, same.second) == ("p5", "new")
    assert 0.92 < same.likeness < 1
    left, gone = without_shared(others, [public])
    assert left.patient_ids == ("p1", "p5")
    assert gone == [same]


def test_what_is_missing_or_prepared_at_another_size_is_found_too(public, tmp_path):
    shorter = [volume[1:] for volume in saved_again(scan(1))]
    larger = [np.stack([np.kron(image, np.ones((2, 2))) for image in volume]) for volume in shorter]
    for size, volumes in ((SIZE, shorter), (2 * SIZE, larger)):
        found = shared_patients(public, written(tmp_path / str(size), {"x": volumes}, size))
        assert [s.first for s in found] == ["p1"]


def test_slices_without_content_are_no_evidence(tmp_path):
    empty = [np.full((3, SIZE, SIZE), -1, np.float32)] * 2
    first, second = (written(tmp_path / name, {name: empty}) for name in ("a", "b"))
    assert shared_patients(first, second) == []


def test_nobody_is_in_an_empty_selection(public):
    assert shared_patients(public.select([]), public) == []
    assert shared_patients(public, public.select([])) == []
