from collections import Counter

import numpy as np
import pytest

from cmrfed.data.cohort import PatientRecord, PreparedPatient, Volume, write_cohort
from cmrfed.data.labels import Phase
from cmrfed.data.partition import PartitionConfig, partition
from cmrfed.errors import DataError


@pytest.fixture
def make(tmp_path):
    def build(**fields):
        count = len(next(iter(fields.values())))
        image = np.zeros((1, 8, 8), np.float32)
        patients = [
            PreparedPatient(
                PatientRecord(patient_id=f"p{i:02d}", has_mask=False, **{k: v[i] for k, v in fields.items()}),
                (Volume(f"p{i:02d}", Phase.ED, image, None, None),),
            )
            for i in range(count)
        ]
        return write_cohort(tmp_path / "c", patients, name="c", source="acdc", size_px=8, labels=None, preparation={})

    return build


def groups(sites, field="group"):
    return [Counter(getattr(p, field) for p in site.patients) for site in sites]


def test_iid_mixes_and_depends_on_the_seed(make):
    cohort = make(group=["NOR"] * 10 + ["DCM"] * 10)
    first, second = (partition(cohort, PartitionConfig(scheme="iid", sites=3), seed) for seed in (0, 1))
    assert [len(s) for s in first] == [7, 7, 6]
    assert first[0].patient_ids != second[0].patient_ids


def test_groups_of_equal_size_stay_whole(make):
    sites = partition(make(group=["B", "A"] * 6), PartitionConfig(scheme="group", sites=2), 0)
    assert groups(sites) == [{"A": 6}, {"B": 6}]


def test_dirichlet_is_uneven_when_alpha_is_small_and_even_when_large(make):
    cohort = make(group=["A", "B", "C", "D"] * 15)

    def largest_share(alpha):
        sites = partition(cohort, PartitionConfig(scheme="dirichlet", sites=3, alpha=alpha), 0)
        return np.mean([max(site[g] for site in groups(sites)) / 15 for g in "ABCD"])

    assert largest_share(0.05) > 0.8
    assert largest_share(1000) < 0.45


def test_a_site_for_each_vendor(make):
    sites = partition(make(vendor=list("BABBC")), PartitionConfig(scheme="vendor", sites=3), 0)
    assert groups(sites, "vendor") == [{"A": 1}, {"B": 3}, {"C": 1}]


def test_the_smallest_centres_are_merged(make):
    sites = partition(make(centre=list("AAABBBBCD")), PartitionConfig(scheme="centre", sites=3), 0)
    assert groups(sites, "centre") == [{"A": 3}, {"B": 4}, {"C": 1, "D": 1}]


def test_one_site_alone_has_the_patients_that_it_has_among_the_others(make):
    cohort = make(group=["A", "B", "C", "D"] * 5)
    together = partition(cohort, PartitionConfig(scheme="group", sites=3), 0)
    for number in range(3):
        (alone,) = partition(cohort, PartitionConfig(scheme="group", sites=3, only=number), 0)
        assert alone.patient_ids == together[number].patient_ids


def test_errors(make):
    cohort = make(group=["A", None, "A"], vendor=["V", "V", "W"], centre=["1", "1", "1"])
    with pytest.raises(DataError, match=r"fewer patients than sites\. Got: 3 patient\(s\), 4 sites"):
        partition(cohort, PartitionConfig(sites=4), 0)
    for scheme in ("group", "dirichlet"):
        with pytest.raises(DataError, match=r"cannot be split by group\. Got: 1 of 3 patients without group.*p01"):
            partition(cohort, PartitionConfig(scheme=scheme, sites=2), 0)
    with pytest.raises(DataError, match=r"2 distinct value\(s\): V, W\. Expected: at least 3"):
        partition(cohort, PartitionConfig(scheme="vendor", sites=3), 0)
    with pytest.raises(DataError, match=r"1 distinct value\(s\): A\. Expected: at least 2"):
        partition(make(group=["A", "A"]), PartitionConfig(scheme="group", sites=2), 0)
