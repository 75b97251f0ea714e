"""Public cohorts: learned from beside the phantom, under their content, with their terms, and never from a patient."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from cmrfed.config.experiment import Experiment, resolve
from cmrfed.core.artifacts import read_json
from cmrfed.core.errors import ConfigError, DataError
from cmrfed.data.cohort import Cohort
from cmrfed.data.labels import Label
from cmrfed.pipeline import pretrain, public
from cmrfed.pipeline.context import begin
from cmrfed.pipeline.data import open_data, open_externals
from cmrfed.pipeline.files.record import read_run
from cmrfed.pipeline.pretrain import pretrained, starting_sources, starting_weights
from cmrfed.pipeline.privacy.guarantee import public_claim
from cmrfed.pipeline.public import public_origin, public_training_set, refuse_public
from cmrfed.pipeline.trained import TrainedRun
from cmrfed.pipeline.training import train
from cmrfed.report.methods import paragraphs
from tests.evaluation_world import cohort as hearts
from tests.unit.data.test_overlap import saved_again, scan, written

NET = {"generator": {"backbone": {"channels": [8], "patch_px": 8, "norm_groups": 4}}}
SHORT = {"rounds": 1, "local_steps": 1, "batch_size": 2, "precision": "fp32"}
SEGMENTER = {"channels": [4, 8], "steps": 2, "batch_size": 4, "precision": "fp32"}
NAME, LICENCE, SOURCE = "Textures", "CC0-1.0", "doi 10.0/textures"
SIZE = 48


def recipe(place: Path, *overrides: str) -> Experiment:
    cohort = {"path": str(place), "name": NAME, "licence": LICENCE, "source": SOURCE, "holdout": 0.4}
    tree = {
        "name": "tiny",
        "data": {"size_px": SIZE, "partition": {"sites": 1}, "holdout": 0.4},
        "mask": NET | {"training": SHORT},
        "image": NET | {"training": SHORT},
        "pretrain": {
            "patients": 2,
            "scanners": 1,
            "mask": SHORT,
            "image": None,
            "cohorts": [cohort],
            "completion": {"segmenter": SEGMENTER},
        },
        "federation": {"weighting": "equal", "min_sites": 1},
        "synthesis": {"patients": 1, "slices": [2, 2], "precision": "fp32"},
        "compute": {"threads": 1},
    }
    return resolve(tree, list(overrides))


def labelled(folder: Path, scans: dict, structure: int = 3) -> Cohort:
    """A cohort of textures in which the annotators drew one structure."""
    cohort = written(folder, scans, SIZE)
    masks = np.load(cohort.root / "masks.npy")
    masks[:] = 0
    masks[:, 20:28, 20:28] = structure
    np.save(cohort.root / "masks.npy", masks)
    head = read_json(cohort.root / "cohort.json") | {"labels": [structure]}
    from cmrfed.core.artifacts import write_json

    write_json(cohort.root / "cohort.json", head)
    return Cohort.open(cohort.root)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    labelled(folder / "public", {f"p{k}": scan(k) for k in range(8)})
    labelled(folder / "private", {f"q{k}": scan(100 + k) for k in range(5)})
    hearts(folder / "phantom", range(2), size=SIZE)
    return folder


@pytest.fixture(autouse=True)
def drawn(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A phantom that is drawn at once."""
    monkeypatch.setattr(public, "public_patients", lambda *_: Cohort.open(world / "phantom"))


# --- what is learned from -----------------------------------------------------------------------------
def test_public_patients_get_whole_masks_and_keep_what_was_drawn(world: Path, tmp_path: Path) -> None:
    found = public_training_set(recipe(world / "public"), tmp_path)
    [whole] = found.completed
    source = Cohort.open(world / "public").select(whole.patient_ids)
    assert 0 < len(whole) < 8
    assert np.array_equal(whole.masks[:] == Label.LV, source.masks[source.rows] == Label.LV)
    assert np.array_equal(whole.images[:], source.images[source.rows])
    assert [p for p in found.mixed.patient_ids if p in whole.patient_ids], "they are trained on"
    phantom, textures = found.learned_from
    assert (str(phantom), str(textures)) == (f"phantom v{public.PUBLIC_VERSION}", f"{NAME}, {LICENCE}")
    assert textures.completed is not None
    assert textures.completed.structures == ("MYO", "RV")
    assert set(textures.completed.agreement) == {"LV"}
    assert (textures.patients, textures.source) == (len(whole), SOURCE)


