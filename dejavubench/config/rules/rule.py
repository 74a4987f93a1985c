"""A rule: which options do not fit together, and the sentence that says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dejavubench.config.plan import Plan
from dejavubench.transports.base import Transport
from dejavubench.transports.registry import NO_STREAMING, transport


@dataclass(frozen=True)
class Rule:
    """One conflict.

    Attributes:
        find: returns what is in conflict, or something false.
        say: the message, given what was found.
    """

    find: Callable[[Plan], Any]
    say: Callable[[Plan, Any], str]

    def broken_by(self, plan: Plan) -> str | None:
        """Return the message if the plan's options are in this conflict."""
        found = self.find(plan)
        return self.say(plan, found) if found else None


def flag(key: str) -> str:
    """Return the flag of an option."""
    return "--" + key.replace("_", "-")


def listed(values: Any) -> str:
    """Return values as they are written after a flag."""
    return ",".join(map(str, values))


def given(plan: Plan, key: str) -> str:
    """Return an option as it was given."""
    value = plan.experiment.value(key)
    if isinstance(value, bool):
        return flag(key)
    return f"{flag(key)} {listed(value) if isinstance(value, tuple) else value}"


def chosen(plan: Plan) -> list[Transport]:
    """Return the destinations of --streaming."""
    return [transport(mode) for mode in plan.experiment.streaming if mode != NO_STREAMING]
