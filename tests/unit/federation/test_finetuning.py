"""An autoencoder that learns at the sites: a stage of its own, that patients pay for like the others."""

import shutil
from pathlib import Path

import pytest
import torch

from cmrfed.config.experiment import Experiment, resolve
from cmrfed.core.artifacts import digest_state, read_json, write_json
from cmrfed.core.errors import ConfigError, SiteRefused
from cmrfed.core.settings.digests import digested
from cmrfed.data.cohort import Cohort
from cmrfed.federation.local_grid import LocalGrid
from cmrfed.federation.site.site import Site
from cmrfed.generators.autoencoder import load_autoencoder
from cmrfed.generators.generator import Generator
from cmrfed.pipeline.context import RunContext, begin
from cmrfed.pipeline.privacy.guarantee import audit_experiment, claim
from cmrfed.pipeline.privacy.plan import PrivacyPlan
from cmrfed.pipeline.training import stage_specs, train
from cmrfed.privacy.accountant import epsilon
from cmrfed.privacy.ledger.ledger import PrivacyLedger
from cmrfed.privacy.policy import SitePolicy
from cmrfed.sweep.paid import planned_events
from tests.federation_world import tiny_cohort
from tests.generator_world import same_weights

SIZE_PX = 16
BACKBONE = {"channels": [8], "patch_px": 4, "norm_groups": 4, "layers_per_block": 1, "attention_levels": 0}
RECIPE = {
    "name": "tuned",
    "data": {"size_px": SIZE_PX, "partition": {"sites": 2}},
    "autoencoder": {"training": {"rounds": 2, "local_steps": 1, "batch_size": 2, "learning_rate": 1e-3}},
    "mask": {"generator": {"backbone": BACKBONE}, "training": {"rounds": 1, "local_steps": 1}},
    "image": {
        "generator": {
            "backbone": BACKBONE,
            "autoencoder": {"channels": [8, 8], "latent_channels": 2, "norm_groups": 4},
        },
        "training": {"rounds": 1, "local_steps": 1, "batch_size": 2},
    },
    "pretrain": {"patients": 4, "scanners": 2, "mask": None, "image": None, "autoencoder": {"steps": 2}},
    "compute": {"threads": 1},
}
PRIVATE = {
    "federation": {"weighting": "equal"},
    "privacy": {
        "unit": "patient",
        "epsilon": 6.0,
        "delta": 0.01,
        "declared_patients": 3,
        "autoencoder": {"sampling_rate": 0.5, "noise_multiplicity": 2},
        "mask": {"sampling_rate": 0.5, "noise_multiplicity": 1},
        "image": {"sampling_rate": 0.5, "noise_multiplicity": 1},
    },
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "finetuning-cache"))


def begun(experiment: Experiment, run_dir: Path) -> RunContext:
    place = run_dir.parent / "cohort"
    cohort = Cohort.open(place) if place.is_dir() else tiny_cohort(place, 9)
    data = experiment.data.model_copy(update={"cohorts": (str(cohort.root),)})
    return begin(experiment.model_copy(update={"data": data}), run_dir)


def trained(experiment: Experiment, run_dir: Path) -> Path:
    train(begun(experiment, run_dir))
    return run_dir


@pytest.fixture(scope="module")
def open_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without privacy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "finetuning-cache"))
        return trained(resolve(RECIPE), tmp_path_factory.mktemp("open") / "run")


def moved(run_dir: Path) -> bool:
    return not same_weights(*(load_autoencoder(run_dir / part / "autoencoder") for part in ("start", "generators")))


# --- without privacy --------------------------------------------------------------------------------
def test_images_go_by_the_autoencoder_that_learned_at_the_sites(open_run: Path) -> None:
    assert moved(open_run)
    tuned = load_autoencoder(open_run / "generators" / "autoencoder")
    image = Generator.load(open_run / "generators" / "image")
    assert same_weights(image.codec.weights, tuned)
    assert image.config.finetuned_autoencoder
    public = Generator(image.config, autoencoder=load_autoencoder(open_run / "start" / "autoencoder"))
    x = torch.rand(1, 1, SIZE_PX, SIZE_PX)
    assert not torch.equal(image.codec.encode(x), public.codec.encode(x))
    card = (open_run / "generators" / "image" / "README.md").read_text()
    assert "at the sites then, so what is said of the privacy of these weights holds for it too" in card
    assert "no patient is in it" not in card


def test_without_privacy_nothing_is_claimed_and_the_ledgers_say_why(open_run: Path) -> None:
    assert not claim(PrivacyPlan(resolve(RECIPE)), open_run).differentially_private
    events = PrivacyLedger(open_run / "sites" / "00").history().events
    assert [(event.stage, event.unit) for event in events] == [
        *[("autoencoder", "none")] * 2,
        ("mask", "none"),
        ("image", "none"),
    ]


def test_an_autoencoder_alone_that_learned_from_patients_is_not_a_public_set(tmp_path: Path) -> None:
    public = {"patients": 4, "scanners": 2, "autoencoder": {"steps": 2}}
    short = {"rounds": 1, "local_steps": 1, "batch_size": 2}
    tree = RECIPE | {"pretrain": public | {"mask": short, "image": short}}
    experiment = resolve(tree, ["mask.training.rounds=0", "image.training.rounds=0"])
    run_dir = trained(experiment, tmp_path / "run")
    assert moved(run_dir)
    said = claim(PrivacyPlan(experiment), run_dir)
    assert not said.differentially_private
    assert "No patient took part" not in said.statement
    assert Generator.load(run_dir / "start" / "image").config.finetuned_autoencoder is False


