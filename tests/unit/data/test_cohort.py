import json

import numpy as np
import pytest

from cmrfed.core.errors import DataError
from cmrfed.data.cohort import Cohort, PatientRecord, PreparedPatient, Volume, write_cohort
from cmrfed.data.labels import Phase


def patient(name, group=None, *, depth=3, size=8, value=0.0, mask=True):
    volumes = []
    for phase in Phase:
        labels = np.full((depth + phase, size, size), 3, np.uint8) if mask else None
        volumes.append(
            Volume(name, phase, np.full((depth + phase, size, size), value, np.float32), labels, (1.5, 1.5, 8))
        )
    record = PatientRecord(patient_id=name, group=group, has_mask=mask, spacing_mm=(1.5, 1.5, 8))
    return PreparedPatient(record, tuple(reversed(volumes)))


def write(path, patients, labels=None):
    return write_cohort(path, patients, name="c", source="acdc", size_px=8, labels=labels, preparation={"field_px": 9})


def test_what_is_written_is_read_back(tmp_path):
    cohort = write(tmp_path / "c", [patient("a", "NOR", value=-1), patient("b", "DCM", depth=5, value=0.5)])
    assert cohort.patient_ids == ("a", "b")
    assert [len(rows) for rows in cohort.rows_of] == [7, 11]
    assert [(v.phase, v.image.shape, float(v.image[0, 0, 0])) for v in cohort.volumes(1)] == [
        (Phase.ED, (5, 8, 8), 0.5),
        (Phase.ES, (6, 8, 8), 0.5),
    ]
    assert cohort.header.preparation == {"field_px": 9}
    assert (cohort.volumes(0)[0].mask == 3).all()


def test_rows_run_from_base_to_apex_ed_first(tmp_path):
    rows = write(tmp_path / "c", [patient("a", depth=2)]).slices
    assert rows.tolist() == [(0, 0, 0, 2), (0, 0, 1, 2), (0, 1, 0, 3), (0, 1, 1, 3), (0, 1, 2, 3)]


def test_labels_come_from_the_masks_unless_given(tmp_path):
    assert write(tmp_path / "c", [patient("a")]).labels == (3,)
    assert write(tmp_path / "d", [patient("a", mask=False)]).labels == ()
    assert write(tmp_path / "e", [patient("a")], labels=(3, 1, 2)).labels == (1, 2, 3)


def test_a_patient_without_mask_has_none(tmp_path):
    cohort = write(tmp_path / "c", [patient("a", mask=False)])
    assert all(v.mask is None for v in cohort.iter_volumes())


def test_a_selection_keeps_its_order_and_rows(tmp_path):
    cohort = write(tmp_path / "c", [patient(n, value=i / 4) for i, n in enumerate("abc")])
    chosen = cohort.select(["c", "a"])
    assert [float(v.image[0, 0, 0]) for v in chosen.iter_volumes()] == [0.5, 0.5, 0, 0]
    assert len(chosen) == 2
    assert chosen.digest not in (cohort.digest, cohort.select(["a", "c"]).digest)


def test_digest_is_of_the_content(tmp_path):
    first, same = write(tmp_path / "c", [patient("a")]), write(tmp_path / "d", [patient("a")])
    assert first.digest == same.digest
    assert write(tmp_path / "e", [patient("a", value=0.1)]).digest != first.digest
    assert write(tmp_path / "f", [patient("a", "NOR")]).digest != first.digest


def test_a_pseudonym_needs_the_pixels_and_is_the_same_in_every_selection(tmp_path):
    whole = write(tmp_path / "a", [patient("p1", "NOR", value=-1), patient("p2", "DCM", value=0.5)])
    other = write(tmp_path / "b", [patient("p1", "NOR", value=-1), patient("p2", "DCM", value=0.25)])
    names = [whole.pseudonym(name) for name in whole.patient_ids]
    assert len(set(names)) == 2
    assert whole.select(["p2"]).pseudonym("p2") == names[1]
    assert {other.pseudonym(name) for name in other.patient_ids}.isdisjoint(names)
    assert not any(name in pseudonym for name, pseudonym in zip(whole.patient_ids, names, strict=True))


def test_open_reads_no_pixels(tmp_path):
    """The cost of opening does not depend on the size: the pixels may even be absent until they are used."""
    root = write(tmp_path / "c", [patient("a"), patient("b")]).root
    (root / "images.npy").unlink()
    (root / "masks.npy").unlink()
    cohort = Cohort.open(root)
    assert (len(cohort), cohort.patient_ids, len(cohort.rows)) == (2, ("a", "b"), 14)
    with pytest.raises(DataError, match=r"masks\.npy cannot be read.*prepare the cohort again"):
        cohort.volumes(0)


def test_pixels_are_memory_mapped(tmp_path):
    cohort = write(tmp_path / "c", [patient("a")])
    assert isinstance(cohort.images, np.memmap)
    assert isinstance(cohort.masks, np.memmap)


def test_a_failed_write_leaves_the_old_cohort(tmp_path):
    root = write(tmp_path / "c", [patient("a")]).root
    with pytest.raises(DataError, match="patient b comes twice"):
        write(root, [patient("b"), patient("b")])
    assert Cohort.open(root).patient_ids == ("a",)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_errors_of_writing(tmp_path):
    with pytest.raises(DataError, match=r"the cohort would be empty.*at least one"):
        write(tmp_path / "c", [])
    with pytest.raises(DataError, match=r"a has another size\. Got: \(3, 9, 9\)\. Expected: \(3, 8, 8\)"):
        write(tmp_path / "c", [patient("a", size=9)])


def test_errors_of_opening(tmp_path):
    with pytest.raises(DataError, match=r"is not a cohort\. Got: no cohort\.json.*cmrfed prepare"):
        Cohort.open(tmp_path)
    root = write(tmp_path / "c", [patient("a")]).root
    with pytest.raises(DataError, match=r"lacks patients\. Got: \['z'\]"):
        Cohort.open(root, ["a", "z"])
    header = json.loads((root / "cohort.json").read_text())
    (root / "cohort.json").write_text(json.dumps({**header, "size_px": "wide"}))
    with pytest.raises(DataError, match=r"(?s)cohort\.json is damaged.*size_px"):
        Cohort.open(root)
    (root / "cohort.json").write_text(json.dumps({**header, "schema_version": 99}))
    with pytest.raises(DataError, match=r"another version of this project.*version 99\. Expected: 2.*prepare"):
        Cohort.open(root)


def test_a_cohort_of_the_first_version_is_to_be_prepared_again(tmp_path):
    """Its hearts lie as their files were stored, so they must not be mixed with others."""
    root = write(tmp_path / "c", [patient("a")]).root
    header = json.loads((root / "cohort.json").read_text())
    (root / "cohort.json").write_text(json.dumps({**header, "schema_version": 1, "source": "mnms"}))
    with pytest.raises(DataError, match=r"turned hearts another way.*Got: schema version 1.*--source mnms"):
        Cohort.open(root)


def test_errors_of_splitting(tmp_path):
    cohort = write(tmp_path / "c", [patient("a"), patient("b")])
    with pytest.raises(DataError, match=r"too small to split\. Got: 2 patient.*train, test, holdout"):
        cohort.split({"train": 0.5, "test": 0.25, "holdout": 0.25}, 0)
    with pytest.raises(DataError, match="must sum to 1"):
        cohort.split({"train": 0.5, "test": 0.6}, 0)
