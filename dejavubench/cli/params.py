"""Kinds of values that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from dejavubench import values


class ParsedType(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """A value that ``read_value`` understands; its ValueError is the message."""

    def __init__(self, name: str, read_value: Callable[[Any], Any]) -> None:
        self.name = name
        self.read = read_value

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value as read; a ValueError becomes a usage error with its message."""
        try:
            return self.read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


PATH = ParsedType("path", values.parse_path)
"""A path that the system could open, whether or not something is there."""
