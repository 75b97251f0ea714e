"""A segmenter that learns at the sites and labels the public patients again: a stage that patients pay for."""

from pathlib import Path

import numpy as np
import pytest

from cmrfed.config.experiment import Experiment, resolve
from cmrfed.core.artifacts import digest_state, read_json
from cmrfed.core.errors import ConfigError, SiteRefused
from cmrfed.core.settings.digests import digested
from cmrfed.data.cohort import Cohort
from cmrfed.federation.local_grid import LocalGrid
from cmrfed.federation.server.checkpoint import RoundStore
from cmrfed.federation.site.site import Site
from cmrfed.generators.generator import Generator
from cmrfed.pipeline.context import RunContext, begin
from cmrfed.pipeline.files.contents import item_of, may_leave
from cmrfed.pipeline.privacy.guarantee import claim, read_audit
from cmrfed.pipeline.privacy.plan import PrivacyPlan
from cmrfed.pipeline.run import dry_run
from cmrfed.pipeline.training import stage_specs, train
from cmrfed.privacy.accountant import epsilon
from cmrfed.privacy.ledger.ledger import PrivacyLedger
from cmrfed.privacy.policy import SitePolicy
from cmrfed.report.methods import paragraphs
from cmrfed.segmentation.files import load_segmenter
from cmrfed.segmentation.segmenter import segment
from cmrfed.sweep.paid import planned_events
from tests.federation_world import tiny_cohort
from tests.generator_world import same_weights

BACKBONE = {"channels": [8], "patch_px": 4, "norm_groups": 4, "layers_per_block": 1, "attention_levels": 0}
PUBLIC = {"rounds": 1, "local_steps": 1, "batch_size": 2}
RECIPE = {
    "name": "labelled",
    "data": {"size_px": 16, "partition": {"sites": 2}},
    "segmenter": {
        "public": {"channels": [4, 8], "steps": 3, "batch_size": 4},
        "training": {"rounds": 2, "batch_size": 2},
    },
    "mask": {"generator": {"backbone": BACKBONE}, "training": {"rounds": 0}},
    "image": {"generator": {"backbone": BACKBONE}, "training": {"rounds": 0}},
    "pretrain": {"patients": 4, "scanners": 2, "mask": PUBLIC, "image": PUBLIC},
    "compute": {"threads": 1},
}
PRIVATE = {
    "federation": {"weighting": "equal"},
    "privacy": {
        "unit": "patient",
        "epsilon": 6.0,
        "delta": 0.01,
        "declared_patients": 3,
        "segmenter": {"noise_multiplicity": 2},
    },
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "labeller-cache"))


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
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "labeller-cache"))
        return trained(resolve(RECIPE), tmp_path_factory.mktemp("open") / "run")


@pytest.fixture(scope="module")
def private_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose segmenter is all that patients pay for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "labeller-cache"))
        return trained(resolve(RECIPE | PRIVATE), tmp_path_factory.mktemp("private") / "run")


def weights(run_dir: Path, part: str):
    return load_segmenter(run_dir / part / "segmenter").state_dict()


# --- what is trained on what ------------------------------------------------------------------------
def test_the_generators_learn_from_public_images_under_the_labels_of_the_released_segmenter(open_run: Path) -> None:
    assert not same_weights(weights(open_run, "start"), weights(open_run, "generators"))
    cohort, released = (
        Cohort.open(open_run / "relabelled" / "cohort"),
        load_segmenter(open_run / "generators/segmenter"),
    )
    assert np.array_equal(cohort.masks, segment(released, np.asarray(cohort.images, np.float32)))
    assert not np.array_equal(cohort.masks, segment(load_segmenter(open_run / "start/segmenter"), cohort.images))
    assert len(cohort) == 4
    assert all("structures filled in by a segmenter" in " ".join(patient.notes) for patient in cohort.patients)
    for stage in ("mask", "image"):
        start, end = (Generator.load(open_run / part / stage) for part in ("relabelled", "generators"))
        assert same_weights(start.network.state_dict(), end.network.state_dict()), "no site trained it"
        assert not (open_run / stage).is_dir() or not RoundStore(open_run / stage, resolve(RECIPE).digest).latest()


