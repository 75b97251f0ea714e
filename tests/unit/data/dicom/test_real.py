"""Two real studies, as their scanners wrote them; where they are absent, `test_stack` holds the same on the phantom."""

import json

import nibabel as nib
import numpy as np
import pytest

from cmrfed.data.cohort import Cohort
from cmrfed.data.dicom.pixels import cine
from cmrfed.data.labels import Phase
from cmrfed.data.preparation.prepare import PrepareConfig, prepare
from cmrfed.data.sources import read
from tests.support import real_data


def test_a_siemens_study_of_one_series_per_slice(tmp_path):
    found = prepare(real_data("dicom/siemens-vida"), tmp_path / "out", "dicom", PrepareConfig(size_px=32))
    account = found.header.account
    assert (account.found, account.accepted, account.set_aside, account.skipped) == (1, 1, 0, 0)
    (left,) = account.left_out
    assert (left.kind, left.count) == ("series, long axis, by its words", 3)
    record = Cohort.open(tmp_path / "out").patients[0]
    assert (record.vendor, record.has_mask) == ("Siemens", False)
    assert record.spacing_mm[2] == pytest.approx(17.7, abs=0.01)
    kept = json.loads((tmp_path / "out" / "evidence" / f"{record.patient_id}.json").read_text(encoding="utf-8"))
    assert (kept["slices"], kept["phases"]) == (6, 25)
    assert kept["spacing_mm"][:2] == [1.40625, 1.40625]
    assert [len(v.image) for v in found.volumes(0)] == [6, 6]


def test_a_ge_study_of_one_series_is_the_public_patient_with_masks():
    folder = real_data("sunnybrook/SC-HF-I-05")
    (patient,) = read(real_data("dicom/ge-sunnybrook"), "dicom")
    stack = patient.volumes[0].cine.stack
    assert (len(stack.images), stack.phases) == (11, 20)
    beat = patient.volumes[0].cine.beat
    drawn = {}
    for number in (7, 20):
        image, mask = (nib.load(folder / f"SC-HF-I-05_frame{number:02d}{end}.nii.gz") for end in ("", "_gt"))
        drawn[number] = (np.asarray(image.dataobj, float), np.count_nonzero(np.asarray(mask.dataobj)))
    ed, es = sorted(drawn, key=lambda number: -drawn[number][1])
    assert min((beat.ed - (ed - 1)) % 20, (ed - 1 - beat.ed) % 20) <= 1
    assert abs(beat.es - (es - 1)) <= 1
    whole = cine(stack)
    for number, (image, _) in drawn.items():
        slices = np.moveaxis(image, 2, 0)
        for z, plane in enumerate(slices):
            ours = whole[number - 1]
            fits = [max(np.corrcoef(p.ravel(), other.ravel())[0, 1] for other in (plane, plane.T)) for p in ours]
            assert max(fits) > 0.999, (number, z)
            assert int(np.argmax(fits)) in (z + 1, len(ours) - 2 - z)


def test_base_comes_first(tmp_path):
    """The cavity of the public masks, which begin at the apex or base, is larger where the prepared stack begins."""
    (patient,) = read(real_data("dicom/ge-sunnybrook"), "dicom")
    volume = next(v for v in patient.volumes if v.phase is Phase.ED)
    image = volume.load()
    assert image.base_first
    mask = nib.load(real_data("sunnybrook/SC-HF-I-05") / "SC-HF-I-05_frame20_gt.nii.gz")
    raw = nib.load(real_data("sunnybrook/SC-HF-I-05") / "SC-HF-I-05_frame20.nii.gz")
    area = np.count_nonzero(np.asarray(mask.dataobj), axis=(0, 1))
    widest = np.sort(np.asarray(raw.dataobj, float)[..., int(np.argmax(area))].ravel())
    fits = [np.corrcoef(widest, np.sort(plane.ravel()))[0, 1] for plane in image.image]
    assert int(np.argmax(fits)) < len(fits) / 2
