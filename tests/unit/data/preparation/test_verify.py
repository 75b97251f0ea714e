import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cmrfed.core.errors import ConfigError, DataError
from cmrfed.data.labels import Label
from cmrfed.data.phantom import write_phantom
from cmrfed.data.preparation.prepare import PrepareConfig, prepare
from cmrfed.data.preparation.verify import check_volume, detect, verify, verify_many
from cmrfed.data.settings import PhantomConfig
from tests.support import real_data

EVERY = (Label.RV, Label.MYO, Label.LV)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "scans"
    write_phantom(out, PhantomConfig(patients=2, sites=1, seed=4))
    return out


@pytest.fixture
def copy(scans: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scans, tmp_path / "scans"))


def files(root: Path, patient: int = 1) -> tuple[Path, Path]:
    mask = sorted(root.rglob(f"patient{patient:03d}_frame01_gt.nii.gz"))[0]
    return Path(str(mask).replace("_gt", "")), mask


def rewrite(path: Path, change: object, affine: np.ndarray | None = None, dtype: type | None = None) -> None:
    file = nib.load(path)
    array = change(np.asarray(file.dataobj).astype(dtype or file.get_data_dtype()))
    nib.save(nib.Nifti1Image(array, file.affine if affine is None else affine), path)


def only_reason(root: Path) -> str:
    report = verify(root)
    assert not report.ok
    assert len(report.quarantined) == 1, report.text()
    return report.quarantined[0].reason


def test_clean_scans_pass_and_nothing_is_changed(scans: Path) -> None:
    before = {p: p.read_bytes() for p in scans.rglob("*") if p.is_file()}
    report = verify(scans, strict=True)
    assert report.ok
    assert "2 patients, 4 volumes" in report.text()
    assert "nothing wrong" in report.text()
    assert before == {p: p.read_bytes() for p in scans.rglob("*") if p.is_file()}


@pytest.mark.parametrize("lost", [4, 400, 40_000])
def test_truncated_gzip(copy: Path, lost: int) -> None:
    image, _ = files(copy)
    image.write_bytes(image.read_bytes()[:-lost])
    report = verify(copy)
    assert [q.path for q in report.quarantined] == [str(image)]
    assert "truncated or damaged" in report.quarantined[0].reason


def test_a_flipped_byte_fails_the_checksum(copy: Path) -> None:
    image, _ = files(copy)
    data = bytearray(image.read_bytes())
    data[-6] ^= 0xFF
    image.write_bytes(bytes(data))
    assert "truncated or damaged" in only_reason(copy)


def test_nan(copy: Path) -> None:
    def spoil(array: np.ndarray) -> np.ndarray:
        array[3, 3, 0], array[4, 4, 0] = np.nan, np.inf
        return array

    rewrite(files(copy)[0], spoil, dtype=np.float32)
    assert "2 values that are NaN or infinite" in only_reason(copy)


def test_other_shape(copy: Path) -> None:
    rewrite(files(copy)[1], lambda array: array[:-1], affine=np.eye(4))
    assert "does not fit its image" in only_reason(copy)


def test_other_geometry(copy: Path) -> None:
    image, mask = files(copy)
    shifted = nib.load(image).affine.copy()
    shifted[0, 3] += 5
    rewrite(mask, lambda array: array, affine=shifted)
    assert "differ in geometry" in only_reason(copy)


def test_unexpected_label(copy: Path) -> None:
    rewrite(files(copy)[1], lambda array: np.where(array == 2, 7, array).astype(np.uint8))
    assert "unexpected labels" in only_reason(copy)


def test_swapped_labels(copy: Path) -> None:
    rewrite(files(copy)[1], lambda array: np.array([0, 3, 2, 1], np.uint8)[array])
    assert "LV and RV seem swapped" in only_reason(copy)


def test_empty_mask(copy: Path) -> None:
    rewrite(files(copy)[1], np.zeros_like)
    assert only_reason(copy) == "the mask is empty"


def test_missing_structure(copy: Path) -> None:
    rewrite(files(copy)[1], lambda array: np.where(array == 1, 0, array).astype(np.uint8))
    assert "lacks RV, which other volumes have" in only_reason(copy)


def test_constant_image(copy: Path) -> None:
    rewrite(files(copy)[0], lambda array: np.full_like(array, 7))
    assert "constant: 7" in only_reason(copy)


def test_missing_counterparts(copy: Path) -> None:
    files(copy)[1].unlink()
    assert "its mask is missing, while the other phase has one" in only_reason(copy)


