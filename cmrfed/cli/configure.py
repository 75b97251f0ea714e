"""Commands on configuration: the recipes that ship with the package, and every setting."""

from pathlib import Path
from typing import Annotated

import typer

from cmrfed.cli.options import Force, refuse_to_replace
from cmrfed.core.progress import say


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(epilog="Example: cmrfed recipes demo my-recipe.yaml")(recipes)
    app.command(epilog="Example: cmrfed settings privacy.image")(settings)


def recipes(
    name: Annotated[str | None, typer.Argument(help="Recipe or sweep to copy; without it, all are listed.")] = None,
    out: Annotated[
        Path | None, typer.Argument(help="Destination; defaults to NAME.yaml in the current folder.")
    ] = None,
    force: Force = False,
) -> None:
    """List the recipes and sweeps that come with CMRFed, or copy one to start from."""
    from cmrfed.config.recipes import find_shipped, shipped
    from cmrfed.core.artifacts import write_bytes

    if name is None:
        for kind in ("recipes", "sweeps"):
            print(f"{kind}:")
            for each in shipped(kind):
                print(f"  {each.name:<20}  {each.summary}")
        return
    source = find_shipped(name)
    target = out or Path(source.name)
    refuse_to_replace(target, force)
    write_bytes(target, source.read_bytes())
    say(f"{name} was copied to {target}")


def settings(
    word: Annotated[
        str | None, typer.Argument(help="Show settings whose names contain this; without it, all as Markdown.")
    ] = None,
) -> None:
    """List the settings of recipes, with types, defaults and descriptions."""
    from cmrfed.config import reference

    print(reference.find(word) if word else reference.page())
