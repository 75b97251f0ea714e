"""A data source: NAME_ED.nii.gz, NAME_ED_mask.nii.gz and the same of ES, in one folder; labels as in ACDC."""

from collections.abc import Iterator
from pathlib import Path

from cmrfed.data.labels import ACDC_LABELS, Phase
from cmrfed.data.sources import RawPatient, RawVolume
from cmrfed.data.sources.raw import no_patients
from cmrfed.data.sources.walk import Tree


def read(tree: Tree) -> Iterator[RawPatient]:
    """Yield the patients in order of name; their pixels are read later.

    Raises:
        DataError: No file has such a name.
    """
    names = sorted({path.name.removesuffix("_ED.nii.gz") for path in tree.nifti if path.name.endswith("_ED.nii.gz")})
    if not names:
        raise no_patients(tree.root, "flat", "NAME_ED.nii.gz")
    for name in names:
        yield RawPatient(name, tuple(_volume(tree.root, name, phase) for phase in Phase), path=tree.root)


def _volume(root: Path, name: str, phase: Phase) -> RawVolume:
    mask = root / f"{name}_{phase.name}_mask.nii.gz"
    return RawVolume(phase, root / f"{name}_{phase.name}.nii.gz", mask if mask.exists() else None, ACDC_LABELS)
