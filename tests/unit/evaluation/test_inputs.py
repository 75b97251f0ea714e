import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from cmrfed.core.errors import EvaluationError
from cmrfed.data.nnunet_export import export_nnunet
from cmrfed.evaluation.inputs import layout_of, preparation_of, read_dataset
from cmrfed.evaluation.slices import slices_of_synthetic
from tests.evaluation_world import SIZE, cohort, synthetic
from tests.source_files import REAL_SPACING, acdc_patient, save, short_axis


@pytest.fixture
def real(tmp_path):
    return cohort(tmp_path / "real", range(3)).header


def warning(judged, words):
    return next(w for w in judged.warnings if words in w)


def test_our_own_data_set_is_read_as_before(tmp_path, real):
    data = synthetic(tmp_path / "own", [1, 2])
    judged = read_dataset(data.root, real)
    assert judged.slices.digest == slices_of_synthetic(data, SIZE).digest
    assert judged.warnings == ()


def test_real_masks_are_not_judged_as_a_synthetic_data_set(tmp_path, real):
    root = synthetic(tmp_path / "paired", [1, 2]).root
    told = json.loads((root / "manifest.json").read_text()) | {"real_content": ["masks"]}
    (root / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(EvaluationError, match=r"is no synthetic data set.*real masks of patients.*--synthetic"):
        read_dataset(root, real)


def test_an_export_to_nnunet_is_judged_as_the_data_set_itself(tmp_path, real):
    data = synthetic(tmp_path / "own", [1, 2, 3])
    folder = export_nnunet(data.root, tmp_path / "raw", 501, "Made")
    judged, own = read_dataset(folder, real), slices_of_synthetic(data, SIZE)
    assert set(judged.slices.cases) == set(own.cases)
    for case in own.cases:
        of_case = judged.slices.cases == case
        np.testing.assert_array_equal(judged.slices.images[of_case], own.images[own.cases == case])
        np.testing.assert_array_equal(judged.slices.masks[of_case], own.masks[own.cases == case])
    assert "nnU-Net v2 raw folder, 6 cases of 32 x 32 px" in judged.warnings[0]
    assert "resampled to 32 px: 0" in judged.warnings[0]


def test_larger_foreign_images_are_cropped_resampled_and_scaled_and_it_is_said(tmp_path, real):
    for name in ("patient001", "patient002"):
        acdc_patient(tmp_path / "acdc" / name)
    judged = read_dataset(tmp_path / "acdc", real)
    assert judged.slices.images.shape[1:] == (SIZE, SIZE)
    assert np.abs(judged.slices.images).max() <= 1
    assert set(np.unique(judged.slices.masks)) == {0, 1, 2, 3}
    pixel = preparation_of(real).field_mm / SIZE
    assert judged.slices.spacing["patient001_ED"] == pytest.approx((pixel, pixel, REAL_SPACING[2]))
    assert "4 cases of 80 x 96 px (4)" in judged.warnings[0]
    assert "resampled to 32 px: 4" in judged.warnings[0]


def test_hostile_cases_are_named_and_set_aside(tmp_path, real):
    root = tmp_path / "hostile"
    for name in ("good1", "good2", "corrupt", "constant", "infinite", "colour", "twin"):
        acdc_patient(root / name)
    (root / "corrupt" / "corrupt_frame01.nii.gz").write_bytes(b"\x1f\x8bno image")
    image, _ = short_axis()
    save(root / "constant" / "constant_frame01.nii.gz", np.full_like(image, 7.0))
    save(root / "infinite" / "infinite_frame09.nii.gz", np.where(image > 200, np.inf, image))
    save(root / "colour" / "colour_frame01.nii.gz", np.stack([image] * 3, -1))
    good = nib.load(root / "good1" / "good1_frame01.nii.gz").get_fdata().transpose(2, 1, 0)
    save(root / "twin" / "twin_frame01.nii.gz", good)
    judged = read_dataset(root, real)
    words = warning(judged, "set aside")
    assert words.startswith("5 of 14 synthetic cases set aside")
    for case, reason in {
        "corrupt_ED": "cannot be read",
        "constant_ED": "constant",
        "infinite_ES": "NaN or infinite",
        "colour_ED": "not an image of that kind",
        "twin_ED": "the same image as good1_ED",
    }.items():
        assert case in words
        assert reason in words
        assert case not in judged.slices.cases
    assert len(np.unique(judged.slices.cases)) == 9


def test_missing_masks_are_named_and_kept_out_of_what_needs_them(tmp_path, real):
    acdc_patient(tmp_path / "a" / "with")
    acdc_patient(tmp_path / "a" / "without", masks=False)
    judged = read_dataset(tmp_path / "a", real)
    assert "without_ED; without_ES" in warning(judged, "without a mask")
    assert set(judged.slices.take(judged.slices.has_mask).owners) == {"with"}


def test_mixed_sizes_are_brought_to_one_and_counted(tmp_path, real):
    acdc_patient(tmp_path / "a" / "large")
    for frame in (1, 9):
        image, mask = short_axis(shape=(60, 70), centre=(30, 40))
        save(tmp_path / "a" / "small" / f"small_frame{frame:02d}.nii.gz", image + frame)
        save(tmp_path / "a" / "small" / f"small_frame{frame:02d}_gt.nii.gz", mask)
    (tmp_path / "a" / "small" / "Info.cfg").write_text("ED: 1\nES: 9\n")
    judged = read_dataset(tmp_path / "a", real)
    assert "60 x 70 px (2), 80 x 96 px (2)" in judged.warnings[0]
    assert judged.slices.images.shape[1:] == (SIZE, SIZE)


def test_nothing_usable_is_an_error(tmp_path, real):
    acdc_patient(tmp_path / "a" / "p")
    for frame in ("01", "09"):
        (tmp_path / "a" / "p" / f"p_frame{frame}.nii.gz").write_bytes(b"no")
    with pytest.raises(EvaluationError, match=r"no case of .* can be used.*p_ED.*at least one readable"):
        read_dataset(tmp_path / "a", real)


@pytest.mark.parametrize("kind", ["empty", "absent", "pictures"])
def test_other_folders_are_refused_with_the_three_layouts(tmp_path, kind):
    root = tmp_path / "x"
    if kind != "absent":
        root.mkdir()
    if kind == "pictures":
        (root / "a.png").write_bytes(b"")
        (root / "dataset.json").write_text(json.dumps({}))
    with pytest.raises(EvaluationError, match=r"manifest.json.*nnU-Net v2 raw.*ACDC layout"):
        layout_of(root)


@pytest.mark.parametrize("spacing", [(1.5, 1.25, 10.0), None])
def test_a_folder_in_another_order_of_axes_is_judged_the_same(tmp_path, real, spacing):
    for name in ("patient001", "patient002"):
        acdc_patient(tmp_path / "plain" / name, spacing=spacing)
    shutil.copytree(tmp_path / "plain", tmp_path / "turned")
    for path in (tmp_path / "turned").rglob("*.nii.gz"):
        file = nib.load(path)
        order = np.eye(4)[:, [2, 0, 1, 3]] @ np.diag([-1.0, 1, -1, 1])
        order[:3, 3] = (0, file.shape[1] - 1, file.shape[2] - 1)
        turned = np.asarray(file.dataobj).transpose(2, 0, 1)[::-1, :, ::-1]
        nib.save(nib.Nifti1Image(np.ascontiguousarray(turned), file.affine @ order), path)
    plain, turned = (read_dataset(tmp_path / name, real).slices for name in ("plain", "turned"))
    np.testing.assert_array_equal(turned.images, plain.images)
    np.testing.assert_array_equal(turned.masks, plain.masks)


def test_hearts_that_lie_otherwise_are_named(tmp_path, real):
    for number in range(2):
        folder = acdc_patient(tmp_path / "scans" / f"p{number}")
        for path in folder.glob("*.nii.gz"):
            file = nib.load(path)
            nib.save(nib.Nifti1Image(np.asarray(file.dataobj)[::-1], file.affine), path)
    judged = read_dataset(tmp_path / "scans", real)
    assert "2 patients" in warning(judged, "the right ventricle lies on the side of the lateral wall")
