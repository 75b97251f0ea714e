"""The ledger that belongs to a site's cohort: found, made, moved there, and bound to the patients.

A cohort has one ledger, however many sites or kits use it, and it outlives the cohort's folder: a cohort that is
prepared again, with one patient more or less, goes on with it. Patients who have paid elsewhere are found by digests of
their pixels, and of their names, in the ledgers that lie beside.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cmrfed.core.errors import DataError, PrivacyError
from cmrfed.data.cohort import Cohort
from cmrfed.privacy.ledger.chain import Chain
from cmrfed.privacy.ledger.ledger import PrivacyLedger
from cmrfed.privacy.ledger.place import END, assigned_folder, beside

Patient = tuple[str, str]
"""Name, and digest of the pixels."""


def cohort_ledger(root: Path, site: str, cohort: Cohort, *, named: bool = False) -> PrivacyLedger:
    """The ledger of a cohort, made at its first use.

    Args:
        root: The site's folder.
        site: Its name.
        cohort: Its patients.
        named: Whether its owner has named the ledger, and so knows of others beside.

    Raises:
        PrivacyError: The ledger is gone, damaged or older than what the site remembers.
        DataError: Patients have paid in another ledger, or the ledger lies where it would be lost.
    """
    place = assigned_folder(root)
    _refuse_inside(place, cohort)
    PrivacyLedger.move(root)
    fresh = not PrivacyLedger.exists(root)
    if fresh:
        _refuse_known(place, _patients(cohort), cohort, named)
        _create(root)
    ledger = PrivacyLedger(root)
    if not ledger.bound(site, cohort.digest):
        patients = _patients(cohort)
        if not fresh:
            _refuse_known(place, patients, cohort, named)
        ledger.bind(site, cohort.digest, _marker(patients))
    return ledger


def _create(root: Path) -> None:
    """Make the ledger, unless another site on the same cohort has made it in this moment."""
    try:
        PrivacyLedger.create(root)
    except PrivacyError:
        if not PrivacyLedger.exists(root):
            raise


def _patients(cohort: Cohort) -> list[Patient]:
    out = []
    for name, rows in zip(cohort.patient_ids, cohort.rows_of, strict=True):
        pixels = hashlib.sha256(np.ascontiguousarray(cohort.images[rows]).tobytes())
        out.append((name, pixels.hexdigest()))
    return out


def _marker(patients: Sequence[Patient]) -> Callable[[str], list[Patient]]:
    return lambda identity: [(_mark(identity, name), _mark(identity, pixels)) for name, pixels in patients]


def _mark(identity: str, text: str) -> str:
    """Digest of a name or of pixels in one ledger; the ledger's identity keys it."""
    return hashlib.sha256(f"{identity}|{text}".encode()).hexdigest()[:32]


def _refuse_inside(place: Path, cohort: Cohort) -> None:
    folder = cohort.root.resolve()
    if place.is_relative_to(folder) or (folder / END).exists():
        raise DataError(
            "the privacy ledger lies inside the cohort, and would be deleted when the cohort is prepared again",
            got=place if place.is_relative_to(folder) else folder / END,
            expected=f"a folder beside it, such as {beside(folder)}",
            do=f"name another folder as ledger in site.json, or move {folder / END} there",
        )


def _refuse_known(place: Path, patients: Sequence[Patient], cohort: Cohort, named: bool) -> None:
    """Refuse to begin, or to go on, where ledgers beside know these patients.

    One common picture is enough. Names alone decide where half of them are known and site.json names no ledger, since
    the same patients may be prepared at another size, and others may be numbered alike.
    """
    usual = beside(cohort.root)
    for other in sorted(
        folder for parent in {place.parent, usual.parent} for folder in parent.glob(f"*{END}") if folder != place
    ):
        lines = Chain(other).survey().lines
        known = {m for line in lines if line.kind == "patients" for pair in line.body["patients"] for m in pair}
        if not known:
            continue
        pixels = sum(_mark(lines[0].hash, each) in known for _, each in patients)
        names = sum(_mark(lines[0].hash, each) in known for each, _ in patients)
        if pixels or (not named and 2 * names >= min(len(patients), len(known) // 2)):
            raise DataError(
                "patients of this cohort have paid in another ledger",
                got=f"{max(pixels, names)} of {len(patients)} patients are known in {other}",
                expected="one ledger for each patient",
                do=f'to go on with that ledger, set "ledger": "{other}" in site.json, or rename it to {usual} if its '
                f'cohort is gone; if these are other patients of the same names, set "ledger": "{place}"',
            )
