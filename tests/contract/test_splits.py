"""Whatever the cohort and the seed: patients are never shared between parts, and none is lost."""

from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from cmrfed.data.cohort import Cohort, CohortHeader, PatientRecord
from cmrfed.data.partition import PartitionConfig, partition


class Listed(Cohort):
    """A cohort of records alone, without files."""

    def __init__(self, records: tuple[PatientRecord, ...], chosen: tuple[str, ...] | None = None) -> None:
        header = CohortHeader(
            schema_version=1,
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


@st.composite
def cohorts(draw):
    groups = draw(st.lists(st.sampled_from(["NOR", "DCM", "HCM", "RV"]), min_size=2, max_size=40))
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


@given(cohort=cohorts(), seed=st.integers(0, 2**32), share=st.floats(0.01, 0.99))
def test_split_is_disjoint_whole_and_repeatable(cohort, seed, share):
    fractions = {"train": share, "holdout": 1 - share}
    parts = cohort.split(fractions, seed)
    assert_exact_cover(parts.values(), cohort)
    again = cohort.split(fractions, seed)
    assert {k: v.patient_ids for k, v in parts.items()} == {k: v.patient_ids for k, v in again.items()}
    assert abs(len(parts["train"]) - share * len(cohort)) <= 1


@given(cohort=cohorts(), seed=st.integers(0, 2**32))
def test_split_is_stratified_by_group(cohort, seed):
    train = cohort.split({"train": 0.5, "holdout": 0.5}, seed)["train"]
    for group in {p.group for p in cohort.patients}:
        total = sum(p.group == group for p in cohort.patients)
        assert abs(sum(p.group == group for p in train.patients) - total / 2) <= 1


@pytest.mark.parametrize("scheme", ["iid", "group", "vendor", "centre", "dirichlet"])
@given(data=st.data())
def test_partition_is_disjoint_whole_not_empty_and_repeatable(scheme, data):
    cohort = data.draw(cohorts())
    values = {"vendor": "vendor", "centre": "centre"}.get(scheme)
    most = len({getattr(p, values) for p in cohort.patients}) if values else len(cohort)
    if scheme == "group" and len({p.group for p in cohort.patients}) < 2:
        return
    config = PartitionConfig(
        scheme=scheme, sites=data.draw(st.integers(1, most)), alpha=data.draw(st.sampled_from([0.01, 0.5, 100]))
    )
    seed = data.draw(st.integers(0, 2**32))
    sites = partition(cohort, config, seed)
    assert len(sites) == config.sites
    assert_exact_cover(sites, cohort)
    assert [s.patient_ids for s in sites] == [s.patient_ids for s in partition(cohort, config, seed)]
    if scheme in ("iid", "group"):
        assert max(map(len, sites)) - min(map(len, sites)) <= 1