def test_what_is_public_stays_apart_from_what_the_claim_covers(open_run: Path) -> None:
    assert sorted(path.name for path in (open_run / "start").iterdir()) == ["pretrained.json", "segmenter"]
    assert read_json(open_run / "start/pretrained.json")["weights"] == {
        "segmenter": digest_state(weights(open_run, "start"))
    }
    nothing_promised = claim(PrivacyPlan(resolve(RECIPE)), open_run)
    assert not nothing_promised.differentially_private
    assert "No patient took part" not in nothing_promised.statement
    for path in ("relabelled/cohort/masks.npy", "generators/segmenter/segmenter.safetensors"):
        assert not may_leave(path, nothing_promised)
    assert all(item_of(str(p.relative_to(open_run))) for p in open_run.rglob("*") if p.is_file())


def test_a_recipe_without_it_is_as_it_was() -> None:
    experiment = resolve({name: part for name, part in RECIPE.items() if name != "segmenter"})
    assert "segmenter" not in digested(experiment)
    assert "segmenter" not in digested(experiment.privacy)
    specs = stage_specs(PrivacyPlan(experiment))
    assert [spec.name for spec in specs] == ["mask", "image"]
    assert all("segmenter" not in digested(spec.generator) for spec in specs)
    with pytest.raises(ConfigError, match="does not train the segmenter at the sites"):
        experiment.training("segmenter")


@pytest.mark.parametrize("dies_after", [1, 2])
def test_killed_while_the_sites_train_it_goes_on_to_the_same_weights(
    open_run: Path, tmp_path: Path, dies_after: int
) -> None:
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
    if dies_after == 1:
        with pytest.raises(KeyboardInterrupt):
            train(context)
    trained(experiment, killed)
    assert same_weights(weights(killed, "generators"), weights(open_run, "generators"))
    same_end(killed, open_run)


def same_end(one: Path, other: Path) -> None:
    for stage in ("mask", "image"):
        ours, theirs = (Generator.load(folder / "generators" / stage) for folder in (one, other))
        assert digest_state(ours.network.state_dict()) == digest_state(theirs.network.state_dict())


