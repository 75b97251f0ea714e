"""The command line: each command is thin, says what it did, and turns errors into one paragraph."""

import codecs
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import click
import typer
import yaml

from cmrfed.cli.deploy import add_to
from cmrfed.cli.doctor import doctor
from cmrfed.config.recipes import find_recipe, find_sweep
from cmrfed.core.errors import CmrfedError, ConfigError, PrivacyError, SweepError, leave_error
from cmrfed.core.progress import console, say

app = typer.Typer(
    name="cmrfed",
    help="Federated, differentially private generation of synthetic cardiac MRI (short axis, with labels).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
export_app = typer.Typer(
    help="Export a synthetic data set in another format.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(export_app, name="export")
add_to(app)
app.command(epilog="Example: cmrfed doctor --recipe demo")(doctor)

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

Force = Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")]
TensorBoardFolder = Annotated[
    Path | None, typer.Option(help="TensorBoard log directory, as for `tensorboard --logdir`.")
]
MlflowUri = Annotated[str | None, typer.Option(help="MLflow tracking URI, such as that of a server or sqlite:///FILE.")]
Trackers = Annotated[
    list[str] | None, typer.Option("--tracker", metavar="NAME=ADDRESS", help="Track with an installed plugin too.")
]


def _free(out: Path, force: bool) -> None:
    if out.exists() and not force and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists", do="choose another folder, or add --force to replace it")


def _cohorts(data: list[Path]) -> str:
    """The override that names cohort folders."""
    from cmrfed.core.strict_yaml import quoted

    return f"data.cohorts=[{', '.join(quoted(str(path.absolute())) for path in data)}]"


def _named_cohorts(texts: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for text, (name, mark, path) in zip(texts, pairs, strict=True):
        if not (name and mark and path):
            raise ConfigError(
                "--external cannot be read", got=text, expected="NAME=COHORT, such as sunnybrook=cohorts/sb"
            )
    return {name: path for name, _, path in pairs}


@app.command(epilog="Example: cmrfed phantom out/scans --patients 12 --sites 3 --seed 0")
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder for the scans: one folder per site, in ACDC's layout.")],
    patients: Annotated[int, typer.Option(min=1, help="Total number of patients.")] = 24,
    sites: Annotated[int, typer.Option(min=1, help="Number of sites, each with its own simulated scanner.")] = 3,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    force: Force = False,
) -> None:
    """Simulate cardiac MRI scans of a numerical phantom with known volumes."""
    from cmrfed.data.phantom import write_phantom
    from cmrfed.data.settings import PhantomConfig

    _free(out, force)
    write_phantom(out, PhantomConfig(patients=patients, sites=sites, seed=seed))
    say(f"{patients} patients at {sites} site(s): {out}")


@app.command(epilog="Example: cmrfed prepare data/acdc cohorts/acdc --source acdc")
def prepare(
    src: Annotated[Path, typer.Argument(help="The data set as downloaded.")],
    out: Annotated[Path, typer.Argument(help="The cohort folder to write.")],
    source: Annotated[str, typer.Option(help="acdc, mnms, mnms2 or nnunet, or that of a plugin.")],
    size: Annotated[int, typer.Option(min=16, help="Height and width of the slices, in pixels.")] = 64,
    field_mm: Annotated[
        float, typer.Option(help="Field of view around the heart in mm, where the pixel spacing is known.")
    ] = 180.0,
    field_px: Annotated[
        int, typer.Option(help="Field of view in pixels of the scan, where the spacing is unknown.")
    ] = 128,
    name: Annotated[str | None, typer.Option(help="Name of the cohort; defaults to that of the folder.")] = None,
    strict: Annotated[bool, typer.Option(help="Stop at the first unusable file instead of setting it aside.")] = False,
    force: Force = False,
) -> None:
    """Prepare scans as a cohort: canonical labels, a common field of view, intensities in [-1, 1]."""
    from cmrfed.data.preparation.prepare import PrepareConfig
    from cmrfed.data.preparation.prepare import prepare as prepare_cohort

    _free(out, force)
    config = PrepareConfig(size_px=size, field_mm=field_mm, field_px=field_px)
    cohort = prepare_cohort(src, out, source, config, name=name or out.name, strict=strict)
    say(f"cohort {cohort.name}: {len(cohort)} patients, {len(cohort.rows)} slices: {out}")


@app.command(epilog="Example: cmrfed verify data/acdc")
def verify(
    path: Annotated[
        list[Path], typer.Argument(help="Scans or cohort folders; duplicates are detected across all of them.")
    ],
    source: Annotated[str | None, typer.Option(help="Layout of the scans; detected by default.")] = None,
    strict: Annotated[bool, typer.Option(help="Exit with an error if any problem is found.")] = False,
) -> None:
    """Check scans or cohorts and report why files cannot be used."""
    from cmrfed.data.preparation.verify import verify_many

    print(verify_many(path, source, strict=strict).text())


@app.command(epilog="Example: cmrfed recipes demo my-recipe.yaml")
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
    _free(target, force)
    write_bytes(target, source.read_bytes())
    say(f"{name} was copied to {target}")


@app.command(epilog="Example: cmrfed run configs/recipes/demo.yaml --run-dir runs/demo")
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
    from cmrfed.config.experiment import resolve
    from cmrfed.pipeline import run as pipeline
    from cmrfed.pipeline.tracking import trackers

    overrides = list(assign or [])
    if data:
        overrides.append(_cohorts(data))
    experiment = resolve(find_recipe(recipe), overrides)
    if dry_run:
        tree = {"experiment": experiment.model_dump(mode="json"), "plan": pipeline.dry_run(experiment)}
        print(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=200))
        return
    report = pipeline.run(experiment, run_dir, trackers(tensorboard, mlflow, tracker or ()))
    print(report)


@app.command(epilog="Example: cmrfed track runs/demo --tensorboard runs/tensorboard")
def track(
    run: Annotated[list[Path], typer.Argument(help="Folders of runs, finished or not.")],
    tensorboard: TensorBoardFolder = None,
    mlflow: MlflowUri = None,
    tracker: Trackers = None,
) -> None:
    """Log metrics of runs to TensorBoard or MLflow; metrics already logged are skipped."""
    from cmrfed.pipeline.tracking import track_run, trackers

    asked = trackers(tensorboard, mlflow, tracker or ())
    for folder in run:
        count, places = track_run(folder.absolute(), asked)
        say(f"{folder}: {count} numbers are there. {'; '.join(places)}")


@app.command(epilog="Example: cmrfed sweep configs/sweeps/quick.yaml --run-dir runs/quick --jobs 2")
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
    dry_run: Annotated[
        bool, typer.Option(help="Print the points, their estimated times and the total ε without running.")
    ] = False,
) -> None:
    """Run a recipe at many settings and compare utility, fidelity and privacy leakage against ε. Not for release."""
    from cmrfed.pipeline.tracking import trackers
    from cmrfed.sweep import estimate, points, work
    from cmrfed.sweep.results import REPORT
    from cmrfed.sweep.results import run as run_sweep

    overrides = list(assign or [])
    if data:
        overrides.append(_cohorts(data))
    asked = points.read_sweep(find_sweep(file), overrides)
    if dry_run:
        print(estimate.dry_run(asked, work.states(asked, run_dir)))
        return
    trackers(tensorboard, mlflow)  # what is not installed shows before anything runs
    options = [*(["--tensorboard", str(tensorboard.absolute())] if tensorboard else [])]
    options += ["--mlflow", mlflow] if mlflow else []
    command = work.tracked_point(*options)
    standing = run_sweep(
        asked,
        run_dir.absolute(),
        jobs,
        command=work.on_ray(command, ray) if ray else command,
        share_cores=ray is None,
    )
    print(run_dir.absolute() / REPORT)
    failed = [state for state in standing if state.status != "finished"]
    if failed:
        raise SweepError(
            f"{len(failed)} of {len(standing)} points are not finished",
            got="; ".join(f"{state.point.title}: {state.reason}" for state in failed[:5]),
            do="correct the cause; the same command tries them again and leaves the others as they are",
        )


