from collections import Counter

import numpy as np
import pytest

from cmrfed.core.errors import DataError
from cmrfed.data.cohort import PatientRecord, PreparedPatient, Volume, write_cohort
from cmrfed.data.labels import Phase
from cmrfed.data.partition import partition, refuse_lone_values
from cmrfed.data.settings import PartitionConfig


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
    assert [len(s) for s in first] == [4, 9, 7], "a known seed gives known sites on every machine"
    assert all(len(mixed) == 2 for mixed in groups(first))
    assert first[0].patient_ids != second[0].patient_ids


def test_groups_of_equal_size_stay_whole(make):
    sites = partition(make(group=["B", "A"] * 6), PartitionConfig(scheme="group", sites=2), 0)
    assert groups(sites) == [{"A": 6}, {"B": 6}]


def test_dirichlet_is_uneven_when_alpha_is_small_and_even_when_large(make):
    cohort = make(group=["A", "B", "C", "D"] * 150)

    def largest_share(alpha):
        sites = partition(cohort, PartitionConfig(scheme="dirichlet", sites=3, alpha=alpha), 0)
        return np.mean([max(site[g] for site in groups(sites)) / 150 for g in "ABCD"])

    assert largest_share(0.05) > 0.8
    assert largest_share(1000) < 0.45


def test_a_site_for_each_vendor(make):
    sites = partition(make(vendor=list("BABBC")), PartitionConfig(scheme="vendor", sites=3), 0)
    assert groups(sites, "vendor") == [{"A": 1}, {"B": 3}, {"C": 1}]


def test_the_last_site_has_the_centres_that_are_left_over(make):
    sites = partition(make(centre=list("AAABBBBCD")), PartitionConfig(scheme="centre", sites=3), 0)
    assert groups(sites, "centre") == [{"A": 3}, {"B": 4}, {"C": 1, "D": 1}]


def test_groups_lie_side_by_side(make):
    sites = partition(make(group=["A", "B", "C", "D", "E"] * 60), PartitionConfig(scheme="group", sites=3), 0)
    assert [set(site) for site in groups(sites)] == [{"A", "B"}, {"B", "C", "D"}, {"D", "E"}]
    assert all(80 <= len(site) <= 120 for site in sites)


def test_a_site_that_would_be_empty_is_named_with_what_to_do(make):
    cohort = make(group=["A", "B"] * 2)
    seed = next(s for s in range(100) if uneven(cohort, s))
    with pytest.raises(DataError, match=r"site\(s\) \d.* would have no patients.*4 patient\(s\).*another seed, fewer"):
        partition(cohort, PartitionConfig(sites=3), seed)


def uneven(cohort, seed):
    return len({int(3 * p.place(seed, "partition", "iid")) for p in cohort.patients}) < 3


def test_under_privacy_no_group_hangs_on_one_patient(make):
    cohort = make(group=["A", "A", "B", "C", "C"], centre=["1", "1", "2", "3", "3"])
    for scheme in ("group", "centre"):
        with pytest.raises(DataError, match=rf"split by {scheme} under privacy.*one training patient alone.*dirichlet"):
            refuse_lone_values(cohort, PartitionConfig(scheme=scheme, sites=2))
    for config in (PartitionConfig(scheme="centre", sites=3), PartitionConfig(sites=2)):
        refuse_lone_values(cohort, config)


def test_a_patient_is_placed_alike_with_and_without_the_prefix_of_a_pool():
    alone, pooled = (PatientRecord(patient_id=name, centre="north") for name in ("p1", "north-p1"))
    other = PatientRecord(patient_id="p1", centre="south")
    assert alone.place(0, "split") == pooled.place(0, "split") != other.place(0, "split")


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


@pytest.mark.parametrize("patients", [18, 30, 36])
def test_the_phantoms_of_recipes_and_tutorials_fill_every_site(patients):
    """With seed 0, a third is held out; the numbers of the tutorials rest on these."""
    records = [
        PatientRecord(patient_id=f"patient{i + 1:03d}", centre=f"site-{i * 3 // patients}") for i in range(patients)
    ]
    training = Counter(record.centre for record in records if record.place(0, "split") < 2 / 3)
    assert min(training.values()) >= patients / 6
    assert patients - training.total() >= patients / 4
