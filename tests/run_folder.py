"""A made-up run folder, as `cmrfed run` leaves it: for tests of the report. Its numbers mean nothing."""

from pathlib import Path

import numpy as np

from cmrfed.config.experiment import resolve
from cmrfed.core.artifacts import write_json
from cmrfed.data.labels import Label, Phase
from cmrfed.data.pictures import enlarge, grey, outlined, save_png, sheet
from cmrfed.data.synthetic import NOT_PRIVATE, Case, Manifest
from cmrfed.evaluation.results.catalogue import metric, series, unavailable
from cmrfed.evaluation.results.result import Estimate, EvaluationReport, Metric, Notice, Series, Verdict
from cmrfed.synthesis.write import write_dataset

SITES = {"site-0": {"DCM": 5, "NOR": 2}, "site-1": {"HCM": 6}, "site-2": {"MINF": 4, "RV": 3}}


def heart(random: np.random.Generator, size: int = 64, radius: float = 9.0) -> tuple[np.ndarray, np.ndarray]:
    """A ring and a crescent with noise: image (H, W) in [-1, 1] and mask (H, W)."""
    y, x = np.mgrid[:size, :size] - size / 2
    inner = radius + random.normal(0, 0.7)
    from_lv, from_rv = np.hypot(x - 4, y), np.hypot(x + 7, y)
    mask = np.zeros((size, size), np.uint8)
    mask[from_rv < inner + 5] = Label.RV
    mask[from_lv < inner + 5] = Label.MYO
    mask[from_lv < inner] = Label.LV
    level = np.array([-0.6, 0.6, -0.1, 0.8])[mask]
    return np.clip(level + random.normal(0, 0.08, mask.shape), -1, 1).astype(np.float32), mask


def _write_rounds(folder: Path, random: np.random.Generator) -> None:
    for stage, rounds in (("mask", 8), ("image", 12)):
        for number in range(1, rounds + 1):
            sites = {}
            for site in SITES:
                loss = 1.1 * np.exp(-number / 3) + 0.05 + random.uniform(0, 0.03)
                sites[site] = {"loss": loss, "first_loss": loss * 1.1, "last_loss": loss * 0.9, "items": 320}
                sites[site] |= {"seconds": 4.2, "status": "ok", "reason": None}
            if stage == "image" and number == 5:
                sites["site-1"] = {"loss": None, "status": "missing", "reason": "no reply within 60 s"}
            entry = {"stage": stage, "round": number, "seconds": 13.0, "sites": sites}
            write_json(
                folder / stage / f"round-{number:04d}" / "metrics.json",
                entry | {"bytes_down": 5_000_000, "bytes_up": 5_000_000},
            )


def _write_synthetic(folder: Path, random: np.random.Generator) -> None:
    def cases():
        for number in range(1, 4):
            for phase in Phase:
                slices = [heart(random, radius=9 - 2 * phase - z * 0.6) for z in range(8)]
                image, mask = (np.stack(part) for part in zip(*slices, strict=True))
                name = f"syn-{number:04d}"
                yield Case(f"{name}_{phase.name}", name, phase, image, mask, None, "site-0")

    manifest = Manifest(
        name="made-up",
        patients=3,
        seed=1,
        generators={"mask": "ab" * 32, "image": "cd" * 32},
        size_px=64,
        privacy=NOT_PRIVATE,
    )
    write_dataset(folder, cases(), manifest)


def write_run_folder(folder: Path) -> Path:
    """Write a finished run with an evaluation; returns the folder."""
    random = np.random.default_rng(0)
    _write_rounds(folder, random)
    _write_synthetic(folder / "synthetic", random)
    _write_run(folder)
    _write_evaluation(folder / "evaluation", random)
    return folder


