import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cmrfed.data.labels import STRUCTURES
from cmrfed.data.phantom import phantom_patient
from cmrfed.data.settings import PhantomConfig
from cmrfed.generators.codec import MaskCodec, make_codec
from tests.generator_world import random_condition, tiny_config, tiny_generator


def test_labels_survive_the_round_trip_even_with_noise():
    labels = torch.randint(4, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    codec = make_codec(tiny_config("mask"))
    array = codec.encode(labels)
    assert array.shape == (2, codec.channels, 8, 8)
    assert set(array.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(codec.decode(array), labels)
    assert torch.equal(codec.decode(array + 0.9 * torch.rand(array.shape)), labels)


@given(label=st.integers(0, 3), row=st.integers(0, 7), column=st.integers(0, 7), shrink=st.sampled_from([1, 2, 4]))
def test_a_downsampled_mask_holds_the_share_of_each_label_in_each_block(label, row, column, shrink):
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    labels[0, row, column] = label
    share = (MaskCodec(shrink).encode(labels) + 1) / 2
    assert share.shape == (1, 4, 8 // shrink, 8 // shrink)
    assert torch.allclose(share.sum(1), torch.ones(()))
    assert share[0, label, row // shrink, column // shrink] >= 1 / shrink**2
    assert np.isclose(float(share[0, label].sum()) * shrink**2, int((labels == label).sum()))


def test_contours_of_a_heart_survive_half_of_the_resolution():
    volumes, _ = phantom_patient(PhantomConfig(), 0, 0)
    masks = np.concatenate([volume.mask for volume in volumes]).astype(np.int64)
    labels = torch.from_numpy(masks[:, : masks.shape[1] // 2 * 2, : masks.shape[2] // 2 * 2])
    codec = MaskCodec(2)
    decoded, blocks = codec.decode(codec.encode(labels)), codec.encode(labels).argmax(1)
    doubled = blocks.repeat_interleave(2, 1).repeat_interleave(2, 2)
    for structure in STRUCTURES:
        assert dice(decoded, labels, structure) > 0.99
        assert dice(decoded, labels, structure) > dice(doubled, labels, structure) + 0.01


def dice(one: torch.Tensor, other: torch.Tensor, label: int) -> float:
    a, b = one == label, other == label
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_a_generator_of_downsampled_masks_learns_and_draws_whole_ones():
    generator = tiny_generator("mask", mask_downsampling=2)
    cond, labels = random_condition(3, masks=2), torch.randint(4, (3, 16, 16))
    assert generator.size == 8
    assert generator.loss(labels, cond, torch.Generator().manual_seed(0)).shape == (3,)
    drawn = generator.sample(cond, [1, 2, 3])
    assert (drawn.shape, drawn.dtype) == ((3, 16, 16), torch.int64)


def test_sizes_and_stages_that_do_not_fit_are_refused():
    with pytest.raises(
        ValidationError, match=re.escape("multiple of 8 (patch_px × 2^(levels - 1) × mask_downsampling)")
    ):
        tiny_config("mask", mask_downsampling=2, size_px=20)
    with pytest.raises(ValidationError, match="mask_downsampling 2: only the generator of masks has it"):
        tiny_config("pixel", mask_downsampling=2)


def test_images_survive_the_round_trip_and_are_clipped_to_the_range():
    codec = make_codec(tiny_config("pixel"))
    image = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    assert torch.equal(codec.decode(codec.encode(image)), image)
    assert codec.decode(image * 3).abs().max() == 1
