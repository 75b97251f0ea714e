"""SWEEP.yaml: a base recipe and the settings to vary => points, each an experiment of its own, checked before any runs.

name: quick
recipe: ../recipes/demo.yaml        # beside this file
set: {synthesis.patients: 12}       # over the recipe's, for all points
grid:                               # every combination; several grids: a list; or points: [...], each listed
  family:                           # labels: each stands for several settings
    ddpm: {image.generator.process.kind: ddpm}
    fm: {image.generator.process: {kind: flow}, image.generator.sampler: {name: euler, steps: 20}}
  epsilon: [inf, 8, 2]              # short for privacy.epsilon and privacy.unit; inf is not private
  seed: [0, 1]
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from cmrfed.config.experiment import INVALID_RECIPE, Experiment, override, put, read_recipe, resolve
from cmrfed.core.artifacts import digest_json
from cmrfed.core.errors import CmrfedError, ConfigError
from cmrfed.core.settings.config import Section
from cmrfed.core.settings.digests import digested
from cmrfed.core.settings.strict_yaml import read_mapping

LONGEST_NAME = 80
"""Characters of a point's folder before its digest."""
Grid = dict[str, list[Any] | dict[str, dict[str, Any]]]
"""Axis → values of the setting of that name, or label → settings."""
_SHOWN_PROBLEMS = 5
_BOOLEAN = "YAML reads on, off, yes and no as true and false: quote such a label, or take another word"


class SweepFile(Section):
    """The content of SWEEP.yaml."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    """Lower-case letters, digits and hyphens, 41 at most."""
    recipe: str
    """Path of the base recipe, absolute or relative to this file."""
    set: dict[str, Any] = {}
    """Setting → value: overrides of the recipe for all points."""
    grid: Grid | list[Grid] | None = None
    """Axis → values of the setting of that name, or label → settings; the points are all combinations. With a list of
    grids, those of each grid."""
    points: list[dict[str, Any]] | None = None
    """List of points, each setting → value; ``name`` is the label."""

    @model_validator(mode="after")
    def _grid_or_points(self) -> "SweepFile":
        if (self.grid is None) == (self.points is None):
            raise ValueError("needs either grid or points")
        if not (self.grid or self.points):
            raise ValueError("has no point")
        empty = [axis for grid in self.grids for axis, values in grid.items() if not values]
        if empty:
            raise ValueError(f"grid.{empty[0]} has no value")
        if not all(self.grids):
            raise ValueError("a grid of the list has no axis")
        return self

    @property
    def grids(self) -> list[Grid]:
        """The grid, or all of them."""
        return self.grid if isinstance(self.grid, list) else [self.grid] if self.grid else []


@dataclass(frozen=True)
class Value:
    """One value of an axis: how it is called, and what it sets."""

    label: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """One experiment of a sweep."""

    name: str
    """Folder name: axes and values, and the start of the experiment's digest."""
    labels: dict[str, str]
    """Axis → label of its value."""
    experiment: Experiment

    @property
    def title(self) -> str:
        """Axes and values, for people."""
        return ", ".join(f"{axis} {label}" for axis, label in self.labels.items())

    @property
    def epsilon(self) -> float:
        """Target: ∞ where nothing is promised, 0 where no patient takes part in training."""
        if not self.experiment.steps():
            return 0.0
        return self.experiment.privacy.epsilon or math.inf


@dataclass(frozen=True)
class Sweep:
    """A sweep, ready to run."""

    name: str
    recipe: str
    """Name of the base recipe."""
    points: tuple[Point, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        """Points in the order of the file."""
        return tuple(dict.fromkeys(axis for point in self.points for axis in point.labels))


def read_sweep(path: Path, assignments: list[str] | None = None) -> Sweep:
    """Read SWEEP.yaml and resolve all its points.

    Args:
        path: The file.
        assignments: ``key=value`` over the recipe's settings, for all points.

    Raises:
        ConfigError: The file or one of its points cannot be used; the message names each.
    """
    file = _read_file(path)
    base = put(read_recipe(_recipe_path(path, file.recipe)), {k: _plain(v) for k, v in file.set.items()})
    base = override(base, assignments or [])
    combinations = [values for grid in file.grids for values in _combined(grid)] or [*_listed(file.points or [])]
    _check_assignments(assignments or [], combinations)
    points, problems = [], []
    for values in combinations:
        try:
            points.append(_point(base, values))
        except CmrfedError as error:
            problems.append(f"{_title(values)}: {_problem(error)}")
    if problems:
        more = f"; and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise ConfigError(
            f"{len(problems)} of {len(combinations)} points of {path} cannot be used",
            got="; ".join(problems[:_SHOWN_PROBLEMS]) + more,
            do="correct these settings",
        )
    _check_different(path, points)
    return Sweep(file.name, str(base.get("name")), tuple(points))


