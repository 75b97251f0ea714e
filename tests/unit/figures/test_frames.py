"""The strip of frames is real sampling: it begins in the noise of the seeds and ends in the data set's own image."""

import numpy as np
import pytest
import torch

from cmrfed.core.errors import DataError
from cmrfed.figures.frames import at_stride, denoise, drawn_for, patient_number
from cmrfed.figures.study import read_run
from cmrfed.synthesis.two_stage import image_request, image_seed
from tests.unit.figures.study_world import write_run


def normal(seed: int) -> torch.Tensor:
    return torch.randn((1, 16, 16), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", ["DDPM", "FM", "LDM"])
def test_frames_lead_from_the_noise_of_the_seed_to_the_image_of_the_same_seed(tmp_path, family):
    run = read_run(write_run(tmp_path / "run", family))
    case, z = list(run.synthetic.cases())[2], 1  # the second patient
    states = denoise(run, case, z)
    request = image_request([case.mask], [case.phase], [1], [image_seed(7, 1)])[z : z + 1]
    sample = run.generator.sample(
        request.cond, request.own, shared_seeds=request.common, shared=run.recipe.synthesis.shared_noise
    )
    assert patient_number(run, case) == 1
    assert list(states) == sorted(states, reverse=True)
    assert (next(iter(states)), list(states)[-1]) == (1000.0, 0.0)
    assert np.array_equal(states[0.0], sample[0, 0].numpy())
    assert np.allclose(states[0.0], case.image[z], atol=1e-4)
    if family != "LDM":
        noise = 0.5**0.5 * (normal(request.own[0]) + normal(request.common[0]))
        assert np.allclose(states[1000.0], noise[0].clamp(-1, 1).numpy(), atol=1e-6)


def test_a_frame_is_shown_at_its_own_time_and_at_most_once():
    assert at_stride([1000, 800, 600, 400, 200, 0]) == [1000, 800, 600, 400, 200, 0]
    assert at_stride([1000.0, 789.0, 579.0, 0.0]) == [1000.0, 789.0, 579.0, None, None, 0.0]
    assert at_stride([1000, 500, 0]) == [1000, None, None, None, None, 0]


def test_masks_of_another_run_are_drawn_and_those_of_another_size_refused(tmp_path):
    first, other = (read_run(write_run(tmp_path / name, name)) for name in ("FM", "DDPM"))
    cases = first.first_patient()
    own, drawn = (drawn_for(run, cases, 0, image_seed(7, 0)) for run in (first, other))
    assert [len(volume) for volume in drawn] == [4, 4]
    assert all(np.allclose(a, case.image, atol=1e-4) for a, case in zip(own, cases, strict=True))
    assert not np.allclose(drawn[0], own[0], atol=0.05)
    large = [type(c)(c.case_id, c.patient_id, c.phase, c.image, c.mask.repeat(2, 1).repeat(2, 2), None, c.style)
             for c in cases]  # fmt: skip
    with pytest.raises(DataError, match=r"masks of 32 px\. Expected: 16 px\. Do: compare runs of one size"):
        drawn_for(other, large, 0, 0)
