"""What a trained run draws: the synthetic data set, and what its evaluation needs beside it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from cmrfed.core.artifacts import digest_folder
from cmrfed.core.device import resolve_anywhere
from cmrfed.core.progress import track
from cmrfed.core.rng import fold
from cmrfed.core.settings.validation import read_model
from cmrfed.data.cohort import Cohort, Volume
from cmrfed.data.public import PUBLIC_VERSION, public_patients
from cmrfed.data.settings import PublicPatients
from cmrfed.data.synthetic import (
    PAIRED,
    RECONSTRUCTED,
    SIMULATED,
    Case,
    LearnedFrom,
    PostProcessed,
    SyntheticDataset,
)
from cmrfed.federation.site.folder import SiteRecord
from cmrfed.pipeline.trained import TrainedRun
from cmrfed.segmentation.files import load_segmenter
from cmrfed.segmentation.segmenter import segment
from cmrfed.synthesis.two_stage import pair_with, reconstruct, synthesize
from cmrfed.synthesis.write import write_dataset


def synthesize_run(run_dir: Path, out: Path, *, patients: int, seed: int) -> SyntheticDataset:
    """Draw a synthetic data set from the generators of a finished run.

    Raises:
        DataError: The folder is no run, or has no generators yet.
    """
    return draw_dataset(TrainedRun.open(run_dir), out, patients=patients, seed=seed)


def draw_all(trained: TrainedRun, holdout: Cohort) -> None:
    """Draw what the recipe asks for: the data set, images of hold-out masks, and hold-out images reconstructed."""
    config = trained.experiment.synthesis
    draw_dataset(trained, trained.run_dir / "synthetic", patients=config.patients, seed=config.seed)
    _draw_paired(trained, holdout)
    if trained.experiment.image.generator.autoencoder:
        _reconstruct(trained, holdout)


def draw_dataset(trained: TrainedRun, out: Path, *, patients: int, seed: int) -> SyntheticDataset:
    """Draw a synthetic data set: masks, then their images; or take patients of the phantom, if the recipe says so.

    Args:
        trained: A run with both generators.
        out: The folder to write.
        patients: Synthetic patients, each at ED and ES.
        seed: Same seed, same patients.

    Raises:
        DataError: The run has no generators yet.
    """
    config = trained.experiment.synthesis
    if config.source == "phantom":
        return _hand_out_phantom(trained, out, patients, seed)
    if config.source == "relabelled":
        return _hand_out_relabelled(trained, out, patients, seed)
    mask, image = trained.generator("mask"), trained.generator("image")
    spacing = _spacing(trained)
    manifest = trained.manifest("synthetic", patients=patients, seed=seed, spacing_mm=spacing)
    if config.mask_post_processing != "none":
        manifest = manifest.model_copy(update={"post_processed": PostProcessed(method=config.mask_post_processing)})
    expected = 2 * patients * sum(config.slices) // 2
    with track("synthesis: slices (about)", expected) as bar:
        cases = synthesize(
            mask,
            image,
            config,
            patients=patients,
            seed=seed,
            spacing_mm=spacing,
            style_names=manifest.styles,
            on_slices=bar.advance,
        )
        return write_dataset(out, cases, manifest)


def _hand_out_phantom(trained: TrainedRun, out: Path, patients: int, seed: int) -> SyntheticDataset:
    """Write simulated patients as the data set; they are others than those that generators learn from."""
    cohort, spacing = _other_phantom(trained, patients, seed)
    manifest = trained.manifest("synthetic", patients=patients, seed=seed, spacing_mm=spacing)
    simulated = LearnedFrom(name=f"phantom v{PUBLIC_VERSION}", patients=patients)
    changed = {"source": "phantom", "generators": {}, "styles": (), "learned_from": (simulated,), "privacy": SIMULATED}
    return write_dataset(out, _simulated(cohort, spacing), manifest.model_copy(update=changed))


def _hand_out_relabelled(trained: TrainedRun, out: Path, patients: int, seed: int) -> SyntheticDataset:
    """Write simulated patients under the labels of the run's segmenter: in these is what patients have taught it."""
    cohort, spacing = _other_phantom(trained, patients, seed)
    folder = trained.folder("segmenter")
    segmenter = load_segmenter(folder).to(resolve_anywhere(trained.experiment.compute.device))
    manifest = trained.manifest("synthetic", patients=patients, seed=seed, spacing_mm=spacing)
    changed = {"source": "relabelled", "generators": {"segmenter": digest_folder(folder)}, "styles": ()}
    cases = _simulated(cohort, spacing, lambda volume: segment(segmenter, volume.image))
    return write_dataset(out, cases, manifest.model_copy(update=changed))


