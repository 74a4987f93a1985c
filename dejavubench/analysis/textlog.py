"""DéjàVu's text lines, ours and the original's, and the averages of the paper's two scripts.

Of logs that are whole the averages are those that ``process_prompt_token_times.py`` and ``process_total_times.py`` of
the original print, step by step. Records are found wherever they are in a line, since several ranks write to one
stream; what is left of a record that another one has torn is counted as lost.
"""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dejavubench.analysis.logfile import LogFileError, read_lines

DROPPED = 2
"""What the paper's scripts leave out at the beginning: prompts, TOTALs, and tokens of each iteration."""

RECORD = re.compile(
    r"\[BENCHMARK\]\s*RANK\s+(?P<rank>[0-9]{1,9})\s+(?:Microbatch|ITERATION)\s+(?P<number>[0-9]{1,18})\s*,\s*"
    r"(?P<what>PROMPT\s+processing|TOKEN\s+generation|ALL-TOKEN\s+generation|TOTAL\s+generation)\s+"
    r"took\s+(?P<ms>[^\s\[]+?)\s*ms"
)

WHOLE = re.compile(
    r"\[BENCHMARK\] RANK ([0-9]{1,9}) (?:Microbatch|ITERATION) ([0-9]{1,18}), "
    r"(PROMPT|TOKEN|ALL-TOKEN|TOTAL) (?:processing|generation) took ([0-9]{1,15}\.[0-9]{1,15}) ms"
)
"""A line that is one record and nothing else. Nearly all lines are, and need no search."""

SLACK = 0.01
"""What TOTAL may be less than the sum of its parts, as clocks are read one after the other."""

HEAD = re.compile(r"\[BENCHMARK\]\s*RANK")
TAIL = re.compile(
    r"RANK\s+[0-9]+\s+(?:Microbatch|ITERATION)|(?:processing|generation)\s+took\s+[0-9.]+\s*ms"
)
"""Pieces of torn records: a beginning, and an end without a beginning."""

TIME = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?|\.[0-9]+")


class TextLogError(Exception):
    """A text log that cannot be used; the message names the file and what is missing."""


class Entry(NamedTuple):
    """One record: ``what`` is its first word, ``number`` that of its microbatch or, for TOTAL, of its iteration."""

    rank: int
    number: int
    what: str
    ms: float


@dataclass
class RankTimes:
    """Times of one rank in the order of the log, in ms; ``tokens`` holds one list for each microbatch.

    Attributes:
        numbers: the iteration of each of ``totals``.
        cut: steps of microbatches that did not come to their end, or whose end is lost.
    """

    prompts: list[float] = field(default_factory=list)
    tokens: list[list[float]] = field(default_factory=list)
    all_tokens: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    cut: int = 0


@dataclass
class TextLog:
    """The records of a log.

    Attributes:
        entries: in the order of the file.
        heads, tails: beginnings and ends of records of which the rest is not there; ``torn``: the line of the first.
    """

    path: Path
    entries: list[Entry] = field(default_factory=list)
    heads: int = 0
    tails: int = 0
    torn: int = 0

    @property
    def lost(self) -> int:
        """Records that could not be read: a torn one has left both its ends, or one of them."""
        return max(self.heads, self.tails)

    @functools.cached_property
    def ranks(self) -> dict[int, RankTimes]:
        """Times by rank, once the log is read."""
        ranks: dict[int, RankTimes] = {}
        open_tokens: dict[
            tuple[int, int], list[float]
        ] = {}  # by rank and microbatch, until ALL-TOKEN ends them
        for entry in self.entries:
            times, place = ranks.setdefault(entry.rank, RankTimes()), (entry.rank, entry.number)
            match entry.what:
                case "PROMPT":
                    times.prompts.append(entry.ms)
                    times.cut += len(open_tokens.pop(place, []))
                case "TOKEN":
                    open_tokens.setdefault(place, []).append(entry.ms)
                case "ALL-TOKEN":
                    times.tokens.append(open_tokens.pop(place, []))
                    times.all_tokens.append(entry.ms)
                case "TOTAL":
                    times.totals.append(entry.ms)
                    times.numbers.append(entry.number)
        for (rank, _), tokens in open_tokens.items():
            ranks[rank].cut += len(tokens)
        return ranks

    def notes(self, of_rank: int | None = None) -> list[str]:
        """Return what is missing from the log, as far as its lines show."""
        found = []
        if self.lost:
            found.append(
                f"LOST: {_have(self.lost, '[BENCHMARK] record')}, torn or empty, the first in line {self.torn}; "
                "samples are missing"
            )
        for rank, times in sorted(self.ranks.items()):
            if of_rank is None or rank == of_rank:
                found += [f"LOST: RANK {rank}: {what}" for what in _gaps(times)]
        return found


