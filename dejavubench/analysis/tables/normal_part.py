"""Part of a report: where a run's streams fall among measured machines (``process --against``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from dejavubench.analysis.answers.judgement import Noise
from dejavubench.analysis.facts import source_ranks
from dejavubench.analysis.facts.host_rounds import is_busy
from dejavubench.analysis.normal.machine_table import MachineTable, MeasuredArm
from dejavubench.analysis.normal.verdicts import (
    Normality,
    RunNoise,
    describe_arm,
    describe_arms,
    judge_normality,
)
from dejavubench.analysis.tables.cell_texts import has_alone
from dejavubench.analysis.tables.process_columns import Row
from dejavubench.analysis.tables.report_part import PartContent, ReportPart, RunData, RunPart
from dejavubench.records import Run
from dejavubench.records.sessions import continue_command

RECORDS_FOLDER = "records"
"""Name of the folder of a machine's runs, as under ``results/``."""


@dataclass
class NormalRow:
    """Streams beside those of measured machines of their class.

    Only with `--against`: one row for each point and arm at level 3. A class is the destination,
    its durability, its place, and whether the model ran on a GPU.
    """

    run: Annotated[str, "Folder of the run."]
    point: Annotated[str | None, "Point of the sweep, such as p000."]
    arm: Annotated[str, "Name of the arm: a destination and a level."]
    ceiling: Annotated[str | None, "Name of the ceiling that bounds the stream."]
    ceiling_share_pct: Annotated[float | None, "Rate of the stream alone, of that ceiling."]
    chunk_bytes: Annotated[float, "Mean size of a chunk."]
    machines: Annotated[int, "Measured machines of the class with chunks of a similar size."]
    least_share_pct: Annotated[float | None, "Least share on these machines."]
    most_share_pct: Annotated[float | None, "Largest share on these machines."]
    range_place: Annotated[
        str, "low, within, high, or no verdict: fewer than 3 machines, or a busy one."
    ]
    sentence: Annotated[str, "The answer in words."]


def list_measured_arms(run: Run, rows: Iterable[Row]) -> list[tuple[Row, MeasuredArm]]:
    """Return the arms of a run whose stream was timed alone, each with its row."""
    environment = run.header.facts
    processor = source_ranks.name_processor(run) or "unknown processor"
    host = ", ".join(environment.hostnames) or "unknown host"
    is_in_results = run.path.resolve().parent.name == RECORDS_FOLDER
    machine = run.path.resolve().parent.parent.name if is_in_results else f"{host}, {processor}"
    return [
        (
            row,
            MeasuredArm(
                machine=machine,
                processor=processor,
                date=run.header.started_utc[:10],
                run=run.path.name,
                run_id=run.header.run_id,
                arm=row.arm,
                model=row.sizes.model or "",
                on_gpu=source_ranks.ran_on_gpu(run),
                mode=row.mode or "",
                durability=row.durability,
                hosts=row.hosts,
                chunk_bytes=chunk_bytes,
                ceiling=row.rates.ceiling,
                share_pct=row.rates.ceiling_share_pct,
                overhead_pct=row.overhead.overhead_pct,
                machine_digest=environment.machine or None,
            ),
        )
        for row in rows
        if row.ok and row.is_streaming and has_alone(row) and row.rates.alone_ms is not None
        if (chunk_bytes := _compute_chunk_nbytes(row)) is not None
    ]


def _compute_chunk_nbytes(row: Row) -> float | None:
    """Return the mean size of a chunk of one microbatch."""
    streaming = row.streaming
    sizes = row.sizes
    if not streaming.streamed_bytes or not streaming.copies_per_prompt:
        return None
    step_count = (sizes.handed_over or sizes.output_len or 1) - 1
    chunk_count = streaming.copies_per_prompt + step_count * (streaming.copies_per_token or 0.0)
    return streaming.streamed_bytes / chunk_count / (sizes.pipeline_para_size or 1)


def _noise_of(row: Row, run_data: RunData) -> RunNoise:
    """Return the conditions of an arm; too few rounds to judge by leave its noise unknown."""
    judgement = row.judged
    floor = None if judgement.noise_reach_pct is None else _find_floor(row.point, run_data.rows)
    return RunNoise(
        describe_others(row), floor, judgement.told_from_noise, _make_ceilings_command(run_data.run)
    )


def _make_ceilings_command(run: Run) -> str | None:
    """Return the command that measures the ceilings of a run that left them out; else None."""
    if run.header.experiment.get("ceilings") is not False:
        return None
    return f"{continue_command(run.path, source_ranks.count_ranks(run))} --ceilings"


def _find_floor(point_id: str | None, rows: Sequence[Row]) -> Noise | None:
    """Return the noise floor of a point, which the row of its second none holds."""
    for row in rows:
        low_pct = row.overhead.noise_floor_low_pct
        high_pct = row.overhead.noise_floor_high_pct
        if row.point == point_id and low_pct is not None and high_pct is not None:
            return Noise(low_pct / 100, high_pct / 100)
    return None


def describe_others(row: Row) -> str | None:
    """Describe what other programs took, if they disturbed half of the rounds and took much."""
    conditions = row.conditions
    round_count = row.times.samples
    if not round_count or not conditions.disturbed_rounds:
        return None
    taken_core_count = (conditions.other_cores or 0.0) + (conditions.steal_cores or 0.0)
    if not is_busy(
        conditions.disturbed_rounds, round_count, taken_core_count, conditions.granted_cores
    ):
        return None
    return (
        f"other programs took {taken_core_count:.2g} of {conditions.granted_cores} cores, in "
        f"{conditions.disturbed_rounds} of {round_count} rounds"
    )


def _make_rows(rows_and_normalities: Iterable[tuple[Row, Normality]]) -> list[NormalRow]:
    """Return the rows of the arms that were compared, each from its row of the run."""
    return [
        NormalRow(
            run=row.run,
            point=row.point,
            arm=row.arm,
            ceiling=normality.arm.ceiling,
            ceiling_share_pct=normality.arm.share_pct,
            chunk_bytes=normality.arm.chunk_bytes,
            machines=len(normality.other_machines),
            least_share_pct=normality.least_pct,
            most_share_pct=normality.most_pct,
            range_place=str(normality.place),
            sentence=describe_arm(normality),
        )
        for row, normality in rows_and_normalities
    ]


def _make_content_maker(table: MachineTable | None) -> Callable[[RunData], PartContent]:
    def make_content(run_data: RunData) -> PartContent:
        if table is None or not any(row.is_streaming for row in run_data.rows):
            return PartContent()
        rows_and_normalities = [
            (row, judge_normality(arm, table, _noise_of(row, run_data)))
            for row, arm in list_measured_arms(run_data.run, run_data.rows)
        ]
        texts = describe_arms([normality for _, normality in rows_and_normalities])
        return PartContent(sentences=texts, rows=list(_make_rows(rows_and_normalities)))

    return make_content


def make_normal_part(table: MachineTable | None) -> RunPart:
    """Return the part that compares with a table; it has no content without one."""
    return ReportPart("normal", "IS IT NORMAL?", _make_content_maker(table), row=NormalRow)


NORMAL = make_normal_part(None)
"""The part of a report that compares with nothing."""