@pytest.mark.parametrize("dies_after", [1, 2, 3])
def test_killed_in_any_stage_it_goes_on_to_the_same_weights(open_run: Path, tmp_path: Path, dies_after: int) -> None:
    class Dying(LocalGrid):
        left = dies_after

        def send_and_receive(self, messages, *, timeout=None):
            if next(iter(messages)).metadata.message_type == "train":
                type(self).left -= 1
                if type(self).left < 0:
                    raise KeyboardInterrupt
            return super().send_and_receive(messages, timeout=timeout)

    experiment, killed = resolve(RECIPE), tmp_path / "killed"
    context = begun(experiment, killed)
    context.grid = Dying(sorted((killed / "sites").iterdir()))
    with pytest.raises(KeyboardInterrupt):
        train(context)
    trained(experiment, killed)
    for stage in ("mask", "image"):
        ours, theirs = (Generator.load(folder / "generators" / stage) for folder in (killed, open_run))
        assert digest_state(ours.network.state_dict()) == digest_state(theirs.network.state_dict())
    assert same_weights(*(load_autoencoder(folder / "generators" / "autoencoder") for folder in (killed, open_run)))


# --- with privacy -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def private_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which every stage is private."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "finetuning-cache"))
        return trained(resolve(RECIPE | PRIVATE), tmp_path_factory.mktemp("private") / "run")


def test_its_share_of_the_budget_is_planned_paid_audited_and_claimed(private_run: Path) -> None:
    experiment, run_dir = resolve(RECIPE | PRIVATE), private_run
    plan = PrivacyPlan(experiment)
    assert [row.stage for row in plan.rows] == ["autoencoder", "mask", "image"]
    assert [row.stage for row in audit_experiment(plan)] == ["autoencoder", "mask", "image"]
    assert "he autoencoder of the images, which then learns at the sites, starts from public" in plan.text
    assert moved(run_dir)
    events = PrivacyLedger(run_dir / "sites" / "00").history().events
    assert [(event.stage, event.steps, event.unit) for event in events] == [
        *[("autoencoder", 1, "patient")] * 2,
        ("mask", 1, "patient"),
        ("image", 1, "patient"),
    ]
    said = claim(PrivacyPlan(experiment), run_dir)
    assert said.differentially_private
    by_hand = epsilon(list(events), 0.01).prv
    assert said.epsilon == pytest.approx(by_hand, abs=1.1e-3)
    assert said.epsilon <= 6.0
    without = epsilon([event for event in events if event.stage != "autoencoder"], 0.01).prv
    assert without < by_hand, "what it costs is in the claim"


def test_a_run_whose_autoencoder_stage_had_no_privacy_is_never_claimed(private_run: Path, tmp_path: Path) -> None:
    experiment = resolve(RECIPE | PRIVATE)
    run_dir = shutil.copytree(private_run, tmp_path / "run", symlinks=True)
    path = next((run_dir / "autoencoder").glob("round-0002/metrics.json"))
    metrics = read_json(path)
    for row in metrics["sites"].values():
        row["spent"] = None
    write_json(path, metrics)
    assert not claim(PrivacyPlan(experiment), run_dir).differentially_private


def test_more_noise_in_the_autoencoder_leaves_more_for_the_others() -> None:
    plain = {row.stage: row for row in PrivacyPlan(resolve(RECIPE | PRIVATE)).rows}
    loud = resolve(RECIPE | PRIVATE, ["privacy.autoencoder.noise_ratio=4"])
    rows = {row.stage: row for row in PrivacyPlan(loud).rows}
    assert rows["autoencoder"].noise_multiplier > plain["autoencoder"].noise_multiplier
    assert rows["autoencoder"].epsilon_alone < plain["autoencoder"].epsilon_alone
    assert rows["image"].noise_multiplier < plain["image"].noise_multiplier


# --- who may ask for it -----------------------------------------------------------------------------
def test_a_site_permits_it_only_where_its_policy_says_so(tmp_path: Path) -> None:
    experiment = resolve(RECIPE | PRIVATE)
    begun(experiment, tmp_path / "run")
    root = tmp_path / "run" / "sites" / "00"
    SitePolicy(epsilon_cap=8.0, delta=1e-2, smallest_cohort=1).save(root / "policy.yaml")
    site = Site.open(root)
    with pytest.raises(SiteRefused, match=r"does not permit this stage. Got: autoencoder. Expected: mask or image"):
        site.policy.check(_event(experiment), PrivacyLedger(root).history(), 5)


def _event(experiment: Experiment):
    return next(event for event in planned_events(experiment, "r") if event.stage == "autoencoder")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["image.generator.autoencoder=null", "pretrain=null"],
            "autoencoder is set without image.generator.autoencoder",
        ),
        (["autoencoder.training.rounds=0"], "autoencoder.training.rounds is 0: leave the section out"),
    ],
)
def test_what_cannot_be_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(RECIPE, changes)


def test_a_recipe_without_it_is_as_it_was() -> None:
    tree = {name: part for name, part in RECIPE.items() if name != "autoencoder"}
    experiment = resolve(tree)
    assert "autoencoder" not in digested(experiment)
    assert [spec.name for spec in stage_specs(PrivacyPlan(experiment))] == ["mask", "image"]
    assert "finetuned_autoencoder" not in digested(stage_specs(PrivacyPlan(experiment))[1].generator)
    with pytest.raises(ConfigError, match="does not train the autoencoder at the sites"):
        experiment.training("autoencoder")
