"""DéjàVu's text format: lines as the original prints them, and reading logs that hold them.

Several ranks write to one stream, so a record may begin anywhere in a line. A record that another
one has torn apart is counted as lost.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dejavubench.records.log_file import LogFileError, read_lines
from dejavubench.units import format_count_of

RECORD = re.compile(
    r"\[BENCHMARK\]\s*RANK\s+(?P<rank>[0-9]{1,9})\s+"
    r"(?:Microbatch|ITERATION)\s+(?P<number>[0-9]{1,18})\s*,\s*"
    r"(?P<kind>(?:PROMPT\s+processing|(?:TOKEN|ALL-TOKEN|TOTAL)\s+generation))\s+"
    r"took\s+(?P<ms>[^\s\[]+?)\s*ms"
)
"""One record anywhere in a line, with any white space."""

WHOLE_LINE = re.compile(
    r"\[BENCHMARK\] RANK ([0-9]{1,9}) (?:Microbatch|ITERATION) ([0-9]{1,18}), "
    r"(PROMPT|TOKEN|ALL-TOKEN|TOTAL) (?:processing|generation) took ([0-9]{1,15}\.[0-9]{1,15}) ms"
)
"""A line that is one record and nothing else. Nearly all lines are, and need no search."""

TOTAL_SLACK = 0.01
"""Share by which TOTAL may be less than the sum of its parts: the clocks are read in turn."""

TORN_HEAD = re.compile(r"\[BENCHMARK\]\s*RANK")
"""Beginning of a record, which is a torn one if no whole record has it."""

TORN_TAIL = re.compile(
    r"RANK\s+[0-9]+\s+(?:Microbatch|ITERATION)|(?:processing|generation)\s+took\s+[0-9.]+\s*ms"
)
"""End of a torn record, without its beginning."""

TIME_TEXT = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?|\.[0-9]+")
"""A time in milliseconds, as C's ``%f`` or ``%g`` writes it."""

GIVE_A_LOG = "Give a run's folder, or a text log of DéjàVu"
"""Advice where a file is no text log."""


# ---- writing: C's "%f", six decimals ----


def format_prompt_line(rank: int, microbatch: int, ms: float) -> str:
    """Return the line of one microbatch's prompt."""
    return f"[BENCHMARK] RANK {rank} Microbatch {microbatch}, PROMPT processing took {ms:f} ms"


def format_token_line(rank: int, iteration: int, ms: float) -> str:
    """Return the line of one decode step; ``iteration`` is the microbatch's number in the run."""
    return f"[BENCHMARK] RANK {rank} ITERATION {iteration}, TOKEN generation took {ms:f} ms"


def format_all_token_line(rank: int, iteration: int, ms: float) -> str:
    """Return the line of all decode steps; ``iteration`` is as in :func:`format_token_line`."""
    return f"[BENCHMARK] RANK {rank} ITERATION {iteration}, ALL-TOKEN generation took {ms:f} ms"


def format_total_line(rank: int, iteration: int, ms: float) -> str:
    """Return the line of a whole iteration."""
    return f"[BENCHMARK] RANK {rank} ITERATION {iteration}, TOTAL generation took {ms:f} ms"


# ---- reading ----


class TextLogError(Exception):
    """A text log that cannot be used; the message names the file and what is missing."""


class LogEntry(NamedTuple):
    """One record of the log.

    Attributes:
        number: number of the microbatch or, for TOTAL, of the iteration.
        kind: PROMPT, TOKEN, ALL-TOKEN or TOTAL.
    """

    rank: int
    number: int
    kind: str
    ms: float


@dataclass
class RankTimes:
    """Times of one rank in the order of the log, in ms.

    Attributes:
        tokens: one list for each microbatch.
        numbers: the iteration of each of ``totals``.
        cut: TOKEN lines of microbatches without an ALL-TOKEN line.
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
        entries: complete records, in the order of the file.
        head_count: beginnings of records without the rest.
        tail_count: ends of records without the rest.
        torn_line_number: number of the first such piece.
    """

    path: Path
    entries: list[LogEntry] = field(default_factory=list)
    head_count: int = 0
    tail_count: int = 0
    torn_line_number: int = 0

    @property
    def lost(self) -> int:
        """Number of unreadable records: a torn one has left both its ends, or one of them."""
        return max(self.head_count, self.tail_count)

    @functools.cached_property
    def ranks(self) -> dict[int, RankTimes]:
        """Times by rank, once the log is read."""
        ranks: dict[int, RankTimes] = {}
        # TOKEN lines of several ranks and microbatches alternate; ALL-TOKEN ends one of them.
        open_tokens: dict[tuple[int, int], list[float]] = {}
        for entry in self.entries:
            times = ranks.setdefault(entry.rank, RankTimes())
            key = entry.rank, entry.number
            match entry.kind:
                case "PROMPT":
                    times.prompts.append(entry.ms)
                    # A number that comes again begins another microbatch: the steps before it were
                    # cut off.
                    times.cut += len(open_tokens.pop(key, []))
                case "TOKEN":
                    open_tokens.setdefault(key, []).append(entry.ms)
                case "ALL-TOKEN":
                    # ALL-TOKEN closes a microbatch, so its steps can be told from those of the
                    # others in flight.
                    times.tokens.append(open_tokens.pop(key, []))
                    times.all_tokens.append(entry.ms)
                case "TOTAL":
                    times.totals.append(entry.ms)
                    times.numbers.append(entry.number)
        for (rank, _), tokens in open_tokens.items():
            ranks[rank].cut += len(tokens)
        return ranks

    def notes(self, only_rank: int | None = None) -> list[str]:
        """Return notes on lines that are missing from the log."""
        notes = []
        if self.lost:
            notes.append(
                f"LOST: {format_count_or_no(self.lost, '[BENCHMARK] record')}, torn or empty, the "
                f"first in line {self.torn_line_number}; samples are missing"
            )
        for rank, times in sorted(self.ranks.items()):
            if only_rank is None or rank == only_rank:
                notes += [f"LOST: RANK {rank}: {finding}" for finding in _find_gaps(times)]
        return notes


