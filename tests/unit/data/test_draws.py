import numpy as np
import pytest
import torch

from cmrfed.core.errors import DataError
from cmrfed.data.draws import NO_SLICE, draw_rows, gather
from cmrfed.data.labels import Phase
from tests.generator_world import SIZE_PX, blob_cohort


@pytest.fixture
def cohort(tmp_path):
    return blob_cohort(tmp_path / "c", patients=6)


def slow_context(cohort):
    """For every row of every patient: mask, basal and ED neighbour, straight from the volumes."""
    nothing = np.full((SIZE_PX, SIZE_PX), NO_SLICE)
    out = []
    for i in range(len(cohort)):
        volumes = {v.phase: v.mask for v in cohort.volumes(i)}
        for phase, mask in volumes.items():
            for z in range(len(mask)):
                basal = mask[z - 1] if z > 0 else nothing
                place, ed = z / (len(mask) - 1), nothing
                if phase == Phase.ES:
                    depth = len(volumes[Phase.ED])
                    ed = volumes[Phase.ED][min(range(depth), key=lambda k: abs(k / (depth - 1) - place))]
                out.append((mask[z], basal, ed, int(phase), place))
    return out


def test_slices_come_with_the_neighbours_that_a_slow_loop_finds(cohort):
    batch = gather(cohort, cohort.rows)
    for i, (mask, basal, ed, phase, place) in enumerate(slow_context(cohort)):
        assert np.array_equal(batch.mask[i], mask)
        assert np.array_equal(batch.basal[i], basal)
        assert np.array_equal(batch.ed[i], ed)
        assert batch.phase[i] == phase
        assert batch.position[i] == pytest.approx(place)


def test_rows_may_come_in_any_order_and_more_than_once(cohort):
    rows = np.array([13, 2, 13, 0, 30])
    batch, whole = gather(cohort, rows), gather(cohort, cohort.rows)
    for name in ("image", "mask", "basal", "ed", "phase", "position", "patient"):
        assert torch.equal(getattr(batch, name), getattr(whole, name)[rows]), name
    assert batch.image.shape == (5, 1, SIZE_PX, SIZE_PX)
    assert batch.image.dtype == torch.float32
    assert len(batch) == 5


def test_a_selection_draws_its_own_patients_alone(cohort):
    chosen = cohort.select(["p04", "p01"])
    rows = draw_rows(chosen, 200, 1, np.random.default_rng(0))
    assert set(gather(chosen, rows).patient.tolist()) == {1, 4}


def test_patients_are_equally_likely_however_many_slices_they_have(cohort):
    rows = draw_rows(cohort, 6000, 1, np.random.default_rng(0))
    counts = np.bincount(cohort.slices["patient"][rows], minlength=6)
    assert counts.min() > 850
    assert counts.max() < 1150


def test_slices_of_a_draw_are_of_one_patient(cohort):
    rows = draw_rows(cohort, 10, 4, np.random.default_rng(0)).reshape(10, 4)
    owners = cohort.slices["patient"][rows]
    assert (owners == owners[:, :1]).all()


def test_an_empty_cohort_cannot_be_drawn_from(cohort):
    with pytest.raises(DataError, match="cohort blobs is empty"):
        draw_rows(cohort.select([]), 1, 1, np.random.default_rng(0))
