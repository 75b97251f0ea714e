import pytest
import torch
from torch.nn import functional

from cmrfed.generators.condition import Condition, global_planes
from tests.generator_world import random_condition


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_known_masks_are_one_hot():
    cond = random_condition(3, masks=2)
    planes = cond.mask_planes()
    expected = functional.one_hot(cond.masks, 4).permute(0, 1, 4, 2, 3).reshape(3, 8, 16, 16)
    assert planes.dtype == torch.float32
    assert torch.equal(planes, expected.float())


def test_an_unknown_mask_is_all_zero_and_leaves_the_other_alone():
    cond = random_condition(2, masks=2)
    cond.masks[0, 1] = -1
    planes = cond.mask_planes()
    assert not planes[0, 4:].any()
    assert torch.equal(planes[0, :4].sum(0), torch.ones(16, 16))


def test_global_values_by_hand():
    cond = Condition(
        torch.zeros(4, 1, 2, 2, dtype=torch.int64),
        torch.tensor([0, 1, -1, 1]),
        torch.tensor([0.0, 1.0, 0.25, torch.nan]),
        torch.tensor([2, 0, -1, 1]),
    )
    assert cond.global_values(3).tolist() == [
        # ED ES | place known | style
        [1, 0, -1, 1, 0, 0, 3],
        [0, 1, 1, 1, 3, 0, 0],
        [0, 0, -0.5, 1, 0, 0, 0],
        [0, 1, 0, 0, 0, 3, 0],
    ]
    assert global_planes(3) == 7


def test_null_forgets_everything():
    null = random_condition(3, masks=2).null()
    assert (null.masks == -1).all()
    assert not null.mask_planes().any()
    assert not null.global_values(3).any()


def test_drop_forgets_all_or_nothing_of_an_item():
    cond = random_condition(400)
    dropped = cond.drop(0.25, rng())
    gone = dropped.phase == -1
    assert 0.17 < gone.float().mean() < 0.33
    assert not dropped.mask_planes()[gone].any()
    assert not dropped.global_values(3)[gone].any()
    assert torch.equal(dropped.masks[~gone], cond.masks[~gone])
    assert torch.equal(dropped.position[~gone], cond.position[~gone])


def test_drop_masks_forgets_each_mask_by_itself_and_nothing_else():
    cond = random_condition(400, masks=2)
    dropped = cond.drop_masks(0.5, rng())
    gone = (dropped.masks == -1).flatten(2).all(2)
    assert torch.equal(gone, (dropped.masks == -1).flatten(2).any(2))
    assert 0.15 < (gone[:, 0] & gone[:, 1]).float().mean() < 0.35
    assert torch.equal(dropped.phase, cond.phase)
    assert torch.equal(dropped.style, cond.style)


@pytest.mark.parametrize("way", ["drop", "drop_masks"])
def test_no_drop_takes_nothing_from_the_stream(way):
    cond, stream = random_condition(2), rng()
    assert getattr(cond, way)(0.0, stream) is cond
    assert torch.equal(torch.rand(1, generator=stream), torch.rand(1, generator=rng()))


def test_a_slice_is_the_condition_of_those_items():
    cond = random_condition(5)
    part = cond[1:3]
    assert len(part) == 2
    assert torch.equal(part.masks, cond.masks[1:3])
    assert torch.equal(part.position, cond.position[1:3])
