"""Where the affine is lost, the masks and greys of a patient say how the heart lies, or that it is not known."""

from itertools import product

import numpy as np
import pytest

from cmrfed.data.geometry.affine import Frame
from cmrfed.data.geometry.orientation import lies_otherwise, orient, signs_of_mirroring, ventricle_angle
from cmrfed.data.labels import Label
from cmrfed.data.phantom.write import phantom_patient
from cmrfed.data.settings import PhantomConfig
from cmrfed.data.sources import RawArrays, read
from tests.support import real_data

ARRANGEMENTS = list(product((False, True), repeat=3))


def phantom(number: int = 1, frame: Frame = Frame.LOST) -> list[RawArrays]:
    volumes, _ = phantom_patient(PhantomConfig(seed=7), 0, number)
    return [RawArrays(v.image.astype(np.float32), v.mask, (1.5, 1.25, 9.0), frame) for v in volumes]


def arranged(raw, swap, up, across):
    def change(a):
        return (a.transpose(0, 2, 1) if swap else a)[:, :: -1 if up else 1, :: -1 if across else 1]

    return [RawArrays(change(r.image), change(r.mask), r.spacing_mm, r.frame) for r in raw]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_phantom_is_kept_as_it_is(number):
    for frame in (Frame.LOST, Frame.ALIGNED):
        raw = phantom(number, frame)
        got, notes = orient(raw)
        assert all(np.array_equal(a.mask, b.mask) for a, b in zip(got, raw, strict=True))
        assert any("stored order kept" in note for note in notes) == (frame is Frame.LOST)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_the_right_ventricle_comes_to_the_left(arrangement):
    """A mirror image that the phantom's simple surroundings do not give away may be left, and then it is said."""
    for number in (1, 2):
        (got, _), notes = orient(arranged(phantom(number), *arrangement))
        assert -50 <= ventricle_angle([got]) <= 68
        assert any("does not say how the heart lies" in note for note in notes)
        assert set(np.unique(got.mask)) == {0, 1, 2, 3}


def test_a_quarter_turn_exchanges_the_spacing():
    turned = [
        RawArrays(np.rot90(r.image, 1, (1, 2)), np.rot90(r.mask, 1, (1, 2)), (1.25, 1.5, 9.0), r.frame)
        for r in phantom()
    ]
    got, _ = orient(turned)
    assert got[0].spacing_mm == (1.5, 1.25, 9.0)
    assert np.array_equal(got[0].mask, phantom()[0].mask)


def test_an_affine_that_knows_the_patient_is_believed_and_contradicted_aloud():
    turned = arranged(phantom(frame=Frame.PATIENT), False, True, True)
    got, notes = orient(turned)
    assert np.array_equal(got[0].mask, turned[0].mask)
    assert lies_otherwise(got)
    assert any("the affine does not fit the heart" in note for note in notes)


def test_the_order_of_slices_by_affine_and_area():
    raw = phantom(frame=Frame.PATIENT)
    known = [RawArrays(r.image[::-1], r.mask[::-1], r.spacing_mm, r.frame, base_first=True) for r in raw]
    got, notes = orient(known)
    assert np.array_equal(got[0].mask, raw[0].mask)
    assert any("the affine says base first, but the drawn area" in note for note in notes)
    bare = [RawArrays(r.image, None, r.spacing_mm, r.frame, base_first=True) for r in raw]
    assert orient(bare)[1] == ()


def test_without_a_right_ventricle_the_stored_order_is_kept_aloud():
    raw = [RawArrays(r.image, np.where(r.mask == Label.LV, r.mask, 0), None, Frame.LOST) for r in phantom()]
    assert any("without a right ventricle" in note for note in orient(raw)[1])


def test_signs_on_real_patients():
    """The figures of the docstrings."""
    signs, angles = [], []
    for patient in read(real_data("acdc"), "acdc"):
        raw = [v.load() for v in patient.volumes]
        signs.append(signs_of_mirroring(raw))
        angles.append(ventricle_angle(raw))
    counts = [sum(getattr(s, name) > 0 for s in signs) for name in ("tail", "slope", "lung")]
    assert counts == [68, 67, 69]
    assert not any(s.mirrored for s in signs)
    assert -48 < min(angles) < max(angles) < 65
