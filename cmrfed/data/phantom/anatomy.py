"""The parametric beating heart: two ventricles in closed surfaces, with known volumes.

Frame of the heart, in mm: the origin is the centre of the left ventricle (LV) in the end-diastolic base plane;
x to the right and y down the usual short-axis picture (front of the chest at -x, diaphragm at +y), z from base
to apex. A wall is a radius over angle and height; the right ventricle (RV) is an ellipse minus the LV.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.optimize import brentq

from cmrfed.data.labels import Phase

ANGLES = 256
MYOCARDIAL_DENSITY_G_ML = 1.05
TRACT_SCALE = 1.1
"""Scale of the right ventricle beyond which its outflow tract grows no further."""
GROUPS = ("NOR", "DCM", "HCM", "MINF", "RV")

# group: mean and standard deviation of LV end-diastolic volume (ml), LV ejection fraction, wall (mm),
# RV end-diastolic volume (ml), RV ejection fraction. Order of magnitude as in Bernard et al., TMI 2018.
PHYSIOLOGY = {
    "NOR": ((135, 28), (0.61, 0.05), (8.3, 1.0), (165, 34), (0.55, 0.06)),
    "DCM": ((255, 60), (0.23, 0.07), (8.4, 1.1), (180, 45), (0.38, 0.12)),
    "HCM": ((128, 28), (0.68, 0.06), (11.8, 2.0), (145, 32), (0.60, 0.07)),
    "MINF": ((185, 45), (0.33, 0.08), (8.6, 1.1), (148, 34), (0.54, 0.09)),
    "RV": ((112, 28), (0.57, 0.08), (8.0, 0.9), (240, 52), (0.37, 0.08)),
}


@dataclass(frozen=True)
class Physiology:
    """What a patient's heart does. Volumes in ml, wall in mm (at the base in end-diastole)."""

    group: str
    lv_edv_ml: float
    lv_ef: float
    wall_mm: float
    rv_edv_ml: float
    rv_ef: float


def draw_physiology(group: str, rng: np.random.Generator) -> Physiology:
    """Draw a patient of a group; values stay within 2.2 standard deviations and physical limits."""
    edv, ef, wall, rv_edv, rv_ef = (m + s * np.clip(rng.normal(), -2.2, 2.2) for m, s in PHYSIOLOGY[group])
    return Physiology(
        group,
        float(max(edv, 60)),
        float(np.clip(ef, 0.08, 0.8)),
        float(max(wall, 6.0)),
        float(max(rv_edv, 70)),
        float(np.clip(rv_ef, 0.12, 0.75)),
    )


@dataclass(frozen=True)
class Shape:
    """A patient's proportions, the same in both phases. Angles in radians, lengths as shares or in mm."""

    taper_power: float
    elongation: float
    """Length of the LV cavity over its basal radius in end-diastole."""
    shortening: float
    """Share of the length that the base descends in systole."""
    outline: np.ndarray
    """(ANGLES,) factor on the radii, mean 1."""
    septal_excess: float
    infarct: tuple[float, float, float, float]
    """Angle, half-width, height (share of the length) and severity 0..1."""
    rv_angle: float
    rv_twist: float
    """Turn of the RV towards the diaphragm from base to apex."""
    rv_axes: tuple[float, float]
    rv_power: float
    rv_skew: float
    rv_length: float
    rv_base_mm: float
    """Height of the tricuspid plane below the LV's base plane."""
    outflow: float
    """Size of the RV outflow tract over the LV radius; 0 is none in view."""
    drift_mm: tuple[float, float]
    """Shift of the LV's centre from base to apex."""
    open_base: bool


def draw_shape(group: str, rng: np.random.Generator) -> Shape:
    """Draw proportions; the group gives septal hypertrophy, an infarct or none."""
    angle = np.arange(ANGLES) * 2 * np.pi / ANGLES
    outline = np.ones(ANGLES, np.float32)
    for k in (2, 3, 4, 5, 7):
        outline += rng.normal(0, 0.035 / k**0.7) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)).astype(np.float32)
    severity = rng.uniform(0.6, 1.0) if group == "MINF" else 0.0
    return Shape(
        taper_power=rng.uniform(2.4, 3.3),
        elongation=rng.normal(2.75 if group in ("DCM", "MINF") else 3.0, 0.22),
        shortening=rng.uniform(0.01, 0.09),
        outline=outline,
        septal_excess=rng.uniform(0.2, 0.8) if group == "HCM" else rng.uniform(-0.05, 0.15),
        infarct=(rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.2), rng.uniform(0.3, 0.9), severity),
        rv_angle=math.radians(rng.normal(170, 13)),
        rv_twist=math.radians(rng.normal(-22, 15)),
        rv_axes=(rng.normal(0.92, 0.09), rng.normal(1.16, 0.11)),
        rv_power=rng.uniform(2.0, 3.1),
        rv_skew=rng.normal(0, 0.22),
        rv_length=rng.uniform(0.8, 1.08),
        rv_base_mm=rng.uniform(3, 16) if rng.random() < 0.55 else 0.0,
        outflow=rng.uniform(0.35, 0.55) if rng.random() < 0.7 else 0.0,
        drift_mm=(rng.normal(-5, 5), rng.normal(3, 4)),
        open_base=bool(rng.random() < 0.2),
    )


