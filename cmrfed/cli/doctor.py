"""`cmrfed doctor`: what this machine has, and how long the recipes will take on it."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cmrfed.core.machine import Finding, findings
from cmrfed.core.progress import say

MARKS = {"ok": "✓", "warning": "!", "absent": "–"}
RECIPES = ("demo", "acdc", "acdc-private")


def doctor(
    folder: Annotated[Path, typer.Argument(help="Where runs will be written.")] = Path(),
    recipe: Annotated[
        list[str] | None,
        typer.Option(help=f"Estimate its time; repeatable; by default {', '.join(RECIPES)}."),
    ] = None,
    times: Annotated[bool, typer.Option(help="Time a few steps of each kind, which takes a minute or two.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine has (device, memory, disk, extras) and how long the recipes will take on it."""
    found = [*findings(folder), _device()]
    if times:
        found += _durations(recipe or list(RECIPES))
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found], indent=1))
        return
    for finding in found:
        print(f"{MARKS[finding.state]} {finding.name}: {finding.text}")
        if finding.advice:
            print(f"  {finding.advice}")


def _device() -> Finding:
    from cmrfed.core.device import explain

    return Finding("device", "ok", explain("auto"))


def _durations(recipes: list[str]) -> Iterator[Finding]:
    from cmrfed.config.experiment import resolve
    from cmrfed.config.recipes import find_recipe
    from cmrfed.report.results import duration
    from cmrfed.sweep.clock import Clock
    from cmrfed.sweep.estimate import run_seconds
    from cmrfed.sweep.timing import COVERS

    clocks: dict[tuple[int, str], Clock] = {}
    for name in recipes:
        say(f"Timing a few steps of {name} …")
        experiment = resolve(find_recipe(name), [])
        key = (experiment.compute.threads, experiment.compute.device)
        seconds = run_seconds(experiment, clocks.setdefault(key, Clock(*key)))
        yield Finding(f"recipe {name}", "ok", f"about {duration(seconds)} on {key[0]} thread(s), {key[1]}")
    yield Finding("times", "ok", COVERS)
