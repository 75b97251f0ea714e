"""Splitting a cohort over the sites of a simulated federation, by patient.

Each patient is placed by the seed, its own identifier and its own field, whoever the others are. So adding or removing
one patient moves nobody else, and a promise about one patient covers who is where. What is taken to be public are the
names of the groups, vendors and centres that occur.
"""

from pathlib import Path
from typing import Literal

import numpy as np

from cmrfed.core.artifacts import write_json
from cmrfed.core.errors import DataError
from cmrfed.core.rng import numpy_generator
from cmrfed.core.settings.config import Section
from cmrfed.core.settings.validation import read_model
from cmrfed.data.cohort import Cohort, PatientRecord
from cmrfed.data.settings import PartitionConfig

Parts = list[list[str]]

PLACEMENT = 2
"""How patients are placed, here and in `Cohort.split`: raised when the same seed begins to give other places."""


SPLIT = "split.json"


class Split(Section):
    """The content of split.json: who trains and who is held out."""

    cohort: str
    """Digest of the cohort."""
    placement: int = 1
    """How patients were placed; version 0.1 did not say, which counts as 1."""
    train: tuple[str, ...]
    holdout: tuple[str, ...]

    def write(self, run_dir: Path) -> Path:
        """Write split.json."""
        return write_json(run_dir / SPLIT, self.model_dump(mode="json"))


def read_split(run_dir: Path) -> Split:
    """Read the split.json of a simulated run.

    Raises:
        DataError: There is none, or it is damaged.
    """
    return read_model(run_dir / SPLIT, Split, do="restore it from a copy, or make the run again")


def placement_of(run_dir: Path) -> int:
    """How the patients of a simulated run were placed, as its split.json says.

    Raises:
        DataError: split.json is damaged.
    """
    return read_split(run_dir).placement if (run_dir / SPLIT).is_file() else PLACEMENT


def partition(cohort: Cohort, config: PartitionConfig, seed: int) -> list[Cohort]:
    """Split a cohort into ``config.sites`` cohorts that are disjoint by patient, together whole, and not empty.

    Returns:
        The cohorts of the sites that train: all, or ``config.only``.

    Raises:
        DataError: There are more sites than patients, a site would be empty, or the records lack what the scheme sorts
            by.
    """
    if config.sites > len(cohort):
        raise DataError(
            f"cohort {cohort.name} has fewer patients than sites",
            got=f"{len(cohort)} patient(s), {config.sites} sites",
            expected="at least one patient a site",
            do="lower the number of sites or add patients",
        )
    parts: Parts = [[] for _ in range(config.sites)]
    for patient, site in _sites(cohort, config, seed).items():
        parts[site].append(patient)
    empty = [str(number) for number, part in enumerate(parts) if not part]
    if empty:
        raise DataError(
            f"site(s) {', '.join(empty)} of cohort {cohort.name} would have no patients",
            got=f"{len(cohort)} patient(s), scheme {config.scheme}, {config.sites} sites, seed {seed}",
            expected="a patient at every site; each is placed by seed and identifier alone",
            do="choose another seed, fewer sites or another scheme, or add patients",
        )
    return [cohort.select(sorted(parts[number])) for number in config.numbers]


def _sites(cohort: Cohort, config: PartitionConfig, seed: int) -> dict[str, int]:
    """Number of the site of each patient."""
    places = {p.patient_id: p.place(seed, "partition", config.scheme) for p in cohort.patients}
    last = config.sites - 1
    if config.scheme == "iid":
        return {patient: min(int(place * config.sites), last) for patient, place in places.items()}
    if config.scheme in ("vendor", "centre"):
        values = _by_field(cohort, config.scheme, least=config.sites)
        order = sorted(values)
        return {p: min(order.index(value), last) for value, ids in values.items() for p in ids}
    groups = _by_field(cohort, "group", least=2 if config.scheme == "group" else 1)
    if config.scheme == "group":
        width = config.sites / len(groups)
        return {
            p: min(int((k + places[p]) * width), last) for k, name in enumerate(sorted(groups)) for p in groups[name]
        }
    ends = {name: np.cumsum(_shares(config, seed, name))[:-1] for name in groups}
    return {p: int(np.searchsorted(ends[name], places[p], "right")) for name in groups for p in groups[name]}


def _shares(config: PartitionConfig, seed: int, group: str) -> np.ndarray:
    """Shares of the sites in a group: (sites,), whoever is in it."""
    return numpy_generator(seed, "partition", "shares", group).dirichlet(np.full(config.sites, config.alpha))


def refuse_lone_values(cohort: Cohort, config: PartitionConfig) -> None:
    """Refuse values with a single patient, where the names of all values decide who is where.

    Without that patient the value would not occur, and others would be at another site: no promise about one patient
    would be true.

    Raises:
        DataError: There is such a value.
    """
    if config.scheme not in ("group", "vendor", "centre"):
        return
    values = _by_field(cohort, config.scheme, least=1)
    lone = sorted(value for value, ids in values.items() if len(ids) == 1)
    if lone and (config.scheme == "group" or len(values) > config.sites):
        raise DataError(
            f"cohort {cohort.name} cannot be split by {config.scheme} under privacy",
            got=f"one training patient alone has {config.scheme} {lone[0]}",
            expected="two or more of each: else one patient decides at which site others are",
            do="choose the scheme iid or dirichlet, or take the patient out of the cohort",
        )


def _by_field(cohort: Cohort, field: Literal["group", "vendor", "centre"], least: int) -> dict[str, list[str]]:
    """Patient identifiers by the value of a field, which every record must have, with enough values."""
    values: dict[str, list[str]] = {}
    lacking: list[PatientRecord] = [p for p in cohort.patients if getattr(p, field) is None]
    if lacking:
        raise DataError(
            f"cohort {cohort.name} cannot be split by {field}",
            got=f"{len(lacking)} of {len(cohort)} patients without {field}, the first: {lacking[0].patient_id}",
            expected=f"a {field} for every patient",
            do="choose the scheme iid, or a source that records it",
        )
    for record in cohort.patients:
        values.setdefault(getattr(record, field), []).append(record.patient_id)
    if len(values) < least:
        raise DataError(
            f"cohort {cohort.name} cannot be split by {field}",
            got=f"{len(values)} distinct value(s): {', '.join(sorted(values))}",
            expected=f"at least {least}",
            do="lower the number of sites, choose the scheme iid or another seed",
        )
    return {value: sorted(ids) for value, ids in values.items()}
