"""Part of a report: how exactly the overheads are known, where ``--precision`` asked for more."""

from __future__ import annotations

from dejavubench.analysis.numbers import stats
from dejavubench.analysis.tables import ending_part
from dejavubench.analysis.tables.report_part import RunPart, make_notes_alone
from dejavubench.records import ArmFailure, ArmInfo, Iteration, Note, NoteKind, Run, Skipped
from dejavubench.units import format_count_of, format_duration

NOT_REACHED = NoteKind("precision-not-reached", "warning")
"""Kind of the note that an arm's interval stayed wider than ``--precision`` asked for."""


def _make_notes(run: Run) -> list[Note]:
    """Return one note if some point was not measured as exactly as was asked; else none."""
    precision = run.header.experiment.get("precision")
    if precision is None:
        return []
    widths = []
    for point_id, series in stats.collect_totals_by_arm(
        iteration for _, iteration in run.records_of(Iteration)
    ).items():
        arms = _select_arms(run, point_id)
        width = stats.compute_half_width(series, arms)
        # No arms left: all were skipped or failed, and other notes say so.
        if not arms or (width is not None and width <= precision):
            continue
        width_text = "no interval" if width is None else f"±{100 * width:.2g} %"
        rounds = min(len(series.get(arm.name, ())) for arm in arms)
        prefix = f"{point_id} " if len(run.header.points) > 1 else ""
        widths.append(f"{prefix}{width_text} after {format_count_of(rounds, 'round')}")
    if not widths:
        return []
    reason = "when the run was cut"
    if ending_part.is_complete(run):
        limit = run.header.experiment.get("max_time")
        reason = f"stopped by --max-time{f' {format_duration(limit)}' if limit else ''}"
    request_text = f"±{100 * precision:g} % was asked for"
    return [
        NOT_REACHED.note(f"precision not reached: {', '.join(widths)}, {reason}; {request_text}")
    ]


def _select_arms(run: Run, point_id: str) -> list[ArmInfo]:
    """Return the arms of the header that neither failed at a point nor were skipped."""
    left_out = {
        failure.arm for _, failure in run.records_of(ArmFailure) if failure.point == point_id
    }
    left_out |= {
        skipped.arm
        for _, skipped in run.records_of(Skipped)
        if skipped.point == point_id and skipped.arm
    }
    return [arm for arm in run.header.arms if arm.name not in left_out]


PRECISION = RunPart(
    "precision",
    "the precision that was asked for",
    make_notes_alone(lambda run_data: _make_notes(run_data.run)),
    (NOT_REACHED,),
)
