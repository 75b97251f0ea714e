from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from cmrfed.core.errors import EvaluationError
from cmrfed.evaluation.features.extractors import find_inception, open_extractor
from cmrfed.evaluation.fidelity.distances import (
    PAIRED_BATCH,
    distribution_metrics,
    lpips_metric,
    ms_ssim_betas,
    paired_metrics,
    paired_values,
)
from cmrfed.evaluation.settings import FeatureConfig, FidelityConfig
from cmrfed.evaluation.slices import slices_of_cohort
from cmrfed.synthesis.write import write_dataset
from tests.evaluation_world import cohort, sliced, synthetic


class Thin:
    """Every fifth pixel is a feature."""

    name, digest = "thin", "0"

    def __call__(self, images):
        return images.reshape(len(images), -1)[:, ::5].astype(float)


@pytest.mark.parametrize(("side", "scales"), [(16, 1), (32, 2), (64, 3), (128, 4), (176, 5), (256, 5)])
def test_ms_ssim_takes_the_scales_that_fit(side, scales):
    betas = ms_ssim_betas(side)
    assert len(betas) == scales
    assert sum(betas) == pytest.approx(1)
    values = paired_values(np.zeros((1, side, side)), np.random.default_rng(0).uniform(-1, 1, (1, side, side)))
    assert np.isfinite(values["ms-ssim"]).all()


def test_psnr_is_the_formula_on_a_range_of_two():
    real = np.zeros((2, 32, 32))
    made = np.stack([np.full((32, 32), 0.1), np.full((32, 32), 0.5)])
    assert paired_values(real, made)["psnr"] == pytest.approx(10 * np.log10(4 / np.array([0.01, 0.25])), rel=1e-5)


def test_pairs_are_compared_by_themselves_however_many_there_are():
    real, made = np.random.default_rng(1).uniform(-1, 1, (2, PAIRED_BATCH + 1, 32, 32))
    together = paired_values(real, made)
    for name, values in together.items():
        alone = [paired_values(real[[i]], made[[i]])[name][0] for i in range(len(real))]
        assert values == pytest.approx(alone, abs=1e-5), name


def test_ssim_is_the_published_formula():
    """Wang et al. 2004: Gaussian window of sigma 1.5, constants (0.01 L)^2 and (0.03 L)^2 with L = 2."""
    rng = np.random.default_rng(0)
    x = gaussian_filter(rng.normal(size=(48, 48)), 2) * 3
    y = x + rng.normal(0, 0.2, x.shape)

    def blur(a):
        return gaussian_filter(a, 1.5, truncate=3.4, mode="mirror")

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = 0.02**2, 0.06**2
    full = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert paired_values(x[None], y[None])["ssim"][0] == pytest.approx(full.mean(), abs=1e-4)


def test_pairs_are_compared_slice_by_slice(tmp_path):
    held = slices_of_cohort(cohort(tmp_path / "h", range(4)))
    synthetic(tmp_path / "paired", range(4), prefix="p", change=lambda x: np.clip(x + 0.02, -1, 2))
    found = paired_metrics(tmp_path / "paired", held, None)
    psnr = found.find("fidelity.psnr.paired")
    assert psnr.value == pytest.approx(10 * np.log10(4 / 0.0004), abs=0.5)
    assert psnr.n == 4
    assert "2 scales fit 32 px" in found.find("fidelity.ms-ssim.paired").detail
    assert "alexnet" in found.find("fidelity.lpips.paired").unavailable


def test_pairs_are_found_by_their_pseudonyms_too(tmp_path):
    data = cohort(tmp_path / "h", range(4))
    held = slices_of_cohort(data)
    by_name = synthetic(tmp_path / "names", range(4), prefix="p", change=lambda x: np.clip(x + 0.02, -1, 2))

    def renamed():
        for case in by_name.cases():
            name = data.pseudonym(case.patient_id)
            yield replace(case, case_id=f"{name}_{case.phase.name}", patient_id=name)

    write_dataset(tmp_path / "pseudonyms", sorted(renamed(), key=lambda case: case.case_id), by_name.manifest)
    assert paired_metrics(tmp_path / "pseudonyms", held, None) == paired_metrics(by_name.root, held, None)


