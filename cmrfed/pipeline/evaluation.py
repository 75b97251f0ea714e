"""The evaluation of a run: its data set against its own patients, and its image generator attacked where asked for."""

from cmrfed.core.device import resolve_anywhere
from cmrfed.evaluation.evaluate import claim_of, evaluate
from cmrfed.evaluation.privacy.white_box import white_box
from cmrfed.pipeline.data import Data, open_externals
from cmrfed.pipeline.trained import TrainedRun


def evaluate_run(trained: TrainedRun, data: Data) -> None:
    """Evaluate what a run has drawn; the folder ``evaluation`` of the run holds the result.

    Raises:
        ConfigError: An external cohort does not fit the recipe.
        EvaluationError: The data set cannot be evaluated.
    """
    experiment, run_dir = trained.experiment, trained.run_dir
    config, attacked, device = experiment.evaluation, None, resolve_anywhere(experiment.compute.device)
    if config.attacks.white_box:
        claimed = claim_of(run_dir / "synthetic", trained.folder("image"))
        image = trained.generator("image")
        attacked = white_box(image, (), data.train, data.holdout, config.attacks, claimed, config.seed, device)
    evaluate(
        synthetic=run_dir / "synthetic",
        train=data.train,
        holdout=data.holdout,
        external=open_externals(experiment),
        paired=run_dir / "paired",
        reconstructed=run_dir / "reconstructed" if experiment.image.generator.autoencoder else None,
        config=config,
        out=run_dir / "evaluation",
        sites=dict(zip(data.names, data.sites, strict=True)),
        white_box=attacked,
        device=device,
    )
