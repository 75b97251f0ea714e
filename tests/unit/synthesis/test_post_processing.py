import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.measure import label

from cmrfed.data.labels import STRUCTURES, Label
from cmrfed.synthesis.post_processing import largest_component, post_process

MASKS = st.binary(min_size=2 * 7 * 9, max_size=2 * 7 * 9).map(
    lambda raw: (np.frombuffer(raw, np.uint8) % 4).reshape(2, 7, 9)
)


@given(MASKS)
def test_each_structure_is_one_piece_its_largest_and_nothing_is_added(mask):
    kept = largest_component(mask)
    assert kept.dtype == np.uint8
    assert ((kept == mask) | (kept == Label.BACKGROUND)).all()
    for before, after in zip(mask, kept, strict=True):
        for structure in STRUCTURES:
            pieces = label(before == structure, connectivity=2)
            sizes = [int((pieces == i).sum()) for i in range(1, pieces.max() + 1)]
            assert label(after == structure, connectivity=2).max() == bool(sizes)
            assert int((after == structure).sum()) == max(sizes, default=0)


@given(MASKS)
def test_done_twice_is_done_once(mask):
    assert np.array_equal(largest_component(largest_component(mask)), largest_component(mask))


def test_none_leaves_masks_alone_and_an_unknown_method_is_refused():
    mask = np.ones((1, 4, 4), np.uint8)
    assert post_process(mask, "none") is mask
    with pytest.raises(KeyError):
        post_process(mask, "magic")
