"""An experiment: the options of one run, each a key of the TOML file and a flag of ``run``.

It is pure data: a value is checked alone when it is read. What a value means on this machine, and
whether the options fit together, is settled by :mod:`dejavubench.config.resolve`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dejavubench.config.options.field import OPTIONS_CONFIG, OptionInfo, flag_of, info_of
from dejavubench.config.options.machine import MachineOptions
from dejavubench.config.options.measurement import MeasurementOptions
from dejavubench.config.options.model import ModelOptions
from dejavubench.config.options.option_types import describe_destinations
from dejavubench.config.options.streaming import DESTINATIONS, StreamingOptions
from dejavubench.config.options.workload import WorkloadOptions
from dejavubench.config.points import SETTINGS
from dejavubench.errors import UsageError


class Experiment(  # pydantic lists the fields of the last base first
    MachineOptions, MeasurementOptions, StreamingOptions, ModelOptions, WorkloadOptions
):
    """The options of a run. Options that take a list sweep: each combination is a point."""

    model_config = OPTIONS_CONFIG

    def is_given(self, key: str) -> bool:
        """Return whether an option has another value than its default."""
        return bool(getattr(self, key) != type(self).model_fields[key].default)

    def settings(self) -> list[str]:
        """Return as flags the options that differ from their defaults and are stated nowhere else.

        Reports name them beside the sizes and arms of a run. Each point states what is swept.
        """
        return [
            flag
            for key, info in OPTIONS.items()
            if not info.stated and self.is_given(key) and key not in self.swept
            for flag in _format_flags(key, getattr(self, key), info.metavar)
        ]

    @property
    def swept(self) -> tuple[str, ...]:
        """The settings that have several values, of those that a point may have.

        See :class:`~dejavubench.config.points.PointSettings`.
        """
        return tuple(name for name in SETTINGS if len(getattr(self, name)) > 1)

    def value(self, option: str) -> Any:
        """Return the value of an option by its key.

        Raises:
            UsageError: there is no such option; a plugin's transport may ask for one.
        """
        if option not in type(self).model_fields:
            raise UsageError(
                f"a destination's plugin asks for an option {option!r}, which dejavubench does not "
                "have. Fix or uninstall the plugin"
            )
        return getattr(self, option)

    @property
    def sources(self) -> int:
        """Number of ranks that run the model."""
        return self.tensor_para_size * self.pipeline_para_size

    @property
    def sinks(self) -> int:
        """Number of ranks that receive, if some do."""
        return (self.sink_tensor_para_size or self.tensor_para_size) * (
            self.sink_pipeline_para_size or self.pipeline_para_size
        )


def _format_flags(key: str, value: Any, metavar: str) -> list[str]:
    """Return an option as it is typed; a switch may have both of its values."""
    is_switch = not metavar and isinstance(value, tuple)
    return [
        _format_flag(key, one_value, metavar) for one_value in (value if is_switch else (value,))
    ]


def _format_flag(key: str, value: Any, metavar: str) -> str:
    flag = flag_of(key)
    if isinstance(value, bool):
        # --confine becomes --no-confine.
        return flag if value else f"--no-{flag[2:]}"
    if metavar == "P%":
        return f"{flag} {100 * value:g}%"
    if isinstance(value, float):
        return f"{flag} {value:g}{'s' if metavar == 'TIME' else ''}"
    value_text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"{flag} {value_text}"


OPTIONS: Mapping[str, OptionInfo] = {
    key: info_of(field) for key, field in Experiment.model_fields.items()
}
"""The notes on each option, by its key."""


def default_of(key: str) -> Any:
    """Return the default of an option."""
    return Experiment.model_fields[key].default


def help_of(key: str) -> str:
    """Return the help of an option.

    Raises:
        UsageError: a plugin that adds a destination cannot be loaded.
    """
    text = Experiment.model_fields[key].description or ""
    return text.replace(DESTINATIONS, describe_destinations()) if DESTINATIONS in text else text
