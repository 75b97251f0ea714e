"""Splitting a cohort over the sites of a simulated federation, by patient."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from cmrfed.config import Section
from cmrfed.data.cohort import Cohort, PatientRecord
from cmrfed.errors import DataError
from cmrfed.rng import numpy_generator

Parts = list[list[str]]


class PartitionConfig(Section):
    """How patients are given to sites.

    ``iid``: at random, sizes equal to one. ``group``: sorted by diagnosis group and cut into equal blocks, so
    that sites see different diseases. ``vendor``, ``centre``: a site for each value, the smallest merged.
    ``dirichlet``: per group, shares drawn from a Dirichlet distribution (Hsu et al. 2019, arXiv 1909.06335).
    """

    scheme: Literal["iid", "group", "vendor", "centre", "dirichlet"] = "iid"
    """How patients are shared out: at random, by diagnosis, scanner vendor or hospital, or unevenly by diagnosis."""
    sites: int = Field(3, ge=1)
    """Number of sites over which patients are shared out."""
    alpha: float = Field(0.5, gt=0)
    """Concentration of ``dirichlet``: small is uneven, large is even."""
    only: int | None = Field(None, ge=0, exclude_if=lambda value: value is None)
    """Number of the one site that trains, from 0: what it reaches alone. Patients are shared out as without this."""

    @model_validator(mode="after")
    def _is_there(self) -> "PartitionConfig":
        if self.only is not None and self.only >= self.sites:
            raise ValueError(f"only is {self.only}, but the {self.sites} site(s) are numbered from 0")
        return self

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of the sites that train."""
        return tuple(range(self.sites)) if self.only is None else (self.only,)


def partition(cohort: Cohort, config: PartitionConfig, seed: int) -> list[Cohort]:
    """Split a cohort into ``config.sites`` cohorts that are disjoint by patient, together whole, and not empty.

    Returns:
        The cohorts of the sites that train: all, or ``config.only``.

    Raises:
        DataError: There are more sites than patients, or the records lack what the scheme sorts by.
    """
    if config.sites > len(cohort):
        raise DataError(
            f"cohort {cohort.name} has fewer patients than sites",
            got=f"{len(cohort)} patient(s), {config.sites} sites",
            expected="at least one patient a site",
            do="lower the number of sites or add patients",
        )
    random = numpy_generator(seed, "partition", config.scheme)
    if config.scheme == "iid":
        parts = _blocks(random.permutation(sorted(cohort.patient_ids)).tolist(), config.sites)
    elif config.scheme == "group":
        by_group = _by_field(cohort, "group", least=2)
        order = [str(p) for g in sorted(by_group) for p in random.permutation(by_group[g])]
        parts = _blocks(order, config.sites)
    elif config.scheme == "dirichlet":
        parts = _dirichlet(_by_field(cohort, "group", least=1), config, random)
    else:
        parts = _merged(_by_field(cohort, config.scheme, least=config.sites), config.sites)
    return [cohort.select(sorted(parts[number])) for number in config.numbers]


def _blocks(order: Sequence[str], sites: int) -> Parts:
    return [list(block) for block in np.array_split(np.array(order), sites)]


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
            do="lower the number of sites or choose the scheme iid",
        )
    return {value: sorted(ids) for value, ids in values.items()}


def _merged(values: dict[str, list[str]], sites: int) -> Parts:
    """One part for each value in order of name; while there are too many, the two smallest become one."""
    parts = [values[value] for value in sorted(values)]
    while len(parts) > sites:
        smallest, next_smallest = sorted(range(len(parts)), key=lambda i: (len(parts[i]), i))[:2]
        parts[next_smallest] = parts[next_smallest] + parts[smallest]
        del parts[smallest]
    return parts


def _dirichlet(values: dict[str, list[str]], config: PartitionConfig, random: np.random.Generator) -> Parts:
    parts: Parts = [[] for _ in range(config.sites)]
    for value in sorted(values):
        ids = random.permutation(values[value])
        shares = random.dirichlet(np.full(config.sites, config.alpha))
        cuts = np.round(np.cumsum(shares)[:-1] * len(ids)).astype(int)
        for part, block in zip(parts, np.split(ids, cuts), strict=True):
            part += [str(p) for p in block]
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())
    return parts
