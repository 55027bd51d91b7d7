"""What all sections of the configuration are made of."""

from __future__ import annotations

from typing import Annotated

import pydantic

Share = Annotated[float, pydantic.Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, pydantic.Field(ge=1)]
NonNegative = Annotated[int, pydantic.Field(ge=0)]
PositiveFloat = Annotated[float, pydantic.Field(gt=0.0)]
NonNegativeFloat = Annotated[float, pydantic.Field(ge=0.0)]


class Section(pydantic.BaseModel):
    """A part of the tree: immutable, and closed to unknown keys."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, validate_default=True
    )
