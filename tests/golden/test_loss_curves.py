"""Training keeps its numbers from version to version, so that a change of what is learned does not pass unseen."""

import json

import pytest

from tests.golden.loss_curves import KINDS, STEPS, STORED, curve


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_curve_is_the_stored_one(kind, tmp_path):
    stored = json.loads(STORED.read_text())[kind]
    assert len(stored) == STEPS
    assert curve(kind, tmp_path / "cohort") == pytest.approx(stored, rel=1e-3)
