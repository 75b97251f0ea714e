"""Several cohorts as one folder, for a simulation on one machine; where a patient came from becomes the centre."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cmrfed.core.artifacts import digest_bytes
from cmrfed.core.errors import DataError
from cmrfed.data.cohort import Cohort, PreparedPatient, write_cohort
from cmrfed.data.preparation.account import added


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

    first = cohorts[0].header
    return write_cohort(
        out,
        _patients(cohorts),
        name=name,
        source="+".join(names),
        size_px=first.size_px,
        labels=first.labels,
        preparation=first.preparation,
        account=lambda: added([cohort.header.account for cohort in cohorts]),
    )


def _patients(cohorts: Sequence[Cohort]) -> Iterator[PreparedPatient]:
    """All patients; where two hospitals use the same identifier, each gets its cohort's name in front."""
    every = [p for cohort in cohorts for p in cohort.patient_ids]
    clash = len(set(every)) < len(every)
    seen: dict[str, str] = {}
    for cohort in cohorts:
        for i, record in enumerate(cohort.patients):
            name = f"{cohort.name}-{record.patient_id}" if clash else record.patient_id
            volumes = tuple(replace(volume, patient_id=name) for volume in cohort.volumes(i))
            twin = seen.setdefault(digest_bytes(b"".join(v.image.tobytes() for v in volumes)), name)
            if twin != name:
                raise DataError(
                    f"patient {name} has the same images as {twin}",
                    expected="each patient in one cohort",
                    do="take the patient out of one of the cohorts",
                )
            yield PreparedPatient(record.model_copy(update={"patient_id": name, "centre": cohort.name}), volumes)
