"""Flags of ``run`` that are no option of the experiment: where it writes, and what it measures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from dejavubench.cli.output import SUFFIX_STYLES
from dejavubench.cli.params import PATH, ParsedType


def _parse_ids(value: str) -> tuple[str, ...]:
    ids = tuple(point_id.strip() for point_id in value.split(","))
    if "" in ids or len(set(ids)) != len(ids):
        raise ValueError(f"{value!r} must be ids of points, each once, such as p003,p007")
    return ids


OWN_OPTIONS = (
    click.option("--dry-run", is_flag=True, help="Describe every point and start nothing."),
    click.option(
        "-o",
        "--output",
        metavar="FILE",
        type=PATH,
        help="Write the results to FILE, too, when the run ends. The suffix chooses the format: "
        f"{', '.join(SUFFIX_STYLES)}.",
    ),
    click.option("--force", is_flag=True, help="Overwrite FILE if it exists."),
    click.option(
        "--gate",
        is_flag=True,
        help="Exit with 4 if an arm missed --target-overhead, with 3 if one is unresolved.",
    ),
    click.option(
        "--continue",
        "continued_folder",
        metavar="DIR",
        type=PATH,
        help="Measure the rounds that are missing in the run of DIR, with its settings, in place "
        "of CONFIG. With --rounds N, every point gets N rounds in all. With --ceilings, points of "
        "a run with --no-ceilings get a round more, after which ceilings are measured.",
    ),
    click.option(
        "--points",
        "point_ids",
        metavar="ID[,ID…]",
        type=ParsedType("points", _parse_ids),
        help="Measure these points alone, such as p003,p007. --dry-run lists them.",
    ),
    click.option("--resume", "old_restart_request", metavar="DIR", type=PATH, hidden=True),
)
"""Options of the command itself, which are no part of the experiment."""


def add_own_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags to the command."""
    for option in reversed(OWN_OPTIONS):  # the help lists the last one that is added first
        command = option(command)
    return command
