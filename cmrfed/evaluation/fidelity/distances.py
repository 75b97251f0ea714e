"""Fidelity: do the images look real? Distances between distributions of features, and mask-paired images."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torchmetrics.functional.image import (
    learned_perceptual_image_patch_similarity,
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from cmrfed.core.device import HOST, to_device, to_host
from cmrfed.core.errors import EvaluationError
from cmrfed.data.spool import Spool, blocks, release
from cmrfed.data.synthetic import SyntheticDataset
from cmrfed.evaluation.features.extractors import Extractor
from cmrfed.evaluation.results.catalogue import metric, say, unavailable
from cmrfed.evaluation.results.result import Estimate, Findings, Metric, Notice, mean_interval
from cmrfed.evaluation.settings import FidelityConfig
from cmrfed.evaluation.slices import SliceSet, chosen_rows, rows_of, slices_of_synthetic

DATA_RANGE = 2.0
MS_SSIM_BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the five scales (Wang et al. 2003)."""
_GAUSSIAN_SIDE = 11
"""Side of SSIM's Gaussian window in pixels."""


# --- KID and FID --------------------------------------------------------------------------------
def kid_of(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018); it may be below 0.

    Args:
        x: (N, D) features.
        y: (M, D) features.
    """
    x, y, size = np.asarray(x, np.float64), np.asarray(y, np.float64), x.shape[1]
    xx, yy, xy = ((a @ b.T / size + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def subset_size(n: int, m: int) -> int:
    """Slices in a KID subset: half of the smaller set, at most 500."""
    return min(n // 2, m // 2, 500)


def kid(x: np.ndarray, y: np.ndarray, subsets: int, rng: np.random.Generator) -> float:
    """Mean of :func:`kid_of` over random subsets of both sets, (N, D) and (M, D)."""
    size = subset_size(len(x), len(y))
    draws = [(rng.choice(len(x), size, False), rng.choice(len(y), size, False)) for _ in range(subsets)]
    return float(np.mean([kid_of(x[i], y[j]) for i, j in draws]))


def _root(x: np.ndarray) -> np.ndarray:
    """R (min(N, D), D) with R'R = the covariance of x (N, D)."""
    return np.linalg.qr(x - x.mean(0), mode="r") / np.sqrt(len(x) - 1)


