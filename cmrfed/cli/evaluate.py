"""`cmrfed evaluate`: any synthetic data set against real patients."""

from pathlib import Path
from typing import Annotated

import typer

from cmrfed.core.errors import ConfigError
from cmrfed.core.processes import loading


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(
        epilog="Example: cmrfed evaluate --synthetic out/synthetic --train cohorts/a --holdout cohorts/b --out out/eval"
    )(evaluate)


def _named_cohorts(texts: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for text, (name, mark, path) in zip(texts, pairs, strict=True):
        if not (name and mark and path):
            raise ConfigError(
                "--external cannot be read", got=text, expected="NAME=COHORT, such as sunnybrook=cohorts/sb"
            )
    return {name: path for name, _, path in pairs}


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
    device: Annotated[
        str, typer.Option(help="Where networks compute: auto (CUDA, MPS or CPU), cpu, cuda, cuda:N or mps.")
    ] = "auto",
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting of the evaluation: key=value.")
    ] = None,
) -> None:
    """Evaluate a synthetic data set against real ones: fidelity, anatomy, utility and privacy."""
    with loading(for_good=True):
        from cmrfed.config.experiment import resolve_evaluation
        from cmrfed.core.device import resolve
        from cmrfed.core.owner import owned, owned_around
        from cmrfed.data.cohort import Cohort
        from cmrfed.evaluation.evaluate import claim_of
        from cmrfed.evaluation.evaluate import evaluate as evaluate_dataset
        from cmrfed.evaluation.privacy.white_box import white_box
        from cmrfed.report.html import write_report

    config, where = resolve_evaluation(list(assign or [])), resolve(device)
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
            attacked = white_box(generator, reference or [], learned, fresh, config.attacks, claim, config.seed, where)
        evaluate_dataset(
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
            device=where,
        )
        print(write_report(out))
