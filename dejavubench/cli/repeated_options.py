"""Options that are given twice: a usage error, whatever the command.

click takes the last value in silence. A user who types two values means both, or has forgotten one
of them in a long line: ``plan --from A --from B`` would answer for B alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import click


def refuse_repeated(
    name: str, command: click.Command, arguments: Sequence[str], parent: click.Context
) -> None:
    """Refuse arguments of a command that give an option more than once, unless it collects values.

    Args:
        name: of the command, as it was typed.
        parent: context of the group that the command belongs to.

    Raises:
        click.UsageError: an option is repeated, or the arguments cannot be parsed.
    """
    ctx = click.Context(command, parent, name, **command.context_settings)
    # A list of its own: the parser empties the list that it is given.
    *_, order = command.make_parser(ctx).parse_args(list(arguments))
    if any(param.is_eager for param in order):  # --help answers, whatever stands beside it
        return
    for param, times in Counter(order).items():
        if isinstance(param, click.Option) and times > 1 and not (param.multiple or param.count):
            raise click.UsageError(_describe_repetition(param, times), ctx)


def _describe_repetition(option: click.Option, count: int) -> str:
    spellings = (option.opts, option.secondary_opts)
    flags = " or ".join(max(names, key=len) for names in spellings if names)
    times_text = "twice" if count == 2 else f"{count} times"
    remedy = "Give it once"
    if "[," in (option.metavar or ""):
        remedy = "Give it once, with commas between its values"
    return f"{flags} is given {times_text}. {remedy}"
