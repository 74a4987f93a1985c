"""The page of exit statuses against the one enum of them, and against the commands."""

from __future__ import annotations

import ast
import re

from dejavubench.cli import COMMANDS
from dejavubench.errors import ExitStatus
from helpers.paths import DOCS, PACKAGE

PAGE = (DOCS / "reference" / "exit-statuses.md").read_text()

ROWS = [
    [cell.strip() for cell in line.strip("|").split("|", 3)]
    for line in PAGE.splitlines()
    if re.match(r"\| \d", line)
]
"""Status, name, commands and meaning of each row of the table."""


def test_the_table_has_every_status_of_the_enum_and_no_other() -> None:
    statuses_of_the_table = {(int(status), name) for status, name, *_ in ROWS}
    statuses_of_the_enum = {(status.value, status.name) for status in ExitStatus}
    assert statuses_of_the_table == statuses_of_the_enum


def test_the_table_names_commands_that_exist() -> None:
    named = {word for _, _, commands, _ in ROWS for word in re.findall(r"`(\w+)", commands)}
    assert named <= set(COMMANDS)
    assert all(commands == "all" or "`" in commands for _, _, commands, _ in ROWS)


def test_the_gates_have_all_their_statuses() -> None:
    for gate in ("compare --fail-above X", "run --gate"):
        statuses = {int(status) for status, _, commands, _ in ROWS if gate in commands}
        assert statuses == {ExitStatus.OK, ExitStatus.UNRESOLVED, ExitStatus.WORSE}


def test_no_command_ends_with_a_number_that_the_enum_does_not_name() -> None:
    ends = {"exit", "end_all_ranks", "SystemExit", "_exit"}
    statuses = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for folder in ("cli", "bench")
        for path in (PACKAGE / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) in ends
        and any(
            isinstance(argument, ast.Constant) and isinstance(argument.value, int)
            for argument in node.args
        )
    ]
    assert statuses == []