@app.command(epilog="Example: cmrfed plan configs/recipes/acdc-private.yaml --patients 20,40,60 --epsilon 8")
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
    from cmrfed.sweep.forecast import forecast, forecast_text

    try:
        counts = [int(word) for word in patients.split(",")]
    except ValueError:
        raise ConfigError("--patients cannot be read", got=patients, expected="numbers, such as 20,40,60") from None
    found = forecast(find_recipe(recipe), counts, epsilon, delta, list(assign or []), table)
    print(forecast_text(found))
    if not found.feasible:
        raise PrivacyError("the target cannot be met at every site", do="see above for the nearest settings that can")


@app.command(epilog="Example: cmrfed pretrain configs/recipes/acdc-private.yaml")
def pretrain(
    recipe: Annotated[Path, typer.Argument(help="Recipe with a pretrain section.")],
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting of the recipe: key=value.")
    ] = None,
) -> None:
    """Pre-train the generators of a recipe on the phantom alone; the weights are cached."""
    from cmrfed.config.experiment import resolve
    from cmrfed.pipeline.pretrain import pretrained

    print(pretrained(resolve(find_recipe(recipe), list(assign or []))))


@app.command(epilog="Example: cmrfed synthesize runs/demo --out out/synthetic --patients 20 --seed 1")
def synthesize(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="Folder of the synthetic data set to write.")],
    patients: Annotated[int, typer.Option(min=1, help="Synthetic patients, each at ED and ES.")] = 20,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    force: Force = False,
) -> None:
    """Sample a synthetic data set from the generators of a run."""
    from cmrfed.core.owner import owned_around
    from cmrfed.pipeline.synthesis import synthesize_run

    with owned_around(out):
        _free(out, force)
        dataset = synthesize_run(run_dir, out, patients=patients, seed=seed)
    say(f"{dataset.manifest.patients} patients, {len(dataset)} cases: {out}")


