from collections.abc import Sequence

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cmrfed.core.errors import DataError
from cmrfed.data.labels import Phase
from cmrfed.generators.condition import Condition
from cmrfed.synthesis.post_processing import largest_component
from cmrfed.synthesis.settings import SynthesisConfig
from cmrfed.synthesis.two_stage import Plan, draw_images, draw_masks, image_seed, pair_with, plan_patients, synthesize
from tests.generator_world import SIZE_PX, SPACING_MM, blob_cohort, ddpm, tiny_config, tiny_generator

CONFIG = SynthesisConfig(slices=(2, 4), precision="fp32", batch_size=8)
STYLES = ("north", "south", "west")


class Recorder:
    """In place of the mask generator: notes each request, and draws masks that can be told apart."""

    def __init__(self) -> None:
        self.config, self.device = tiny_config("mask", ddpm("sample")), torch.device("cpu")
        self.requests: list[Condition] = []
        self.seeds: list[Sequence[int]] = []

    def sample(self, cond: Condition, seeds: Sequence[int], **_: object) -> torch.Tensor:
        self.requests.append(cond)
        self.seeds.append(list(seeds))
        return torch.tensor(seeds).view(-1, 1, 1).expand(-1, SIZE_PX, SIZE_PX) % 4


@pytest.fixture(scope="module")
def generators():
    return tiny_generator("mask", ddpm("sample")), tiny_generator()


def drawn(generators, patients, config=CONFIG, **more):
    return list(
        synthesize(*generators, config, patients=patients, seed=5, spacing_mm=SPACING_MM, style_names=STYLES, **more)
    )


# --- who they are -------------------------------------------------------------------------------
def test_plans_do_not_depend_on_how_many_there_are():
    many = plan_patients(CONFIG, 300, 3, seed=1)
    assert many[:5] == plan_patients(CONFIG, 5, 3, seed=1)
    assert many[:5] != plan_patients(CONFIG, 5, 3, seed=2)
    assert [plan.style for plan in many[:4]] == [0, 1, 2, 0]
    assert many[11].name == "syn-0012"
    counts = np.bincount([plan.depth for plan in many], minlength=5)
    assert counts[:2].sum() == 0
    assert counts[2:].min() > 70, "each number of slices is equally likely"


@pytest.mark.parametrize("slices", [(1, 4), (5, 4), (0, 0)])
def test_a_range_of_slices_that_makes_no_stack_is_refused(slices):
    with pytest.raises(ValidationError, match="2 <= fewest <= most"):
        SynthesisConfig(slices=slices)


# --- the mask stage walks the heart -----------------------------------------------------------------
def test_each_mask_is_drawn_given_its_basal_neighbour_and_at_es_the_ed_mask_of_its_place():
    recorder, plans = Recorder(), [Plan(0, 2, 1), Plan(1, 4, 2)]
    masks = draw_masks(recorder, plans, CONFIG, seed=3)
    assert [mask.shape for mask in masks] == [(2, 2, 16, 16), (2, 4, 16, 16)]
    assert len(recorder.requests) == 8, "one request per phase and position"
    for number, cond in enumerate(recorder.requests):
        phase, z = divmod(number, 4)
        active = [0, 1] if z < 2 else [1]
        assert cond.phase.tolist() == [phase] * len(active)
        assert cond.style.tolist() == [plans[i].style for i in active]
        assert cond.position.tolist() == pytest.approx([z / (plans[i].depth - 1) for i in active])
        for item, i in enumerate(active):
            basal, ed = cond.masks[item].numpy()
            assert (basal == (masks[i][phase, z - 1] if z else -1)).all()
            assert (ed == (masks[i][Phase.ED, z] if phase == Phase.ES else -1)).all()
    every = [seed for seeds in recorder.seeds for seed in seeds]
    assert len(set(every)) == len(every) == 12


def test_images_of_a_patient_share_noise_and_are_told_mask_phase_and_place():
    generator, asked = tiny_generator(), {}

    def sample(cond, seeds, *, shared_seeds, shared, on_batch, **_):
        asked.update(cond=cond, seeds=seeds, shared_seeds=shared_seeds, shared=shared)
        on_batch(len(seeds))
        return torch.zeros(len(seeds), 1, 16, 16)

    generator.sample = sample
    masks = [np.full((depth, 16, 16), depth % 4, np.uint8) for depth in (2, 3)]
    seen = []
    images = draw_images(generator, masks, [Phase.ED, Phase.ES], [2, 1], CONFIG, [8, 9], seen.append)
    assert [image.shape for image in images] == [(2, 16, 16), (3, 16, 16)]
    assert asked["cond"].phase.tolist() == [0, 0, 1, 1, 1]
    assert asked["cond"].style.tolist() == [2, 2, 1, 1, 1]
    assert asked["cond"].position.tolist() == [0, 1, 0, 0.5, 1]
    assert asked["cond"].masks[:, 0, 0, 0].tolist() == [2, 2, 3, 3, 3]
    common = asked["shared_seeds"]
    assert common[0] == common[1] != common[2] == common[3] == common[4]
    assert len(set(asked["seeds"])) == 5
    assert asked["shared"] == CONFIG.shared_noise
    assert seen == [5]


