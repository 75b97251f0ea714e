import numpy as np
import pytest
import torch

from cmrfed.core.errors import EvaluationError
from cmrfed.data.labels import Label
from cmrfed.evaluation.utility.segmenter import dice_per_volume
from cmrfed.segmentation.segmenter import (
    LabelledSlices,
    _batch,
    augment,
    build_segmenter,
    labelled_slices,
    train_segmenter,
)
from cmrfed.segmentation.settings import SegmenterConfig
from tests.evaluation_world import cohort

SMALL = SegmenterConfig(channels=(8, 16, 32), steps=3, batch_size=8, precision="fp32")


def hearts(tmp_path, count=4, **kw):
    return cohort(tmp_path / "c", range(count), **kw)


def test_same_seed_same_segmenter(tmp_path):
    slices = labelled_slices(hearts(tmp_path))
    first, again, other = (train_segmenter(slices.images, slices.masks, SMALL, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_the_seed_of_the_caller_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    build_segmenter(SMALL, 3)
    assert torch.equal(torch.rand(1), expected)


def test_it_learns_hearts(tmp_path):
    data = hearts(tmp_path, 6)
    slices = labelled_slices(data)
    config = SMALL.model_copy(update={"steps": 60, "learning_rate": 1e-2})
    model = train_segmenter(slices.images, slices.masks, config, 0)
    fresh = cohort(tmp_path / "t", range(50, 53))
    dice = [d for s in dice_per_volume(model, fresh) for d in s.dice.values()]
    assert np.mean(dice) > 0.6


def test_structures_that_are_not_to_be_learned_become_background(tmp_path):
    slices = labelled_slices(hearts(tmp_path))
    config = SMALL.model_copy(update={"steps": 40, "learning_rate": 1e-2})
    model = train_segmenter(slices.images, slices.masks, config, 0, [Label.LV])
    with torch.no_grad():
        found = model(slices.images).argmax(1)
    assert torch.isin(found, torch.tensor([1, 2])).float().mean() < 0.02
    assert (found == 3).float().mean() > 0.02


def test_half_of_every_batch_is_of_the_second_set():
    sets = [LabelledSlices(torch.full((n, 1, 8, 8), v), torch.zeros(n, 8, 8).long()) for n, v in ((5, 0.0), (500, 1.0))]
    images, masks = _batch(sets, SegmenterConfig(batch_size=9), torch.Generator().manual_seed(0))
    assert images.mean((1, 2, 3)).tolist() == [0.0] * 5 + [1.0] * 4
    assert len(masks) == 9


def test_augmentation_keeps_images_with_masks_and_the_side_of_the_ventricles(tmp_path):
    slices = labelled_slices(hearts(tmp_path, 6))
    images, masks = augment(slices.images, slices.masks, torch.Generator().manual_seed(0))
    assert images.shape == slices.images.shape
    assert images.abs().max() <= 1
    assert masks.dtype == torch.int64
    column = torch.arange(masks.shape[-1]).float()

    def centre(mask, label):
        return ((mask == label).float() * column).sum() / (mask == label).sum()

    whole = [m for m in masks if all((m == k).sum() > 10 for k in (1, 3))]
    assert len(whole) > 20
    assert all(centre(m, Label.RV) < centre(m, Label.LV) for m in whole)
    cavity, muscle = (images[:, 0][masks == k].mean() for k in (3, 2))
    assert cavity > muscle + 0.3


@pytest.mark.parametrize("images", [torch.zeros(0, 1, 32, 32), torch.zeros(4, 1, 30, 32)])
def test_slices_that_do_not_fit_are_refused(images):
    with pytest.raises(EvaluationError, match="multiples of 4"):
        train_segmenter(images, torch.zeros(len(images), 32, 32).long(), SMALL, 0)


def test_patients_without_masks_are_left_out(tmp_path):
    data = hearts(tmp_path)
    object.__setattr__(data.header, "labels", (1, 2, 3))
    records = tuple(p.model_copy(update={"has_mask": i == 0}) for i, p in enumerate(data.patients))
    data.__dict__["patients"] = records
    assert len(labelled_slices(data)) == 6
    data.__dict__["patients"] = tuple(p.model_copy(update={"has_mask": False}) for p in records)
    with pytest.raises(EvaluationError, match="no patient of cohort c has a mask"):
        labelled_slices(data)