@pytest.mark.parametrize(("share", "real"), [(0.5, 0.5), (0.8, 0.8), (0.2, 0.2), (0.9, 0.9)])
def test_public_cohorts_have_their_share_of_the_draws(world: Path, tmp_path: Path, share: float, real: float) -> None:
    mixed = public_training_set(recipe(world / "public", f"pretrain.mixed_share={share}"), tmp_path).mixed
    of_phantom = [p for p in mixed.patient_ids if p in Cohort.open(world / "phantom").patient_ids]
    assert 1 - len(of_phantom) / len(mixed) == pytest.approx(real, abs=0.12)
    assert set(mixed.patient_ids) > set(of_phantom)


def test_the_test_part_is_never_learned_from(world: Path, tmp_path: Path) -> None:
    used = public_training_set(recipe(world / "public"), tmp_path).mixed.patient_ids
    kept = open_externals(recipe(world / "public", f"data.external={{textures: {world / 'public'}}}"))["textures"]
    assert set(used).isdisjoint(kept.patient_ids)
    assert len(kept) == 8 - len([p for p in Cohort.open(world / "public").patient_ids if p in used])


def test_every_round_of_self_training_learns_from_the_one_before(world: Path, tmp_path: Path, monkeypatch) -> None:
    seen = []
    real = public.train_public_segmenter

    def counted(*args, completed=(), **kw):
        seen.append(len(completed))
        return real(*args, completed=completed, **kw)

    monkeypatch.setattr(public, "train_public_segmenter", counted)
    public_training_set(recipe(world / "public", "pretrain.completion.rounds=3"), tmp_path)
    assert seen == [0, 1, 1]
    public_training_set(recipe(world / "public", "pretrain.completion.rounds=3"), tmp_path)
    assert len(seen) == 3, "it was kept"