def test_mask_without_image(copy: Path) -> None:
    files(copy)[0].unlink()
    reasons = " ".join(q.reason for q in verify(copy).quarantined)
    assert "its image is missing" in reasons


def test_one_patient_under_two_identifiers_and_at_two_sites(scans: Path, copy: Path) -> None:
    twin = copy / "site-0" / "patient009"
    shutil.copytree(copy / "site-0" / "patient001", twin)
    for path in list(twin.iterdir()):
        path.rename(twin / path.name.replace("patient001", "patient009"))
    report = verify(copy)
    assert len(report.quarantined) == 2
    assert all("same patient under two identifiers" in q.reason for q in report.quarantined)
    both = verify_many([scans, copy])
    assert sum("same image as" in q.reason for q in both.quarantined) == 6


def test_both_phases_alike(copy: Path) -> None:
    image, mask = files(copy)
    other = next(p for p in image.parent.glob("*_frame*.nii.gz") if p not in (image, mask) and "_gt" not in p.name)
    shutil.copy(image, other)
    shutil.copy(mask, str(other).replace(".nii.gz", "_gt.nii.gz"))
    assert "both phases show the same image" in only_reason(copy)


def test_strict_is_an_error(copy: Path) -> None:
    rewrite(files(copy)[1], np.zeros_like)
    with pytest.raises(DataError, match=r"1 problem\(s\) found.*the mask is empty.*--strict"):
        verify(copy, strict=True)


def test_unknown_layout_and_source(tmp_path: Path, scans: Path) -> None:
    with pytest.raises(DataError, match=r"no known layout.*acdc"):
        verify(tmp_path)
    with pytest.raises(ConfigError, match="there is no data source"):
        verify(scans, "nrrd")


def test_cohort(scans: Path, tmp_path: Path) -> None:
    prepare(scans, tmp_path / "cohort", "acdc", PrepareConfig(size_px=32))
    shutil.copytree(tmp_path / "cohort", tmp_path / "copy")
    assert detect(tmp_path / "cohort") == "cohort"
    assert verify(tmp_path / "cohort").ok
    assert len(verify_many([tmp_path / "cohort", tmp_path / "copy"]).quarantined) == 4
    masks = np.load(tmp_path / "copy" / "masks.npy")
    np.save(tmp_path / "copy" / "masks.npy", np.array([0, 3, 2, 1], np.uint8)[masks])
    reasons = [q.reason for q in verify(tmp_path / "copy").quarantined]
    assert any("digest" in r for r in reasons)
    assert sum("swapped" in r for r in reasons) == 4
    header = tmp_path / "cohort" / "cohort.json"
    header.write_text(header.read_text().replace('"schema_version": 2', '"schema_version": 1'))
    (older,) = verify(tmp_path / "cohort").quarantined
    assert "prepared by another version of this project" in older.reason
    images = tmp_path / "copy" / "images.npy"
    images.write_bytes(images.read_bytes()[:-500])
    assert any("cannot be read" in q.reason for q in verify(tmp_path / "copy").quarantined)


def test_check_volume_of_a_cavity_alone() -> None:
    image = np.random.default_rng(0).normal(size=(2, 16, 16))
    mask = np.zeros((2, 16, 16), np.uint8)
    mask[:, 5:9, 5:9] = Label.LV
    assert check_volume(image, mask, (Label.LV,)) == []
    assert check_volume(image, None, EVERY) == []
    assert check_volume(image, mask, EVERY) == ["the mask lacks MYO and RV"]
    mask[:, 10:12, 5:9] = Label.MYO
    assert "does not enclose the LV" in check_volume(image, mask, (Label.MYO, Label.LV))[0]
    assert "differ in shape" in check_volume(image, mask[:1], EVERY)[0]


def test_uncompressed_scans_can_be_truncated_too(copy: Path) -> None:
    image, _ = files(copy)
    with gzip.open(image) as handle:
        data = handle.read()
    image.unlink()
    image.with_suffix("").write_bytes(data[: len(data) // 2])
    assert "cannot be read" in only_reason(copy)


def test_real_scans_pass_but_for_the_twins() -> None:
    report = verify(real_data("acdc"))
    assert all("same image as" in q.reason for q in report.quarantined), report.text()


def test_real_scans_with_the_cavity_alone_pass() -> None:
    assert verify(real_data("sunnybrook")).ok
