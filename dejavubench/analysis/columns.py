"""The registry of columns: their names, units and meanings stand once, beside their types.

A row is a dataclass. Each of its fields is a column, ``Annotated`` with its meaning in one
sentence, or a group of columns, which is a dataclass in turn. Tables, csv, json and
docs/reference/columns.md are made from these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from functools import cache
from typing import Any, get_type_hints

UNITS = {
    "_tflop_per_s": "TFLOP/s",
    "_gb_per_s": "GB/s",
    "_mb_per_s": "MB/s",
    "_mib": "MiB",
    "_bytes": "bytes",
    "_ms": "ms",
    "_us": "µs",
    "_pct": "%",
    "_mhz": "MHz",
    "_w": "W",
    "_c": "°C",
    "_s": "s",
}
"""Unit by the end of a column's name. A longer end comes before a shorter one."""


@dataclass(frozen=True)
class Column:
    """One column of csv and json.

    Attributes:
        value_type: type of its values.
        group: name of the dataclass that declares the column. Its docstring says how the
            columns are computed.
    """

    name: str
    meaning: str
    value_type: Any
    group: str

    @property
    def unit(self) -> str | None:
        """Unit, which the end of the name gives; None without one."""
        return next((unit for suffix, unit in UNITS.items() if self.name.endswith(suffix)), None)


@cache
def _read_column_types(row: Any) -> dict[str, Any]:
    """Return by name the type and meaning of each column, and the class of each group."""
    hints = get_type_hints(row, include_extras=True)
    return {
        # Annotated[type, "meaning"] keeps its type as __origin__ and the meaning in __metadata__.
        name: hint if is_dataclass(hint) else (hint.__origin__, hint.__metadata__[0])
        for name, hint in hints.items()
    }


def columns_of(row: type[Any]) -> Iterator[Column]:
    """Yield the columns of a row's class in their order."""
    row_class: Any = row
    for name, column_type in _read_column_types(row_class).items():
        if isinstance(column_type, tuple):
            value_type, meaning = column_type
            yield Column(name, meaning, value_type, row.__name__)
        else:
            yield from columns_of(column_type)


def names_of(row: type[Any]) -> tuple[str, ...]:
    """Return the names of a row's columns in the order of csv and tables."""
    return tuple(column.name for column in columns_of(row))


def values_by_column(row: Any) -> dict[str, Any]:
    """Return the values of a row by the names of its columns, in their order."""
    values: dict[str, Any] = {}
    row_class: Any = type(row)
    for name, column_type in _read_column_types(row_class).items():
        value = getattr(row, name)
        values |= {name: value} if isinstance(column_type, tuple) else values_by_column(value)
    return values
