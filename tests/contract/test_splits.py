"""Whatever the cohort and the seed: no patient is lost or shared, and no patient decides where another one is."""

from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given

from cmrfed.core.errors import DataError
from cmrfed.data.cohort import SCHEMA_VERSION, Cohort, CohortHeader, PatientRecord
from cmrfed.data.partition import partition, refuse_lone_values
from cmrfed.data.settings import PartitionConfig

SCHEMES = ("iid", "group", "vendor", "centre", "dirichlet")


class Listed(Cohort):
    """A cohort of records alone, without files."""

    def __init__(self, records: tuple[PatientRecord, ...], chosen: tuple[str, ...] | None = None) -> None:
        header = CohortHeader(
            schema_version=SCHEMA_VERSION,
            name="listed",
            source="acdc",
            size_px=8,
            labels=(3,),
            patients=len(records),
            slices=len(records),
            preparation={},
            digest="0",
        )
        super().__init__(Path("nowhere"), header, chosen)
        self._all_records = records

    def select(self, patient_ids):
        return Listed(self._all_records, tuple(patient_ids))

    def without(self, patient_id):
        """The same cohort, where one patient has never been."""
        return Listed(tuple(p for p in self._all_records if p.patient_id != patient_id))


@st.composite
def cohorts(draw, least=2):
    groups = draw(st.lists(st.sampled_from(["NOR", "DCM", "HCM", "RV"]), min_size=least, max_size=40))
    return Listed(
        tuple(
            PatientRecord(patient_id=f"p{i}", group=group, vendor=f"V{i % 4}", centre=group)
            for i, group in enumerate(groups)
        )
    )


def assert_exact_cover(parts, cohort):
    ids = [p for part in parts for p in part.patient_ids]
    assert sorted(ids) == sorted(cohort.patient_ids)
    assert all(len(part) for part in parts)


def split(cohort, share, seed):
    """The parts by name, or None where one would be empty."""
    try:
        return cohort.split({"train": share, "holdout": 1 - share}, seed)
    except DataError as error:
        if "would be empty" not in str(error):
            raise
        return None


def sites_of(cohort, config, seed):
    """The sites, or None where one would be empty or the scheme finds too few values."""
    try:
        return partition(cohort, config, seed)
    except DataError as error:
        if not any(words in str(error) for words in ("would have no patients", "fewer patients", "distinct value")):
            raise
        return None


def has_lone_values(cohort, config):
    try:
        refuse_lone_values(cohort, config)
    except DataError:
        return True
    return False


def places(parts):
    """Number of the part of each patient."""
    return {patient: number for number, part in enumerate(parts) for patient in part.patient_ids}


@given(cohort=cohorts(), seed=st.integers(0, 2**32), share=st.floats(0.01, 0.99))
def test_split_is_disjoint_whole_and_repeatable(cohort, seed, share):
    parts = split(cohort, share, seed)
    assume(parts is not None)
    assert_exact_cover(parts.values(), cohort)
    again = split(cohort, share, seed)
    assert {k: v.patient_ids for k, v in parts.items()} == {k: v.patient_ids for k, v in again.items()}


@given(cohort=cohorts(least=4), seed=st.integers(0, 2**32), share=st.floats(0.1, 0.9), data=st.data())
def test_a_patient_who_was_never_there_moves_nobody_in_or_out_of_the_holdout(cohort, seed, share, data):
    gone = data.draw(st.sampled_from(cohort.patient_ids))
    whole, fewer = split(cohort, share, seed), split(cohort.without(gone), share, seed)
    assume(whole is not None and fewer is not None)
    assert places(fewer.values()) == {p: k for p, k in places(whole.values()).items() if p != gone}


THOUSAND = Listed(tuple(PatientRecord(patient_id=f"patient{i:04d}") for i in range(1000)))


@given(seed=st.integers(0, 2**32), share=st.floats(0.2, 0.8))
def test_the_share_is_kept_on_average(seed, share):
    parts = split(THOUSAND, share, seed)
    assert abs(len(parts["train"]) / 1000 - share) < 6 * (share * (1 - share) / 1000) ** 0.5


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
def test_partition_is_disjoint_whole_not_empty_and_repeatable(scheme, data):
    cohort, seed = data.draw(cohorts()), data.draw(st.integers(0, 2**32))
    alpha = data.draw(st.sampled_from([0.01, 0.5, 100]))
    config = PartitionConfig(scheme=scheme, sites=data.draw(st.integers(1, 5)), alpha=alpha)
    sites = sites_of(cohort, config, seed)
    assume(sites is not None)
    assert len(sites) == config.sites
    assert_exact_cover(sites, cohort)
    assert [s.patient_ids for s in sites] == [s.patient_ids for s in partition(cohort, config, seed)]


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
def test_a_patient_who_was_never_there_moves_nobody_to_another_site(scheme, data):
    """Where a scheme goes by the names of values, those with a single patient are refused under privacy."""
    cohort, seed = data.draw(cohorts(least=6)), data.draw(st.integers(0, 2**32))
    config = PartitionConfig(scheme=scheme, sites=data.draw(st.integers(1, 4)), alpha=data.draw(st.floats(0.1, 10)))
    gone = data.draw(st.sampled_from(cohort.patient_ids))
    whole, fewer = sites_of(cohort, config, seed), sites_of(cohort.without(gone), config, seed)
    assume(whole is not None and fewer is not None)
    assume(not has_lone_values(cohort, config))
    assert places(fewer) == {p: k for p, k in places(whole).items() if p != gone}