def test_killed_while_the_generators_learn_it_goes_on_where_it_was(
    open_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cmrfed.pipeline import relabel

    real = relabel.train_stage

    def dying(experiment, stage, cohort, out):
        if stage == "image":
            raise KeyboardInterrupt
        return real(experiment, stage, cohort, out)

    experiment, killed = resolve(RECIPE), tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(relabel, "train_stage", dying)
        with pytest.raises(KeyboardInterrupt):
            trained(experiment, killed)
    assert not (killed / "relabelled").exists()
    asked: list[str] = []

    def noted(experiment, stage, cohort, out):
        asked.append(stage)
        return real(experiment, stage, cohort, out)

    monkeypatch.setattr(relabel, "train_stage", noted)
    trained(experiment, killed)
    assert asked == ["image"]
    same_end(killed, open_run)


# --- with privacy -----------------------------------------------------------------------------------
def test_its_noise_is_planned_paid_audited_and_claimed(private_run: Path) -> None:
    experiment, run_dir = resolve(RECIPE | PRIVATE), private_run
    plan = PrivacyPlan(experiment)
    (row,) = plan.rows
    assert (row.stage, row.steps, row.sampling_rate, row.clip_norm) == ("segmenter", 2, 0.5, 0.5)
    (audit,) = read_audit(run_dir)
    assert audit.stage == "segmenter"
    assert audit.passed, audit.failed_checks
    for site in ("00", "01"):
        events = PrivacyLedger(run_dir / "sites" / site).history().events
        assert [(event.stage, event.steps, event.unit) for event in events] == [("segmenter", 1, "patient")] * 2
    said = claim(plan, run_dir)
    assert said.differentially_private
    assert said.epsilon == pytest.approx(epsilon(list(events), 0.01).prv, abs=1.1e-3)
    assert said.epsilon <= 6.0
    assert "labels the same public images again" in said.statement
    assert "this costs no further ε" in said.statement
    assert may_leave("relabelled/image/unet/diffusion_pytorch_model.safetensors", said)
    assert may_leave("generators/segmenter/segmenter.safetensors", said)


def test_nothing_but_the_named_parameters_changes(private_run: Path) -> None:
    before, after = weights(private_run, "start"), weights(private_run, "generators")
    named = {name for name in before if name.startswith(("model.0.", "model.2."))}
    moved = {name: float((after[name] - before[name]).abs().max()) for name in before}
    assert {name for name, by in moved.items() if by > 1e-5} == named
    assert max(by for name, by in moved.items() if name not in named) < 1e-6, "averages are rounded"


def test_hardly_any_noise_is_the_same_path_with_less_noise(tmp_path: Path) -> None:
    """An oracle is a private run whose target is so large that noise is at its least: nothing else differs."""
    loud, quiet = (resolve(RECIPE | PRIVATE, [f"privacy.epsilon={target}"]) for target in (6.0, 1e5))
    first, second = (stage_specs(PrivacyPlan(experiment))[0] for experiment in (loud, quiet))
    assert first.privacy is not None
    assert second.privacy is not None
    assert second.privacy.noise_multiplier == 0.2
    same = second.privacy.model_copy(update={"noise_multiplier": first.privacy.noise_multiplier})
    assert (first.generator, first.training, first.privacy) == (second.generator, second.training, same)


def test_its_share_of_the_budget_is_its_own(private_run: Path) -> None:
    images = {"training": {"rounds": 1, "local_steps": 1, "batch_size": 2}, "generator": {"backbone": BACKBONE}}
    both = resolve(RECIPE | PRIVATE | {"image": images})
    rows = {row.stage: row for row in PrivacyPlan(both).rows}
    assert list(rows) == ["segmenter", "image"]
    louder = {
        row.stage: row
        for row in PrivacyPlan(
            both.model_copy(
                update={
                    "privacy": both.privacy.model_copy(
                        update={"segmenter": both.privacy.segmenter.model_copy(update={"noise_ratio": 4.0})}
                    )
                }
            )
        ).rows
    }
    assert louder["segmenter"].epsilon_alone < rows["segmenter"].epsilon_alone
    assert louder["image"].noise_multiplier < rows["image"].noise_multiplier


# --- who may ask for it -----------------------------------------------------------------------------
def test_a_site_permits_it_only_where_its_policy_says_so(tmp_path: Path) -> None:
    experiment = resolve(RECIPE | PRIVATE)
    begun(experiment, tmp_path / "run")
    root = tmp_path / "run" / "sites" / "00"
    SitePolicy(epsilon_cap=8.0, delta=1e-2, smallest_cohort=1).save(root / "policy.yaml")
    (event, *_) = planned_events(experiment, "r")
    with pytest.raises(SiteRefused, match=r"does not permit this stage. Got: segmenter. Expected: mask or image"):
        Site.open(root).policy.check(event, PrivacyLedger(root).history(), 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["pretrain=null", "mask.training.rounds=1", "image.training.rounds=1"], "no generator learns from public"),
        (["segmenter.training.rounds=0"], "segmenter.training.rounds is 0: leave the section out"),
        (["segmenter.public.channels=[4,8,8,8,8,8]"], r"size_px 16 must be a multiple of 32"),
    ],
)
def test_what_cannot_be_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(RECIPE, changes)


# --- what is said of it -----------------------------------------------------------------------------
def test_plan_and_methods_say_who_learned_from_whom() -> None:
    text = PrivacyPlan(resolve(RECIPE | PRIVATE)).text
    assert "segmenter: σ = " in text
    assert "The segmenter starts from public weights, trained on a phantom alone (4 simulated patients" in text
    assert "mask: keeps its pre-trained weights" in text
    experiment = resolve(RECIPE | PRIVATE)
    written = " ".join(
        p.text for p in paragraphs({"experiment": experiment.model_dump(mode="json"), "sites": [1, 2]}, [])
    )
    assert "The segmenter was trained at 2 sites over Flower" in written
    assert "2 rounds of 1 local steps for the segmenter" in written
    assert "it labelled these images again" in written
    assert "public, as they were pre-trained" not in written
    assert dry_run(experiment)["stages"]["segmenter"]["steps_per_site"] == 2