def _find_gaps(times: RankTimes) -> Iterator[str]:
    """Yield the signs that lines of a rank are missing."""
    prompt_count, token_count, total_count = (
        len(times.prompts),
        len(times.all_tokens),
        len(times.totals),
    )
    if (prompt_count and token_count and prompt_count != token_count) or (
        prompt_count and total_count and prompt_count % total_count
    ):
        yield (
            f"{format_count_or_no(prompt_count, 'PROMPT line')}, "
            f"{format_count_or_no(token_count, 'ALL-TOKEN line')} and "
            f"{format_count_or_no(total_count, 'TOTAL line')} do not belong together; some are "
            "missing"
        )
    # One microbatch per iteration. Several would overlap, and TOTAL would be their makespan.
    if prompt_count == token_count == total_count:
        sums = map(sum, zip(times.prompts, times.all_tokens, strict=True))
        iterations = zip(times.numbers, sums, times.totals, strict=True)
        if short_iterations := [
            iteration_number
            for iteration_number, summed_ms, total in iterations
            if total < summed_ms * (1 - TOTAL_SLACK)
        ]:
            yield (
                f"TOTAL of iteration {short_iterations[0]} is less than PROMPT and ALL-TOKEN "
                "together; a time may be damaged"
            )
    # Requests of one run have equally many new tokens.
    steps = sorted({len(tokens) for tokens in times.tokens})
    if len(steps) > 1:
        yield f"its iterations have {steps[0]} to {steps[-1]} TOKEN lines; some may be missing"
    if times.cut:
        cut_text = format_count_or_no(times.cut, "TOKEN line")
        yield f"{cut_text} ignored, since no ALL-TOKEN line follows"
    if times.numbers != list(range(total_count)):
        yield (
            "its TOTAL lines are not those of iterations 0, 1, 2 …; lines are missing, or the file "
            "holds several logs"
        )


def read_log(path: Path) -> TextLog:
    """Read all DéjàVu records of a log.

    Raises:
        TextLogError: the log cannot be read, holds no record, or a value is not a time.
    """
    log = TextLog(path)
    is_empty = True
    try:
        for line_number, line in enumerate(read_lines(path), start=1):
            is_empty = is_empty and not line.strip()
            if "took" in line or "RANK" in line:
                _read_line(log, line_number, line)
    except LogFileError as error:
        raise TextLogError(str(error)) from None
    if is_empty:
        raise TextLogError(f"{path} is empty. {GIVE_A_LOG}")
    if not log.entries:
        torn_text = (
            f"; {format_count_or_no(log.lost, 'piece')} of such lines, from line "
            f"{log.torn_line_number} on"
            if log.lost
            else ""
        )
        raise TextLogError(
            f"{path} holds no line of the form '[BENCHMARK] RANK 0 …'{torn_text}. {GIVE_A_LOG}"
        )
    return log


def _read_line(log: TextLog, line_number: int, line: str) -> None:
    """Add the records of a line to the log, and count the pieces of torn ones."""
    # The fast way first: a log can have millions of lines.
    only_record = WHOLE_LINE.fullmatch(line)
    if only_record is not None:
        rank, microbatch, phase, ms = only_record.groups()
        log.entries.append(LogEntry(int(rank), int(microbatch), phase, float(ms)))
        return
    matched_to = 0
    unmatched_texts: list[str] = []
    for match in RECORD.finditer(line):
        ms_of_match = _parse_time(match["ms"], log.path, line_number)
        log.entries.append(
            LogEntry(
                int(match["rank"]), int(match["number"]), match["kind"].split()[0], ms_of_match
            )
        )
        # The text between whole records may hold the pieces of a torn one.
        unmatched_texts.append(line[matched_to : match.start()])
        matched_to = match.end()
    unmatched_texts.append(line[matched_to:])
    for text in unmatched_texts:
        # A piece that begins a record lost its end; what is before the first beginning lost its
        # begin.
        text_before, *torn_records = TORN_HEAD.split(text)
        tail_count = int(TORN_TAIL.search(text_before) is not None)
        if torn_records or tail_count:
            log.torn_line_number = log.torn_line_number or line_number
        log.head_count += len(torn_records)
        log.tail_count += tail_count


def _parse_time(text: str, path: Path, line_number: int) -> float:
    if TIME_TEXT.fullmatch(text) is None or not math.isfinite(float(text)):
        raise TextLogError(f"{path}:{line_number}: {text!r} is not a time in ms")
    return float(text)


def format_count_or_no(count: int, noun: str) -> str:
    """Return a count with its noun: no lines, 1 line, 2 lines."""
    return format_count_of(count, noun) if count else f"no {noun}s"
