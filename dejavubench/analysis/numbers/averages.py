"""Averages of a text log, as the paper's two scripts print them.

For a whole log they are those of the original's ``process_prompt_token_times.py`` and
``process_total_times.py``, step by step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dejavubench.records.text_log import TextLog, TextLogError, format_count_or_no, read_log

DROPPED_SAMPLE_COUNT = 2
"""Prompts, TOTALs, and tokens of each iteration that the paper's scripts drop as warm-up."""


def format_prompt_token_average(log: TextLog) -> str:
    """Return the text that the paper's ``process_prompt_token_times.py`` prints.

    Raises:
        TextLogError: the log is too short.
    """
    path = log.path
    prompts: list[float] = []
    iterations: list[list[float]] = []
    # The scripts know one open iteration: their logs come from one microbatch in flight.
    tokens: list[float] = []
    for entry in log.entries:
        match entry.kind if entry.rank == 0 else "":
            case "TOKEN":
                tokens.append(entry.ms)
            case "PROMPT":
                prompts.append(entry.ms)
            case "ALL-TOKEN":
                iterations.append(tokens)
                tokens = []
    if len(prompts) <= DROPPED_SAMPLE_COUNT:
        raise TextLogError(
            f"{path} is too short: {format_count_or_no(len(prompts), 'PROMPT line')} of RANK 0, "
            f"{_explain_dropping('prompts')}"
        )
    if not iterations:
        raise TextLogError(
            f"{path} is too short: no ALL-TOKEN line of RANK 0, so no iteration is complete"
        )
    for iteration_number, iteration in enumerate(iterations):
        if len(iteration) <= DROPPED_SAMPLE_COUNT:
            count_text = format_count_or_no(len(iteration), "TOKEN line")
            raise TextLogError(
                f"{path} is too short: iteration {iteration_number} has {count_text} of RANK 0, "
                f"{_explain_dropping('of them')}"
            )
    prompt = np.average(prompts[DROPPED_SAMPLE_COUNT:])
    # A mean of means, of all iterations: unlike prompts, the scripts drop no whole iteration here.
    token = np.average([np.average(iteration[DROPPED_SAMPLE_COUNT:]) for iteration in iterations])
    return f"AVERAGE PROMPT: {prompt} ms, AVERAGE TOKEN: {token} ms"


def format_total_average(log: TextLog) -> str:
    """Return the text of the paper's ``process_total_times.py``: all TOTALs, and their average.

    Raises:
        TextLogError: the log is too short.
    """
    totals_ms = [entry.ms for entry in log.entries if entry.rank == 0 and entry.kind == "TOTAL"]
    if len(totals_ms) <= DROPPED_SAMPLE_COUNT:
        count_text = format_count_or_no(len(totals_ms), "TOTAL line")
        raise TextLogError(
            f"{log.path} is too short: {count_text} of RANK 0, {_explain_dropping('of them')}"
        )
    average = np.average(totals_ms[DROPPED_SAMPLE_COUNT:])
    label = "AVERAGE TIME FOR THE WHOLE BATCH (PROMPT PROCESSING AND TOKEN GENERATION)"
    return f"{totals_ms}\n{label}: {average} ms"


def run_script(arguments: Sequence[str], average: Callable[[TextLog], str]) -> int:
    """Print an average of the log that the arguments name; notes go to stderr.

    Args:
        arguments: the command line, with the script's name first.

    Returns:
        The exit status: 2 after an error.
    """
    usage = f"usage: {Path(arguments[0]).name} LOG"
    if {"-h", "--help"} & set(arguments[1:]):
        print(usage)
        return 0
    if len(arguments) != 2:
        print(usage, file=sys.stderr)
        return 2
    try:
        log = read_log(Path(arguments[1]))
        print(average(log))
    except TextLogError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for note in log.notes(only_rank=0):
        print(note, file=sys.stderr)
    return 0


def _explain_dropping(samples: str) -> str:
    return (
        f"and the first {DROPPED_SAMPLE_COUNT} {samples} are dropped as warm-up; at least "
        f"{DROPPED_SAMPLE_COUNT + 1} are needed"
    )
