"""A rule: which options do not fit together, and the sentence that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from dejavubench.config.options.field import flag_of
from dejavubench.config.plan import Plan
from dejavubench.records.destination_info import NO_STREAMING
from dejavubench.transports.base import Transport
from dejavubench.transports.registry import find_transport

OptionRule = Callable[[Plan], str | None]
"""One conflict: returns the message if the plan's options are in it, else None."""

Conflict = TypeVar("Conflict")


def make_rule(
    find: Callable[[Plan], Conflict | None], describe: Callable[[Plan, Conflict], str]
) -> OptionRule:
    """Return a rule that refuses what ``find`` finds.

    Args:
        find: returns what is in conflict, or something false.
        describe: returns the message, given what was found.
    """

    def find_conflict(plan: Plan) -> str | None:
        # True, a key or a pair: the sentence is told whatever was in conflict.
        conflict = find(plan)
        return describe(plan, conflict) if conflict else None

    return find_conflict


def format_list(values: Iterable[object]) -> str:
    """Return values as they are written after a flag."""
    return ",".join(map(str, values))


def format_given(plan: Plan, key: str) -> str:
    """Return an option as it was given."""
    value = plan.experiment.value(key)
    if isinstance(value, bool) or value == (True,):
        return flag_of(key)
    return f"{flag_of(key)} {format_list(value) if isinstance(value, tuple) else value}"


def list_chosen_destinations(plan: Plan) -> list[Transport]:
    """Return the destinations of --streaming."""
    return [find_transport(mode) for mode in plan.experiment.streaming if mode != NO_STREAMING]
