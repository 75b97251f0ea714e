"""Public patients: a phantom that nobody has to protect, drawn once, prepared like real scans, kept in the cache."""

import importlib
import inspect
import os
import pkgutil
import shutil
from pathlib import Path

from cmrfed.core.artifacts import digest_json, locked, new_folder
from cmrfed.core.errors import DataError
from cmrfed.data import phantom
from cmrfed.data.cohort import Cohort
from cmrfed.data.geometry import affine as geometry
from cmrfed.data.geometry import orientation, overlay
from cmrfed.data.phantom import PhantomConfig, write_phantom
from cmrfed.data.preparation import checks
from cmrfed.data.preparation import prepare as preparation
from cmrfed.data.preparation.prepare import PrepareConfig, prepare
from cmrfed.data.settings import PublicPatients
from cmrfed.data.sources import raw


def cache_folder() -> Path:
    """Where what is made of public patients is kept: ``$XDG_CACHE_HOME/cmrfed``, by default ``~/.cache/cmrfed``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cmrfed"


def phantom_code() -> str:
    """Digest of the code that draws and prepares a phantom."""
    names = [f"{phantom.__name__}.{module.name}" for module in pkgutil.iter_modules(phantom.__path__)]
    reading = [raw, geometry, overlay, orientation, checks, preparation]
    modules = [phantom, *map(importlib.import_module, names), *reading]
    return digest_json([inspect.getsource(module) for module in modules])


def public_patients(config: PublicPatients, size_px: int, seed: int, cache: Path | None = None) -> Cohort:
    """Open the public patients in the cache, or draw them: written as scans, read by the importer of real ones.

    Args:
        config: How many.
        size_px: Height and width of the prepared images.
        seed: Folded from ``config.seed`` by who asks, so that two purposes have patients of their own.
        cache: Another cache than the user's.
    """
    origin = [config.patients, config.scanners, seed, size_px, phantom_code()]
    folder = (cache or cache_folder()) / f"phantom-{digest_json(origin)[:16]}"
    with locked(folder):
        try:
            return Cohort.open(folder / "cohort")
        except DataError:  # absent or damaged
            with new_folder(folder) as part:
                scans = part / "scans"
                write_phantom(scans, PhantomConfig(patients=config.patients, sites=config.scanners, seed=seed))
                prepare(scans, part / "cohort", "acdc", PrepareConfig(size_px=size_px), name="phantom")
                shutil.rmtree(scans)
        return Cohort.open(folder / "cohort")
