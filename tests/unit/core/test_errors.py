import pytest

from cmrfed.core import errors
from cmrfed.core.errors import CmrfedError, ConfigError


def test_the_message_is_one_paragraph_of_what_got_expected_do():
    error = ConfigError("size is odd.", got=7, expected="an even number", do="set it to 8.")
    assert str(error) == "size is odd. Got: 7. Expected: an even number. Do: set it to 8."
    assert (error.what, error.got, error.expected) == ("size is odd.", 7, "an even number")


def test_parts_that_are_not_known_are_left_out_but_false_values_are_told():
    assert str(ConfigError("it failed")) == "it failed."
    assert str(ConfigError("too few", got=0, expected=[])) == "too few. Got: 0. Expected: []."


@pytest.mark.parametrize("kind", [v for v in vars(errors).values() if isinstance(v, type)])
def test_every_kind_is_caught_by_the_base(kind):
    assert issubclass(kind, CmrfedError)
