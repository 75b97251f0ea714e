"""The base of every configuration section: frozen, and closed to misspelt keys."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seed = Annotated[int, Field(ge=-(2**63), le=2**64 - 1)]
"""A seed of 64 bits."""
Digest = Annotated[str, Field(max_length=128)]
"""A digest in hexadecimal digits."""


class Section(BaseModel):
    """A frozen part of the configuration; an unknown key is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