def _gaps(times: RankTimes) -> Iterator[str]:
    """Yield the signs that lines of a rank are missing."""
    prompts, ends, totals = len(times.prompts), len(times.all_tokens), len(times.totals)
    if (prompts and ends and prompts != ends) or (prompts and totals and prompts % totals):
        yield (
            f"{_have(prompts, 'PROMPT line')}, {_have(ends, 'ALL-TOKEN line')} and {_have(totals, 'TOTAL line')} do "
            "not belong together; some are missing"
        )
    if (
        prompts == ends == totals
    ):  # one microbatch an iteration; several overlap, and TOTAL is their makespan
        parts = map(sum, zip(times.prompts, times.all_tokens, strict=True))
        whole = zip(times.numbers, parts, times.totals, strict=True)
        if short := [number for number, part, total in whole if total < part * (1 - SLACK)]:
            yield f"TOTAL of iteration {short[0]} is less than PROMPT and ALL-TOKEN together; a time may be damaged"
    steps = sorted({len(tokens) for tokens in times.tokens})
    if len(steps) > 1:
        yield f"its iterations have {steps[0]} to {steps[-1]} TOKEN lines; some may be missing"
    if times.cut:
        yield f"{_have(times.cut, 'TOKEN line')} left out, since no ALL-TOKEN line follows"
    if times.numbers != list(range(totals)):
        yield "its TOTAL lines are not of iterations 0, 1, 2 …; lines are missing, or there are several logs in one"


def read_log(path: Path) -> TextLog:
    """Read all DéjàVu records of a log.

    Raises:
        TextLogError: the log cannot be read, holds no record, or a value is not a time.
    """
    log, empty = TextLog(path), True
    try:
        for number, line in enumerate(read_lines(path), start=1):
            empty = empty and not line.strip()
            if "took" in line or "RANK" in line:
                _read_line(log, number, line)
    except LogFileError as error:
        raise TextLogError(str(error)) from None
    if empty:
        raise TextLogError(f"{path} is empty")
    if not log.entries:
        torn = (
            f"; {_have(log.lost, 'piece')} of such lines, from line {log.torn} on"
            if log.lost
            else ""
        )
        raise TextLogError(f"{path} holds no line of the form '[BENCHMARK] RANK 0 …'{torn}")
    return log


def _read_line(log: TextLog, number: int, line: str) -> None:
    whole = WHOLE.fullmatch(line)
    if whole is not None:
        rank, ubatch, what, ms = whole.groups()
        log.entries.append(Entry(int(rank), int(ubatch), what, float(ms)))
        return
    end, left = 0, []
    for match in RECORD.finditer(line):
        time = _time(match["ms"], log.path, number)
        log.entries.append(
            Entry(int(match["rank"]), int(match["number"]), match["what"].split()[0], time)
        )
        left.append(line[end : match.start()])
        end = match.end()
    left.append(line[end:])
    for text in left:
        before, *begun = HEAD.split(text)
        tails = int(TAIL.search(before) is not None)
        if begun or tails:
            log.torn = log.torn or number
        log.heads += len(begun)
        log.tails += tails


def prompt_token_average(log: TextLog) -> str:
    """What the paper's ``process_prompt_token_times.py`` prints.

    Raises:
        TextLogError: the log is too short.
    """
    path = log.path
    prompts: list[float] = []
    iterations: list[list[float]] = []
    tokens: list[float] = []
    for entry in log.entries:
        match entry.what if entry.rank == 0 else "":
            case "TOKEN":
                tokens.append(entry.ms)
            case "PROMPT":
                prompts.append(entry.ms)
            case "ALL-TOKEN":
                iterations.append(tokens)
                tokens = []
    if len(prompts) <= DROPPED:
        raise TextLogError(
            f"{path} is too short: {_have(len(prompts), 'PROMPT line')} of RANK 0, {_why('prompts')}"
        )
    if not iterations:
        raise TextLogError(
            f"{path} is too short: no ALL-TOKEN line of RANK 0, so no iteration came to its end"
        )
    for number, iteration in enumerate(iterations):
        if len(iteration) <= DROPPED:
            have = _have(len(iteration), "TOKEN line")
            raise TextLogError(
                f"{path} is too short: iteration {number} has {have} of RANK 0, {_why('of them')}"
            )
    prompt = np.average(prompts[DROPPED:])
    token = np.average([np.average(iteration[DROPPED:]) for iteration in iterations])
    return f"AVERAGE PROMPT: {prompt} ms, AVERAGE TOKEN: {token} ms"


def total_average(log: TextLog) -> str:
    """What the paper's ``process_total_times.py`` prints: all TOTALs, and their average without the first two.

    Raises:
        TextLogError: the log is too short.
    """
    totals = [entry.ms for entry in log.entries if entry.rank == 0 and entry.what == "TOTAL"]
    if len(totals) <= DROPPED:
        have = _have(len(totals), "TOTAL line")
        raise TextLogError(f"{log.path} is too short: {have} of RANK 0, {_why('of them')}")
    average = np.average(totals[DROPPED:])
    return f"{totals}\nAVERAGE TIME FOR THE WHOLE BATCH (PROMPT PROCESSING AND TOKEN GENERATION): {average} ms"


def run_script(arguments: Sequence[str], average: Callable[[TextLog], str]) -> int:
    """Print an average of the log that the arguments name; notes go to stderr.

    Args:
        arguments: of the command line, the script's name first.

    Returns:
        The exit status: 2 after an error.
    """
    if len(arguments) != 2:
        print(f"usage: {Path(arguments[0]).name} LOG", file=sys.stderr)
        return 2
    try:
        log = read_log(Path(arguments[1]))
        print(average(log))
    except TextLogError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for note in log.notes(of_rank=0):
        print(note, file=sys.stderr)
    return 0


def _time(word: str, path: Path, line: int) -> float:
    if TIME.fullmatch(word) is None or not math.isfinite(float(word)):
        raise TextLogError(f"{path}:{line}: {word!r} is not a time in ms")
    return float(word)


def _have(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"


def _why(what: str) -> str:
    return (
        f"and the first {DROPPED} {what} are warm-up and dropped; at least {DROPPED + 1} are needed"
    )
