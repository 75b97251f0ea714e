"""Public patients: a phantom that nobody has to protect, drawn once, prepared like real scans, kept in the cache."""

import os
import shutil
from pathlib import Path

from cmrfed.core.artifacts import digest_json, locked, new_folder
from cmrfed.core.errors import DataError
from cmrfed.data.cohort import Cohort
from cmrfed.data.settings import PhantomConfig, PublicPatients

PUBLIC_VERSION = 2
"""Names all that is cached of public patients. To be raised when the same settings give other arrays, since the phantom
is drawn, read or prepared otherwise; `tests/golden/test_caches.py` holds it to the output."""


def cache_folder() -> Path:
    """Where what is made of public patients is kept: ``$XDG_CACHE_HOME/cmrfed``, by default ``~/.cache/cmrfed``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cmrfed"


def public_patients(config: PublicPatients, size_px: int, seed: int, cache: Path | None = None) -> Cohort:
    """Open the public patients in the cache, or draw them: written as scans, read by the importer of real ones.

    Args:
        config: How many.
        size_px: Height and width of the prepared images.
        seed: Folded from ``config.seed`` by who asks, so that two purposes have patients of their own.
        cache: Another cache than the user's.
    """
    origin = [config.patients, config.scanners, seed, size_px, PUBLIC_VERSION]
    folder = (cache or cache_folder()) / f"phantom-{digest_json(origin)[:16]}"
    with locked(folder):
        try:
            return Cohort.open(folder / "cohort")
        except DataError:  # absent or damaged
            from cmrfed.data.phantom import write_phantom  # here: most requests need no public patients
            from cmrfed.data.preparation.prepare import PrepareConfig, prepare

            with new_folder(folder) as part:
                scans = part / "scans"
                write_phantom(scans, PhantomConfig(patients=config.patients, sites=config.scanners, seed=seed))
                prepare(scans, part / "cohort", "acdc", PrepareConfig(size_px=size_px), name="phantom")
                shutil.rmtree(scans)
        return Cohort.open(folder / "cohort")