def fid_of(x: np.ndarray, y: np.ndarray) -> float:
    """Frechet distance of two normal distributions fitted to the features (Heusel et al. 2017, equation 6).

    The trace of the root of the product of covariances A'A and B'B is the sum of the singular values of AB',
    which needs neither a matrix root nor full rank.

    Args:
        x: (N, D) features.
        y: (M, D) features.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    a, b = _root(x), _root(y)
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * cross)


def _half_of_patients(owners: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows (K,) of a random half of the patients."""
    patients = np.unique(owners)
    kept = rng.choice(patients, max(len(patients) // 2, 1), replace=False)
    return np.flatnonzero(np.isin(owners, kept))


def half_sample_interval(
    value: float,
    statistic: Callable[[np.ndarray, np.ndarray], float],
    x: tuple[np.ndarray, np.ndarray],
    y: tuple[np.ndarray, np.ndarray],
    draws: int,
    rng: np.random.Generator,
) -> tuple[float | None, float | None]:
    """95 % interval from random halves of the patients of both sets (delete-half jackknife, Shao and Wu 1989).

    What a statistic does over halves drawn without replacement spreads as the statistic itself does over new
    samples; resampling with replacement would repeat slices, which biases KID and FID. The spread is centred on
    ``value``, because FID is larger on halves.

    Args:
        value: The statistic of the whole sets.
        statistic: Two feature arrays => number.
        x: Features (N, D) and owners (N,).
        y: Features (M, D) and owners (M,).
        draws: Number of halves.
        rng: Source of randomness.
    """
    if min(len(np.unique(x[1])), len(np.unique(y[1]))) < 4:
        return None, None
    out = []
    for _ in range(draws):
        i, j = _half_of_patients(x[1], rng), _half_of_patients(y[1], rng)
        if min(len(i), len(j)) >= 2:
            out.append(statistic(x[0][i], y[0][j]))
    low, high = np.percentile(np.array(out) - np.mean(out), [2.5, 97.5])
    return value + float(low), value + float(high)


def _capped(x: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    return x if len(x) <= size else x[rng.choice(len(x), size, False)]


Features = Mapping[str, np.ndarray]


def _kid_metric(
    about: Mapping[str, str],
    x: SliceSet,
    y: SliceSet,
    features: Features,
    reference: float | None,
    config: FidelityConfig,
    seed: int,
) -> Metric:
    rng = np.random.default_rng(seed)
    fx, fy = features[x.name], features[y.name]
    value = kid(fx, fy, config.subsets, rng)

    def on_half(a: np.ndarray, b: np.ndarray) -> float:
        return kid_of(_capped(a, 500, rng), _capped(b, 500, rng))

    halves = (fx, x.owners), (fy, y.owners)
    size = subset_size(len(x), len(y))
    return metric(
        "fidelity.kid",
        Estimate(value, *half_sample_interval(value, on_half, *halves, config.subsets, rng)),
        about,
        n=min(len(x), len(y)),
        reference=reference,
        detail=f"{len(x)} against {len(y)} slices; mean over {config.subsets} subsets of {size}; "
        "interval from halves of the patients; reference: training against hold-out patients",
    )


def _fid_metric(
    about: Mapping[str, str],
    x: SliceSet,
    y: SliceSet,
    features: Features,
    size: int,
    config: FidelityConfig,
    seed: int,
) -> Metric:
    rng = np.random.default_rng(seed)
    i, j = (rng.choice(len(s), size, False) for s in (x, y))
    fx, fy = features[x.name][i], features[y.name][j]
    value = fid_of(fx, fy)
    halves = (fx, x.owners[i]), (fy, y.owners[j])
    return metric(
        "fidelity.fid",
        Estimate(value, *half_sample_interval(value, fid_of, *halves, config.fid_halves, rng)),
        about,
        n=size,
        detail=f"N = {size} slices of each set, D = {fx.shape[1]}; biased upwards at small N: compare only with its "
        "reference (training against hold-out patients at the same N)",
    )


def _blurred(slices: SliceSet) -> np.ndarray:
    """The images after a 3 x 3 mean: a yardstick of visible loss."""
    spool = Spool(slices.images.shape[1:], np.float32, slices.scratch)
    for _, block in blocks(slices.images):
        padded = torch.nn.functional.pad(torch.from_numpy(block)[:, None], (1, 1, 1, 1), mode="replicate")
        spool.add(torch.nn.functional.avg_pool2d(padded, 3, 1)[:, 0].numpy())
    return spool.array()


def distribution_metrics(
    synthetic: SliceSet,
    train: SliceSet,
    holdout: SliceSet,
    features: Features,
    extractor: Extractor,
    config: FidelityConfig,
    seed: int = 0,
) -> Findings:
    """KID and FID of the synthetic set against the hold-out, beside what real patients get.

    Args:
        synthetic: The set to evaluate.
        train: Patients that the generators learned from.
        holdout: Patients that nothing has learned from.
        features: Name of a set => its features (N, D).
        extractor: Where the features came from; also used on a blurred copy of ``train``.
        config: Number of subsets and halves.
        seed: Decides subsets and halves.
    """
    made, real, worse = ({"arm": a, "space": extractor.name} for a in ("synthetic", "training", "blurred-training"))
    smallest = min(len(synthetic), len(train), len(holdout))
    if smallest < 4:
        reason = f"too few slices: {smallest}. Do: give at least 4 of each set, better several hundred"
        keys = ("fidelity.kid", "fidelity.fid")
        return Findings(metrics=tuple(unavailable(k, reason, made) for k in keys))
    spoilt = {**features, train.name: extractor(_blurred(train))}
    floor = _kid_metric(real, train, holdout, features, None, config, seed)
    blurred = _kid_metric(worse, train, holdout, spoilt, None, config, seed)
    found = _kid_metric(made, synthetic, holdout, features, floor.value, config, seed)
    least = _fid_metric(real, train, holdout, features, smallest, config, seed)
    fid = _fid_metric(made, synthetic, holdout, features, smallest, config, seed)
    fid = fid.model_copy(update={"reference": least.value})
    yardsticks = [m.model_copy(update={"higher_is_better": None}) for m in (floor, blurred, least)]
    return Findings(metrics=(found, fid, *yardsticks))


# --- paired images ------------------------------------------------------------------------------
def ms_ssim_betas(side_px: int) -> tuple[float, ...]:
    """Weights of the scales that an image of this side has room for, made to sum to 1."""
    scales = 1
    while scales < len(MS_SSIM_BETAS) and _room(side_px, scales + 1):
        scales += 1
    kept = np.array(MS_SSIM_BETAS[:scales])
    return tuple((kept / kept.sum()).tolist())


def _room(side_px: int, scales: int) -> bool:
    """Does the coarsest scale hold SSIM's window, and does torchmetrics (which asks for more) take it?"""
    return side_px >> (scales - 1) >= _GAUSSIAN_SIDE and side_px // (scales - 1) ** 2 >= _GAUSSIAN_SIDE


PAIRED = ("psnr", "ssim", "ms-ssim")
"""Measures of a pair of images."""
PAIRED_BATCH = 32
"""Pairs that are compared at a time: SSIM's moments are several float arrays of the size of all images at hand."""


def paired_values(real: np.ndarray, made: np.ndarray) -> dict[str, np.ndarray]:
    """PSNR in dB, SSIM and MS-SSIM of each pair; PSNR of identical images is infinite.

    Args:
        real: (N, H, W) in [-1, 1].
        made: (N, H, W) in [-1, 1].
    """
    return _in_pairs(_paired_batch, real, made)


def _in_pairs(
    measure: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]], real: np.ndarray, made: np.ndarray
) -> dict[str, np.ndarray]:
    """What is measured of pairs, a batch of them at a time."""
    parts = []
    for start in range(0, len(real), PAIRED_BATCH):
        parts.append(measure(real[start : start + PAIRED_BATCH], made[start : start + PAIRED_BATCH]))
        release(real)
        release(made)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _paired_batch(real: np.ndarray, made: np.ndarray) -> dict[str, np.ndarray]:
    target, found = (torch.from_numpy(np.asarray(a, np.float32))[:, None] for a in (real, made))
    betas = ms_ssim_betas(real.shape[-1])
    options = {"data_range": DATA_RANGE, "reduction": "none"}
    psnr = peak_signal_noise_ratio(found, target, dim=(1, 2, 3), **options)  # type: ignore[arg-type]
    ssim = structural_similarity_index_measure(found, target, **options)  # type: ignore[arg-type]
    multi = multiscale_structural_similarity_index_measure(found, target, betas=betas, **options)  # type: ignore[arg-type]
    return {name: np.asarray(v) for name, v in zip(PAIRED, (psnr, ssim, multi), strict=True)}


def _unavailable(reason: str, arm: str) -> Findings:
    return Findings(metrics=tuple(unavailable(f"fidelity.{m}", reason, {"arm": arm}) for m in (*PAIRED, "lpips")))


def _match(made: SliceSet, holdout: SliceSet) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ``holdout`` and of ``made`` that show the same slice of the same patient and phase."""
    ours, theirs, held = [], [], rows_of(holdout.cases)
    for case, j in rows_of(made.cases).items():
        i = held.get(holdout.pseudonyms.get(case, case), np.zeros(0, int))
        if len(i) != len(j):
            raise EvaluationError(
                f"paired case {case} does not fit the hold-out",
                got=f"{len(j)} slices",
                expected=f"{len(i)} slices, as the hold-out has",
                do="make the paired images from the masks of this hold-out",
            )
        ours.append(i)
        theirs.append(j)
    return np.concatenate(ours), np.concatenate(theirs)


def paired_metrics(paired: Path | None, holdout: SliceSet, lpips_weights: str | None, arm: str = "paired") -> Findings:
    """Compare made images with the hold-out's own, slice by slice; intervals over patients.

    Args:
        paired: SyntheticDataset with cases named ``<patient>_<ED|ES>``, made from the hold-out's masks, or None; the
            patient by its identifier or its pseudonym (`Cohort.pseudonym`).
        holdout: Patients that nothing has learned from.
        lpips_weights: Folder with torchvision's AlexNet for LPIPS, or None.
        arm: How the images were made: from the masks (``paired``), or by an autoencoder (``reconstruction``).

    Raises:
        EvaluationError: A case is not in the hold-out, or has another number of slices.
    """
    if paired is None or not (paired / "manifest.json").is_file():
        return _unavailable(
            "no images were made from the hold-out's own masks. Do: `cmrfed run` writes them to RUN_DIR/paired; "
            "give that folder with --paired",
            arm,
        )
    made = slices_of_synthetic(SyntheticDataset.open(paired), holdout.images.shape[-1], holdout.scratch)
    i, j = _match(made, holdout)
    real, drawn = (chosen_rows(s.images, rows, holdout.scratch) for s, rows in ((holdout, i), (made, j)))
    owners = holdout.owners[i]
    values = paired_values(real, drawn)
    identical = ~np.isfinite(values["psnr"])
    values["psnr"] = np.where(identical, np.nan, values["psnr"])
    scales = len(ms_ssim_betas(real.shape[-1]))
    detail = {"ms-ssim": f"{scales} scales fit {real.shape[-1]} px (the original has 5), weights renormalised; "}
    metrics = tuple(_paired_metric(name, v, owners, detail.get(name, ""), arm) for name, v in values.items())
    warning = Notice(text=say("identical-pairs", count=identical.sum()))
    return Findings(
        metrics=(*metrics, lpips_metric(real, drawn, owners, lpips_weights, arm, holdout.device)),
        warnings=(warning,) if identical.any() else (),
    )


def _paired_metric(measure: str, values: np.ndarray, owners: np.ndarray, detail: str, arm: str) -> Metric:
    finite = np.isfinite(values)
    patients = [values[finite & (owners == p)].mean() for p in np.unique(owners[finite])]
    if not patients:
        reason = "all paired images equal the real ones. Do: check that --paired is not the hold-out itself"
        return unavailable(f"fidelity.{measure}", reason, {"arm": arm})
    return metric(
        f"fidelity.{measure}",
        mean_interval(np.array(patients)),
        {"arm": arm},
        n=len(patients),
        detail=f"{detail}{int(finite.sum())} slices, mean per patient, interval over patients",
    )


def lpips_metric(
    real: np.ndarray,
    made: np.ndarray,
    owners: np.ndarray,
    weights: str | None,
    arm: str,
    device: torch.device = HOST,
) -> Metric:
    """LPIPS with the AlexNet backbone (Zhang et al. 2018), or why there is none; never with random weights."""
    key = "fidelity.lpips"
    if weights is None:
        reason = (
            "its AlexNet backbone is a download and none was given. Do: pip install 'cmrfed[lpips]', put "
            "torchvision's alexnet-owt-7be5be79.pth into FOLDER/checkpoints, and set evaluation.lpips_weights=FOLDER"
        )
        return unavailable(key, reason, {"arm": arm})
    file = Path(weights) / "checkpoints" / "alexnet-owt-7be5be79.pth"
    if not file.is_file():
        return unavailable(key, f"{file} is missing. Do: put the weights there", {"arm": arm})
    torch.hub.set_dir(weights)
    try:
        values = _in_pairs(partial(_lpips_batch, device), real, made)["lpips"]
    except ImportError as error:
        return unavailable(key, f"{error}. Do: pip install 'cmrfed[lpips]'", {"arm": arm})
    return _paired_metric("lpips", values, owners, "AlexNet; ", arm)


@torch.no_grad()
def _lpips_batch(device: torch.device, real: np.ndarray, made: np.ndarray) -> dict[str, np.ndarray]:
    x, y = (to_device(_rgb(images), device) for images in (made, real))
    values = learned_perceptual_image_patch_similarity(x, y, net_type="alex", reduction="none")
    return {"lpips": np.atleast_1d(to_host(values).double().numpy())}


def _rgb(images: np.ndarray) -> torch.Tensor:
    """Grey (B, H, W) in [-1, 1] => (B, 3, H, W)."""
    return torch.from_numpy(np.clip(images, -1, 1).astype(np.float32))[:, None].expand(-1, 3, -1, -1)
