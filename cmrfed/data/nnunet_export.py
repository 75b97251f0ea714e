"""A synthetic data set as an nnU-Net v2 raw data set, ready to be planned and trained on.

Format: https://github.com/MIC-DKFZ/nnUNet, documentation/dataset_format.md (Isensee et al., Nature Methods 2021).
"""

import re
import shutil
from pathlib import Path

from cmrfed.core.artifacts import new_folder, write_json
from cmrfed.core.errors import ConfigError, DataError
from cmrfed.core.progress import track
from cmrfed.core.rng import numpy_generator
from cmrfed.data.labels import Label
from cmrfed.data.synthetic import SyntheticDataset

FOLDS = 5


def export_nnunet(synthetic: Path, out: Path, dataset_id: int = 501, name: str = "CMRFedSynthetic") -> Path:
    """Write ``OUT/Dataset<ID>_<NAME>`` with dataset.json, imagesTr, labelsTr and splits_final.json.

    Move splits_final.json to nnU-Net's folder of preprocessed data to train on folds that keep both phases of a
    patient together.

    Args:
        synthetic: Folder of a SyntheticDataset; its files are copied as they are.
        out: nnU-Net's raw folder (``nnUNet_raw``).
        dataset_id: 1 to 999.
        name: Letters and digits.

    Returns:
        The new folder; it appears only when it is whole.

    Raises:
        ConfigError: The number or name is not one that nnU-Net accepts, or the folder is there already.
        DataError: The data set cannot be read, holds real masks or images, or has fewer than two patients.
    """
    target = _target(Path(out), dataset_id, name)
    dataset = SyntheticDataset.open_for_release(synthetic)
    patients: dict[str, list[str]] = {}
    with new_folder(target) as part, track("nnU-Net export", len(dataset)) as progress:
        for folder in ("imagesTr", "labelsTr"):
            (part / folder).mkdir()
        for case in dataset.cases():
            file, channel = f"{case.case_id}.nii.gz", f"{case.case_id}_0000.nii.gz"
            shutil.copyfile(dataset.root / "images" / file, part / "imagesTr" / channel)
            shutil.copyfile(dataset.root / "masks" / file, part / "labelsTr" / file)
            patients.setdefault(case.patient_id, []).append(case.case_id)
            progress.advance()
        write_json(part / "splits_final.json", splits_by_patient(patients, dataset.manifest.seed))
        write_json(part / "dataset.json", _description(dataset))
    return target


def _target(out: Path, dataset_id: int, name: str) -> Path:
    if not 1 <= dataset_id <= 999 or not re.fullmatch(r"[A-Za-z0-9]+", name):
        raise ConfigError(
            "nnU-Net does not accept this number or name",
            got=f"{dataset_id}, {name!r}",
            expected="a number from 1 to 999 and a name of letters and digits",
        )
    target = out / f"Dataset{dataset_id:03d}_{name}"
    if target.exists():
        raise ConfigError(f"{target} is there already", do="choose another --dataset-id, or remove it yourself")
    return target


def _description(dataset: SyntheticDataset) -> dict[str, object]:
    return {
        "channel_names": {"0": "cineMRI"},
        "labels": {"background" if label == Label.BACKGROUND else label.name: int(label) for label in Label},
        "numTraining": len(dataset),
        "file_ending": ".nii.gz",
        "name": dataset.manifest.name,
        "description": f"Synthetic short-axis cine cardiac MRI. {dataset.manifest.intended_use}",
        "privacy": dataset.manifest.privacy.statement,
    }


def splits_by_patient(patients: dict[str, list[str]], seed: int) -> list[dict[str, list[str]]]:
    """Cross-validation folds in which no patient is on both sides.

    Args:
        patients: Patient → cases.
        seed: Same seed, same folds.

    Returns:
        At most FOLDS folds (one a patient where there are fewer), each {"train": cases, "val": cases}.

    Raises:
        DataError: There are fewer than two patients.
    """
    if len(patients) < 2:
        raise DataError(
            "the data set is too small to be split into folds",
            got=f"{len(patients)} patient(s)",
            expected="at least 2",
            do="synthesise more patients",
        )
    order = [str(p) for p in numpy_generator(seed, "nnunet folds").permutation(sorted(patients))]
    folds = min(FOLDS, len(order))
    parts = [sorted(case for p in order[k::folds] for case in patients[p]) for k in range(folds)]
    return [
        {"train": sorted(case for j, part in enumerate(parts) if j != k for case in part), "val": parts[k]}
        for k in range(folds)
    ]
