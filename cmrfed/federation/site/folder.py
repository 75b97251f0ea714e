"""A site's folder: who the site is, what it allows, and what its patients have paid. Loads no torch.

Folder::

    site.json                                   SiteRecord
    policy.yaml                                 SitePolicy: what the site allows
    ledger.copy.jsonl                           a copy of the cohort's ledger, by which an older one is noticed
    audit.json                                  what a deployed site's own audits of private steps found
    state/<run>/<stage>/round-0007/             the reply and the optimizer's state, written together
        reply.safetensors  optimizer.safetensors
    state/<run>/<stage>/round-0007.<key>/       the answer to another request for the same round

What the patients have paid, over all runs, is in ``ledger.jsonl`` and ``ledger.head`` of the folder beside the cohort
(`cmrfed.privacy.ledger.place`); a simulated site has them in its own. Only the owner of these folders may enter them.
"""

from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError

from cmrfed.core.artifacts import OWNER_ALONE, read_json, write_json
from cmrfed.core.errors import DataError
from cmrfed.core.settings.config import DeviceName, Section
from cmrfed.core.settings.validation import problems
from cmrfed.data.cohort import Cohort
from cmrfed.federation.messages import SiteInfo
from cmrfed.federation.site.cohort_ledger import cohort_ledger
from cmrfed.privacy.ledger.ledger import PrivacyLedger
from cmrfed.privacy.policy import SitePolicy


class SiteRecord(Section):
    """The content of site.json, written by the site's own staff or by a simulation."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    style: int = Field(0, ge=0)
    """Number of the site's scanner style, a condition of the generator."""
    cohort: str
    """Cohort folder: absolute, or relative to the site's folder."""
    patients: tuple[str, ...] | None = None
    """The site's patients in the cohort; None: all."""
    ledger: str | None = None
    """Folder of the cohort's privacy ledger: absolute, or relative to the site's folder. None: beside the cohort, under
    its name with ``.ledger`` added, where every other site on the same cohort finds it too."""
    simulated: bool = False
    """Whether the site is part of a simulation, whose ledgers begin with the run and lie in the sites' own folders."""
    device: DeviceName = "auto"
    """Where the site trains; auto takes CUDA, else MPS, else the CPU."""

    def save(self, root: Path) -> None:
        """Write ``root``/site.json; the folder is the owner's alone from then on."""
        write_json(root / "site.json", self.model_dump(mode="json"), OWNER_ALONE)
        with suppress(PermissionError):  # it is somebody else's, who has let this process in
            root.chmod(0o700)


class SiteFolder:
    """One site, without what only training needs. Made by `open`."""

    def __init__(self, root: Path, record: SiteRecord) -> None:
        self.root, self.record = root, record

    @classmethod
    def open(cls, root: Path) -> Self:
        """Read site.json.

        Raises:
            DataError: There is none, or it is wrong.
        """
        try:
            return cls(root, SiteRecord.model_validate(read_json(root / "site.json")))
        except ValidationError as error:
            raise DataError(
                f"{root}/site.json cannot be used",
                got=problems(error),
                expected="name, style, cohort, patients",
                do="correct it",
            ) from None

    @classmethod
    def register(cls, root: Path, record: SiteRecord, policy: SitePolicy) -> Self:
        """Make a site, or change who it is; its ledger is made once, and its policy is kept where it has one.

        The ledger of a cohort that is not there yet is made when it is there.

        Raises:
            PrivacyError: The ledger of its patients is gone, damaged, or older than what the site remembers.
            DataError: Its patients have paid in another ledger.
        """
        record.save(root)
        if not (root / "policy.yaml").exists():
            policy.save(root / "policy.yaml")
        site = cls(root, record)
        if record.simulated or (root / record.cohort / "cohort.json").exists():
            site.open_ledger()
        return site

    def open_ledger(self) -> PrivacyLedger:
        """The ledger of the site's patients, compared with what the site remembers of it; made where it never was.

        Raises:
            PrivacyError: It is gone, damaged, or older than what the site remembers.
            DataError: The site's patients have paid in another ledger, or its cohort cannot be used.
        """
        if not self.record.simulated:
            named = self.record.ledger is not None
            return cohort_ledger(self.root, self.record.name, self.cohort, named=named)
        if not PrivacyLedger.exists(self.root):
            return PrivacyLedger.create(self.root)
        ledger = PrivacyLedger(self.root)
        ledger.lines()
        return ledger

    @cached_property
    def policy(self) -> SitePolicy:
        """What the site allows.

        Raises:
            PrivacyError: policy.yaml is missing or cannot be followed.
        """
        return SitePolicy.load(self.root / "policy.yaml")

    @cached_property
    def cohort(self) -> Cohort:
        """The site's patients."""
        return Cohort.open(self.root / self.record.cohort, self.record.patients)

    def hello(self) -> SiteInfo:
        """Name and style; the number of patients where it may leave."""
        patients = len(self.cohort) if self.policy.may_leave.patient_count else None
        return SiteInfo(name=self.record.name, style=self.record.style, patients=patients)

    def state(self, run: str, stage: str) -> Path:
        """Where the site keeps what it remembers of one stage of a run."""
        return self.root / "state" / run / stage
