import json

import nibabel as nib
import numpy as np
import pytest

from cmrfed.core.errors import DataError
from cmrfed.data.geometry.affine import Frame, grid_of, view_of
from cmrfed.data.labels import ACDC_LABELS, Phase
from cmrfed.data.sources import RawVolume
from cmrfed.data.synthetic import (
    NOT_PRIVATE,
    NOTICE,
    PAIRED,
    Case,
    Manifest,
    SyntheticDataset,
    write_case,
    write_index,
)

SPACING = (1.5, 1.25, 10.0)


def manifest(**more):
    return Manifest(
        **{"name": "s", "patients": 1, "seed": 0, "generators": {}, "size_px": 6, "privacy": NOT_PRIVATE, **more}
    )


def case(phase=Phase.ED, spacing=SPACING):
    image = np.linspace(-1, 1, 3 * 6 * 6, dtype=np.float32).reshape(3, 6, 6)
    mask = np.arange(3 * 6 * 6, dtype=np.uint8).reshape(3, 6, 6) % 4
    return Case(f"syn-0001_{phase.name}", "syn-0001", phase, image, mask, spacing, "site-0")


@pytest.fixture
def folder(tmp_path):
    rows = []
    for phase in Phase:
        write_case(tmp_path, case(phase))
        rows.append(
            {"case": f"syn-0001_{phase.name}", "patient": "syn-0001", "phase": phase.name, "slices": 3}
            | {"style": "site-0"}
        )
    write_index(tmp_path, manifest(spacing_mm=SPACING), rows)
    return tmp_path


def test_what_is_written_is_read_back(folder):
    dataset = SyntheticDataset.open(folder)
    assert len(dataset) == 2
    for phase, read in zip(Phase, dataset.cases(), strict=True):
        assert (read.case_id, read.patient_id, read.phase) == (f"syn-0001_{phase.name}", "syn-0001", phase)
        assert np.allclose(read.image, case().image)
        assert np.array_equal(read.mask, case().mask)
        assert read.mask.dtype == np.uint8
        assert read.spacing_mm == SPACING
        assert read.style == "site-0"


def test_image_and_mask_share_one_geometry_in_the_order_of_nifti(folder):
    image, mask = (nib.load(folder / kind / "syn-0001_ED.nii.gz") for kind in ("images", "masks"))
    assert np.array_equal(image.affine, mask.affine)
    assert image.shape == mask.shape == (6, 6, 3)
    assert image.header.get_zooms() == mask.header.get_zooms() == (1.25, 1.5, 10)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert image.get_data_dtype() == np.float32
    assert mask.get_data_dtype() == np.uint8
    assert image.get_fdata()[4, 1, 2] == pytest.approx(case().image[2, 1, 4])
    grid = grid_of(mask, "here")
    assert grid.frame is Frame.PATIENT
    assert view_of(grid).base_first
    assert np.array_equal(view_of(grid).of(np.asarray(mask.dataobj)), case().mask)


def test_an_unknown_spacing_is_not_called_millimetres(tmp_path):
    write_case(tmp_path, case(spacing=None))
    header = nib.load(tmp_path / "images" / "syn-0001_ED.nii.gz").header
    assert header.get_xyzt_units()[0] == "unknown"
    grid = grid_of(nib.load(tmp_path / "images" / "syn-0001_ED.nii.gz"), "here")
    assert grid.spacing is None


def test_the_manifest_says_what_the_data_set_is(folder):
    told = json.loads((folder / "manifest.json").read_text())
    assert told["schema_version"] == 1
    assert told["labels"] == {"BACKGROUND": 0, "RV": 1, "MYO": 2, "LV": 3}
    assert told["image_value_range"] == [-1, 1]
    assert told["spacing_mm"] == list(SPACING)
    assert told["privacy"]["differentially_private"] is False
    assert "Not differentially private" in told["privacy"]["statement"]
    assert "Not for diagnosis" in told["intended_use"]


def _without(name):
    return lambda folder: (folder / name).unlink()


def _header_alone(folder):
    (folder / "cases.csv").write_text("case,patient,phase,slices,style\n")


