"""Anatomy: are the shapes of the masks those of real hearts?"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from scipy.ndimage import binary_dilation, binary_fill_holes
from scipy.stats import wasserstein_distance
from skimage.measure import euler_number, label, perimeter_crofton, regionprops

from cmrfed.data.labels import STRUCTURES, Label
from cmrfed.data.spool import blocks
from cmrfed.evaluation.anatomy.clinical import UNITS, patient_quantities
from cmrfed.evaluation.anatomy.comparison import Samples, differing_metric
from cmrfed.evaluation.results.catalogue import metric, series, unavailable, unit_words
from cmrfed.evaluation.results.result import Estimate, Findings, Metric, mean_interval
from cmrfed.evaluation.settings import AnatomyConfig
from cmrfed.evaluation.slices import SliceSet

SHAPES = ("area", "eccentricity", "roundness", "solidity")
_UNITS = {"area": "pixels", "eccentricity": "fraction", "roundness": "fraction", "solidity": "fraction"}


# --- shapes of a slice --------------------------------------------------------------------------
def shape_of(region: np.ndarray) -> dict[str, float]:
    """Area in pixels, eccentricity, roundness 4 pi A / P^2 (Crofton perimeter) and solidity of a bool (H, W) region."""
    found = regionprops(region.astype(np.uint8))[0]
    perimeter = perimeter_crofton(region, directions=4)
    return {
        "area": float(found.area),
        "eccentricity": float(found.eccentricity),
        "roundness": float(min(4 * np.pi * found.area / perimeter**2, 1.0)),
        "solidity": float(found.solidity),
    }


def outline_of(mask: np.ndarray, structure: Label) -> np.ndarray:
    """The region (H, W) whose shape stands for a structure; of the myocardium it is the filled epicardial outline."""
    if structure is Label.MYO:
        return binary_fill_holes((mask == Label.MYO) | (mask == Label.LV))
    return mask == structure


def shapes_of_slice(mask: np.ndarray, minimum_px: int) -> dict[tuple[Label, str], float]:
    """Shape numbers of each structure of a mask (H, W) that is large enough."""
    out: dict[tuple[Label, str], float] = {}
    for structure in STRUCTURES:
        own = int((mask == structure).sum())
        if own >= minimum_px:
            shape = shape_of(outline_of(mask, structure)) | {"area": float(own)}
            out |= {(structure, name): value for name, value in shape.items()}
    return out


def ring_closed(mask: np.ndarray) -> bool | None:
    """Is the myocardium one ring around the LV cavity (Euler number 0)? None without both on the slice."""
    myocardium = mask == Label.MYO
    if not myocardium.any() or not (mask == Label.LV).any():
        return None
    return bool(euler_number(myocardium, connectivity=2) == 0)


def valid_slice(mask: np.ndarray) -> bool | None:
    """Does a mask follow the rules of anatomy? None on a slice without any structure.

    Each structure is one piece, the LV cavity touches nothing but myocardium, and the RV is not without a heart
    (there is a myocardium wherever there is an RV).
    """
    if not mask.any():
        return None
    whole = all(label(mask == s, connectivity=2).max() <= 1 for s in STRUCTURES)
    cavity = mask == Label.LV
    around = binary_dilation(cavity) & ~cavity
    enclosed = bool((mask[around] == Label.MYO).all())
    return whole and enclosed and bool((mask == Label.MYO).any())


# --- patients -----------------------------------------------------------------------------------
def _each(masks: np.ndarray) -> Iterator[np.ndarray]:
    for _, block in blocks(masks):
        yield from block


def _per_patient(slices: SliceSet, of_slice: Callable[[np.ndarray], bool | None]) -> np.ndarray:
    """Mean over each patient's slices of a yes-or-no question, (P,); patients without an answer are left out."""
    answers: dict[str, list[bool]] = {}
    for mask, owner, known in zip(_each(slices.masks), slices.owners, slices.has_mask, strict=True):
        answer = of_slice(mask) if known else None
        if answer is not None:
            answers.setdefault(str(owner), []).append(answer)
    return np.array([np.mean(answers[p]) for p in sorted(answers)])