# --- names, caches ------------------------------------------------------------------------------------
def test_weights_are_named_by_content_and_not_by_places_or_terms(world: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(world / "public", moved)
    first, second = recipe(world / "public"), recipe(moved)
    other_words = first.model_dump(mode="json")
    other_words["pretrain"]["cohorts"][0] |= {"licence": "MIT", "source": "corrected"}
    third = resolve(other_words)
    assert first.digest == second.digest == third.digest
    assert pretrain.origin(first) == pretrain.origin(second) == pretrain.origin(third)
    labelled(tmp_path / "o" / "public", {f"p{k}": scan(200 + k) for k in range(8)})
    assert public_origin(recipe(tmp_path / "o" / "public")) != public_origin(first)


@pytest.mark.parametrize("change", ["pretrain.mixed_share=0.4", "pretrain.completion.rounds=2"])
def test_what_decides_masks_and_draws_has_another_place(world: Path, change: str) -> None:
    first, other = recipe(world / "public"), recipe(world / "public", change)
    assert pretrain.stage_origin(first, "mask") != pretrain.stage_origin(other, "mask")
    assert first.digest != other.digest


def test_without_public_cohorts_nothing_of_this_is_in_the_names(world: Path) -> None:
    plain = recipe(world / "public", "pretrain.cohorts=[]")
    asked = recipe(world / "public", "pretrain.cohorts=[]", "pretrain.completion={}", "pretrain.mixed_share=0.5")
    assert "public" not in pretrain.origin(asked)
    assert not {"cohorts", "completion", "mixed_share"} & set(pretrain.origin(plain)["pretrain"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("name: phantom, licence: a, source: b", "names of their own"),
        ("name: A, licence: '<b>', source: b", "licence"),
        ("name: 'A|B', licence: a, source: b", "name"),
        ("name: A, licence: '', source: b", "licence"),
        ("name: A, licence: a", "source"),
        ("name: A, licence: a, source: b, holdout: 1", "holdout"),
    ],
)
def test_settings_that_cannot_be_shown_or_used_are_refused(world: Path, change: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        recipe(world / "public", f"pretrain.cohorts=[{{path: x, {change}}}]")


def test_another_size_is_refused(world: Path) -> None:
    with pytest.raises(ConfigError, match=r"public cohort Textures is of another size.*48 px.*64 px.*--size 64"):
        public.open_public(recipe(world / "public", "data.size_px=64"))


# --- never from a patient -----------------------------------------------------------------------------
@pytest.mark.parametrize("again", [False, True])
def test_a_patient_of_the_run_is_refused_under_another_name_and_saved_again(
    world: Path, tmp_path: Path, again: bool
) -> None:
    """Whether the patient would train or be held out."""
    experiment = recipe(world / "public")
    learned = public.open_public(experiment)[0].patient_ids
    number = int(learned[0][1:])
    copy = saved_again(scan(number)) if again else scan(number)
    labelled(tmp_path / "private", {"x": copy} | {f"q{k}": scan(100 + k) for k in range(4)})
    with pytest.raises(DataError, match=rf"Textures has patients of the run.*1 patient\(s\): x is p{number} there"):
        open_data(recipe(world / "public", f"data.cohorts=[{tmp_path / 'private'}]"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    refuse_public(experiment, Cohort.open(world / "private"))


def test_an_external_set_of_which_all_is_learned_is_refused(world: Path) -> None:
    tree = recipe(world / "public", f"data.external={{t: {world / 'public'}}}").model_dump(mode="json")
    tree["pretrain"]["cohorts"][0]["holdout"] = 0
    with pytest.raises(DataError, match="external data set t cannot test anything"):
        open_externals(resolve(tree))


# --- a run ----------------------------------------------------------------------------------------------
def test_a_run_states_sources_and_terms_everywhere_and_resumes(world: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pretrain, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(public, "cache_folder", lambda: tmp_path / "cache")
    labelled(tmp_path / "whole" / "private", {f"q{k}": scan(100 + k) for k in range(5)})
    experiment = recipe(world / "public", f"data.cohorts=[{tmp_path / 'whole' / 'private'}]")
    run_dir = tmp_path / "run"
    train(begin(experiment, run_dir))
    first = starting_weights(run_dir / "start")
    shutil.rmtree(tmp_path / "cache")
    train(begin(experiment, run_dir))
    assert starting_weights(run_dir / "start") == first, "the run folder has what it needs"
    record = read_run(run_dir)
    assert [str(source) for source in record.learned_from][1:] == [f"{NAME}, {LICENCE}"]
    manifest = TrainedRun.open(run_dir).manifest("synthetic", patients=1, seed=0)
    assert manifest.learned_from == record.learned_from
    for card in (run_dir / "generators" / "mask", run_dir / "generators" / "image", run_dir / "start" / "mask"):
        text = (card / "README.md").read_text(encoding="utf-8")
        assert text.count(f"{NAME}, {LICENCE}, {SOURCE}") == 1
        assert "MYO, RV filled in by a segmenter" in text
    methods = " ".join(p.text for p in paragraphs(record.as_json(), []))
    assert f"{NAME} ({LICENCE}, {SOURCE})" in methods
    assert "MYO and RV were filled in by a segmenter" in methods


def test_the_claim_of_a_public_run_names_them_and_promises_them_nothing(world: Path) -> None:
    changed = ["mask.training.rounds=0", "image.training.rounds=0", "pretrain.image={rounds: 1, local_steps: 1}"]
    claim = public_claim(recipe(world / "public", *changed))
    assert claim.no_patients
    assert not claim.differentially_private
    for words in (NAME, LICENCE, SOURCE, "No patient of a site", "nothing is promised"):
        assert words in claim.statement


def test_corrected_terms_are_stated_without_training_again(world: Path, tmp_path: Path) -> None:
    made = pretrained(recipe(world / "public"), tmp_path)
    tree = recipe(world / "public").model_dump(mode="json")
    tree["pretrain"]["cohorts"][0]["licence"] = "CC-BY-4.0"
    assert pretrained(resolve(tree), tmp_path) == made
    assert str(starting_sources(made, resolve(tree))[1]) == f"{NAME}, CC-BY-4.0"
