"""The settings of data: how patients are shared out over sites, and the public ones. Loads no torch."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from cmrfed.core.settings.config import Section


class PartitionConfig(Section):
    """How patients are given to sites.

    ``iid``: at random, each site equally likely. ``group``: diagnosis groups lie side by side on a line, in order of
    name and each equally long, that is cut into equal parts, so that sites see different diseases; within its group a
    patient lies at random. ``vendor``, ``centre``: a site for each value in order of name; the last site has all that
    are left over. ``dirichlet``: per group, a site is drawn by shares from a Dirichlet distribution (Hsu et al. 2019,
    arXiv 1909.06335). Sizes vary as those of independent draws do.
    """

    scheme: Literal["iid", "group", "vendor", "centre", "dirichlet"] = "iid"
    """Partition: at random (iid), by diagnosis, by scanner vendor, by centre, or with Dirichlet label skew by
    diagnosis."""
    sites: int = Field(3, ge=1)
    """Number of sites."""
    alpha: float = Field(0.5, gt=0)
    """Concentration of ``dirichlet``: smaller is more heterogeneous."""
    only: int | None = Field(None, ge=0)
    """Index (from 0) of a single site to train, as a local-only baseline; the partition stays the same."""

    @model_validator(mode="after")
    def _is_there(self) -> "PartitionConfig":
        if self.only is not None and self.only >= self.sites:
            raise ValueError(f"only is {self.only}, but the {self.sites} site(s) are numbered from 0")
        return self

    @property
    def numbers(self) -> tuple[int, ...]:
        """One entry for each site that trains."""
        return tuple(range(self.sites)) if self.only is None else (self.only,)


class PhantomConfig(Section):
    """How many phantom patients to make, at how many sites, from which seed."""

    patients: int = Field(24, ge=1)
    """Simulated patients in all."""
    sites: int = Field(3, ge=1)
    """Simulated scanners, one per site; patients are distributed evenly over them."""
    seed: int = 0
    """Same seed, same patients."""


class PublicPatients(Section):
    """Public simulated patients; they never coincide with those of ``data.phantom``, whatever the seeds."""

    patients: int = Field(200, ge=1)
    """Simulated patients."""
    scanners: int = Field(10, ge=1)
    """Simulated scanners; patients are distributed evenly over them."""
    seed: int = 0
    """Random seed of these patients and of training on them."""

    @model_validator(mode="after")
    def _each_scanner_has_patients(self) -> "PublicPatients":
        if self.patients < self.scanners:
            raise ValueError(f"{self.patients} patients are too few for {self.scanners} scanners")
        return self


Words = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f<>|`]+$")]
"""One line of text that can be shown as it is, in Markdown and HTML."""


class PublicCohort(Section):
    """A public cohort of real patients: learned from without accounting, since its images are published."""

    path: str = Field(min_length=1, max_length=4096)
    """Cohort folder, as `cmrfed prepare` writes it. Its cohort.json says which structures the annotators drew."""
    name: Words
    """What the data set is called, such as Sunnybrook Cardiac Data."""
    licence: Words
    """Its terms, such as CC0-1.0, stated with all that learns from it; whether they permit that, you judge."""
    source: Words
    """Where it comes from: a DOI, an address or a citation."""
    holdout: float = Field(1 / 3, ge=0, lt=1)
    """Fraction of patients that nothing learns from, for tests (``data.external``)."""

    @property
    def in_words(self) -> str:
        """Name, licence and source."""
        return f"{self.name}, {self.licence}, {self.source}"
