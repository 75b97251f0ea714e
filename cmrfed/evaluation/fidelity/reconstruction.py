"""Reconstruction: what an autoencoder leaves of hold-out images; it bounds all that is drawn through it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cmrfed.data.cohort import Cohort, Volume
from cmrfed.data.labels import Label
from cmrfed.data.synthetic import SyntheticDataset
from cmrfed.evaluation.fidelity.distances import paired_metrics
from cmrfed.evaluation.names import RECONSTRUCTION
from cmrfed.evaluation.results.result import Findings
from cmrfed.evaluation.slices import SliceSet
from cmrfed.evaluation.utility.arms import SegmenterBenchmark, arm_on_other_images
from cmrfed.evaluation.utility.segmenter import labelled_slices

ARM = "reconstruction"


def reconstruction_fidelity(folder: Path, holdout: SliceSet, lpips_weights: str | None) -> Findings:
    """PSNR, SSIM, MS-SSIM and LPIPS of reconstructions against the images that they were made from.

    Args:
        folder: SyntheticDataset whose cases are named ``<patient>_<ED|ES>``, the patient by its pseudonym.
        holdout: Patients that nothing has learned from.
        lpips_weights: Folder with torchvision's AlexNet for LPIPS, or None.
    """
    return paired_metrics(folder, holdout, lpips_weights, ARM)


@dataclass(frozen=True)
class _Reconstructed:
    """Reconstructions as patients that a segmenter is tested on."""

    data: SyntheticDataset
    labels: tuple[Label, ...]
    name: str = "reconstruction"

    def iter_volumes(self) -> Iterator[Volume]:
        for case in self.data.cases():
            yield Volume(case.patient_id, case.phase, case.image, case.mask, case.spacing_mm)


def reconstruction_utility(folder: Path, train: Cohort, benchmark: SegmenterBenchmark) -> Findings:
    """Dice, on reconstructions of the hold-out, of the segmenters that were trained on real slices.

    Args:
        folder: As above.
        train: Patients that these segmenters learn from.
        benchmark: That of `utility`, whose trained segmenters are used again.
    """
    images = _Reconstructed(SyntheticDataset.open(folder), benchmark.holdout.labels)
    both = replace(benchmark, external={RECONSTRUCTION: images})
    return arm_on_other_images("real", labelled_slices(train, benchmark.cache), train.labels, both, RECONSTRUCTION)
