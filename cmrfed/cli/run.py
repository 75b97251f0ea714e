"""Commands of a run: train, track, pretrain, draw, export, report, figures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from cmrfed.cli.options import Force, MlflowUri, TensorBoardFolder, Trackers, cohort_override, refuse_to_replace
from cmrfed.config.recipes import find_recipe
from cmrfed.core.processes import loading
from cmrfed.core.progress import say

if TYPE_CHECKING:
    from cmrfed.config.experiment import Experiment


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    export_app = typer.Typer(
        help="Export a synthetic data set in another format.", no_args_is_help=True, rich_markup_mode=None
    )
    app.add_typer(export_app, name="export")
    app.command(epilog="Example: cmrfed run configs/recipes/demo.yaml --run-dir runs/demo")(run)
    app.command(epilog="Example: cmrfed track runs/demo --tensorboard runs/tensorboard")(track)
    app.command(epilog="Example: cmrfed pretrain configs/recipes/acdc-private.yaml")(pretrain)
    app.command(epilog="Example: cmrfed synthesize runs/demo --out out/synthetic --patients 20 --seed 1")(synthesize)
    export_app.command("nnunet", epilog="Example: cmrfed export nnunet runs/demo/synthetic out/nnunet")(export_nnunet)
    app.command(epilog="Example: cmrfed report runs/demo")(report)
    app.command(epilog="Example: cmrfed figures runs/ddpm runs/fm runs/ldm --out out/figures --cohort data/acdc")(
        figures
    )


def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe: a file, or a name listed by `cmrfed recipes`.")],
    run_dir: Annotated[Path, typer.Option(help="Output folder; the same command resumes an interrupted run.")],
    data: Annotated[
        list[Path] | None, typer.Option(help="Cohort folder; if given several times, each cohort is a site.")
    ] = None,
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting of the recipe: key=value.")
    ] = None,
    tensorboard: TensorBoardFolder = None,
    mlflow: MlflowUri = None,
    tracker: Trackers = None,
    dry_run: Annotated[bool, typer.Option(help="Print the settings and the privacy plan without running.")] = False,
) -> None:
    """Train the generators across sites, then synthesise, evaluate and report."""
    with loading(for_good=True):
        from cmrfed.config.experiment import resolve
        from cmrfed.pipeline import run as pipeline
        from cmrfed.pipeline.tracking import trackers

    overrides = list(assign or [])
    if data:
        overrides.append(cohort_override(data))
    experiment = resolve(find_recipe(recipe), overrides)
    if dry_run:
        tree = {"experiment": experiment.model_dump(mode="json"), "plan": pipeline.dry_run(experiment)}
        print(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=200))
        return
    report = pipeline.run(
        experiment,
        run_dir,
        trackers(tensorboard, mlflow, tracker or ()),
        expected=lambda: _expected(experiment, run_dir.absolute()),
    )
    print(report)


def _expected(experiment: "Experiment", run_dir: Path) -> dict[str, float]:
    """Seconds of each step of a run that are left, from a few steps that are timed now."""
    from cmrfed.core.eta import spoken
    from cmrfed.sweep.clock import Clock
    from cmrfed.sweep.estimate import left_to_do, step_seconds

    say("Timing a few steps of each kind …")
    found = step_seconds(experiment, Clock(experiment.compute.threads, experiment.compute.device))
    left = left_to_do(found, experiment, run_dir)
    say(f"About {spoken(sum(left.values()))} from here on.")
    return left


def track(
    run: Annotated[list[Path], typer.Argument(help="Folders of runs, finished or not.")],
    tensorboard: TensorBoardFolder = None,
    mlflow: MlflowUri = None,
    tracker: Trackers = None,
) -> None:
    """Log metrics of runs to TensorBoard or MLflow; metrics already logged are skipped."""
    with loading(for_good=True):
        from cmrfed.pipeline.tracking import track_run, trackers

    asked = trackers(tensorboard, mlflow, tracker or ())
    for folder in run:
        count, places = track_run(folder.absolute(), asked)
        say(f"{folder}: {count} numbers are there. {'; '.join(places)}")


def pretrain(
    recipe: Annotated[Path, typer.Argument(help="Recipe with a pretrain section.")],
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting of the recipe: key=value.")
    ] = None,
) -> None:
    """Pre-train the generators of a recipe on the phantom alone; the weights are cached."""
    with loading(for_good=True):
        from cmrfed.config.experiment import resolve
        from cmrfed.pipeline.pretrain import pretrained

    print(pretrained(resolve(find_recipe(recipe), list(assign or []))))


def synthesize(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="Folder of the synthetic data set to write.")],
    patients: Annotated[int, typer.Option(min=1, help="Synthetic patients, each at ED and ES.")] = 20,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    force: Force = False,
) -> None:
    """Sample a synthetic data set from the generators of a run."""
    with loading(for_good=True):
        from cmrfed.core.owner import owned_around
        from cmrfed.pipeline.synthesis import synthesize_run

    with owned_around(out):
        refuse_to_replace(out, force)
        dataset = synthesize_run(run_dir, out, patients=patients, seed=seed)
    say(f"{dataset.manifest.patients} patients, {len(dataset)} cases: {out}")


def export_nnunet(
    synthetic: Annotated[Path, typer.Argument(help="A synthetic data set.")],
    out: Annotated[Path, typer.Argument(help="nnU-Net's raw folder (nnUNet_raw).")],
    dataset_id: Annotated[int, typer.Option(min=1, max=999, help="nnU-Net data set ID.")] = 501,
    name: Annotated[str, typer.Option(help="Name of the data set.")] = "CMRFedSynthetic",
) -> None:
    """Export a synthetic data set in the raw format of nnU-Net v2."""
    from cmrfed.data.nnunet_export import export_nnunet as export

    say(f"nnU-Net data set: {export(synthetic, out, dataset_id, name)}")


def report(folder: Annotated[Path, typer.Argument(help="Folder of a run or an evaluation.")]) -> None:
    """Rebuild the report of a run or an evaluation from its stored results."""
    with loading(for_good=True):
        from cmrfed.report.html import write_report

    print(write_report(folder))


def figures(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs, such as one of each family.")],
    out: Annotated[Path, typer.Option(help="Output folder for figures (SVG and PDF) and tables (Markdown and CSV).")],
    cohort: Annotated[Path | None, typer.Option(help="Cohort of the runs, for shape statistics of real masks.")] = None,
    show_real: Annotated[
        bool, typer.Option("--show-real", help="Also show a hold-out patient. Not for release.")
    ] = False,
) -> None:
    """Compare runs in figures and tables: pipeline, denoising, samples of each family, shapes, metrics."""
    with loading(for_good=True):
        from cmrfed.figures.make import make_figures

    made = make_figures(runs, out, cohort, show_real=show_real)
    say(f"{', '.join(made)}: {out}")