def _problem(error: CmrfedError) -> str:
    """What is wrong with one of many points, in few words."""
    if error.code == INVALID_RECIPE:
        return str(error.got)
    expected = f" (expected: {error.expected})" if error.expected else ""
    return f"{error.what}: {error.got}{expected}"


def _read_file(path: Path) -> SweepFile:
    try:
        tree = read_mapping(path, "sweep", blanks=True)  # a label without settings is the recipe as it is
    except FileNotFoundError:
        raise ConfigError(f"there is no sweep {path}", do="name a file in configs/sweeps") from None
    grids = tree.get("grid")
    for grid in grids if isinstance(grids, list) else [grids]:
        if isinstance(grid, dict):
            _name_labels(path, grid)
    try:
        return SweepFile.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'the file'}: "
            + ("no such key" if e["type"] == "extra_forbidden" else e["msg"])
            for e in error.errors()
        )
        raise ConfigError(
            f"{path} is not a sweep",
            got=problems,
            expected="name, recipe, and either grid (axis: [values] or axis: {label: {setting: value}}) or points",
            do="correct it; configs/sweeps has examples",
        ) from None


def _name_labels(path: Path, grid: dict[Any, Any]) -> None:
    """Make all labels of a grid text: YAML reads some as numbers."""
    for axis, values in grid.items():
        if isinstance(axis, bool) or (isinstance(values, dict) and any(isinstance(label, bool) for label in values)):
            raise ConfigError(f"{path}: grid.{axis} has a label that is no text", got="true or false", do=_BOOLEAN)
        if isinstance(values, dict):
            grid[axis] = {str(label): settings or {} for label, settings in values.items()}


def _recipe_path(path: Path, recipe: str) -> Path:
    found = path.parent / recipe
    if not found.is_file():
        raise ConfigError(
            f"{path} names a recipe that is not there", got=found, do="give its path relative to the sweep's folder"
        )
    return found


# --- axes and values ----------------------------------------------------------------------------
def _combined(grid: Mapping[str, Any]) -> Iterator[dict[str, Value]]:
    axes = {axis: [*_values(axis, values)] for axis, values in grid.items()}
    for chosen in itertools.product(*axes.values()):
        yield dict(zip(axes, chosen, strict=True))


def _values(axis: str, values: Any) -> Iterator[Value]:
    if isinstance(values, dict):
        yield from (Value(label, settings) for label, settings in values.items())
        return
    for value in values:
        if isinstance(value, dict | list):
            raise ConfigError(
                f"a value of grid.{axis} has no name",
                got=value,
                expected="a plain value",
                do=f"name it: {axis}: {{some-label: {{{axis}: ...}}}}",
            )
        yield Value(_label(value), {axis: value})


def _listed(points: list[dict[str, Any]]) -> Iterator[dict[str, Value]]:
    for point in points:
        settings = {key: value for key, value in point.items() if key != "name"}
        named = {"name": Value(str(point["name"]), {})} if "name" in point else {}
        yield named | {key: Value(_label(value), {key: value}) for key, value in settings.items()}


def _label(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).split("\n")[0]


def _title(values: Mapping[str, Value]) -> str:
    return ", ".join(f"{axis} {value.label}" for axis, value in values.items())