# --- patients -----------------------------------------------------------------------------------------
def test_a_patient_is_the_same_however_many_are_drawn(generators):
    one_by_one = CONFIG.model_copy(update={"batch_size": 1})
    few, many = drawn(generators, 2, one_by_one), drawn(generators, 5, one_by_one)
    for a, b in zip(few, many[:4], strict=True):
        assert (a.case_id, a.style, a.spacing_mm) == (b.case_id, b.style, b.spacing_mm)
        assert np.array_equal(a.mask, b.mask)
        assert np.array_equal(a.image, b.image)


def test_neither_batches_nor_groups_change_a_patient(generators):
    """Up to the order in which a processor adds, which may turn a label where two are as likely."""
    slow = drawn(generators, 3, CONFIG.model_copy(update={"batch_size": 1}))
    for other in (drawn(generators, 3), drawn(generators, 3, group=2)):
        for a, b in zip(slow, other, strict=True):
            same = a.mask == b.mask
            assert same.mean() > 0.98
            assert np.allclose(a.image, b.image, atol=1e-3) or not same.all()


def test_cases_are_whole_patients(generators):
    seen = []
    cases = drawn(generators, 2, on_slices=seen.append)
    assert [case.case_id for case in cases] == ["syn-0001_ED", "syn-0001_ES", "syn-0002_ED", "syn-0002_ES"]
    assert [case.style for case in cases] == ["north", "north", "south", "south"]
    for case in cases:
        assert case.image.shape == case.mask.shape
        assert case.image.dtype == np.float32
        assert case.mask.dtype == np.uint8
        assert np.abs(case.image).max() <= 1
        assert case.mask.max() <= 3
        assert case.spacing_mm == SPACING_MM
    assert cases[0].image.shape == cases[1].image.shape, "ED and ES have the same slices"
    assert sum(seen) == sum(len(case.image) for case in cases)


def test_post_processing_comes_after_all_masks_and_before_images(generators):
    """Masks are drawn as without it, from masks as drawn; images are drawn for what is left."""
    plain = drawn(generators, 2)
    repaired = drawn(generators, 2, CONFIG.model_copy(update={"mask_post_processing": "largest_component"}))
    assert any((a.mask != b.mask).any() for a, b in zip(plain, repaired, strict=True))
    for a, b in zip(plain, repaired, strict=True):
        assert a.drawn is None
        assert np.array_equal(a.mask, b.drawn)
        assert np.array_equal(b.mask, largest_component(a.mask))
    masks, phases, seeds = (
        [c.mask for c in repaired],
        [c.phase for c in repaired],
        [image_seed(5, i // 2) for i in range(4)],
    )
    images = draw_images(generators[1], masks, phases, [0, 0, 1, 1], CONFIG, seeds)
    assert all(np.array_equal(a, b.image) for a, b in zip(images, repaired, strict=True))


# --- images of real masks -------------------------------------------------------------------------------
def test_paired_cases_keep_the_real_masks_under_pseudonyms(generators, tmp_path):
    cohort = blob_cohort(tmp_path / "c", 4)
    cases = list(pair_with(generators[1], cohort, CONFIG, seed=0, style_names=STYLES))
    assert sorted(case.case_id for case in cases) == [case.case_id for case in cases], "not in the order of patients"
    assert not any(patient in case.case_id for case in cases for patient in cohort.patient_ids)
    made = {case.case_id: case for case in cases}
    for volume in cohort.iter_volumes():
        case = made.pop(f"{cohort.pseudonym(volume.patient_id)}_{volume.phase.name}")
        assert np.array_equal(case.mask, volume.mask)
        assert case.image.shape == volume.image.shape
        assert case.spacing_mm == volume.spacing_mm
    assert not made


def test_a_cohort_without_masks_cannot_be_paired(generators, tmp_path):
    with pytest.raises(DataError, match="cohort blobs has no masks to draw images for"):
        list(pair_with(generators[1], blob_cohort(tmp_path / "c", has_mask=False), CONFIG, seed=0, style_names=STYLES))