def _write_run(folder: Path) -> None:
    training = {"rounds": 8, "local_steps": 20}
    flow = {"process": {"kind": "flow"}, "sampler": {"name": "euler", "steps": 20, "guidance_scale": 1.0}}
    ddpm = {"process": {"kind": "ddpm"}, "sampler": {"name": "dpm++", "steps": 20, "guidance_scale": 1.5}}
    recipe = {
        "name": "made-up",
        "data": {"cohorts": ["somewhere"]},
        "federation": {"strategy": {"name": "fedprox"}},
        "mask": {"generator": flow, "training": training},
        "image": {"generator": ddpm | {"condition_dropout": 0.1}, "training": training},
    }
    write_json(
        folder / "run.json",
        {
            "experiment": resolve(recipe).model_dump(mode="json"),
            "digest": "0123456789abcdef" * 4,
            "versions": {"cmrfed": "0.1.0", "torch": "2.13.0", "flwr": "1.41.0"},
            "started": "2026-01-02T10:00:00+00:00",
            "finished": "2026-01-02T10:05:10+00:00",
            "timings_s": {"data": 4.0, "mask": 80.2, "image": 130.9, "synthesis": 31.0, "evaluation": 70.0},
            "peak_memory_mb": 1312,
            "sites": [{"name": s, "patients": sum(g.values()), "groups": g} for s, g in SITES.items()],
            "split": {"train": 20, "holdout": 10},
        },
    )


def _write_evaluation(folder: Path, random: np.random.Generator) -> None:
    hearts = [heart(random) for _ in range(16)]
    rows = [
        row
        for part in (hearts[:8], hearts[8:])
        for row in ([enlarge(grey(i), 2) for i, _ in part], [enlarge(outlined(i, m), 2) for i, m in part])
    ]
    for name in ("synthetic", "holdout"):
        save_png(folder / "pictures" / f"{name}.png", sheet(rows))
    EvaluationReport(
        metrics=_metrics(),
        warnings=(Notice(text="Only 10 patients are held out: intervals are wide."),),
        series=_series(random),
        sizes={"train": 20, "holdout": 10, "synthetic": 3},
        verdicts=_verdicts(),
    ).write(folder)


def _verdicts() -> tuple[Verdict, ...]:
    return (
        Verdict(axis="fidelity", level="fair", word="Fair", text="KID is 0.0123; real patients have 0.0010.",
                rule="Good up to 0.001, fair up to 0.02."),
        Verdict(axis="anatomy", level="good", word="Good", text="97 % of the masks have a closed myocardium.",
                rule="Good from 95 %."),
        Verdict(axis="memorisation", level="none-found", word="No sign of copying found",
                text="2 % copies. This is no guarantee of privacy."),
        Verdict(axis="utility", level="poor", word="Poor", text="0.70 of the Dice of one trained on real images.",
                rule="Poor below 0.9."),
    )  # fmt: skip


def _metrics() -> tuple[Metric, ...]:
    def of(**qualifiers: str) -> dict[str, str]:
        return qualifiers

    floor = "reference: one half of the real images against the other"
    return (
        metric("fidelity.kid", Estimate(0.0123, 0.01, 0.015), of(arm="synthetic", space="phantom-cnn-v1"), n=120,
               reference=0.001, detail=floor),
        metric("fidelity.ssim", Estimate(0.412, 0.39, 0.43), of(arm="paired"), n=10,
               detail="mean over slices of the hold-out patients"),
        unavailable("fidelity.lpips", "there are no backbone weights on this machine. "
                    "Do: name a file with evaluation.lpips_backbone", of(arm="paired")),
        metric("anatomy.closed-rings", 0.97, of(arm="synthetic"), n=48, reference=0.99),
        metric("memorisation.nearer-to-training", Estimate(0.52, 0.4, 0.64), of(space="pixels"), n=48, reference=0.5,
               detail="0.5 is expected when nothing is remembered"),
        metric("utility.dice", Estimate(0.802, 0.76, 0.84), of(arm="real", test="holdout"), n=10),
        metric("utility.dice", Estimate(0.786, 0.74, 0.82), of(arm="synthetic", test="holdout"), n=10,
               reference=0.802, detail="mean over structures; 3 seed(s), 0.781 to 0.792"),
    )  # fmt: skip


def _series(random: np.random.Generator) -> tuple[Series, ...]:
    def some(mean: float, spread: float, count: int) -> list[float]:
        return random.normal(mean, spread, count).tolist()

    dice = {"real": some(0.8, 0.05, 10), "synthetic": some(0.78, 0.05, 10), "both": some(0.83, 0.04, 10)}
    areas = {"holdout": some(400, 60, 80), "synthetic": some(380, 70, 48)}
    near = {"synthetic-to-training": some(0.4, 0.05, 48), "synthetic-to-holdout": some(0.41, 0.05, 48)}
    return (
        series("utility.dice-per-patient", dice, {"test": "holdout"}),
        series("anatomy.shape", areas, {"structure": "lv", "quantity": "area"}, unit="pixels"),
        series("memorisation.nearest-distance", near, {"space": "pixels"}),
    )
