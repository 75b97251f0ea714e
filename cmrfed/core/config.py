"""The base of every configuration section: frozen, closed to misspelt keys, and strict about true and false."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Seed = Annotated[int, Field(ge=-(2**63), le=2**64 - 1)]
"""A seed of 64 bits."""
Digest = Annotated[str, Field(max_length=128)]
"""A digest in hexadecimal digits."""


Precision = Literal["bf16", "fp32"]
"""Arithmetic of a network; "bf16" is a wish that `cmrfed.core.precision` fulfils where the device computes in it."""


class Section(BaseModel):
    """A frozen part of the configuration; an unknown key is an error that names it, and so is true for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _has_no_truth_for_a_number(cls, given: Any) -> Any:
        """Refuse true and false (in YAML also yes, no, on and off) where they would be taken for 1 and 0."""
        fields = cls.model_fields if isinstance(given, Mapping) else {}
        wrong = [
            name
            for name, field in fields.items()
            if _has_truth_value(given.get(name)) and not _takes_truth_value(field.annotation)
        ]
        if wrong:
            words = "{names}: true or false means nothing there (YAML reads yes, no, on and off so too)"
            raise PydanticCustomError("truth_value", words, {"names": ", ".join(wrong)})
        return given


def _has_truth_value(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_has_truth_value, value)))


def _takes_truth_value(annotation: Any) -> bool:
    """Whether a type has bool, true or false, or Any in it."""
    return (
        annotation in (bool, Any)
        or isinstance(annotation, bool)
        or any(_takes_truth_value(part) for part in get_args(annotation))
    )
