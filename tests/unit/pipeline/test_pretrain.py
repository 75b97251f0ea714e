"""Public pre-training: made once, never from a patient, whole or absent, and what the first round begins with."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cmrfed.config.experiment import Experiment, resolve
from cmrfed.core.artifacts import digest_state, read_json
from cmrfed.core.errors import ConfigError
from cmrfed.data.cohort import Cohort
from cmrfed.data.labels import Phase
from cmrfed.data.phantom import write_phantom
from cmrfed.data.settings import PhantomConfig
from cmrfed.data.synthetic import SyntheticDataset
from cmrfed.federation.server.checkpoint import RoundStore
from cmrfed.generators.autoencoder import load_autoencoder
from cmrfed.generators.generator import Generator
from cmrfed.pipeline import pretrain
from cmrfed.pipeline.context import begin
from cmrfed.pipeline.pretrain import pretrained, starting_weights
from cmrfed.pipeline.privacy.guarantee import claim
from cmrfed.pipeline.privacy.plan import PrivacyPlan
from cmrfed.pipeline.synthesis import draw_all
from cmrfed.pipeline.training import train
from cmrfed.training.autoencoder import train_autoencoder
from cmrfed.training.public import train_publicly
from tests.generator_world import same_weights

NET = {"generator": {"backbone": {"channels": [8], "patch_px": 8, "norm_groups": 4}}}
SHORT = {"rounds": 2, "local_steps": 1, "batch_size": 2, "precision": "fp32"}
TRAINED = ["unet.conv_out.bias"]
RECIPE = {
    "name": "tiny",
    "data": {"phantom": {"patients": 4, "sites": 2}, "size_px": 32, "partition": {"sites": 2}, "holdout": 0.2},
    "mask": NET | {"training": SHORT},
    "image": NET | {"training": SHORT},
    "pretrain": {"patients": 2, "scanners": 2, "mask": SHORT, "image": SHORT},
    "federation": {"weighting": "equal"},
    "privacy": {
        "unit": "patient",
        "epsilon": 8.0,
        "delta": 0.05,
        "declared_patients": 3,
        "mask": {"sampling_rate": 1.0, "noise_multiplicity": 1, "trained": TRAINED},
        "image": {"sampling_rate": 1.0, "noise_multiplicity": 1, "trained": TRAINED},
    },
    "compute": {"threads": 1},
}


def experiment(*overrides: str) -> Experiment:
    return resolve(RECIPE, list(overrides))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(experiment(), tmp_path_factory.mktemp("cache"))


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> Path:
    """A cache that holds the pre-training of the recipe."""
    shutil.copytree(made, tmp_path / "cache" / made.name)
    return tmp_path / "cache"


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that are trained from now on."""
    stages: list[str] = []

    def counted(generator, cohort, stage, config, seed) -> None:
        stages.append(stage)
        train_publicly(generator, cohort, stage, config, seed)

    monkeypatch.setattr(pretrain, "train_publicly", counted)
    return stages


# --- what is made ---------------------------------------------------------------------------------
def test_both_generators_load_and_have_the_weights_that_are_written_down(made: Path) -> None:
    weights = {s: digest_state(Generator.load(made / s).network.state_dict()) for s in ("mask", "image")}
    assert weights == starting_weights(made)
    about = read_json(made / "pretrained.json")
    assert about["pretrain"]["patients"] == 2
    assert {path.name for path in made.iterdir()} == {"mask", "image", "pretrained.json"}, "no scan is kept"


def test_the_same_settings_give_the_same_weights(made: Path, tmp_path: Path) -> None:
    assert starting_weights(pretrained(experiment(), tmp_path)) == starting_weights(made)


