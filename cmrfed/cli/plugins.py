"""`cmrfed plugins`: what other installed distributions offer, and whether it can be used."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from cmrfed.core.errors import ConfigError
from cmrfed.core.settings.registry import Registry


@dataclass(frozen=True)
class Installed:
    """A part that another distribution offers.

    Args:
        group: Entry-point group.
        name: What a recipe or an option calls it.
        package: The distribution.
        version: Of the distribution.
        target: ``module:attribute``.
        problem: Why it cannot be used; None: it can.
    """

    group: str
    name: str
    package: str
    version: str
    target: str
    problem: str | None


def plugins(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the installed plugins by entry-point group; each is loaded, and one that cannot be used says why."""
    found = [part for registry in _registries() for part in _installed(registry)]
    if as_json:
        print(json.dumps([dataclasses.asdict(part) for part in found], indent=1))
        return
    for group in dict.fromkeys(part.group for part in found):
        print(group)
        for part in found:
            if part.group == group:
                print(f"  {part.name}: {part.package} {part.version} ({part.target})")
                if part.problem:
                    print(f"    cannot be used: {part.problem}")
    if not found:
        print("No plugin is installed.")


def _registries() -> tuple[Registry[Any], ...]:
    """One for each group, in the order of docs/plugins.md."""
    from cmrfed.data.sources import SOURCES
    from cmrfed.evaluation.installed import ATTACKS, METRICS
    from cmrfed.federation.settings import STRATEGIES
    from cmrfed.generators.settings import BACKBONES, PROCESSES, SAMPLERS
    from cmrfed.pipeline.tracking import TRACKERS

    return SOURCES, PROCESSES, BACKBONES, SAMPLERS, STRATEGIES, METRICS, ATTACKS, TRACKERS


def _installed(registry: Registry[Any]) -> Iterator[Installed]:
    for plugin in registry.plugins:
        try:
            registry.get(plugin.name)
            problem = None
        except ConfigError as error:
            problem = str(error)
        yield Installed(registry.group, plugin.name, plugin.package, plugin.version, plugin.target, problem)
