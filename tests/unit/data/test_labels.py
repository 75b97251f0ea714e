import numpy as np
import pytest

from cmrfed.core.errors import DataError
from cmrfed.data.labels import ACDC_LABELS, MNMS_LABELS, Label, to_canonical


def test_acdc_labels_are_the_canonical_ones():
    mask = np.array([[0, 1], [2, 3]], np.int16)
    assert to_canonical(mask, ACDC_LABELS).tolist() == mask.tolist()


def test_mnms_swaps_the_ventricles():
    got = to_canonical(np.array([0, 1, 2, 3]), MNMS_LABELS)
    assert got.dtype == np.uint8
    assert got.tolist() == [Label.BACKGROUND, Label.LV, Label.MYO, Label.RV]


def test_whole_numbers_stored_as_float_are_labels():
    assert to_canonical(np.array([0.0, 3.0]), ACDC_LABELS).tolist() == [0, 3]


@pytest.mark.parametrize("value", [4, -1, 0.5, np.nan, np.inf])
def test_any_other_value_is_named(value):
    with pytest.raises(DataError, match=r"heart\.nii holds unexpected labels\. Got: \[.*Expected: \[0, 1, 2, 3\]"):
        to_canonical(np.array([0, 1, value]), ACDC_LABELS, "heart.nii")
