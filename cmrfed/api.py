"""Functions of the Python API that put other modules together; everything that the API offers is named in `cmrfed`."""

import tempfile
from pathlib import Path
from typing import Literal

from cmrfed.config.experiment import Experiment, resolve
from cmrfed.config.recipes import find_recipe
from cmrfed.core.artifacts import digest_state
from cmrfed.core.errors import ConfigError
from cmrfed.data.cohort import Cohort
from cmrfed.data.phantom import write_phantom
from cmrfed.data.preparation.prepare import PrepareConfig, prepare
from cmrfed.data.settings import PhantomConfig
from cmrfed.data.synthetic import NOT_PRIVATE, Manifest, PostProcessed, SyntheticDataset
from cmrfed.generators.generator import Generator
from cmrfed.generators.settings import GeneratorConfig, GeneratorSettings
from cmrfed.generators.stages import DRAWING
from cmrfed.pipeline.files.record import versions
from cmrfed.synthesis.settings import SynthesisConfig
from cmrfed.synthesis.two_stage import synthesize
from cmrfed.synthesis.write import write_dataset
from cmrfed.training.loop import LocalTrainer
from cmrfed.training.settings import TrainingConfig

DrawnStage = Literal["mask", "image"]


def load_recipe(recipe: str | Path, *overrides: str) -> Experiment:
    """Read a recipe.

    Args:
        recipe: A YAML file, or the name of a recipe of the package, such as "demo" (`cmrfed recipes` lists them).
        overrides: Assignments such as "image.training.rounds=2", with the value in YAML.

    Raises:
        ConfigError: There is no such recipe, or a setting is misspelt or does not fit; the message names each.
    """
    return resolve(find_recipe(recipe), list(overrides))


def phantom_cohort(out: Path | str, *, patients: int, size_px: int = 64, seed: int = 0) -> Cohort:
    """Make a cohort of phantom patients: written as scans, and prepared as real ones are.

    Args:
        out: Cohort folder; an older cohort there is replaced, anything else is not.
        patients: How many, all of one site.
        size_px: Height and width of slices, pixels.
        seed: Seed of the patients.

    Raises:
        DataError: ``out`` holds something else than a cohort.
    """
    with tempfile.TemporaryDirectory() as scans:
        write_phantom(Path(scans), PhantomConfig(patients=patients, sites=1, seed=seed))
        config = PrepareConfig(size_px=size_px)
        return prepare(Path(scans) / "site-0", Path(out), "acdc", config, name=Path(out).name)


def build_generator(
    stage: DrawnStage, *, size_px: int, settings: GeneratorSettings | None = None, seed: int = 0
) -> Generator:
    """Build a generator with random weights, for one site.

    Args:
        stage: "mask" draws masks from their neighbours, "image" the image of a mask.
        size_px: Height and width of slices, pixels.
        settings: Process, backbone and sampler; without an autoencoder.
        seed: Seed of the weights.

    Raises:
        ConfigError: The settings have an autoencoder, which has to be pre-trained: take a recipe.
    """
    chosen = settings or GeneratorSettings()
    if chosen.autoencoder:
        raise ConfigError(
            "build_generator makes generators of pixels, without an autoencoder",
            do="train a latent generator with a recipe: image.generator.autoencoder and pretrain.autoencoder",
        )
    one = DRAWING[stage]
    own = {"codec": one.codec(chosen), "condition_masks": one.condition_masks, "size_px": size_px}
    return Generator(GeneratorConfig.model_validate(chosen.model_dump(mode="json") | own), seed)


def train_generator(
    generator: Generator, cohort: Cohort, stage: DrawnStage, training: TrainingConfig, *, seed: int = 0
) -> list[float]:
    """Train a generator in place on one cohort, in this process, **without privacy**.

    It promises the patients nothing, and no ledger records it. Private training needs a site with its policy and its
    ledger: use a recipe with a ``privacy`` section.

    Args:
        generator: Trained in place; it ends with its last weights, not with their running average.
        cohort: Patients with masks, of the generator's size.
        stage: "mask" or "image", as the generator was built.
        training: ``rounds`` × ``local_steps`` steps are taken.
        seed: Seed of all draws; the same seed gives the same weights.

    Returns:
        The mean loss of each step.

    Raises:
        DataError: The cohort is empty, of another size, or lacks masks.
    """
    trainer = LocalTrainer(generator, cohort, stage, 0, training, seed)
    result = trainer.run(0, training.rounds * training.local_steps)
    generator.eval()
    return result.losses


def draw_dataset(
    mask_generator: Generator,
    image_generator: Generator,
    out: Path | str,
    *,
    patients: int,
    seed: int = 0,
    synthesis: SynthesisConfig | None = None,
) -> SyntheticDataset:
    """Draw a synthetic data set from two generators; its manifest claims no privacy.

    A data set with a claim is drawn from a run (`cmrfed synthesize`), whose ledgers the claim rests on.

    Args:
        mask_generator: Draws the masks of patients.
        image_generator: Draws the images of masks.
        out: Folder; replaced if it exists.
        patients: How many; each has ED and ES.
        seed: Seed of the data set.
        synthesis: Numbers of slices and batch sizes.
    """
    config, target = synthesis or SynthesisConfig(), Path(out)
    method = config.mask_post_processing
    generators = {"mask": mask_generator, "image": image_generator}
    styles = tuple(f"site-{number}" for number in range(image_generator.config.styles))
    cases = synthesize(
        mask_generator, image_generator, config, patients=patients, seed=seed, spacing_mm=None, style_names=styles
    )
    manifest = Manifest(
        name=target.name,
        patients=patients,
        seed=seed,
        generators={name: digest_state(each.network.state_dict()) for name, each in generators.items()},
        size_px=image_generator.config.size_px,
        styles=styles,
        post_processed=None if method == "none" else PostProcessed(method=method),
        privacy=NOT_PRIVATE,
        versions=versions(),
    )
    return write_dataset(target, cases, manifest)
