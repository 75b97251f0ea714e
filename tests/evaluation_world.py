"""Small cohorts and synthetic data sets of drawn hearts, for tests of the judge."""

import numpy as np

from cmrfed.data.cohort import PatientRecord, PreparedPatient, Volume, write_cohort
from cmrfed.data.labels import Phase
from cmrfed.data.synthetic import NOT_PRIVATE, Case, Manifest
from cmrfed.evaluation.slices import slices_of_cohort
from cmrfed.synthesis.write import write_dataset
from tests.run_folder import heart

SIZE = 32


def volume(random, depth=3, size=SIZE):
    """Images (Z, H, W) and masks of one phase."""
    radius = random.uniform(4.5, 6.5)
    parts = [heart(random, size, radius - 0.6 * z) for z in range(depth)]
    return np.stack([p[0] for p in parts]), np.stack([p[1] for p in parts])


def patient(name, seed, *, depth=3, size=SIZE, labels=(1, 2, 3), has_mask=True):
    random, volumes = np.random.default_rng(seed), []
    for phase in Phase:
        image, mask = volume(random, depth, size)
        mask = np.where(np.isin(mask, labels), mask, 0).astype(np.uint8)
        volumes.append(Volume(name, phase, image, mask if has_mask else None, None))
    return PreparedPatient(PatientRecord(patient_id=name, has_mask=has_mask), tuple(volumes))


def cohort(path, seeds, *, labels=(1, 2, 3), size=SIZE, prefix="p"):
    patients = [patient(f"{prefix}{s:03d}", s, labels=labels, size=size) for s in seeds]
    return write_cohort(path, patients, name=path.name, source="acdc", size_px=size, labels=labels, preparation={})


def sliced(path, seeds, name):
    """The slices of a new cohort under a name."""
    from dataclasses import replace

    return replace(slices_of_cohort(cohort(path, seeds)), name=name)


def synthetic(path, seeds, *, size=SIZE, prefix="syn", change=lambda image: image):
    """A synthetic data set whose case ids are ``<prefix><seed>_<ED|ES>``."""

    def cases():
        for seed in seeds:
            for v in patient(f"{prefix}{seed:03d}", seed, size=size).volumes:
                image = change(v.image).astype(np.float32)
                yield Case(f"{v.patient_id}_{v.phase.name}", v.patient_id, v.phase, image, v.mask, None, "s")

    manifest = Manifest(name="t", patients=len(seeds), seed=0, generators={}, size_px=size, privacy=NOT_PRIVATE)
    return write_dataset(path, cases(), manifest)
