"""Writing a synthetic data set: whole or not at all, with pictures to look at."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cmrfed.core.artifacts import new_folder
from cmrfed.data.pictures import enlarge, grey, outlined, save_png, sheet
from cmrfed.data.synthetic import CASE_COLUMNS, Case, Manifest, SyntheticDataset, write_case, write_index

PREVIEWS = 8


def write_dataset(out: Path, cases: Iterable[Case], manifest: Manifest) -> SyntheticDataset:
    """Write cases as a synthetic data set; the folder appears when it is complete.

    Args:
        out: Folder; replaced if it exists.
        cases: In order; the first few patients get a preview picture.
        manifest: What the data set is; what it says of post-processing gets its counts here.
    """
    slices = changed = 0
    with new_folder(out) as part:
        rows: list[dict[str, str | int]] = []
        shown: dict[str, list[Case]] = {}
        for case in cases:
            write_case(part, case)
            values = (case.case_id, case.patient_id, case.phase.name, len(case.image), case.style)
            rows.append(dict(zip(CASE_COLUMNS, values, strict=True)))
            if case.drawn is not None:
                slices += len(case.mask)
                changed += int((case.mask != case.drawn).any((1, 2)).sum())
            if case.patient_id in shown or len(shown) < PREVIEWS:
                shown.setdefault(case.patient_id, []).append(case)
        for patient, volumes in shown.items():
            save_png(part / "previews" / f"{patient}.png", preview(volumes))
        if manifest.post_processed:
            counted = manifest.post_processed.model_copy(update={"slices": slices, "changed": changed})
            manifest = manifest.model_copy(update={"post_processed": counted})
        write_index(part, manifest, rows)
    return SyntheticDataset.open(out)


def preview(volumes: Iterable[Case]) -> np.ndarray:
    """A sheet per patient: for each phase a row of images and a row with the masks drawn in, base to apex."""
    rows = []
    for case in volumes:
        rows.append([enlarge(grey(image), 2) for image in case.image])
        rows.append([enlarge(outlined(image, mask), 2) for image, mask in zip(case.image, case.mask, strict=True)])
    return sheet(rows)
