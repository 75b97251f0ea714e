import pytest
from pydantic import ValidationError

from cmrfed.config import Section


class Small(Section):
    rate_mm: float = 1.0


def test_a_section_is_frozen_and_closed():
    with pytest.raises(ValidationError, match="frozen"):
        Small().rate_mm = 2.0
    with pytest.raises(ValidationError, match="rate_cm"):
        Small(rate_cm=1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(value):
    with pytest.raises(ValidationError, match="finite"):
        Small(rate_mm=value)