@export_app.command("nnunet", epilog="Example: cmrfed export nnunet runs/demo/synthetic out/nnunet")
def export_nnunet(
    synthetic: Annotated[Path, typer.Argument(help="A synthetic data set.")],
    out: Annotated[Path, typer.Argument(help="nnU-Net's raw folder (nnUNet_raw).")],
    dataset_id: Annotated[int, typer.Option(min=1, max=999, help="nnU-Net data set ID.")] = 501,
    name: Annotated[str, typer.Option(help="Name of the data set.")] = "CMRFedSynthetic",
) -> None:
    """Export a synthetic data set in the raw format of nnU-Net v2."""
    from cmrfed.data.nnunet_export import export_nnunet as export

    say(f"nnU-Net data set: {export(synthetic, out, dataset_id, name)}")


@app.command(
    epilog="Example: cmrfed evaluate --synthetic out/synthetic --train cohorts/a --holdout cohorts/b --out out/judged"
)
def evaluate(
    synthetic: Annotated[Path, typer.Option(help="A synthetic data set; or an nnU-Net v2 raw or ACDC-layout folder.")],
    train: Annotated[Path, typer.Option(help="Training cohort of the generators.")],
    holdout: Annotated[Path, typer.Option(help="Hold-out cohort, unseen by the generators.")],
    out: Annotated[Path, typer.Option(help="Output folder for metrics, pictures and report.")],
    external: Annotated[list[str] | None, typer.Option(help="External test cohort: NAME=COHORT.")] = None,
    site: Annotated[list[str] | None, typer.Option(help="Training cohort of one site: NAME=COHORT.")] = None,
    paired: Annotated[Path | None, typer.Option(help="Synthetic images generated from the hold-out's masks.")] = None,
    reconstructed: Annotated[
        Path | None, typer.Option(help="Hold-out images reconstructed by the autoencoder of a latent generator.")
    ] = None,
    generator: Annotated[
        Path | None, typer.Option(help="Saved generator for white-box attacks; takes minutes for 60 patients at 64 px.")
    ] = None,
    reference: Annotated[
        list[Path] | None, typer.Option(help="Reference generator trained on neither cohort; give two or more.")
    ] = None,
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting of the evaluation: key=value.")
    ] = None,
) -> None:
    """Evaluate a synthetic data set against real ones: fidelity, anatomy, utility and privacy."""
    from cmrfed.config.experiment import resolve_evaluation
    from cmrfed.core.owner import owned, owned_around
    from cmrfed.data.cohort import Cohort
    from cmrfed.evaluation.evaluate import claim_of
    from cmrfed.evaluation.evaluate import evaluate as judge
    from cmrfed.evaluation.privacy.white_box import white_box
    from cmrfed.report.html import write_report

    config = resolve_evaluation(list(assign or []))
    if reference and not generator:
        raise ConfigError(
            "references calibrate an attack on a generator", got="--reference alone", do="give --generator"
        )
    learned, fresh = Cohort.open(train), Cohort.open(holdout)
    others = {name: Cohort.open(path) for name, path in _named_cohorts(external or []).items()}
    with owned_around(out), owned(out, "the evaluation folder"):
        attacked = None
        if generator:
            claim = claim_of(synthetic, generator)
            attacked = white_box(generator, reference or [], learned, fresh, config.attacks, claim, config.seed)
        judge(
            synthetic=synthetic,
            train=learned,
            holdout=fresh,
            external=others,
            paired=paired,
            reconstructed=reconstructed,
            config=config,
            out=out,
            sites={name: Cohort.open(path) for name, path in _named_cohorts(site or []).items()},
            white_box=attacked,
        )
        print(write_report(out))


@app.command(epilog="Example: cmrfed audit configs/recipes/acdc-private.yaml")
def audit(
    recipe: Annotated[Path, typer.Argument(help="Recipe with private training.")],
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting of the recipe: key=value.")
    ] = None,
) -> None:
    """Audit the DP-SGD implementation of a recipe empirically; needs no patients."""
    from cmrfed.config.experiment import resolve
    from cmrfed.pipeline.guarantee import audit_experiment, audit_text
    from cmrfed.pipeline.plan import PrivacyPlan

    rows = audit_experiment(PrivacyPlan(resolve(find_recipe(recipe), list(assign or []))))
    print(audit_text(rows))
    if not all(row.passed for row in rows):
        raise PrivacyError("the audit failed", do="claim no privacy for this version, and report the figures above")