def _bump(distance: np.ndarray, width: float) -> np.ndarray:
    """Smooth bump: 1 at 0, 0 beyond ``width``."""
    return np.clip(1 - (distance / width) ** 2, 0, 1) ** 2


def _turn(angle: np.ndarray | float) -> np.ndarray:
    """Wrap to [-pi, pi)."""
    return np.mod(np.asarray(angle) + np.pi, 2 * np.pi) - np.pi


def _length(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Length of (x, y); several times as fast as np.hypot, which guards against numbers that no heart has."""
    return np.sqrt(x * x + y * y)


def _superellipse(x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray, power: float) -> np.ndarray:
    """The scale with which a superellipse of semi-axes a and b reaches (x, y); x is overwritten."""
    x /= a
    np.abs(x, out=x)
    np.power(x, power, out=x)
    across = np.abs(y / b)
    np.power(across, power, out=across)
    x += across
    return np.power(x, 1 / power, out=x)


@dataclass(frozen=True)
class Ventricles:
    """Both ventricles at one phase; every method takes arrays that broadcast, in mm and radians.

    base_mm, apex_mm: Heights of the base plane and of the cavity's tip.
    endo_mm, epi_mm: Basal radii of cavity and outer wall. apical_wall_mm: Wall at the tip.
    motion: Ratio of end-diastolic to this cavity radius, which an infarct keeps. rv_scale: RV axes.
    """

    shape: Shape
    base_mm: float
    apex_mm: float
    endo_mm: float
    epi_mm: float
    apical_wall_mm: float
    motion: float = 1.0
    rv_scale: float = 1.0

    @property
    def bottom_mm(self) -> float:
        """Height of the outermost tip of the LV wall."""
        return self.apex_mm + self.apical_wall_mm

    def _taper(self, height: np.ndarray) -> np.ndarray:
        height = np.maximum(height, 0)
        waist = 1 - 0.05 * np.exp(-height / 0.08)
        return np.sqrt(np.maximum(1 - height**self.shape.taper_power, 0)) * waist

    def height(self, z: np.ndarray) -> np.ndarray:
        """Share of the way from base plane (0) to the tip of the cavity (1)."""
        return (z - self.base_mm) / (self.apex_mm - self.base_mm)

    def centre(self, z: float) -> tuple[float, float]:
        """Centre of the LV at a height."""
        share = float(np.clip(z / self.apex_mm, -0.3, 1.2))
        return self.shape.drift_mm[0] * share, self.shape.drift_mm[1] * share

    @cached_property
    def _angle_tables(self) -> tuple[np.ndarray, np.ndarray]:
        angle = np.arange(ANGLES) * 2 * np.pi / ANGLES
        septum = self.shape.septal_excess * _bump(_turn(angle - self.shape.rv_angle), 1.7)
        place, width, _, severity = self.shape.infarct
        return septum.astype(np.float32), (severity * _bump(_turn(angle - place), width)).astype(np.float32)

    def radii(self, index: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Radii of cavity and outer wall.

        Args:
            index: Angle as an index into the ANGLES tables.
            z: Height in mm.
        """
        septum, scar = self._angle_tables
        height = self.height(z)
        endo = self.endo_mm * self._taper(height)
        epi = self.epi_mm * self._taper((z - self.base_mm) / (self.bottom_mm - self.base_mm))
        hurt = scar[index] * _bump(height - self.shape.infarct[2], 0.55)
        wall = (epi - endo) * (1 + septum[index] * np.clip(1.2 - height, 0, 1) - 0.45 * hurt)
        cavity = endo * (1 + hurt * (self.motion - 1)) * self.shape.outline[index]
        return cavity, cavity + wall

    def _rv_frame(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, ...]:
        """Share of the RV's length, and coordinates along its axis and across it."""
        shape = self.shape
        share = np.clip((z - self.base_mm) / (shape.rv_length * (self.bottom_mm - self.base_mm)), 0, 1)
        turn = shape.rv_angle + shape.rv_twist * share
        return share, x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)

    def _rv_body(self, share: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Place along the axis and semi-axes in mm of the RV's body of scale 1."""
        size = self.epi_mm * np.sqrt(np.maximum(1 - share**1.5, 1e-4))
        a, b = size * self.shape.rv_axes[0] * (1 - 0.25 * share), size * self.shape.rv_axes[1]
        return 0.82 * self.epi_mm * (1 - 0.55 * share**2), a, b

    def _rv_parts(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The scales with which body and outflow tract reach a point (∞ where the tract never does)."""
        shape = self.shape
        share, out, across = self._rv_frame(x, y, z)
        along_axis, a, b = self._rv_body(share)
        body = _superellipse((out - along_axis) + shape.rv_skew * across, across, a, b, shape.rv_power)
        if not shape.outflow:
            return body, np.full_like(body, np.inf)
        reach = self.epi_mm * (1.08 - 0.8 * share)
        radius = self.epi_mm * shape.outflow * (1 - share / 0.4)
        apart = _length(out - 0.6 * reach, across - reach)
        return body, np.where(radius > 0, apart / np.maximum(radius, 1e-6), np.inf)

    def rv_distance(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Approximate signed distance in mm to the RV's inner surface (negative inside); x, y from the LV's centre."""
        shape = self.shape
        share, out, across = self._rv_frame(x, y, z)
        along_axis, a, b = self._rv_body(share)
        a, b = a * self.rv_scale, b * self.rv_scale
        body = _superellipse((out - along_axis) + shape.rv_skew * across, across, a, b, shape.rv_power)
        body -= 1
        body *= np.minimum(a, b)
        if not shape.outflow:
            return body
        reach = self.epi_mm * (1.08 - 0.8 * share)
        radius = self.epi_mm * shape.outflow * min(self.rv_scale, TRACT_SCALE) * (1 - share / 0.4)
        return np.minimum(body, _length(out - 0.6 * reach, across - reach) - radius)

    # --- volumes ----------------------------------------------------------------------------
    def lv_volumes_ml(self, angles: int = 64, heights: int = 96) -> tuple[float, float]:
        """Volumes of LV cavity and LV wall by midpoint quadrature of the radii."""
        index = np.arange(angles) * (ANGLES // angles)
        step = (self.bottom_mm - self.base_mm) / heights
        z = self.base_mm + (np.arange(heights) + 0.5)[:, None] * step
        endo, epi = self.radii(index[None], z)
        cavity, whole = (0.5 * (r**2).sum() * step * 2 * np.pi / angles / 1000 for r in (endo, epi))
        return float(cavity), float(whole - cavity)

    def rv_volume_ml(self, points: int = 56, heights: int = 24) -> float:
        """Volume of the RV cavity below the tricuspid plane, by counting on a regular grid."""
        grid = self._rv_grid(points, heights)
        count = 0
        for z, epi in zip(grid.z, grid.epi, strict=True):  # height by height, which stays in the processor's cache
            count += int(np.count_nonzero((self.rv_distance(grid.x, grid.y, z) < 0) & (grid.radius > epi[grid.index])))
        return count * grid.voxel_ml

    def rv_scale_of(self, volume_ml: float) -> float:
        """The ``rv_scale`` with which `rv_volume_ml` is ``volume_ml``: an order statistic, since the RV only grows."""
        scales, voxel_ml = self._rv_scales(56, 24)
        rank = round(volume_ml / voxel_ml)
        return float(np.partition(scales, rank)[rank]) if rank < len(scales) else math.inf

    def _rv_grid(self, points: int, heights: int) -> "_RvGrid":
        """A regular grid about the RV below the tricuspid plane, without what lies within the LV at every height."""
        reach = 2.6 * self.epi_mm
        axis = (((np.arange(points) + 0.5) / points * 2 - 1) * reach).astype(np.float32)
        top = self.base_mm + self.shape.rv_base_mm
        step = (self.bottom_mm - top) / heights
        z = (top + (np.arange(heights) + 0.5) * step).astype(np.float32)[:, None]
        _, epi = self.radii(np.arange(ANGLES), z)
        x, y = (part.ravel() for part in np.meshgrid(axis, axis))
        radius = _length(x, y)
        x, y, radius = (part[radius > epi.min()] for part in (x, y, radius))
        return _RvGrid(x, y, radius, angle_index(x, y), z, epi, (2 * reach / points) ** 2 * step / 1000)

    def _rv_scales(self, points: int, heights: int) -> tuple[np.ndarray, float]:
        """For each point of a regular grid the ``rv_scale`` from which on it lies within the RV, and a point's volume.

        `rv_distance` is negative where u^p + v^p < 1, and u and v are inverse to the scale; in the outflow tract where
        a distance is below a radius that grows with the scale up to `TRACT_SCALE`.
        """
        grid = self._rv_grid(points, heights)
        body, tract = self._rv_parts(grid.x, grid.y, grid.z)
        scales = np.minimum(body, np.where(tract < TRACT_SCALE, tract, np.inf))
        scales[grid.radius <= grid.epi[:, grid.index]] = np.inf
        return scales.ravel(), grid.voxel_ml


@dataclass(frozen=True)
class _RvGrid:
    """Points of a regular grid: in plane (N,), heights (Z, 1), and the outer radius of the LV (Z, ANGLES); in mm."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    index: np.ndarray
    z: np.ndarray
    epi: np.ndarray
    voxel_ml: float


def angle_index(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Index of the direction of (x, y) in the ANGLES tables."""
    return np.floor(np.arctan2(y, x) * (ANGLES / (2 * np.pi)) + 0.5).astype(np.int16) & (ANGLES - 1)


@dataclass(frozen=True)
class Heart:
    """A patient's heart in both phases."""

    physiology: Physiology
    shape: Shape
    phases: dict[Phase, Ventricles]

    def centre(self, z: float) -> tuple[float, float]:
        """Centre of the LV at a height: the same in both phases, since the apex keeps its place."""
        return self.phases[Phase.ED].centre(z)

    def truth(self) -> dict[str, float | str]:
        """Volumes (ml), myocardial mass (g) and ejection fractions of the geometry, before any voxel."""
        ed, es = self.phases[Phase.ED], self.phases[Phase.ES]
        (edv, wall_ed), (esv, wall_es) = (v.lv_volumes_ml(128, 256) for v in (ed, es))
        rv_edv, rv_esv = (v.rv_volume_ml(96, 40) for v in (ed, es))
        return {
            "group": self.physiology.group,
            "lv_edv_ml": edv,
            "lv_esv_ml": esv,
            "lv_ef": 1 - esv / edv,
            "rv_edv_ml": rv_edv,
            "rv_esv_ml": rv_esv,
            "rv_ef": 1 - rv_esv / rv_edv,
            "myocardial_mass_ed_g": wall_ed * MYOCARDIAL_DENSITY_G_ML,
            "myocardial_mass_es_g": wall_es * MYOCARDIAL_DENSITY_G_ML,
        }


def _fit_rv(ventricles: Ventricles, volume_ml: float) -> Ventricles:
    """Scale the RV to a volume; the scale stays within anatomical limits."""
    return replace(ventricles, rv_scale=min(max(ventricles.rv_scale_of(volume_ml), 0.3), 2.2))


def _diastole(physiology: Physiology, shape: Shape) -> Ventricles:
    wall = physiology.wall_mm

    def build(radius: float) -> Ventricles:
        return Ventricles(shape, 0.0, shape.elongation * radius, radius, radius + wall, 0.7 * wall)

    radius = brentq(lambda r: build(r).lv_volumes_ml()[0] - physiology.lv_edv_ml, 8, 60, rtol=1e-4)
    return _fit_rv(build(float(radius)), physiology.rv_edv_ml)


def _systole(ed: Ventricles, physiology: Physiology, shape: Shape) -> Ventricles:
    """Contract to the ejection fraction; the myocardium keeps its volume, so the wall thickens."""
    esv = physiology.lv_edv_ml * (1 - physiology.lv_ef)
    start = replace(ed, base_mm=shape.shortening * ed.apex_mm)

    def cavity(radius: float) -> Ventricles:
        return replace(start, endo_mm=radius, motion=ed.endo_mm / radius)

    inner = cavity(float(brentq(lambda r: cavity(r).lv_volumes_ml()[0] - esv, 2, ed.endo_mm * 1.2, rtol=1e-4)))
    wall_ml = ed.lv_volumes_ml()[1]

    def walled(epi: float) -> Ventricles:
        return replace(inner, epi_mm=epi)

    high = ed.epi_mm * 1.3
    epi = brentq(lambda r: walled(r).lv_volumes_ml()[1] - wall_ml, inner.endo_mm + 2, high, rtol=1e-4)
    return _fit_rv(walled(float(epi)), physiology.rv_edv_ml * (1 - physiology.rv_ef))


def draw_heart(group: str, rng: np.random.Generator) -> Heart:
    """Draw a patient's heart: physiology of the group, individual proportions, both phases."""
    physiology, shape = draw_physiology(group, rng), draw_shape(group, rng)
    ed = _diastole(physiology, shape)
    return Heart(physiology, shape, {Phase.ED: ed, Phase.ES: _systole(ed, physiology, shape)})