def test_no_cohort_is_read(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the recipe's cohorts nor its phantom patients, whatever the seeds, have a part in it."""
    opened, drawn = [], []
    real_open, real_write = Cohort.open, write_phantom
    monkeypatch.setattr(Cohort, "open", lambda root, *rest: opened.append(Path(root)) or real_open(root, *rest))
    monkeypatch.setattr(
        "cmrfed.data.phantom.write_phantom", lambda out, c: drawn.append((out, c)) or real_write(out, c)
    )
    secret = experiment(f"data.cohorts=[{tmp_path / 'nowhere'}]", "data.external={far: nowhere}")
    folder = pretrained(secret, tmp_path / "other")
    assert folder.name == pretrained(experiment(), cache).name
    [(scans, config)] = drawn
    assert all(path.parent.parent == tmp_path / "other" and path.name == "cohort" for path in opened), "of the cache"
    assert scans.name == "scans"
    assert config.seed != PhantomConfig(**RECIPE["data"]["phantom"]).seed


def test_without_the_section_there_is_nothing_to_make(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no pre-training.*--set 'pretrain=\{\}'"):
        pretrained(experiment("pretrain=null"), tmp_path)


# --- the cache ------------------------------------------------------------------------------------
@pytest.mark.parametrize("change", ["seed=9", "privacy.epsilon=2", "image.generator.sampler.steps=3", "name=other"])
def test_what_does_not_decide_the_weights_trains_nothing(cache: Path, trainings: list[str], change: str) -> None:
    pretrained(experiment(change), cache)
    assert trainings == []


@pytest.mark.parametrize(
    "change",
    [
        "pretrain.seed=1",
        "pretrain.patients=3",
        "pretrain.image.learning_rate=1e-4",
        "image.generator.mask_dropout=0.5",
        "data.size_px=64",
    ],
)
def test_other_settings_have_another_place(change: str) -> None:
    assert pretrain.origin(experiment(change)) != pretrain.origin(experiment())


def test_other_settings_train_anew_and_both_are_kept(cache: Path, trainings: list[str]) -> None:
    pretrained(experiment("pretrain.seed=1"), cache)
    assert trainings == ["mask", "image"]
    pretrained(experiment(), cache)
    assert trainings == ["mask", "image"]
    assert len(list(cache.glob("pretrained-*"))) == 2


def test_recipes_share_the_stage_that_they_have_in_common(tmp_path: Path, trainings: list[str]) -> None:
    first = pretrained(experiment(), tmp_path)
    second = pretrained(experiment("image.generator.mask_dropout=0.5"), tmp_path)
    assert trainings == ["mask", "image", "image"]
    assert starting_weights(first)["mask"] == starting_weights(second)["mask"]


def test_another_phantom_has_another_place(monkeypatch: pytest.MonkeyPatch) -> None:
    before = pretrain.origin(experiment())
    monkeypatch.setattr(pretrain, "PUBLIC_VERSION", 0)
    assert pretrain.origin(experiment()) != before


def test_one_that_was_killed_half_way_leaves_nothing_that_is_reused(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainings: list[str]
) -> None:
    kept = pretrain.train_stage

    def killed(tree, stage, cohort, out) -> str:
        if stage == "image":
            shutil.copytree(out.parent, tmp_path / ".left.partial")  # what a kill at this moment would leave
            raise KeyboardInterrupt
        return kept(tree, stage, cohort, out)

    monkeypatch.setattr(pretrain, "train_stage", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrained(experiment(), tmp_path)
    left = {path.name.partition("-")[0] for path in tmp_path.iterdir() if not path.name.endswith(".lock")}
    assert left == {".left.partial", "phantom", "stage"}
    (tmp_path / ".left.partial").rename(tmp_path / f".{made.name}.0123.partial")
    monkeypatch.setattr(pretrain, "train_stage", kept)
    again = pretrained(experiment(), tmp_path)
    assert trainings == ["mask", "image"], "the stage that was finished is not trained again"
    assert starting_weights(again) == starting_weights(made)


@pytest.mark.parametrize("file", ["pretrained.json", "image/unet/diffusion_pytorch_model.safetensors"])
def test_one_that_is_damaged_is_made_anew(made: Path, cache: Path, trainings: list[str], file: str) -> None:
    path = cache / made.name / file
    path.write_bytes(path.read_bytes()[:-9])
    assert starting_weights(pretrained(experiment(), cache)) == starting_weights(made)
    assert trainings == ["mask", "image"]


def test_weights_that_were_exchanged_are_not_used(made: Path, cache: Path, trainings: list[str]) -> None:
    Generator(experiment().generator("mask"), seed=99).save(cache / made.name / "mask")
    assert starting_weights(pretrained(experiment(), cache)) == starting_weights(made)
    assert trainings == ["mask", "image"]


# --- the autoencoder --------------------------------------------------------------------------------
LATENT = [
    "image.generator.autoencoder={channels: [8, 8], latent_channels: 2, norm_groups: 4}",
    "image.generator.backbone.patch_px=4",
    "pretrain={patients: 2, scanners: 2, mask: null, image: null, autoencoder: {steps: 2, batch_size: 2}}",
]


@pytest.fixture
def autoencoders(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The autoencoders that are trained from now on."""
    sizes: list[object] = []

    def counted(size, *rest):
        sizes.append(size)
        return train_autoencoder(size, *rest)

    monkeypatch.setattr(pretrain, "train_autoencoder", counted)
    return sizes


def test_an_autoencoder_alone_is_trained_without_any_generator(
    tmp_path: Path, trainings: list[str], autoencoders: list[object]
) -> None:
    made = pretrained(experiment(*LATENT), tmp_path)
    assert (len(autoencoders), trainings) == (1, [])
    assert {path.name for path in made.iterdir()} == {"autoencoder", "pretrained.json"}
    assert starting_weights(made) == {"autoencoder": digest_state(load_autoencoder(made / "autoencoder"))}
    pretrained(experiment(*LATENT), tmp_path)
    assert len(autoencoders) == 1


def test_recipes_that_differ_in_the_family_share_it(tmp_path: Path, autoencoders: list[object]) -> None:
    flow, diffusion = (
        ["image.generator.process={kind: flow}"],
        [
            "image.generator.process={kind: ddpm}",
            "image.generator.sampler.name=ddim",
        ],
    )
    first, second = (pretrained(experiment(*LATENT, *family), tmp_path) for family in (flow, diffusion))
    assert first.name == second.name, "no generator is pre-trained, so nothing of the family is in it"
    with_start = "pretrain.image={rounds: 1, local_steps: 1, batch_size: 2}"
    third, fourth = (pretrained(experiment(*LATENT, *family, with_start), tmp_path) for family in (flow, diffusion))
    assert third.name != fourth.name
    assert len(autoencoders) == 1
    assert same_weights(Generator.load(third / "image").codec.weights, load_autoencoder(first / "autoencoder"))


@pytest.mark.parametrize(
    "change",
    [
        "pretrain.seed=1",
        "pretrain.autoencoder.steps=3",
        "image.generator.autoencoder.latent_channels=3",
        "data.size_px=64",
    ],
)
def test_another_autoencoder_has_another_place(change: str) -> None:
    assert pretrain.codec_origin(experiment(*LATENT, change)) != pretrain.codec_origin(experiment(*LATENT))
    assert pretrain.origin(experiment(*LATENT, change)) != pretrain.origin(experiment(*LATENT))


def test_a_damaged_autoencoder_is_made_anew(tmp_path: Path, autoencoders: list[object]) -> None:
    made = pretrained(experiment(*LATENT), tmp_path)
    weights = starting_weights(made)
    for path in tmp_path.glob("*/autoencoder/*.safetensors"):
        path.write_bytes(path.read_bytes()[:-9])
    assert starting_weights(pretrained(experiment(*LATENT), tmp_path)) == weights
    assert len(autoencoders) == 2


def test_what_recipes_without_it_have_in_the_cache_stays_valid() -> None:
    assert "autoencoder" not in str(pretrain.origin(experiment()))


def test_a_latent_run_trains_draws_and_is_judged_and_needs_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autoencoders: list[object]
) -> None:
    monkeypatch.setattr(pretrain, "cache_folder", lambda: tmp_path / "cache")
    run_dir = tmp_path / "run"
    tree = experiment(*LATENT, "privacy={}", "synthesis={patients: 1, slices: [2, 2], precision: fp32}")
    context = begin(tree, run_dir)
    train(context)
    made = Generator.load(run_dir / "generators" / "image")
    assert same_weights(made.codec.weights, load_autoencoder(run_dir / "start" / "autoencoder"))
    assert set(read_json(run_dir / "run.json")["start"]) == {"autoencoder"}
    shutil.rmtree(tmp_path / "cache")
    train(context)
    assert len(autoencoders) == 1
    data = context.data
    assert data is not None
    draw_all(context.trained, data.holdout)
    left = SyntheticDataset.open(run_dir / "reconstructed")
    assert "real images of hold-out patients" in left.manifest.privacy.statement
    (real,) = [v for v in data.holdout.iter_volumes() if v.phase == Phase.ED]
    (case,) = [case for case in left.cases() if case.phase == Phase.ED]
    expected = made.codec.decode(made.codec.encode(torch.from_numpy(np.array(real.image, np.float32))[:, None]))[:, 0]
    assert np.allclose(case.image, expected.numpy(), atol=1e-6)
    assert np.array_equal(case.mask, real.mask)


def test_what_is_said_of_a_start_names_what_is_public() -> None:
    both, latent = (experiment(*more).pretrain.in_words(finetuned=False) for more in ((), LATENT))
    assert both == (
        "The generators start from public weights, trained on a phantom alone (2 simulated patients, no real one), "
        "which costs no ε."
    )
    assert latent == (
        "The autoencoder of the images is public and stays as it is, trained on a phantom alone (2 simulated patients, "
        "no real one), which costs no ε."
    )
    alone = experiment("pretrain.mask=null", "pretrain.image.rounds=1").pretrain.in_words(finetuned=False)
    assert alone.startswith("The image generator starts from public weights, trained on a phantom alone")


def test_a_stage_that_stays_at_its_start_needs_one_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"mask\.training\.rounds is 0, but there are no pre-trained.*pretrain\.mask"):
        experiment("mask.training.rounds=0", "pretrain.mask=null")


# --- a run that starts from it ----------------------------------------------------------------------
def test_a_run_starts_from_it_and_goes_on_without_the_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainings: list[str]
) -> None:
    """What is not among the trained parameters is still as it was before the first round, to the bit."""
    monkeypatch.setattr(pretrain, "cache_folder", lambda: cache)
    run_dir, tree = tmp_path / "run", experiment()
    context = begin(tree, run_dir)
    train(context)
    assert trainings == []
    assert read_json(run_dir / "run.json")["start"] == starting_weights(run_dir / "start")
    for stage in ("mask", "image"):
        begun = Generator.load(run_dir / "start" / stage).network.state_dict()
        ended = RoundStore(run_dir / stage, tree.digest).load(2)["global"]
        assert {n for n in begun if not begun[n].equal(ended[n])} == set(TRAINED)
    assert (
        "public weights, trained on a phantom alone (2 simulated patients"
        in claim(PrivacyPlan(tree), run_dir).statement
    )
    shutil.rmtree(cache)
    train(context)
    assert not cache.exists()
