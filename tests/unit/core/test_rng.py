import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmrfed.core.rng import fold, numpy_generator, torch_generator

purposes = st.lists(st.one_of(st.text(max_size=5), st.integers()), max_size=4)


@given(st.integers(-(2**63), 2**63), purposes)
def test_a_derived_seed_is_a_function_of_its_arguments_that_every_generator_takes(seed, purpose):
    derived = fold(seed, *purpose)
    assert derived == fold(seed, *purpose)
    assert 0 <= derived < 2**63
    torch_generator(seed, *purpose)
    numpy_generator(seed, *purpose)


def test_neighbouring_purposes_do_not_meet():
    keys = [(), ("a",), ("a", "b"), ("ab",), ("a", 1), ("a1",), ("a", "1"), (1, "a"), ("", "a"), ("a", "")]
    assert len({fold(s, *k) for s in (0, 1) for k in keys}) == 2 * len(keys)


def test_numpy_integers_count_as_integers_of_the_same_value():
    assert fold(np.int64(3), "a") == fold(3, "a")


def test_the_derived_seeds_are_the_same_in_every_version():
    """A resumed run relies on it."""
    assert fold(0) == 3456079177858693020
    assert fold(7, "rows", "mask", 2, 150) == 3817863164462447250


def test_streams_repeat_and_differ_by_purpose():
    draw = [torch.rand(4, generator=torch_generator(0, key)) for key in ("a", "a", "b")]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    numbers = [numpy_generator(0, key).random(4) for key in ("a", "a", "b")]
    assert np.array_equal(numbers[0], numbers[1])
    assert not np.array_equal(numbers[0], numbers[2])
