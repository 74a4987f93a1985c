"""Types of the values in records, and the base of all their models."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

LONGEST_MS = 1e12
"""Longest time that is believed (30 years). Sums of times below it stay finite."""

LARGEST_INT64 = 2**63 - 1
"""Largest count in a record: that of a signed integer of 64 bits."""

PositiveMs = Annotated[float, Field(ge=1e-7, le=LONGEST_MS)]
"""Milliseconds. A clock that counts nanoseconds sees nothing shorter than 1e-6 ms."""

Ms = Annotated[float, Field(ge=0, le=LONGEST_MS)]
"""Milliseconds, zero included."""

Seconds = Annotated[float, Field(ge=-1, le=LONGEST_MS)]
"""CPU seconds. They are differences of two clocks, so tiny ones may come out slightly negative."""

Positive = Annotated[float, Field(gt=0, le=1e100)]
"""A rate or another number above 0. Products of two of them stay finite."""

Count = Annotated[int, Field(ge=0, le=LARGEST_INT64)]
"""A whole number from 0."""

Size = Annotated[int, Field(ge=1, le=LARGEST_INT64)]
"""A whole number from 1."""

Colour = Annotated[str, Field(pattern=r"^#[0-9A-Fa-f]{6}$")]
"""Colour of a destination in figures, ``#RRGGBB``. A figure would fail on other text."""

Hatch = Annotated[str, Field(pattern=r"^[-/|\\+xoO.*]{0,16}$")]
"""Pattern of a destination's bars, in the characters that matplotlib draws."""


class RecordError(Exception):
    """A record file or run folder that cannot be read. The message names it."""


class Model(BaseModel):
    """Base of all records: unknown keys and numbers that are not finite are refused."""

    # An unknown key is a newer schema or damage: either way its meaning would be guessed.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Line(Model):
    """One line of a rank's file; ``kind`` names its class."""
