from dataclasses import replace

import pytest
import torch

from cmrfed.data.draws import SliceBatch, gather
from cmrfed.training.augment import _grid, _move_image, augment
from cmrfed.training.settings import AugmentConfig
from tests.generator_world import blob_cohort, heart

STILL = {"context_scale": 0.0, "context_shift_px": 0.0}
STRONG = AugmentConfig(rotate_deg=90, scale=0.2, shift_px=4, **STILL)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batch():
    """Images made from their masks: 1 inside the heart, -1 outside; the neighbours are the mask itself, or none."""
    mask = torch.stack([torch.from_numpy(heart(i, i % 2, i / 8, 32)).long() for i in range(8)])
    image = torch.where(mask > 0, 1.0, -1.0)[:, None]
    nothing = torch.full_like(mask, -1)
    return SliceBatch(image, mask, mask.clone(), nothing, torch.zeros(8).long(), torch.zeros(8), torch.arange(8))


def test_image_and_masks_move_together(batch):
    moved = augment(batch, STRONG, rng())
    inside, image = moved.mask > 0, moved.image[:, 0]
    clear = image.abs() > 0.8  # away from the heart's outline, where interpolation mixes inside and outside
    assert clear.float().mean() > 0.9
    assert ((image > 0) == inside)[clear].float().mean() > 0.98, "all but what was outside the field"
    assert torch.equal(moved.basal, moved.mask)
    assert not torch.equal(moved.mask, batch.mask)


def test_images_keep_their_fine_detail(batch):
    """White noise keeps its power; bilinear interpolation would leave 4/9 of it on average."""
    noise = 0.2 * torch.randn(batch.image.shape, generator=rng(1))
    moved = augment(replace(batch, image=noise), AugmentConfig(**STILL), rng())
    assert 0.9 < moved.image[..., 4:-4, 4:-4].var() / noise.var() < 1.1


@pytest.mark.parametrize("size", [32, 33])
def test_a_moved_wave_is_the_wave_at_the_moved_places(size):
    """Even one of three pixels' length: the slow way is to ask the formula of the wave."""

    def wave(x, y):
        return 0.8 * torch.cos(2 * torch.pi * (x / 3 + y / 5) * size / 2)

    centres = (torch.arange(size) * 2 + 1) / size - 1
    image = wave(centres[None, :], centres[:, None])[None, None].expand(6, 1, size, size)
    grid = _grid(6, size, 30, 0.2, 2, rng(3))
    inside = (grid.abs() < 0.85).all(-1)
    expected = wave(grid[..., 0], grid[..., 1])[inside]

    def error(moved):
        return (moved[:, 0][inside] - expected).square().mean().sqrt()

    bicubic = torch.nn.functional.grid_sample(image, grid, "bicubic", "border", align_corners=False)
    assert error(_move_image(image, grid)) < 0.1 * expected.std() < 0.7 * error(bicubic)


def test_neighbours_move_a_little_by_themselves(batch):
    alone = AugmentConfig(rotate_deg=0, scale=0, shift_px=0, context_scale=0.2, context_shift_px=2)
    moved = augment(batch, alone, rng())
    assert torch.equal(moved.mask, batch.mask)
    assert torch.allclose(moved.image, batch.image, atol=1e-4)
    assert not torch.equal(moved.basal, batch.basal)
    sizes = (moved.basal > 0).sum((1, 2)) / (batch.basal > 0).sum((1, 2))
    assert 0.6 < sizes.min() < 0.95
    assert 1.05 < sizes.max() < 1.6
    assert (moved.ed == -1).all()


def test_a_context_that_does_not_exist_stays_so(batch):
    assert (augment(batch, STRONG, rng()).ed == -1).all()


def test_labels_stay_labels_and_the_range_stays(batch):
    moved = augment(batch, STRONG, rng())
    assert set(moved.mask.unique().tolist()) <= {0, 1, 2, 3}
    assert moved.mask.dtype == torch.int64
    assert moved.image.abs().max() <= 1


def test_each_item_has_a_draw_of_its_own_and_the_same_stream_gives_the_same(batch):
    one = SliceBatch(*(t[:1].expand(8, *t.shape[1:]) for t in vars(batch).values()))
    moved = augment(one, STRONG, rng())
    assert len({m.numpy().tobytes() for m in moved.mask}) == 8
    assert torch.equal(moved.image, augment(one, STRONG, rng()).image)
    assert not torch.equal(moved.image, augment(one, STRONG, rng(1)).image)


def test_without_images_all_else_moves_as_with_them(batch):
    moved, masks = augment(batch, STRONG, rng()), augment(batch, STRONG, rng(), with_images=False)
    assert masks.image is batch.image
    assert all(torch.equal(getattr(masks, name), getattr(moved, name)) for name in ("mask", "basal", "ed"))


def test_ranges_of_zero_leave_everything_where_it_is(batch):
    same = augment(batch, AugmentConfig(rotate_deg=0, scale=0, shift_px=0, **STILL), rng())
    assert torch.equal(same.mask, batch.mask)
    assert torch.allclose(same.image, batch.image, atol=1e-4)


def test_draws_reach_their_ranges_and_no_further(batch):
    """The centre of mass moves by no more than the shift; the area changes by no more than the scale."""
    disc = (torch.stack(torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")) - 15.5).norm(dim=0) < 8
    many = 64
    mask = disc.long().expand(many, 32, 32)
    zeros = torch.zeros(many)
    batch = SliceBatch(mask[:, None].float(), mask, mask, mask, zeros.long(), zeros, zeros.long())
    shifted = augment(batch, AugmentConfig(rotate_deg=0, scale=0, shift_px=3), rng()).image[:, 0]
    places = torch.arange(32).float() - 15.5
    centre = (shifted.sum(1) * places).sum(1) / shifted.sum((1, 2))
    assert 2 < centre.abs().max() <= 3.05
    scaled = augment(batch, AugmentConfig(rotate_deg=0, scale=0.1, shift_px=0), rng()).image[:, 0]
    side = (scaled.sum((1, 2)) / disc.sum()).sqrt()
    assert 0.85 < side.min() < 0.95
    assert 1.05 < side.max() < 1.15


def test_real_batches_keep_what_is_not_moved(tmp_path):
    batch = gather(blob_cohort(tmp_path / "c"), torch.arange(6).numpy())
    moved = augment(batch, AugmentConfig(), rng())
    for name in ("phase", "position", "patient"):
        assert torch.equal(getattr(moved, name), getattr(batch, name))
    assert ((moved.basal == -1).flatten(1).all(1) == (batch.basal == -1).flatten(1).all(1)).all()
