"""Public patients under the labels of a segmenter that learned at the sites: what annotators drew of them is kept."""

from pathlib import Path

import numpy as np
import pytest

from cmrfed.config.experiment import Experiment
from cmrfed.core.artifacts import read_json
from cmrfed.data.cohort import Cohort
from cmrfed.data.labels import Label
from cmrfed.pipeline import public, relabel
from cmrfed.pipeline.public import open_public
from cmrfed.pipeline.relabel import segmenter_origin, start_with_segmenter
from cmrfed.segmentation.completion import complete_masks
from cmrfed.segmentation.files import load_segmenter, save_segmenter
from cmrfed.segmentation.segmenter import build_segmenter, segment
from cmrfed.segmentation.settings import SegmenterConfig
from tests.evaluation_world import cohort as hearts
from tests.unit.data.test_overlap import scan
from tests.unit.pipeline.test_public import SIZE, labelled, recipe

NETWORK = '{"public": {"channels": [4, 8], "steps": 2, "batch_size": 4, "precision": "fp32"}}'


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A public cohort of which the cavity alone was drawn, and a phantom that is drawn at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    labelled(tmp_path / "public", {f"p{k}": scan(k) for k in range(4)})
    hearts(tmp_path / "phantom", range(2), size=SIZE)
    monkeypatch.setattr(public, "public_patients", lambda *_: Cohort.open(tmp_path / "phantom"))
    return tmp_path


def experiment(world: Path, *overrides: str) -> Experiment:
    place = Cohort.open(next(p.parent for p in (world / "public").rglob("cohort.json"))).root
    return recipe(place, f"segmenter={NETWORK}", *overrides)


def test_what_annotators_drew_is_kept_and_the_phantom_gets_the_labels_of_the_segmenter(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, tree = experiment(world), []

    def learnt(experiment, stage, cohort, out):
        out.mkdir()
        tree.append((stage, cohort))

    monkeypatch.setattr(relabel, "train_stage", learnt)
    released = build_segmenter(SegmenterConfig(channels=(4, 8)), 7)
    save_segmenter(world / "segmenter", released, channels=(4, 8), size_px=SIZE)
    (world / "start").mkdir()
    out = relabel.relabel(asked, world / "start", world / "segmenter", world / "run" / "relabelled")
    assert [stage for stage, _ in tree] == ["mask"], "the recipe teaches the image generator nothing in public"
    pooled, phantom, (drawn,) = Cohort.open(out / "cohort"), Cohort.open(world / "phantom"), open_public(asked)
    simulated, real = pooled.select(pooled.patient_ids[:2]), pooled.select(pooled.patient_ids[2:])
    for ours, theirs in zip(simulated.iter_volumes(), phantom.iter_volumes(), strict=True):
        assert np.array_equal(ours.mask, segment(released, theirs.image))
    for ours, theirs in zip(real.iter_volumes(), drawn.iter_volumes(), strict=True):
        assert np.array_equal(ours.mask == Label.LV, theirs.mask == Label.LV), "bit for bit"
        assert np.array_equal(ours.mask, complete_masks(released, theirs.image, theirs.mask, [Label.LV]))
    learned_from = tree[0][1].patient_ids
    assert sum(name in real.patient_ids for name in learned_from) * 2 == len(learned_from), "pretrain.mixed_share"


def test_the_public_segmenter_learns_from_public_cohorts_too_and_is_kept_under_what_decides_it(world: Path) -> None:
    with_cohort, without = experiment(world), experiment(world, "pretrain.cohorts=[]")
    assert segmenter_origin(with_cohort) != segmenter_origin(without)
    first = start_with_segmenter(with_cohort)
    assert start_with_segmenter(with_cohort) == first
    assert {source["name"][:7] for source in read_json(first / "pretrained.json")["learned_from"]} == {
        "phantom",
        "Texture",
    }
    assert start_with_segmenter(without) != first
    (first / "segmenter" / "segmenter.safetensors").write_bytes(b"torn")
    assert start_with_segmenter(with_cohort) == first
    load_segmenter(first / "segmenter")
    same = experiment(world, "segmenter.training.rounds=3", "privacy.segmenter.clip_norm=2", "mask.training.rounds=2")
    assert start_with_segmenter(same) == first, "what sites are asked decides nothing public"
