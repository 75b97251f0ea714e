"""Commands on privacy: audit the private step, read and repair a ledger."""

from pathlib import Path
from typing import Annotated

import typer

from cmrfed.config.recipes import find_recipe
from cmrfed.core.errors import ConfigError, PrivacyError
from cmrfed.core.processes import loading


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(epilog="Example: cmrfed audit configs/recipes/acdc-private.yaml")(audit)
    app.command(epilog="Example: cmrfed ledger runs/demo/sites/00")(ledger)


def audit(
    recipe: Annotated[Path, typer.Argument(help="Recipe with private training.")],
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting of the recipe: key=value.")
    ] = None,
) -> None:
    """Audit the DP-SGD implementation of a recipe empirically; needs no patients."""
    with loading(for_good=True):
        from cmrfed.config.experiment import resolve
        from cmrfed.pipeline.privacy.guarantee import audit_experiment, audit_text
        from cmrfed.pipeline.privacy.plan import PrivacyPlan

    rows = audit_experiment(PrivacyPlan(resolve(find_recipe(recipe), list(assign or []))))
    print(audit_text(rows))
    if not all(row.passed for row in rows):
        raise PrivacyError("the audit failed", do="claim no privacy for this version, and report the figures above")


def ledger(
    site_root: Annotated[Path, typer.Argument(help="The site's folder, with site.json and policy.yaml.")],
    repair: Annotated[
        str | None,
        typer.Option(help="Repair a damaged, lost or restored ledger; the reason given is logged."),
    ] = None,
    missing: Annotated[
        list[str] | None, typer.Option(help="With --repair: hash of a ledger line that a coordinator has received.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="δ for a site without policy.yaml; defaults to 0.001.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; null is an unbounded ε.")] = False,
) -> None:
    """Show the privacy budget spent by a site's patients over all runs, and what is left."""
    with loading(for_good=True):
        from cmrfed.privacy.ledger.ledger import PrivacyLedger
        from cmrfed.privacy.ledger.statement import read_statement, statement_text

    if missing and repair is None:
        raise ConfigError("--missing belongs to --repair", do='add --repair "what happened"')
    if repair is not None:
        PrivacyLedger(site_root).repair(repair, missing or ())
    found = read_statement(site_root, delta)
    print(found.model_dump_json(indent=1) if as_json else statement_text(found))
