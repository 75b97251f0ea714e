from dataclasses import replace

import numpy as np
import pytest

from cmrfed.core.errors import DataError
from cmrfed.data.cohort import PreparedPatient, write_cohort
from cmrfed.data.pool import pool
from tests.generator_world import blob_cohort


def test_the_pool_holds_every_patient_with_its_cohort_as_centre(tmp_path):
    first = blob_cohort(tmp_path / "a", 2, name="north")
    second = blob_cohort(tmp_path / "b", 3, name="south", first=2)
    pooled = pool([first, second], tmp_path / "p", "both")
    assert pooled.patient_ids == first.patient_ids + second.patient_ids
    assert [p.centre for p in pooled.patients] == ["north"] * 2 + ["south"] * 3
    assert [p.group for p in pooled.patients] == [p.group for c in (first, second) for p in c.patients]
    assert pooled.labels == first.labels
    for mine, theirs in zip(pooled.iter_volumes(), [*first.iter_volumes(), *second.iter_volumes()], strict=True):
        assert np.array_equal(mine.image, theirs.image)
        assert np.array_equal(mine.mask, theirs.mask)
        assert mine.spacing_mm == theirs.spacing_mm


def test_two_cohorts_of_one_name_are_refused(tmp_path):
    cohorts = [blob_cohort(tmp_path / n, 2) for n in "ab"]
    with pytest.raises(DataError, match=r"two cohorts have the same name.*different names"):
        pool(cohorts, tmp_path / "p", "both")


def test_cohorts_of_unlike_sizes_are_refused(tmp_path):
    cohorts = [blob_cohort(tmp_path / n, 2, size, name=n) for n, size in (("a", 16), ("b", 24))]
    with pytest.raises(DataError, match=r"different sizes\. Got: \['16', '24'\]\. Do: prepare them alike"):
        pool(cohorts, tmp_path / "p", "both")


def test_a_patient_in_two_cohorts_is_refused_and_nothing_is_written(tmp_path):
    cohorts = [blob_cohort(tmp_path / n, 2, name=n) for n in "ab"]
    with pytest.raises(DataError, match="patient b-p00 has the same images as a-p00"):
        pool(cohorts, tmp_path / "p", "both")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_two_hospitals_may_use_the_same_identifiers(tmp_path):
    first, other = blob_cohort(tmp_path / "a", 2, name="north"), blob_cohort(tmp_path / "b", 2, name="x", first=2)
    renamed = [
        PreparedPatient(
            record.model_copy(update={"patient_id": theirs}),
            tuple(replace(volume, patient_id=theirs) for volume in other.volumes(i)),
        )
        for i, (record, theirs) in enumerate(zip(other.patients, first.patient_ids, strict=True))
    ]
    header = other.header
    second = write_cohort(
        tmp_path / "c",
        renamed,
        name="south",
        source=header.source,
        size_px=header.size_px,
        labels=header.labels,
        preparation=header.preparation,
    )
    pooled = pool([first, second], tmp_path / "p", "both")
    assert pooled.patient_ids == ("north-p00", "north-p01", "south-p00", "south-p01")
    assert np.array_equal(pooled.volumes(2)[0].image, other.volumes(0)[0].image)
