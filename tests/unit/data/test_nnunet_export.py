import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrfed.core.errors import ConfigError, DataError
from cmrfed.data.labels import Phase
from cmrfed.data.nnunet_export import export_nnunet, splits_by_patient
from cmrfed.data.sources import read
from cmrfed.data.synthetic import NOT_PRIVATE, Case, Manifest, write_case, write_index


def synthetic(folder: Path, patients: int = 6, spacing: tuple[float, float, float] | None = (2.8, 2.8, 9.0)) -> Path:
    rng, rows = np.random.default_rng(0), []
    for number in range(1, patients + 1):
        for phase in Phase:
            name = f"syn-{number:04d}"
            mask = np.zeros((5, 24, 24), np.uint8)
            mask[:, 6:18, 6:18], mask[:, 9:15, 9:15], mask[:, 8:14, 2:6] = 2, 3, 1
            image = np.clip(mask / 2 - 0.7 + rng.normal(0, 0.1, mask.shape), -1, 1).astype(np.float32)
            case = Case(f"{name}_{phase.name}", name, phase, image, mask, spacing, "site-0")
            write_case(folder, case)
            rows.append({"case": case.case_id, "patient": name, "phase": phase.name, "slices": 5, "style": "site-0"})
    manifest = Manifest(
        name="test", patients=patients, seed=3, generators={}, size_px=24, spacing_mm=spacing, privacy=NOT_PRIVATE
    )
    write_index(folder, manifest, rows)
    return folder


def verify_with_nnunet(folder: Path) -> subprocess.CompletedProcess[str]:
    """nnU-Net's own check, in a process of its own: it forks workers, which can hang in a process that has threads."""
    reason = "nnU-Net is not installed: pip install --no-deps -r requirements-nnunet.txt (`make test` does)"
    pytest.importorskip("nnunetv2.experiment_planning.verify_dataset_integrity", reason=reason)
    code = (
        "import sys; from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity\n"
        "if __name__ == '__main__': verify_dataset_integrity(sys.argv[1], num_processes=1)"
    )
    return subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=300)


def test_real_masks_are_not_exported_nor_what_does_not_say(tmp_path: Path) -> None:
    folder = synthetic(tmp_path / "paired")
    told = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(told | {"real_content": ["masks"]}))
    with pytest.raises(DataError, match=r"not for release\. Got: real masks of patients.*RUN_DIR/synthetic"):
        export_nnunet(folder, tmp_path / "raw")
    del told["real_content"]
    (folder / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(DataError, match="does not say whether the data set holds real masks"):
        export_nnunet(folder, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("spacing", [(2.8, 2.8, 9.0), None])
def test_nnunet_accepts_the_export(tmp_path: Path, spacing: tuple[float, float, float] | None) -> None:
    folder = export_nnunet(synthetic(tmp_path / "synthetic", spacing=spacing), tmp_path / "raw")
    done = verify_with_nnunet(folder)
    assert done.returncode == 0, done.stderr


def test_nnunet_refuses_what_is_wrong(tmp_path: Path) -> None:
    """The check can fail: a label file on another grid is refused."""
    folder = export_nnunet(synthetic(tmp_path / "synthetic"), tmp_path / "raw")
    label = folder / "labelsTr" / "syn-0001_ED.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((24, 24, 4), np.uint8), nib.load(label).affine), label)
    done = verify_with_nnunet(folder)
    assert done.returncode != 0
    assert "Some images have errors" in done.stderr


def test_files_are_those_of_the_data_set_and_read_back(tmp_path: Path) -> None:
    source = synthetic(tmp_path / "synthetic")
    folder = export_nnunet(source, tmp_path / "raw", 7, "Hearts")
    assert folder == tmp_path / "raw" / "Dataset007_Hearts"
    description = json.loads((folder / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
    assert description["numTraining"] == 12 == len(list((folder / "labelsTr").iterdir()))
    assert "Not differentially private" in description["privacy"]
    name = "syn-0002_ES.nii.gz"
    assert (folder / "labelsTr" / name).read_bytes() == (source / "masks" / name).read_bytes()
    patients = list(read(folder, "nnunet"))
    assert [len(p.volumes) for p in patients] == [2] * 6
    assert patients[0].volumes[0].load().spacing_mm == pytest.approx((2.8, 2.8, 9.0))


@given(st.integers(2, 30), st.integers(0, 5))
def test_folds_keep_patients_together_and_validate_each_case_once(patients: int, seed: int) -> None:
    cases = {f"p{i}": [f"p{i}_ED", f"p{i}_ES"] for i in range(patients)}
    folds = splits_by_patient(cases, seed)
    assert len(folds) == min(5, patients)
    assert sorted(c for fold in folds for c in fold["val"]) == sorted(c for two in cases.values() for c in two)
    for fold in folds:
        train, val = ({case[:-3] for case in fold[side]} for side in ("train", "val"))
        assert not train & val
        assert train | val == set(cases)
        assert train
        assert val


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a synthetic data set"):
        export_nnunet(tmp_path, tmp_path / "raw")
    one = synthetic(tmp_path / "one", patients=1)
    with pytest.raises(DataError, match=r"1 patient\(s\).*at least 2"):
        export_nnunet(one, tmp_path / "raw")
    assert not list((tmp_path / "raw").glob("Dataset*"))
    with pytest.raises(ConfigError, match="number from 1 to 999"):
        export_nnunet(one, tmp_path / "raw", 1000)
    two = synthetic(tmp_path / "two", patients=2)
    export_nnunet(two, tmp_path / "raw")
    with pytest.raises(ConfigError, match="there already"):
        export_nnunet(two, tmp_path / "raw")
