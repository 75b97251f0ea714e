"""What a run folder may say about patients: checks for finished runs, small or large."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

from cmrfed.core.artifacts import read_json
from cmrfed.data.cohort import Cohort
from cmrfed.data.synthetic import Manifest
from cmrfed.pipeline.files.contents import item_of


def files_of(run_dir: Path) -> list[str]:
    """All files, relative to the run folder."""
    return sorted(path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file())


def strangers(run_dir: Path) -> list[str]:
    """Files that the catalogue does not name."""
    return [path for path in files_of(run_dir) if item_of(path) is None]


def cohorts_of(run_dir: Path) -> list[Cohort]:
    """Every cohort that a simulated site of the run refers to."""
    return [Cohort.open(read_json(path)["cohort"]) for path in sorted(run_dir.glob("sites/*/site.json"))]


def telling_files(run_dir: Path, *, real: list[Cohort] | None = None) -> list[str]:
    """Files that may leave, under the claim or without, and hold identifiers, masks or pixels of patients."""
    cohorts = real or cohorts_of(run_dir)
    names = {name.encode() for cohort in cohorts for name in cohort.patient_ids}
    slices = {
        bytes(np.ascontiguousarray(array[row]))
        for cohort in cohorts
        for array in (np.asarray(cohort.masks), np.asarray(cohort.images, np.float32))
        for row in range(len(array))
        if array[row].any()
    }
    return [
        path
        for path in files_of(run_dir)
        if (item := item_of(path)) and item.leaves != "no" and _tells(run_dir / path, path, names, slices)
    ]


def _tells(path: Path, name: str, names: set[bytes], slices: set[bytes]) -> bool:
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    if any(each in data or each in name.encode() for each in names):
        return True
    if not path.name.endswith(".nii.gz"):
        return False
    volume = np.asarray(nib.load(path).dataobj).transpose(2, 1, 0)  # type: ignore[attr-defined]
    return any(bytes(np.ascontiguousarray(part)) in slices for part in volume)


def manifests_that_claim(run_dir: Path) -> list[str]:
    """Data sets of a run whose manifest claims differential privacy."""
    found = {path: Manifest.model_validate(read_json(path)) for path in run_dir.rglob("manifest.json")}
    return sorted(path.parent.name for path, manifest in found.items() if manifest.privacy.differentially_private)