def test_identical_pairs_are_left_out_of_psnr_and_named(tmp_path):
    data = cohort(tmp_path / "h", range(3))
    held = slices_of_cohort(data)
    same = synthetic(tmp_path / "paired", range(3), prefix="p", change=lambda x: x.astype(np.float16))
    found = paired_metrics(same.root, held, None)
    assert "not the hold-out itself" in found.find("fidelity.psnr.paired").unavailable
    assert found.find("fidelity.ssim.paired").value == pytest.approx(1)
    assert "18 paired image(s) equal the real one" in found.warnings[0].text


def test_no_pairs_is_said_with_the_cure(tmp_path):
    held = slices_of_cohort(cohort(tmp_path / "h", range(2)))
    for folder in (None, tmp_path / "nothing"):
        found = paired_metrics(folder, held, None)
        assert len(found.metrics) == 4
        assert all("--paired" in m.unavailable for m in found.metrics)


def test_pairs_of_other_patients_are_refused(tmp_path):
    held = slices_of_cohort(cohort(tmp_path / "h", range(2)))
    synthetic(tmp_path / "paired", range(2), prefix="q")
    with pytest.raises(EvaluationError, match=r"paired case q000_ED does not fit.*masks of this hold-out"):
        paired_metrics(tmp_path / "paired", held, None)


def test_lpips_without_its_file_is_unavailable_not_random(tmp_path):
    metric = lpips_metric(np.zeros((1, 32, 32)), np.zeros((1, 32, 32)), np.array(["a"]), str(tmp_path), "mask-paired")
    assert metric.value is None
    assert "alexnet-owt-7be5be79.pth is missing" in metric.unavailable


def test_noise_is_further_off_than_real_patients_are(tmp_path):
    parts = [sliced(tmp_path / n, range(a, a + 8), n) for n, a in (("real", 0), ("train", 20), ("held", 40))]
    noisy = parts[0].images + np.random.default_rng(0).normal(0, 0.5, parts[0].images.shape)
    sets = [*parts, replace(parts[0], name="noisy", images=noisy.astype(np.float32))]
    features = {s.name: Thin()(s.images) for s in sets}
    good, bad = (
        distribution_metrics(s, sets[1], sets[2], features, Thin(), FidelityConfig(subsets=10, fid_halves=5))
        for s in (sets[0], sets[3])
    )
    for name in ("fidelity.kid.synthetic.thin", "fidelity.fid.synthetic.thin"):
        a, b = good.find(name), bad.find(name)
        assert a.value < b.value
        assert a.reference == b.reference is not None
        assert a.low <= a.high
    assert "N = 48" in good.find("fidelity.fid.synthetic.thin").detail


def test_too_few_slices_are_unavailable(tmp_path):
    sets = [sliced(tmp_path / n, range(a, a + 2), n) for n, a in (("s", 0), ("t", 20), ("h", 40))]
    sets[0] = sets[0].take(np.arange(3))
    found = distribution_metrics(*sets, {}, Thin(), FidelityConfig())
    assert all("too few slices: 3" in m.unavailable for m in found.metrics)


# --- features -----------------------------------------------------------------------------------
def test_missing_inception_weights_say_how_to_get_them(tmp_path):
    with pytest.raises(EvaluationError, match=r"not on this machine.*cmrfed\[inception\]"):
        find_inception(str(tmp_path / "none.pt"))


def test_inception_is_any_torchscript_of_299_px_photographs(tmp_path):
    class Corner(torch.nn.Module):
        def forward(self, x):
            assert x.shape[1] == 3
            assert x.shape[2] == 299
            return x[:, :, :2, 0].flatten(1)

    file = tmp_path / "net.pt"
    torch.jit.script(Corner()).save(str(file))
    extractor = open_extractor(FeatureConfig(extractor="inception-v3-fid", inception_path=str(file)))
    assert extractor.name == "inception-v3-fid"
    assert extractor(np.full((3, 32, 32), 0.5, np.float32)) == pytest.approx(np.full((3, 6), 0.5))
    assert len(extractor.digest) == 64