def patient_shapes(slices: SliceSet, minimum_px: int) -> dict[tuple[Label, str], np.ndarray]:
    """Structure and shape number => mean of each patient that has it, (P,)."""
    values: dict[tuple[Label, str], dict[str, list[float]]] = {}
    for mask, owner in zip(_each(slices.masks), slices.owners, strict=True):
        for key, value in shapes_of_slice(mask, minimum_px).items():
            values.setdefault(key, {}).setdefault(str(owner), []).append(value)
    return {key: np.array([np.mean(v) for v in owners.values()]) for key, owners in values.items()}


def _distance(x: np.ndarray, y: np.ndarray, draws: int, seed: int) -> Estimate:
    """Wasserstein-1 distance and its 95 % bootstrap interval over patients of both sets."""
    value = float(wasserstein_distance(x, y))
    if min(len(x), len(y)) < 2:
        return Estimate(value, None, None)
    rng = np.random.default_rng(seed)
    drawn = [wasserstein_distance(rng.choice(x, len(x)), rng.choice(y, len(y))) for _ in range(draws)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(value, float(min(low, value)), float(max(high, value)))


def _shape_metric(
    key: tuple[Label, str], synthetic: np.ndarray, train: np.ndarray, holdout: np.ndarray, config: AnatomyConfig
) -> Metric:
    """Wasserstein distance to the hold-out in standard deviations over hold-out patients."""
    structure, shape = key
    spread = float(holdout.std()) if len(holdout) > 1 else 0.0
    of = {"structure": structure.name.lower(), "quantity": shape}
    if not len(synthetic) or not spread:
        reason = (
            "no synthetic patient has it" if not len(synthetic) else "it does not vary over the hold-out's patients"
        )
        return unavailable("anatomy.shape-distance", f"{reason}. Do: give more patients with this structure", of)
    return metric(
        "anatomy.shape-distance",
        _distance(synthetic / spread, holdout / spread, config.bootstrap_draws, 0),
        of,
        n=len(synthetic),
        reference=float(wasserstein_distance(train / spread, holdout / spread)) if len(train) else None,
        detail=f"Wasserstein-1 over patients' means ({unit_words(_UNITS[shape])}): synthetic {synthetic.mean():.3g}, "
        f"hold-out {holdout.mean():.3g}; reference: training against hold-out patients",
    )


def _share(measure: str, arm: str, detail: str, values: np.ndarray, reference: np.ndarray) -> Metric:
    key, of = f"anatomy.{measure}", {"arm": arm}
    if not len(values):
        return unavailable(key, "no slice has the structures. Do: check the masks", of)
    return metric(
        key,
        mean_interval(values),
        of,
        n=len(values),
        reference=float(reference.mean()) if len(reference) else None,
        detail=f"{detail}; mean per patient; reference: hold-out patients",
    )


def anatomy(synthetic: SliceSet, train: SliceSet, holdout: SliceSet, config: AnatomyConfig) -> Findings:
    """Compare the shapes of masks, patient by patient, with those of the hold-out.

    Args:
        synthetic: The set to evaluate.
        train: Patients that the generators learned from; gives the reference.
        holdout: Patients that nothing has learned from.
        config: Smallest structure and number of bootstrap draws.
    """
    shapes = [patient_shapes(s, config.minimum_area_px) for s in (synthetic, train, holdout)]
    none, metrics, plots = np.zeros(0), [], []
    for key in ((structure, shape) for structure in STRUCTURES for shape in SHAPES):
        mine, trained, held = (found.get(key, none) for found in shapes)
        if not len(held):
            continue  # the hold-out's annotators did not draw it
        metrics.append(_shape_metric(key, mine, trained, held, config))
        plots.append(
            series(
                "anatomy.shape",
                {"synthetic": mine, "training": trained, "holdout": held},
                {"structure": key[0].name.lower(), "quantity": key[1]},
                unit=_UNITS[key[1]],
            )
        )
    found = Findings(metrics=tuple(metrics), series=tuple(plots))
    if (Label.MYO, "area") in shapes[2]:
        found += _rules(synthetic, holdout)
    labels = [s for s in STRUCTURES if (s, "area") in shapes[2]]
    quantities = [patient_quantities(s, labels) for s in (synthetic, train, holdout)]
    made, trained_on, real = (_named(*pair) for pair in zip(shapes, quantities, strict=True))
    different = differing_metric(made, trained_on, real, config.permutations)
    return found + _function(made, trained_on, real, config) + Findings(metrics=(different,))


def _named(shapes: dict[tuple[Label, str], np.ndarray], quantities: Samples) -> Samples:
    """All that is compared over patients, under the names that a reader sees."""
    return {**{f"{structure.name} {shape}": v for (structure, shape), v in shapes.items()}, **quantities}


def _function(synthetic: Samples, train: Samples, holdout: Samples, config: AnatomyConfig) -> Findings:
    """Distributions of volumes, ejection fractions and mass, in their own units."""
    none, metrics, plots = np.zeros(0), [], []
    for quantity, held in holdout.items():
        if quantity not in UNITS:
            continue  # a shape
        mine, trained, unit = synthetic.get(quantity, none), train.get(quantity, none), UNITS[quantity]
        metrics.append(_quantity_metric(quantity, mine, trained, held, config))
        if unit in ("percent", "g"):
            groups = {"synthetic": mine, "training": trained, "holdout": held}
            plots.append(series("anatomy.clinical", groups, {"quantity": quantity}, unit=unit))
    if not any(UNITS.get(quantity) == "ml" for quantity in holdout):
        reason = "the hold-out's spacing is unknown. Do: prepare it from files whose headers hold the spacing"
        metrics.append(unavailable("anatomy.clinical-distance", reason, {"quantity": "volumes"}))
    return Findings(metrics=tuple(metrics), series=tuple(plots))


def _quantity_metric(
    quantity: str, synthetic: np.ndarray, train: np.ndarray, holdout: np.ndarray, config: AnatomyConfig
) -> Metric:
    key, of, unit = "anatomy.clinical-distance", {"quantity": quantity}, UNITS[quantity]
    if not len(synthetic):
        need = "masks at ED and ES" if unit == "percent" else "masks and a known spacing"
        return unavailable(key, f"no synthetic patient has it. Do: give {need}", of)
    return metric(
        key,
        _distance(synthetic, holdout, config.bootstrap_draws, 0),
        of,
        n=len(synthetic),
        unit="percentage-points" if unit == "percent" else unit,
        reference=float(wasserstein_distance(train, holdout)) if len(train) else None,
        detail=f"Wasserstein-1 over patients ({unit_words(unit)}): synthetic {synthetic.mean():.3g} (SD "
        f"{synthetic.std():.2g}), hold-out {holdout.mean():.3g} (SD {holdout.std():.2g}); reference: training",
    )


def _rules(synthetic: SliceSet, holdout: SliceSet) -> Findings:
    """How often the masks follow the rules of anatomy; asked only where the annotators drew the myocardium."""
    sets = {"synthetic": (synthetic, f"; after {synthetic.post_processing}" if synthetic.post_processing else "")}
    if synthetic.drawn is not None:
        sets["as-drawn"] = replace(synthetic, masks=synthetic.drawn), "; before any post-processing"
    return Findings(
        metrics=tuple(
            _share(measure, arm, rules + note, _per_patient(made, rule), _per_patient(holdout, rule))
            for arm, (made, note) in sets.items()
            for measure, rules, rule in (
                ("valid-masks", "each structure in one piece, the LV cavity enclosed by myocardium", valid_slice),
                ("closed-rings", "Euler number 0, where there is an LV cavity", ring_closed),
            )
        )
    )
