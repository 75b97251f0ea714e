"""The base of every configuration section: frozen, closed to misspelt keys, and strict about true and false."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Seed = Annotated[int, Field(ge=-(2**63), le=2**64 - 1)]
"""A seed of 64 bits."""
Digest = Annotated[str, Field(max_length=128)]
"""A digest in hexadecimal digits."""


Precision = Literal["bf16", "fp32"]
"""Arithmetic of a network; "bf16" is a wish that `cmrfed.core.precision` fulfils where the device computes in it."""


def _known_device(name: str) -> str:
    kind, mark, number = name.partition(":")
    numbered = kind not in ("auto", "cpu") and number.isascii() and number.isdigit() and len(number) <= 2
    if kind not in DEVICE_KINDS or (mark and not numbered):
        words = "auto, cpu, cuda, cuda:N (the GPU of that number, from 0) or mps"
        raise PydanticCustomError("device", "there is no such device: {expected}", {"expected": words})
    return name


DEVICE_KINDS = {"auto", "cpu", "cuda", "mps"}
DeviceName = Annotated[str, AfterValidator(_known_device)]
"""Where networks compute; `cmrfed.core.device.resolve` says whether this machine has it."""


_outdated: ContextVar[dict[str, str] | None] = ContextVar("outdated", default=None)


@contextmanager
def outdated_keys() -> Iterator[dict[str, str]]:
    """Collect, old name => current one, the renamed keys that are read within the block."""
    found: dict[str, str] = {}
    token = _outdated.set(found)
    try:
        yield found
    finally:
        _outdated.reset(token)


class Section(BaseModel):
    """A frozen part of the configuration; an unknown key is an error that names it, and so is true for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    renamed: ClassVar[Mapping[str, str]] = {}
    """Keys of the release before => their current names. Either is read, and a file with both is refused."""

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

    @model_validator(mode="before")
    @classmethod
    def _reads_renamed_keys(cls, given: Any) -> Any:
        """Give renamed keys their current names, before anything else looks at them (the last validator runs first)."""
        if not isinstance(given, Mapping):
            return given
        old = {name: new for name, new in cls.renamed.items() if name in given}
        twice = [f"{new} is set twice, {name} being its old name" for name, new in old.items() if new in given]
        if twice:
            raise PydanticCustomError("set_twice", "{problem}: remove one", {"problem": ", and ".join(twice)})
        if (found := _outdated.get()) is not None:
            found.update(old)
        return {old.get(name, name): value for name, value in given.items()} if old else given


def _has_truth_value(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_has_truth_value, value)))


def _takes_truth_value(annotation: Any) -> bool:
    """Whether a type has bool, true or false, or Any in it."""
    return (
        annotation in (bool, Any)
        or isinstance(annotation, bool)
        or any(_takes_truth_value(part) for part in get_args(annotation))
    )


def sections_of(annotation: Any) -> list[type[Section]]:
    """The sections that a type of a setting allows, in order."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_of(part)]
