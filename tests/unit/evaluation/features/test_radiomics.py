"""FRD: what is said where its package is absent; with it, the number of the package itself."""

import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from cmrfed.evaluation.features.radiomics import RadiomicFeatures, frd_metrics, frd_of
from cmrfed.evaluation.settings import FidelityConfig
from tests.evaluation_world import sliced


@pytest.fixture
def sets(tmp_path):
    made = [sliced(tmp_path / n, range(a, a + 6), n) for n, a in (("synthetic", 0), ("training", 10), ("hold-out", 20))]
    noise = np.random.default_rng(0).normal(0, 0.3, made[0].images.shape)
    return replace(made[0], images=(made[0].images + noise).astype(np.float32)), *made[1:]


def extractor():
    try:
        return RadiomicFeatures()
    except ImportError as error:
        pytest.skip(f"FRD needs frd-score and pyradiomics: {error}".partition("\n")[0])


def test_sets_of_one_distribution_are_nearer_than_a_shifted_one():
    rng = np.random.default_rng(0)
    reference, same, shifted = (rng.normal(shift, 1, (200, 5)) * 7 + 3 for shift in (0, 0, 1))
    assert frd_of(same, reference) < frd_of(shifted, reference)
    assert frd_of(shifted, reference) == pytest.approx(np.log(5), abs=0.4), "five features, one deviation apart each"


def test_features_that_do_not_vary_and_slices_without_a_value_are_left_out():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.5, 1, (50, 3)), rng.normal(0, 1, (50, 3))
    wide = [np.column_stack([part, np.full(len(part), 1e6)]) for part in (x, y)]
    with_gap = np.vstack([wide[0], [np.nan, 0, 0, 1e6]])
    assert frd_of(with_gap, wide[1]) == pytest.approx(frd_of(x, y))


def test_without_its_package_the_table_says_why_and_what_to_do(sets, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "frd_score", None)
    (row,) = frd_metrics(*sets, FidelityConfig(), tmp_path).metrics
    assert row.id == "fidelity.frd.synthetic.radiomics"
    assert "its package is not installed (" in row.unavailable
    assert "Do: pip install --no-build-isolation pyradiomics==3.0.1 frd-score" in row.unavailable


def test_it_is_the_number_of_the_package_itself(sets, tmp_path):
    mine = extractor()
    from frd_score import compute_frd

    files = []
    for s in (sets[2], sets[0]):
        (tmp_path / "files" / s.name).mkdir(parents=True)
        paths = [str(tmp_path / "files" / s.name / f"{i:03d}.nii.gz") for i in range(len(s))]
        for image, path in zip(s.images, paths, strict=True):
            nib.save(nib.Nifti1Image(image.T[..., None], np.eye(4)), path)
        files.append(paths)
    theirs = compute_frd(files, norm_ref="d1", num_workers=1)
    assert frd_of(mine(sets[0].images), mine(sets[2].images)) == pytest.approx(theirs, rel=0.01)


def test_noise_is_further_than_real_patients_are(sets, tmp_path):
    extractor()
    found, floor = frd_metrics(*sets, FidelityConfig(frd_slices=20, fid_halves=5), tmp_path).metrics
    assert found.n == floor.n == 20
    assert found.reference == floor.value
    assert found.low < found.value < found.high
    assert found.low > floor.high
    assert len(list(tmp_path.glob("features-*"))) == 3


def test_slices_that_show_nothing_are_left_out(sets, tmp_path):
    extractor()
    images = sets[0].images.copy()
    images[::2] = 0.5
    found = frd_metrics(replace(sets[0], images=images), *sets[1:], FidelityConfig(frd_slices=30), tmp_path)
    assert found.find("fidelity.frd.synthetic.radiomics").n == len(images) // 2


def test_few_slices_are_said(sets, tmp_path):
    extractor()
    (row,) = frd_metrics(*sets, FidelityConfig(frd_slices=5), tmp_path).metrics
    assert "5 slices of each set are too few" in row.unavailable
