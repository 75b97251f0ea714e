"""FRD: the Fréchet distance of radiomic features, where their package is installed (Konz et al., arXiv 2412.01496).

The features are those of the package frd-score (version 1 of FRD; slice by slice, whole slices, one pixel taken as
1 mm). As there, they are standardised by the reference set, features that do not vary in it are left out, and FRD is
the logarithm of the squared Fréchet distance of normal distributions fitted to them.
"""

import importlib.metadata
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from cmrfed.core.artifacts import digest_json
from cmrfed.core.progress import track
from cmrfed.evaluation.features.extractors import KeptFeatures
from cmrfed.evaluation.fidelity.distances import fid_of, half_sample_interval
from cmrfed.evaluation.results.catalogue import metric, unavailable
from cmrfed.evaluation.results.result import Estimate, Findings, Metric
from cmrfed.evaluation.settings import FidelityConfig
from cmrfed.evaluation.slices import SliceSet

KEY, SPACE = "fidelity.frd", "radiomics"
INSTALL = "pip install --no-build-isolation pyradiomics==3.0.1 frd-score (a C compiler is needed)"
FEWEST = 10
"""Slices below which a covariance of hundreds of features says nothing."""


class RadiomicFeatures:
    """About 400 features of a slice, D; NaN where one has no value.

    Raises:
        ImportError: frd-score or pyradiomics is not installed.
    """

    name = "FRD (radiomics)"

    def __init__(self) -> None:
        from frd_score import frd

        self._package: Any = frd
        self._extractor = frd.get_feature_extractor("v1", image_dim=2)
        frd.setVerbosity(60)
        versions = [importlib.metadata.version(p) for p in ("frd-score", "pyradiomics")]
        self.digest = digest_json(versions)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See :class:`cmrfed.evaluation.features.extractors.Extractor`."""
        out = []
        with tempfile.TemporaryDirectory() as folder, track("evaluation: radiomics", len(images)) as bar:
            for image in images:
                out.append(self._of_one(image, Path(folder) / "slice.nii.gz"))
                bar.advance()
        return np.array(out, np.float64)

    def _of_one(self, image: np.ndarray, path: Path) -> list[float]:
        nib.save(nib.Nifti1Image(np.asarray(image, np.float32).T[..., None], np.eye(4)), path)
        return self._package.process_image_mask_pair((path, None), feature_extractor=self._extractor)[0]


def frd_of(x: np.ndarray, reference: np.ndarray) -> float:
    """FRD of features (N, D) against those of the reference set (M, D): lower is nearer."""
    sets = [part[np.isfinite(part).all(1)] for part in (x, reference)]
    mean, spread = sets[1].mean(0), sets[1].std(0)
    varying = spread > 1e-7 * np.maximum(np.abs(mean), 1)  # the rest would be divided by rounding errors
    one, two = ((part[:, varying] - mean[varying]) / spread[varying] for part in sets)
    return float(np.log(fid_of(one, two)))


def frd_metrics(
    synthetic: SliceSet, train: SliceSet, holdout: SliceSet, config: FidelityConfig, folder: Path, seed: int = 0
) -> Findings:
    """FRD of the synthetic set against the hold-out, beside what real patients get; or why there is none.

    Args:
        synthetic: The set to evaluate.
        train: Patients that the generators learned from.
        holdout: Patients that nothing has learned from, the reference.
        config: Most slices of each set, and half-samples behind an interval.
        folder: Where features are kept.
        seed: Decides slices and halves.
    """
    try:
        extractor = KeptFeatures(RadiomicFeatures(), folder)
    except ImportError as error:
        why = str(error).partition("\n")[0].strip().rstrip(".")
        return _unavailable(f"its package is not installed ({why}). Do: {INSTALL}")
    shown = [s.take(~s.constant) for s in (synthetic, train, holdout)]
    size = min(config.frd_slices, *map(len, shown))
    if size < FEWEST:
        return _unavailable(
            f"{size} slices of each set are too few. Do: give at least {FEWEST}, better several hundred"
        )
    rng = np.random.default_rng(seed)
    drawn = {s.name: s.take(np.sort(rng.choice(len(s), size, False))) for s in shown}
    features = {name: (extractor(s.images), s.owners) for name, s in drawn.items()}
    floor = _metric("training", features[train.name], features[holdout.name], config, rng)
    found = _metric("synthetic", features[synthetic.name], features[holdout.name], config, rng)
    found = found.model_copy(update={"reference": floor.value})
    return Findings(metrics=(found, floor.model_copy(update={"higher_is_better": None})))


def _unavailable(reason: str) -> Findings:
    return Findings(metrics=(unavailable(KEY, reason, {"arm": "synthetic", "space": SPACE}),))


Owned = tuple[np.ndarray, np.ndarray]
"""Features (N, D) and owners (N,)."""


def _metric(arm: str, x: Owned, y: Owned, config: FidelityConfig, rng: np.random.Generator) -> Metric:
    kept = [int(np.isfinite(part[0]).all(1).sum()) for part in (x, y)]
    if min(kept) < FEWEST:
        reason = f"only {min(kept)} slices have all features. Do: check that slices are not constant"
        return unavailable(KEY, reason, {"arm": arm, "space": SPACE})
    value = frd_of(x[0], y[0])
    return metric(
        KEY,
        Estimate(value, *half_sample_interval(value, frd_of, x, y, config.fid_halves, rng)),
        {"arm": arm, "space": SPACE},
        n=min(kept),
        detail=f"{kept[0]} against {kept[1]} slices, D = {x[0].shape[1]}; one pixel taken as 1 mm; biased upwards at "
        "small N: compare only with its reference (training against hold-out patients at the same N); interval from "
        "halves of the patients",
    )