# --- points -------------------------------------------------------------------------------------
def _point(base: dict[str, Any], values: Mapping[str, Value]) -> Point:
    owner: dict[str, str] = {}
    for axis, value in values.items():
        for key in value.settings:
            if key in owner:
                raise ConfigError("two axes set the same", got=f"{owner[key]} and {axis} both set {key}")
            owner[key] = axis
    settings = {key: v for value in values.values() for key, v in value.settings.items()}
    plain = {key: _plain(v) for key, v in settings.items() if key not in SHORT}
    tree = put(base, plain)
    for key, expand in SHORT.items():  # they look at the rest
        if key in settings:
            tree = put(tree, expand(tree, settings[key]))
    experiment = resolve(tree)
    _check_effect(settings, experiment)
    labels = {axis: value.label for axis, value in values.items()}
    return Point(_folder_name(labels, experiment), labels, experiment)


def _check_effect(settings: Mapping[str, Any], experiment: Experiment) -> None:
    """Where sites bring patients of their own, how to share them out decides nothing: such an axis is refused."""
    own = experiment.data.phantom if not experiment.data.cohorts else len(experiment.data.cohorts) > 1
    idle = sorted({"data.partition.scheme", "data.partition.alpha"} & set(settings))
    if own and idle:
        raise ConfigError(
            f"{idle[0]} has no effect here",
            got="sites that have patients of their own (the phantom's scanners, or several cohorts)",
            expected="one cohort, which is shared out",
            do="give one with --data",
        )


def _plain(value: Any) -> Any:
    """A value as a recipe has it; a recipe cannot hold infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError("a setting is not finite", got=value, do="only epsilon can be inf: not private")
    return value


def _epsilon(tree: Mapping[str, Any], value: Any) -> dict[str, Any]:
    """``epsilon``: inf is not private, 0 public pre-training alone, anything else the target of private training."""
    try:
        target = float(value)
    except (TypeError, ValueError):
        target = math.nan
    if isinstance(value, bool) or not target >= 0:
        raise ConfigError("epsilon cannot be read", got=f"epsilon {value}", expected="inf, 0 or a positive number")
    if math.isinf(target) or target == 0:
        idle = {} if target else {"mask.training.rounds": 0, "image.training.rounds": 0}
        return {"privacy.unit": "none", "privacy.epsilon": None, **idle}
    section = tree.get("privacy") or {}
    unit = section.get("unit", "none") if isinstance(section, dict) else "none"
    return {"privacy.epsilon": target, "privacy.unit": "patient" if unit == "none" else unit}


def _sites(tree: Mapping[str, Any], value: Any) -> dict[str, Any]:
    """``sites``: of the federation, and of the phantom where there are no cohorts."""
    data = tree.get("data") or {}
    phantom = {"data.phantom.sites": value} if data.get("phantom") and not data.get("cohorts") else {}
    return {"data.partition.sites": value, **phantom}


def _strategy(tree: Mapping[str, Any], value: Any) -> dict[str, Any]:
    """``strategy``: by its name, with its own defaults."""
    return {"federation.strategy": {"name": value}}


SHORT = {"epsilon": _epsilon, "sites": _sites, "strategy": _strategy}
"""Names that stand for several settings."""


def _folder_name(labels: Mapping[str, str], experiment: Experiment) -> str:
    text = ".".join(f"{axis.rpartition('.')[2]}-{label}" for axis, label in labels.items())
    slug = re.sub(r"[^a-z0-9.-]+", "-", text.lower()).strip("-.")
    return f"{slug[:LONGEST_NAME].strip('-.')}.{digest_json(settings_of(experiment))[:8]}"


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """All settings that decide a point's numbers; speed is not among them."""
    return digested(experiment, {"compute"})


def _check_different(path: Path, points: list[Point]) -> None:
    seen: dict[str, Point] = {}
    for point in points:
        key = digest_json(settings_of(point.experiment))
        if key in seen:
            raise ConfigError(
                f"two points of {path} are the same experiment",
                got=f"{seen[key].title}; and {point.title}",
                expected="settings that differ",
                do="leave one out",
            )
        seen[key] = point


def _check_assignments(assignments: list[str], combinations: list[dict[str, Value]]) -> None:
    """An override that every point overwrites would be lost without a word."""
    varied = {key for values in combinations for value in values.values() for key in value.settings}
    for text in assignments:
        key = text.partition("=")[0]
        lost = [k for k in varied if key == k or key.startswith(f"{k}.")]
        if lost:
            raise ConfigError("the sweep itself sets what is given with --set", got=text, do="change it in the sweep")