def _other_phantom(trained: TrainedRun, patients: int, seed: int) -> tuple[Cohort, tuple[float, float, float] | None]:
    """Simulated patients whom nothing has learned from, and their spacing where it is that of all."""
    start = trained.experiment.pretrain or PublicPatients()
    chosen = PublicPatients(patients=patients, scanners=min(start.scanners, patients), seed=seed)
    cohort = public_patients(chosen, trained.experiment.data.size_px, fold(seed, "phantom that is handed out"))
    spacings = {record.spacing_mm for record in cohort.patients}
    return cohort, spacings.pop() if len(spacings) == 1 else None  # scanners differ in their slices


def _simulated(
    cohort: Cohort,
    spacing: tuple[float, float, float] | None,
    label: Callable[[Volume], np.ndarray] = lambda volume: np.asarray(volume.mask),
) -> Iterator[Case]:
    for number in range(len(cohort)):
        name = f"phantom-{number + 1:04d}"
        for volume in cohort.volumes(number):
            case, mask = f"{name}_{volume.phase.name}", label(volume)
            yield Case(case, name, volume.phase, volume.image, mask, spacing, "phantom")


def _spacing(trained: TrainedRun) -> tuple[float, float, float] | None:
    """Spacing of what is drawn: as the recipe states it, or as preparation fixed it for all patients of the cohorts."""
    config = trained.experiment.synthesis
    if config.pixel_mm:
        return (config.pixel_mm, config.pixel_mm, config.slice_spacing_mm)
    if trained.experiment.privacy.private:  # whether all patients have a spacing is a fact about patients
        return None
    if not (trained.run_dir / "sites").is_dir():  # patients are elsewhere
        return None
    site = read_model(trained.run_dir / "sites" / "00" / "site.json", SiteRecord)
    records = Cohort.open(site.cohort).patients
    in_plane = {record.spacing_mm[:2] if record.spacing_mm else None for record in records}
    if len(in_plane) != 1 or None in in_plane:
        return None
    row, column = in_plane.pop()  # type: ignore[misc]
    return (row, column, config.slice_spacing_mm)


def _draw_paired(trained: TrainedRun, holdout: Cohort) -> None:
    """Write images drawn for the masks of hold-out patients, under pseudonyms."""
    config = trained.experiment.synthesis
    manifest = trained.manifest("paired", patients=len(holdout), seed=config.seed)
    manifest = manifest.model_copy(update={"privacy": PAIRED, "real_content": ("masks",)})
    with track("synthesis: images of hold-out masks", len(holdout.rows)) as bar:
        cases: Iterator[Case] = pair_with(
            trained.generator("image"),
            holdout,
            config,
            seed=config.seed,
            style_names=manifest.styles,
            on_slices=bar.advance,
        )
        write_dataset(trained.run_dir / "paired", cases, manifest)


def _reconstruct(trained: TrainedRun, holdout: Cohort) -> None:
    """Write hold-out images as the autoencoder leaves them: what it loses bounds all that is drawn."""
    experiment = trained.experiment
    manifest = trained.manifest("reconstructed", patients=len(holdout), seed=experiment.seed)
    manifest = manifest.model_copy(update={"privacy": RECONSTRUCTED, "real_content": ("masks", "images")})
    with track("synthesis: hold-out images through the autoencoder", len(holdout.rows)) as bar:
        cases = reconstruct(trained.generator("image"), holdout, experiment.synthesis.batch_size, on_slices=bar.advance)
        write_dataset(trained.run_dir / "reconstructed", cases, manifest)
