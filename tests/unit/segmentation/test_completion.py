"""Completed masks: what was drawn stays bit for bit, and what is filled in has the anatomy of what nobody showed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cmrfed.core.errors import DataError
from cmrfed.data.cohort import Cohort, PreparedPatient, write_cohort
from cmrfed.data.labels import STRUCTURES, Label
from cmrfed.segmentation.completion import (
    NOTE,
    complete_labels,
    complete_masks,
    joined,
    train_public_segmenter,
)
from cmrfed.segmentation.segmenter import labelled_slices, segment
from cmrfed.segmentation.settings import SegmenterConfig
from tests.evaluation_world import cohort

SMALL = SegmenterConfig(channels=(8, 16, 32), steps=60, batch_size=8, precision="fp32", learning_rate=1e-2)
LV = (Label.LV,)


class Scores(nn.Module):
    """A segmenter with the same logits for every pixel."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x):
        return self.logits[None, :, None, None].expand(len(x), 4, *x.shape[2:]).clone()


def lv_alone(source, out):
    """The same patients, as if their annotators had drawn the cavity of the left ventricle alone."""

    def patients():
        for i, record in enumerate(source.patients):
            volumes = [replace(v, mask=np.where(v.mask == Label.LV, Label.LV, 0)) for v in source.volumes(i)]
            yield PreparedPatient(record, tuple(volumes))

    head = source.header
    return write_cohort(
        out, patients(), name="lv", source="x", size_px=head.size_px, labels=[3], preparation=head.preparation
    )


def dice(found, truth, label):
    return 2 * ((found == label) & (truth == label)).sum() / ((found == label).sum() + (truth == label).sum())


@pytest.mark.parametrize("known", [(), LV, (Label.LV, Label.MYO), STRUCTURES])
def test_what_was_drawn_is_kept_and_no_other_pixel_gets_a_known_structure(known):
    random = np.random.default_rng(0)
    masks, images = random.integers(0, 4, (5, 8, 8)).astype(np.uint8), random.uniform(-1, 1, (5, 8, 8))
    whole = complete_masks(Scores(0.0, 1.0, 2.0, 3.0), images, masks, known)
    drawn = np.isin(masks, known)
    assert whole.dtype == np.uint8
    assert np.array_equal(whole[drawn], masks[drawn])
    best = max((label for label in Label if label not in known), default=Label.BACKGROUND)
    assert (whole[~drawn] == best).all()


def test_completed_hearts_look_like_those_that_nobody_showed(tmp_path):
    """True masks are the oracle; given the true cavity, the others are found no worse than without it."""
    model = train_public_segmenter(cohort(tmp_path / "phantom", range(6)), SMALL, 0)
    hidden = cohort(tmp_path / "hidden", range(50, 54))
    partial = lv_alone(hidden, tmp_path / "partial")
    done = complete_labels(partial, model, tmp_path / "whole")
    truth, whole = hidden.masks[:], done.cohort.masks[:]
    assert np.array_equal(whole == Label.LV, truth == Label.LV)
    assert np.array_equal(done.cohort.images[:], hidden.images[:])
    alone = segment(model, hidden.images[:])
    for label in (Label.MYO, Label.RV):
        assert dice(whole, truth, label) > max(0.6, dice(alone, truth, label) - 0.02)
    assert done.cohort.labels == tuple(sorted(STRUCTURES))
    assert all(NOTE + "MYO and RV" in p.notes for p in done.cohort)
    assert 0.6 < done.agreement[Label.LV] < 1
    assert done.pixels == pytest.approx(np.isin(whole, (1, 2)).mean())
    assert done.slices == np.isin(whole, (1, 2)).any((1, 2)).mean()


def test_a_patient_without_a_mask_gets_all_structures(tmp_path):
    source = cohort(tmp_path / "c", range(2))

    def patients():
        for i, record in enumerate(source.patients):
            volumes = tuple(replace(v, mask=None) for v in source.volumes(i))
            yield PreparedPatient(record.model_copy(update={"has_mask": False}), volumes)

    bare = write_cohort(tmp_path / "b", patients(), name="b", source="x", size_px=32, labels=[3], preparation={})
    done = complete_labels(bare, Scores(0.0, 0.0, 0.0, 1.0), tmp_path / "w")
    assert (done.cohort.masks[:] == Label.LV).all()
    assert all(p.has_mask for p in done.cohort)
    assert done.agreement == {}


def test_relabelling_replaces_every_mask(tmp_path):
    source = cohort(tmp_path / "c", range(2))
    done = complete_labels(source, Scores(0.0, 0.0, 1.0, 0.0), tmp_path / "w", known=(), name="relabelled")
    assert (done.cohort.masks[:] == Label.MYO).all()
    assert done.cohort.name == "relabelled"
    assert (done.pixels, done.slices) == (1, 1)


def test_an_empty_cohort_is_refused(tmp_path):
    source = cohort(tmp_path / "c", range(1))
    with pytest.raises(DataError, match="cohort c is empty"):
        complete_labels(Cohort(source.root, source.header, ()), Scores(0.0, 0.0, 0.0, 0.0), tmp_path / "w")


def test_completed_patients_are_learned_from_beside_the_phantom(tmp_path):
    phantom, other = cohort(tmp_path / "a", range(3)), cohort(tmp_path / "b", range(20, 22))
    short = SMALL.model_copy(update={"steps": 2})
    alone, both = (train_public_segmenter(phantom, short, 0, completed=c) for c in ((), (other,)))
    assert not all(torch.equal(a, b) for a, b in zip(alone.parameters(), both.parameters(), strict=True))
    parts = [labelled_slices(phantom), labelled_slices(other)]
    assert len(joined(parts)) == sum(map(len, parts))
    assert joined(parts[:1]) is parts[0]
