"""Finished runs of tiny generators with random weights: 16 px, one synthetic patient or two, made-up numbers."""

from pathlib import Path

import numpy as np

from cmrfed.config.experiment import resolve
from cmrfed.core.artifacts import digest_json, write_json
from cmrfed.data.labels import Phase
from cmrfed.data.synthetic import NOT_PRIVATE, Case, Manifest
from cmrfed.evaluation.results.catalogue import metric, unavailable
from cmrfed.evaluation.results.result import Estimate, EvaluationReport, Metric
from cmrfed.generators.settings import FlowConfig, GeneratorSettings, SamplerConfig
from cmrfed.synthesis.settings import SynthesisConfig
from cmrfed.synthesis.two_stage import draw_images, image_seed
from cmrfed.synthesis.write import write_dataset
from tests.generator_world import SIZE_PX, blob_cohort, ddpm, heart, tiny_generator

SITES = ("north", "south", "west")
SYNTHESIS = {"patients": 2, "seed": 7, "precision": "fp32"}
FAMILIES = {"DDPM": ("pixel", "ddpm"), "FM": ("pixel", "flow"), "LDM": ("latent", "ddpm")}
KID = {"arm": "synthetic", "space": "phantom-cnn-v1"}
METRICS = (
    metric("fidelity.kid", Estimate(0.123456789, 0.1, 0.2), KID, n=9, reference=0.05),
    metric("fidelity.kid", 0.05, {**KID, "arm": "training"}, n=9),
    unavailable("fidelity.lpips", "no backbone. Do: give one", {"arm": "paired"}),
    metric("utility.dice", Estimate(0.7, 0.6, 0.8), {"arm": "synthetic", "test": "far away", "structure": "lv"}, n=4),
    metric("memorisation.constant-images", 0.0, n=2),
)


def write_run(folder: Path, label: str = "FM", *, name: str = "tiny", metrics: tuple[Metric, ...] = METRICS) -> Path:
    """A run of that family; its split is that of ``blob_cohort(…, patients=4)`` with two held out."""
    codec, kind = FAMILIES[label]
    sampler = SamplerConfig(name="euler" if kind == "flow" else "ddim", steps=5)
    generator = tiny_generator(codec, ddpm() if kind == "ddpm" else FlowConfig(), sampler=sampler)
    generator.save(folder / "generators" / "image")
    _write_synthetic(folder / "synthetic", generator)
    settings = generator.config.model_dump(mode="json", include=set(GeneratorSettings.model_fields))
    tree = {
        "name": name,
        "data": {"cohorts": ["somewhere"], "size_px": SIZE_PX},
        "mask": {"training": {"rounds": 3}, "generator": {"backbone": settings["backbone"]}},
        "image": {"training": {"rounds": 4}, "generator": settings},
        "pretrain": {"mask": None, "image": None, "autoencoder": {}} if codec == "latent" else None,
        "synthesis": SYNTHESIS,
    }
    recipe = resolve(tree).model_dump(mode="json")
    record = {"experiment": recipe, "digest": digest_json([label, recipe]), "finished": "2026-01-02T10:05:10+00:00"}
    write_json(folder / "run.json", record | {"sites": [{"name": site, "patients": 5} for site in SITES]})
    EvaluationReport(metrics=metrics, sizes={"training": 2, "hold-out": 2, "synthetic": 2}).write(folder / "evaluation")
    return folder


def _write_synthetic(folder: Path, generator) -> None:
    cases = []
    for number in range(2):
        masks = [_masks(number, phase) for phase in Phase]
        images = draw_images(
            generator, masks, list(Phase), [number, number], SynthesisConfig(**SYNTHESIS), [image_seed(7, number)] * 2
        )
        for phase, mask, image in zip(Phase, masks, images, strict=True):
            patient = f"syn-{number + 1:04d}"
            cases.append(Case(f"{patient}_{phase.name}", patient, phase, image, mask, None, SITES[number]))
    manifest = Manifest(
        name="tiny", patients=2, seed=7, generators={}, size_px=SIZE_PX, styles=SITES, privacy=NOT_PRIVATE
    )
    write_dataset(folder, iter(cases), manifest)


def _masks(number: int, phase: Phase):

    return np.stack([heart(number, phase, z / 3) for z in range(4)])


def write_split(runs, cohort_folder: Path):
    """A cohort of four patients, and in each run a split that holds out the last two."""
    cohort = blob_cohort(cohort_folder)
    split = {"cohort": cohort.digest, "train": cohort.patient_ids[:2], "holdout": cohort.patient_ids[2:]}
    for run in runs:
        write_json(run / "split.json", {k: v if k == "cohort" else list(v) for k, v in split.items()})
    return cohort
