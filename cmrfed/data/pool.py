"""Several cohorts as one folder, for a simulation on one machine; where a patient came from becomes the centre."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from cmrfed.data.cohort import Cohort, PreparedPatient, write_cohort
from cmrfed.errors import DataError


def pool(cohorts: Sequence[Cohort], out: Path, name: str) -> Cohort:
    """Write the patients of all cohorts as one; each patient's centre is the name of its cohort.

    Raises:
        DataError: Names, sizes or annotated structures differ in a way that cannot be pooled.
    """
    names = [cohort.name for cohort in cohorts]
    if len(set(names)) < len(names):
        raise DataError("two cohorts have the same name", got=names, do="prepare them with different names")
    for what, values in (
        ("sizes", {c.size_px for c in cohorts}),
        ("annotated structures", {c.labels for c in cohorts}),
    ):
        if len(values) > 1:
            raise DataError(f"the cohorts have different {what}", got=sorted(map(str, values)), do="prepare them alike")

    def patients() -> Iterator[PreparedPatient]:
        for cohort in cohorts:
            for i, record in enumerate(cohort.patients):
                yield PreparedPatient(record.model_copy(update={"centre": cohort.name}), tuple(cohort.volumes(i)))

    first = cohorts[0].header
    return write_cohort(
        out,
        patients(),
        name=name,
        source="+".join(names),
        size_px=first.size_px,
        labels=first.labels,
        preparation=first.preparation,
    )