@app.command(epilog="Example: cmrfed settings privacy.image")
def settings(
    word: Annotated[
        str | None, typer.Argument(help="Show settings whose names contain this; without it, all as Markdown.")
    ] = None,
) -> None:
    """List the settings of recipes, with types, defaults and descriptions."""
    from cmrfed.config import reference

    print(reference.find(word) if word else reference.page())


@app.command(epilog="Example: cmrfed report runs/demo")
def report(folder: Annotated[Path, typer.Argument(help="Folder of a run or an evaluation.")]) -> None:
    """Rebuild the report of a run or an evaluation from its stored results."""
    from cmrfed.report.html import write_report

    print(write_report(folder))


@app.command(epilog="Example: cmrfed figures runs/ddpm runs/fm runs/ldm --out out/figures --cohort data/acdc")
def figures(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs, such as one of each family.")],
    out: Annotated[Path, typer.Option(help="Output folder for figures (SVG and PDF) and tables (Markdown and CSV).")],
    cohort: Annotated[Path | None, typer.Option(help="Cohort of the runs, for shape statistics of real masks.")] = None,
    show_real: Annotated[
        bool, typer.Option("--show-real", help="Also show a hold-out patient. Not for release.")
    ] = False,
) -> None:
    """Compare runs in figures and tables: pipeline, denoising, samples of each family, shapes, metrics."""
    from cmrfed.figures.make import make_figures

    made = make_figures(runs, out, cohort, show_real=show_real)
    say(f"{', '.join(made)}: {out}")


@app.command(epilog="Example: cmrfed ledger runs/demo/sites/00")
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
    from cmrfed.privacy.ledger.ledger import PrivacyLedger
    from cmrfed.privacy.ledger.statement import read_statement, statement_text

    if missing and repair is None:
        raise ConfigError("--missing belongs to --repair", do='add --repair "what happened"')
    if repair is not None:
        PrivacyLedger(site_root).repair(repair, missing or ())
    found = read_statement(site_root, delta)
    print(found.model_dump_json(indent=1) if as_json else statement_text(found))


def _prepare_libraries() -> None:
    """Set up libraries before they are loaded: no telemetry, no chatter, and threads that sleep while they wait.

    Threads that spin take the cores from whoever else computes (benchmarks/wait_policy.py).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("flwr", "diffusers", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _speak_utf_8() -> None:
    """Read names and write text as UTF-8, whatever the locale.

    A terminal of another encoding gets escapes for the signs that it lacks. PYTHONIOENCODING stays above that.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii" and sys.executable:  # the locale C
        command = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "PYTHONUTF8": "1"})  # noqa: S606 - this command again
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):  # what a test has put there
            continue
        if os.environ.get("PYTHONIOENCODING") or stream.isatty():
            stream.reconfigure(errors="backslashreplace")
        else:
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


@contextmanager
def _ctrl_c_as_such() -> Iterator[None]:
    """Make whatever Ctrl-C ends end as a KeyboardInterrupt.

    A library that runs Python of ours inside native code may wrap the interrupt in an error of its own (pydantic does
    while it writes JSON), which would look like a fault of the program.
    """
    pressed: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        pressed.append(signum)
        signal.default_int_handler(signum, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception as error:
        if pressed:
            raise KeyboardInterrupt from error
        raise
    finally:
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> None:
    """Run the command line; exit status 0 only on success."""
    _speak_utf_8()
    _prepare_libraries()
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    try:
        with _ctrl_c_as_such():
            status = app(standalone_mode=False) or 0
            if status == INTERRUPTED:  # typer swallows Ctrl-C and returns this
                raise KeyboardInterrupt
        sys.exit(status)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        say("Stopped. Nothing half-written is left; the same command carries on.")
        sys.exit(INTERRUPTED)
    except CmrfedError as error:
        _fail(error, str(error), debug)
    except UnicodeEncodeError as error:
        got = str(error.object)[max(0, error.start - 40) : error.end + 40].encode("utf-8", "backslashreplace").decode()
        _fail(error, f"A name is no text in UTF-8. Got: {got}. Do: rename the file or folder.", debug)
    except OSError as error:
        advice = "see that the disk has space and the folder can be written, then run the same command again"
        where = f" ({error.filename})" if error.filename else ""
        _fail(error, f"A file cannot be used{where}. Got: {error.strerror or error}. Do: {advice}.", debug)


def _fail(error: BaseException, text: str, debug: bool) -> None:
    if debug:
        raise error
    leave_error(text, getattr(error, "code", None))
    text = re.sub(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+", " ", text)  # one paragraph, whatever a name holds
    console.print(f"error: {text}", style="bold red" if console.is_terminal else None, markup=False, soft_wrap=True)
    sys.exit(1)