def _foreign_manifest(folder):
    (folder / "manifest.json").write_text('{"name": "x"}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without("manifest.json"), r"is not a synthetic data set\. Got: no manifest\.json.*cmrfed synthesize"),
        (_without("cases.csv"), r"cases\.csv is missing"),
        (_header_alone, r"cases\.csv is empty"),
        (_foreign_manifest, r"manifest\.json cannot be used.*patients"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(DataError, match=message):
        SyntheticDataset.open(folder)


def test_a_table_without_the_columns_is_refused(folder):
    (folder / "cases.csv").write_text("case,slices\nsyn-0001_ED,3\n")
    with pytest.raises(DataError, match=r"cases\.csv lacks columns\. Got: case, slices\. Expected: case, patient"):
        SyntheticDataset.open(folder)


def test_a_phase_that_does_not_exist_is_refused(folder):
    text = (folder / "cases.csv").read_text()
    (folder / "cases.csv").write_text(text.replace("syn-0001,ED", "syn-0001,MID"))
    with pytest.raises(DataError, match=r"cases\.csv has an unknown phase\. Got: MID\. Expected: ED or ES"):
        SyntheticDataset.open(folder)


def test_a_damaged_case_is_named(folder):
    path = folder / "masks" / "syn-0001_ES.nii.gz"
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(DataError, match=r"masks/syn-0001_ES\.nii\.gz cannot be read"):
        list(SyntheticDataset.open(folder).cases())


def test_image_and_mask_of_unlike_shapes_are_refused(folder):
    nib.save(nib.Nifti1Image(np.zeros((6, 6, 2), np.uint8), np.eye(4)), folder / "masks" / "syn-0001_ED.nii.gz")
    with pytest.raises(DataError, match=r"image and mask of syn-0001_ED differ in shape\. Got: .*3, 6, 6.*2, 6, 6"):
        list(SyntheticDataset.open(folder).cases())


# --- release --------------------------------------------------------------------------------------------
def change_manifest(folder, **fields):
    told = json.loads((folder / "manifest.json").read_text()) | fields
    (folder / "manifest.json").write_text(json.dumps({k: v for k, v in told.items() if v != "gone"}))


def test_a_drawn_data_set_may_be_exported(folder):
    assert SyntheticDataset.open_for_release(folder).manifest.real_content == ()
    assert not (folder / NOTICE).exists()


@pytest.mark.parametrize("held", [["masks"], ["masks", "images"]])
def test_real_masks_and_images_are_not_for_release(folder, held):
    change_manifest(folder, real_content=held)
    assert len(SyntheticDataset.open(folder)) == 2, "to be measured, it can be read"
    with pytest.raises(DataError, match=f"is not for release.*real {' and '.join(held)}.*RUN_DIR/synthetic"):
        SyntheticDataset.open_for_release(folder)


def test_a_manifest_that_does_not_say_is_not_for_release(folder):
    change_manifest(folder, real_content="gone")
    assert SyntheticDataset.open(folder).manifest.real_content is None
    with pytest.raises(DataError, match=r"does not say whether.*synthesise again"):
        SyntheticDataset.open_for_release(folder)


def test_a_folder_with_real_masks_says_so_in_a_file_of_its_own(tmp_path):
    write_index(tmp_path, manifest(privacy=PAIRED, real_content=("masks",)), [])
    assert "real masks of hold-out patients" in (tmp_path / NOTICE).read_text()


@pytest.mark.parametrize("spacing", [SPACING, None])
def test_what_is_written_is_read_back_as_it_is_shown(tmp_path, spacing):
    """The importer of scans turns nothing, and knows the spacing or that there is none."""
    written = case(spacing=spacing)
    write_case(tmp_path, written)
    files = [tmp_path / kind / f"{written.case_id}.nii.gz" for kind in ("images", "masks")]
    raw = RawVolume(written.phase, files[0], files[1], ACDC_LABELS).load()
    assert np.array_equal(raw.image, written.image)
    assert np.array_equal(raw.mask, written.mask)
    assert raw.spacing_mm == (None if spacing is None else pytest.approx(spacing))
