"""Options that are given twice are refused by every command, in one place."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from dejavubench.cli import COMMANDS, main
from helpers.cli_calls import call, usage_error_of


def command_of(name: str) -> click.Command:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command


def list_options() -> Iterator[tuple[str, click.Option]]:
    for name in COMMANDS:
        for param in command_of(name).params:
            if isinstance(param, click.Option):
                yield name, param


SINGLE = [(name, option) for name, option in list_options() if not option.multiple]


def spell_option(option: click.Option, spelling: str, value: str) -> list[str]:
    """Return an option as it is typed."""
    return [spelling] if option.is_flag else [f"{spelling}={value}"]


@pytest.mark.parametrize(
    ("name", "option"), SINGLE, ids=[f"{name} {option.name}" for name, option in SINGLE]
)
def test_a_second_value_of_an_option_is_refused_by_its_name(
    name: str, option: click.Option
) -> None:
    flag = max(option.opts, key=len)
    # The same spelling twice, and each other spelling of the option beside it.
    for other_spelling in (
        flag,
        flag.replace("-", "_").replace("__", "--", 1),
        *option.secondary_opts,
    ):
        error = usage_error_of(
            name, *spell_option(option, flag, "1"), *spell_option(option, other_spelling, "2")
        )
        assert error.startswith(flag), error
        assert " is given twice. Give it once" in error
        assert error.endswith(f"(see dejavubench {name} --help)")


def test_only_these_options_collect_values() -> None:
    collecting = {(name, option.name) for name, option in list_options() if option.multiple}
    assert collecting == {("doctor", "folders"), ("run", "confine")}


def test_a_list_is_one_value_and_a_third_value_is_counted() -> None:
    error_of_two = usage_error_of("run", "--streaming", "host", "--streaming", "mpi")
    assert error_of_two.startswith(
        "--streaming is given twice. Give it once, with commas between its values"
    )
    error_of_three = usage_error_of("plan", *["--from", "a"] * 3)
    assert error_of_three.startswith("--from is given 3 times. Give it once (see")


def test_two_spellings_of_one_option_are_one_option() -> None:
    assert usage_error_of("run", "--rounds", 2, "--times", 3).startswith("--rounds is given twice")
    assert usage_error_of("report", "-o", "a.html", "--output", "b.html", "run").startswith(
        "--output is given twice"
    )
    error = usage_error_of("run", "--restart-request", "a", "--resume", "b")
    assert error == "--restart-request and its old name --resume are both given. Drop --resume"


def test_help_answers_whatever_stands_beside_it() -> None:
    plan_call = call("plan", "--from", "a", "--from", "b", "--help")
    assert plan_call.exit_code == 0
    assert plan_call.stdout.startswith("Usage: ")
