"""Commands that compare many settings: sweep and plan."""

from pathlib import Path
from typing import Annotated

import typer

from cmrfed.cli.options import MlflowUri, TensorBoardFolder, Trackers, cohort_override
from cmrfed.config.recipes import find_recipe, find_sweep
from cmrfed.core.errors import ConfigError, PrivacyError, SweepError
from cmrfed.core.processes import loading


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(epilog="Example: cmrfed sweep configs/sweeps/quick.yaml --run-dir runs/quick --jobs 2")(sweep)
    app.command(epilog="Example: cmrfed plan configs/recipes/acdc-private.yaml --patients 20,40,60 --epsilon 8")(plan)


def sweep(
    file: Annotated[Path, typer.Argument(help="Sweep: a file, or a name listed by `cmrfed recipes`.")],
    run_dir: Annotated[Path, typer.Option(help="Output folder for runs, table and report; the same command resumes.")],
    data: Annotated[list[Path] | None, typer.Option(help="Cohort folder for all points, as in `cmrfed run`.")] = None,
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting for all points: key=value.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Points to run in parallel, each a process with its share of cores.")
    ] = 1,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Address of a Ray cluster to run the points on, such as auto.")
    ] = None,
    tensorboard: TensorBoardFolder = None,
    mlflow: MlflowUri = None,
    tracker: Trackers = None,
    dry_run: Annotated[
        bool, typer.Option(help="Print the points, their estimated times and the total ε without running.")
    ] = False,
) -> None:
    """Run a recipe at many settings and compare utility, fidelity and privacy leakage against ε. Not for release."""
    with loading(for_good=True):
        from cmrfed.pipeline.tracking import trackers
        from cmrfed.sweep import estimate, points, work
        from cmrfed.sweep.results import REPORT
        from cmrfed.sweep.results import run as run_sweep

    overrides = list(assign or [])
    if data:
        overrides.append(cohort_override(data))
    asked = points.read_sweep(find_sweep(file), overrides)
    if dry_run:
        print(estimate.dry_run(asked, work.states(asked, run_dir)))
        return
    others = tracker or []
    trackers(tensorboard, mlflow, others)  # what is not installed shows before anything runs
    options = [*(["--tensorboard", str(tensorboard.absolute())] if tensorboard else [])]
    options += ["--mlflow", mlflow] if mlflow else []
    options += [word for each in others for word in ("--tracker", each)]
    command = work.tracked_point(*options)
    standing = run_sweep(
        asked,
        run_dir.absolute(),
        jobs,
        command=work.on_ray(command, ray) if ray else command,
        share_cores=ray is None,
        foretell=estimate.foretell if ray is None else None,
    )
    print(run_dir.absolute() / REPORT)
    failed = [state for state in standing if state.status != "finished"]
    if failed:
        raise SweepError(
            f"{len(failed)} of {len(standing)} points are not finished",
            got="; ".join(f"{state.point.title}: {state.reason}" for state in failed[:5]),
            do="correct the cause; the same command tries them again and leaves the others as they are",
        )


def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe whose private training is planned.")],
    patients: Annotated[str, typer.Option(help="Publicly declared number of patients per site, such as 20,40,60.")],
    epsilon: Annotated[float, typer.Option(help="Target ε per patient, composed over all stages.")],
    delta: Annotated[float | None, typer.Option(help="Target δ; defaults to the recipe's, or N^-1.1 per site.")] = None,
    table: Annotated[
        Path | None, typer.Option(help="results.csv or .parquet of a sweep, from which utility is forecast.")
    ] = None,
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting of the recipe: key=value.")
    ] = None,
) -> None:
    """Plan private training for a target ε and given site sizes, without training."""
    with loading(for_good=True):
        from cmrfed.sweep.forecast import forecast, forecast_text

    try:
        counts = [int(word) for word in patients.split(",")]
    except ValueError:
        raise ConfigError("--patients cannot be read", got=patients, expected="numbers, such as 20,40,60") from None
    found = forecast(find_recipe(recipe), counts, epsilon, delta, list(assign or []), table)
    print(forecast_text(found))
    if not found.feasible:
        raise PrivacyError("the target cannot be met at every site", do="see above for the nearest settings that can")
