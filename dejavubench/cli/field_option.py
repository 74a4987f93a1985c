"""Flags of ``run``, made from the options of an experiment, and a help in groups."""

from __future__ import annotations

from typing import Any, get_args

import click

from dejavubench.config.experiment import OPTIONS, Experiment, default_of, help_of
from dejavubench.config.options.field import OptionGroup, flag_of

ORIGINAL_FLAGS = {"rounds": ["--times"]}
"""The original's spellings that differ by more than an underscore."""

COMMAND_SECTION = "This command"
"""The section of the flags that are no option of the experiment."""


class FieldOption(click.Option):
    """A flag of one option. Without a value it stays out of the overrides."""

    def __init__(self, key: str) -> None:
        option_info = OPTIONS[key]
        default = default_of(key)
        self.key = key
        self.group = option_info.group
        flag = flag_of(key)
        arguments: dict[str, Any]
        if not option_info.metavar:
            flag += f"/--no-{flag[2:]}"
            self.default_text = "on" if default in (True, (True,)) else "off"
            arguments = {"is_flag": True}
            if isinstance(default, tuple):  # it sweeps if both flags are given
                arguments |= {"multiple": True, "callback": _drop_repeats}
        else:
            self.default_text = _format_default(default, option_info.metavar)
            arguments = {"metavar": option_info.metavar, "type": str}
        if key == "streaming":  # without a value, as the original spells it: the error lists them
            arguments |= {"is_flag": False, "flag_value": ""}
        super().__init__([flag, *ORIGINAL_FLAGS.get(key, []), key], default=None, **arguments)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the flag and its help, which may list what plugins add."""
        self.help = help_of(self.key)
        if self.default_text:
            self.help += f" [default: {self.default_text}]"
        return super().get_help_record(ctx)


def _drop_repeats(_: click.Context, __: click.Parameter, value: tuple[bool, ...]) -> Any:
    """Return the values of a switch in the order of their flags; None if no flag is given."""
    return tuple(dict.fromkeys(value)) or None


def _format_default(default: Any, metavar: str) -> str:
    if default in (None, ()):
        return ""
    text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return text.removesuffix(".0") + (" s" if metavar == "TIME" else "")


class GroupedCommand(click.Command):
    """A command whose help shows its options group by group."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under one heading per group, others last."""
        sections: dict[str, list[tuple[str, str]]] = {
            group: [] for group in (*get_args(OptionGroup), COMMAND_SECTION)
        }
        for param in self.get_params(ctx):
            row = param.get_help_record(ctx)
            if row:
                sections[getattr(param, "group", COMMAND_SECTION)].append(row)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows, col_max=36)


def make_field_options() -> list[click.Parameter]:
    """Return a flag for every option of an experiment."""
    return [FieldOption(key) for key in Experiment.model_fields]
