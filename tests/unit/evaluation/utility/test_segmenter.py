import numpy as np
import pytest
from torch import nn

from cmrfed.core.errors import EvaluationError
from cmrfed.data.labels import Label, Phase
from cmrfed.evaluation.utility.segmenter import (
    dice_per_volume,
    volume_dice,
)
from tests.evaluation_world import cohort


class Says(nn.Module):
    """A segmenter that gives every pixel the label of its grey value rounded."""

    def forward(self, x):
        return nn.functional.one_hot(x[:, 0].round().long().clamp(0, 3), 4).permute(0, 3, 1, 2).float()


def hearts(tmp_path, count=4, **kw):
    return cohort(tmp_path / "c", range(count), **kw)


@pytest.mark.parametrize(
    ("found", "truth", "expected"),
    [([3, 3, 0, 0], [3, 0, 0, 0], 2 / 3), ([0] * 4, [0] * 4, None), ([3, 0, 0, 0], [0] * 4, 0), ([0] * 4, [3] * 4, 0)],
)
def test_dice_with_missed_and_absent_structures(found, truth, expected):
    assert volume_dice(np.array(found), np.array(truth), Label.LV) == expected


def test_dice_is_over_the_volume_not_the_slice(tmp_path):
    """One slice fully right, one fully wrong of twice the area: the volume's Dice is not the slices' mean."""
    truth, found = np.zeros((2, 4, 4)), np.zeros((2, 4, 4))
    truth[0, :1] = found[0, :1] = truth[1, :2] = 3
    assert volume_dice(found, truth, Label.LV) == pytest.approx(2 * 4 / (12 + 4))


def test_a_missed_structure_counts_as_zero_and_is_counted(tmp_path):
    data = hearts(tmp_path, 2)
    scores = dice_per_volume(Says(), data)
    assert [(s.patient_id, s.phase) for s in scores[:2]] == [("p000", Phase.ED), ("p000", Phase.ES)]
    assert scores[0].dice[Label.MYO] == 0
    assert Label.MYO in scores[0].missed


def test_only_structures_that_were_drawn_are_scored(tmp_path):
    scores = dice_per_volume(Says(), hearts(tmp_path, 2, labels=(3,)))
    assert {label for s in scores for label in s.dice} == {Label.LV}
    with pytest.raises(EvaluationError, match=r"cannot test a segmenter.*'LV'.*'RV'"):
        dice_per_volume(Says(), hearts(tmp_path, 2, labels=(3,)), [Label.RV])
