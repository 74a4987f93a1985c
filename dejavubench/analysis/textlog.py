"""DéjàVu's text lines, ours and the original's, and the averages of the paper's two scripts.

The averages are computed as ``process_prompt_token_times.py`` and ``process_total_times.py`` of the
original do, step by step: lines with ``BENCHMARK`` and ``RANK 0``, split on single spaces, the value is
the last word but one. Other lines of the file are ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

DROPPED = 2
"""What the paper's scripts leave out at the beginning: prompts, TOTALs, and tokens of each iteration."""

_LINE = re.compile(
    r"\[BENCHMARK\] RANK (?P<rank>\d+) (?:Microbatch|ITERATION) (?P<number>\d+), "
    r"(?P<what>PROMPT processing|TOKEN generation|ALL-TOKEN generation|TOTAL generation) "
    r"took (?P<ms>\S+) ms"
)


class TextLogError(Exception):
    """A text log that cannot be used; the message names the file and what is missing."""


@dataclass
class RankTimes:
    """Times of one rank in the order of the log, in ms; ``tokens`` holds one list for each microbatch."""

    prompts: list[float] = field(default_factory=list)
    tokens: list[list[float]] = field(default_factory=list)
    all_tokens: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)


def read_lines(path: Path) -> list[str]:
    """The lines of a log.

    Raises:
        TextLogError: missing, unreadable or empty.
    """
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise TextLogError(f"{path}: {error.strerror or error}") from None
    if not any(line.strip() for line in lines):
        raise TextLogError(f"{path} is empty")
    return lines


def read_ranks(path: Path) -> dict[int, RankTimes]:
    """All DéjàVu lines of a log, by rank.

    Raises:
        TextLogError: the log cannot be read, holds no such line, or a value is not a number.
    """
    ranks: dict[int, RankTimes] = {}
    current: dict[int, dict[int, list[float]]] = {}  # rank → microbatch → tokens not yet closed by ALL-TOKEN
    for number, line in enumerate(read_lines(path), start=1):
        match = _LINE.search(line)
        if match is None:
            continue
        value = _number(match["ms"], path, number)
        rank, ubatch = int(match["rank"]), int(match["number"])
        times = ranks.setdefault(rank, RankTimes())
        tokens = current.setdefault(rank, {})
        match match["what"].split()[0]:
            case "PROMPT":
                times.prompts.append(value)
            case "TOKEN":
                tokens.setdefault(ubatch, []).append(value)
            case "ALL-TOKEN":
                times.tokens.append(tokens.pop(ubatch, []))
                times.all_tokens.append(value)
            case "TOTAL":
                times.totals.append(value)
    if not ranks:
        raise TextLogError(f"{path} holds no line of the form '[BENCHMARK] RANK 0 …'")
    return ranks


def prompt_token_average(path: Path) -> str:
    """What the paper's ``process_prompt_token_times.py`` prints.

    Raises:
        TextLogError: the log is missing, empty or too short.
    """
    prompts: list[float] = []
    iterations: list[list[float]] = []
    tokens: list[float] = []
    for line, value in _rank0_values(path):
        if "TOKEN" in line and "TOTAL" not in line and "ALL" not in line:
            tokens.append(value)
        elif "PROMPT" in line:
            prompts.append(value)
        if "ALL-TOKEN" in line:
            iterations.append(tokens)
            tokens = []
    if len(prompts) <= DROPPED:
        raise TextLogError(f"{path} is too short: {_have(len(prompts), 'PROMPT line')} of RANK 0, {_why('prompts')}")
    if not iterations:
        raise TextLogError(f"{path} is too short: no ALL-TOKEN line of RANK 0, so no iteration came to its end")
    for number, iteration in enumerate(iterations):
        if len(iteration) <= DROPPED:
            have = _have(len(iteration), "TOKEN line")
            raise TextLogError(f"{path} is too short: iteration {number} has {have} of RANK 0, {_why('of them')}")
    prompt = np.average(prompts[DROPPED:])
    token = np.average([np.average(iteration[DROPPED:]) for iteration in iterations])
    return f"AVERAGE PROMPT: {prompt} ms, AVERAGE TOKEN: {token} ms"


def total_average(path: Path) -> str:
    """What the paper's ``process_total_times.py`` prints: all TOTALs, and their average without the first two.

    Raises:
        TextLogError: the log is missing, empty or too short.
    """
    totals = [value for line, value in _rank0_values(path) if "TOTAL generation" in line]
    if len(totals) <= DROPPED:
        raise TextLogError(f"{path} is too short: {_have(len(totals), 'TOTAL line')} of RANK 0, {_why('of them')}")
    average = np.average(totals[DROPPED:])
    return f"{totals}\nAVERAGE TIME FOR THE WHOLE BATCH (PROMPT PROCESSING AND TOKEN GENERATION): {average} ms"


def _rank0_values(path: Path) -> list[tuple[str, float]]:
    """Lines with BENCHMARK and RANK 0, each with its last word but one."""
    found = []
    for number, line in enumerate(read_lines(path), start=1):
        if "BENCHMARK" in line and "RANK 0" in line:
            words = line.split(" ")
            found.append((line, _number(words[-2] if len(words) > 1 else "", path, number)))
    if not found:
        raise TextLogError(f"{path} holds no line of the form '[BENCHMARK] RANK 0 …'")
    return found


def _number(word: str, path: Path, line: int) -> float:
    try:
        return float(word)
    except ValueError:
        raise TextLogError(f"{path}:{line}: {word!r} is not a time in ms") from None


def _have(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"


def _why(what: str) -> str:
    return f"and the first {DROPPED} {what} are warm-up and dropped; at least {DROPPED + 1} are needed"
