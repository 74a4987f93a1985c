"""Text logs → rows: one row for each rank of a log."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dejavubench.analysis.numbers.averages import DROPPED_SAMPLE_COUNT
from dejavubench.analysis.tables.column_groups import make_times
from dejavubench.analysis.tables.process_columns import TOO_SHORT, Cpu, Overhead, Row, Sizes
from dejavubench.analysis.tables.spreads import make_spread
from dejavubench.records.text_log import RankTimes, TextLog, TextLogError


def make_log_rows(log: TextLog) -> list[Row]:
    """Return one row per rank; the first two samples are dropped, as the paper's scripts do.

    Raises:
        TextLogError: the log is too short.
    """
    ranks = log.ranks
    if all(len(times.totals) <= DROPPED_SAMPLE_COUNT for times in ranks.values()):
        most_totals = max(len(times.totals) for times in ranks.values())
        raise TextLogError(
            f"{log.path} is too short: {most_totals} TOTAL lines, and the first "
            f"{DROPPED_SAMPLE_COUNT} are dropped as warm-up"
        )
    return [_make_row(log.path, rank, times) for rank, times in sorted(ranks.items())]


def _make_row(path: Path, rank: int, times: RankTimes) -> Row:
    """Return one rank's row. A text log has no arm, so the row has the name of the file."""
    statistic = (
        f"median over iterations of rank {rank}, without the first {DROPPED_SAMPLE_COUNT} tokens "
        "of each"
    )
    row = Row(
        run=str(path),
        point=None,
        sizes=Sizes(),
        arm=path.stem,
        verified="not recorded",
        overhead=Overhead(baseline="no baseline"),
        cpu=Cpu(statistic=statistic),
    )
    if len(times.totals) <= DROPPED_SAMPLE_COUNT:
        row.status = TOO_SHORT
        row.reason = f"rank {rank} has {len(times.totals)} TOTAL lines"
        return row
    steps = [
        tokens[DROPPED_SAMPLE_COUNT:]
        for tokens in times.tokens[DROPPED_SAMPLE_COUNT:]
        if len(tokens) > DROPPED_SAMPLE_COUNT
    ]
    row.times = make_times(
        make_spread(times.prompts[DROPPED_SAMPLE_COUNT:]),
        make_spread(float(np.median(tokens)) for tokens in steps),
        make_spread(times.totals[DROPPED_SAMPLE_COUNT:]),
        len(times.totals) - DROPPED_SAMPLE_COUNT,
        DROPPED_SAMPLE_COUNT,
        None,
    )
    return row
