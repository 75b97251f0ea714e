from typing import Any

import pytest
from pydantic import ValidationError

from cmrfed.core.settings.config import Section, outdated_keys


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


class Inner(Section):
    steps: int = 1


class Wide(Section):
    whole: int | None = None
    many: tuple[float, ...] = ()
    either: bool | int = 0
    anything: dict[str, Any] = {}
    flag: bool = False
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"whole": True}, "whole: true or false means nothing there"),
        ({"many": [1, False]}, "many: true or false"),
        ({"whole": False, "many": (True,)}, "whole, many: true or false"),
        ({"inner": {"steps": True}}, r"inner\n  steps: true or false"),
    ],
)
def test_true_is_no_number(given, words):
    with pytest.raises(ValidationError, match=words):
        Wide.model_validate(given)


def test_true_is_taken_where_it_means_something():
    found = Wide.model_validate({"flag": True, "either": True, "anything": {"a": True}})
    assert (found.flag, found.either, found.anything) == (True, True, {"a": True})


# --- renamed keys ---------------------------------------------------------------------------------
class Renamed(Section):
    renamed = {"old_rate": "rate"}

    rate: float = 1.0


@pytest.mark.parametrize("key", ["rate", "old_rate"])
def test_a_renamed_key_is_read_and_noted(key):
    with outdated_keys() as found:
        made = Renamed.model_validate({key: 2.0})
    assert made == Renamed(rate=2.0)
    assert found == ({} if key == "rate" else {"old_rate": "rate"})
    assert made.model_dump() == {"rate": 2.0}


def test_a_key_under_both_names_is_refused():
    with pytest.raises(ValidationError, match="rate is set twice, old_rate being its old name: remove one"):
        Renamed.model_validate({"rate": 1.0, "old_rate": 1.0})


def test_a_renamed_key_is_checked_as_the_current_one():
    with pytest.raises(ValidationError, match="rate: true or false"):
        Renamed.model_validate({"old_rate": True})
