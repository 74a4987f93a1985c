"""Runs and their reports → the contents of a page.

Public names: :func:`make_page`, :class:`ShownRun`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dejavubench.analysis.facts.source_ranks import name_processor
from dejavubench.analysis.figures.captions import describe_machine
from dejavubench.analysis.page.contents import (
    Page,
    PageRun,
    PageStatements,
    PageTable,
)
from dejavubench.analysis.page.run_settings import collect_settings
from dejavubench.analysis.page.sortable import Meanings, make_tables, page_heading
from dejavubench.analysis.page.svg_pictures import Pictures, draw_common_pictures, draw_pictures
from dejavubench.analysis.page.trace_download import make_trace_download
from dejavubench.analysis.reports.report import RunReport
from dejavubench.analysis.tables.row_blocks import describe_common_sizes
from dejavubench.records import Run
from dejavubench.units import format_count_of

MOST_TRAITS = 3
"""Most words on a run in the contents of a page; more would hide its title."""


@dataclass(frozen=True)
class ShownRun:
    """A report, and its run; a text log has none."""

    report: RunReport
    run: Run | None


def make_page(
    shown_runs: Sequence[ShownRun], left_out: Sequence[str], option_meanings: Mapping[str, str]
) -> Page:
    """Collect the contents of a page.

    Args:
        left_out: a message for each run or file that cannot be shown.
        option_meanings: the help of each option, by its key.
    """
    meanings = Meanings()
    runs = [shown_run.run for shown_run in shown_runs if shown_run.run is not None]
    common_pictures = draw_common_pictures(runs, "all")
    sections = [
        _make_section(
            shown_run.report, shown_run.run, f"run-{run_number}", meanings, option_meanings
        )
        if shown_run.run is not None
        else _make_log_section(shown_run.report, f"run-{run_number}", meanings)
        for run_number, shown_run in enumerate(shown_runs, start=1)
    ]
    sections = [
        _add_pictures(section, shown_run.run, common_pictures)
        for section, shown_run in zip(sections, shown_runs, strict=True)
    ]
    sections = [
        replace(section, difference=difference)
        for section, difference in zip(sections, _describe_differences(shown_runs), strict=True)
    ]
    title = sections[0].title if len(sections) == 1 else _make_common_title(shown_runs)
    return Page(
        title,
        sections,
        common_pictures.page_pictures,
        common_pictures.why_none,
        left_out,
        meanings.all(),
    )


def _make_section(
    report: RunReport,
    run: Run,
    anchor: str,
    meanings: Meanings,
    option_meanings: Mapping[str, str],
) -> PageRun:
    """Return the section of a run: what a log has, and its settings and timeline."""
    download, no_download = make_trace_download(run)
    return replace(
        _make_log_section(report, anchor, meanings),
        title=_run_title(run),
        folder=run.path.name,
        summary=_run_summary(report, run),
        settings=collect_settings(run, option_meanings),
        download=download,
        no_download=no_download,
    )


def _make_log_section(report: RunReport, anchor: str, meanings: Meanings) -> PageRun:
    """Return the section of a text log; a run's section adds to it."""
    statements = [
        PageStatements(
            page_heading(part.heading),
            f"{anchor}-part-{part.name}",
            content.sentences,
            content.legend,
        )
        for part, content in report.parts
        if content.sentences
    ]
    return PageRun(
        title=report.title,
        anchor=anchor,
        folder="",
        summary="",
        errors=[note for note in report.notes if note.severity == "error"],
        warnings=[line.text for line in report.note_lines if line.severity == "warning"],
        statements=statements,
        tables=list(_make_tables(report, anchor, meanings, are_long=False)),
        more_tables=list(_make_tables(report, anchor, meanings, are_long=True)),
        notes=report.note_lines,
    )


def _make_tables(
    report: RunReport, anchor: str, meanings: Meanings, are_long: bool
) -> Iterator[PageTable]:
    for part, content in report.parts:
        if part.is_long == are_long:
            yield from make_tables(part, content.blocks, f"{anchor}-part-{part.name}", meanings)


def _add_pictures(section: PageRun, run: Run | None, common_pictures: Pictures) -> PageRun:
    if run is None:
        return section
    if run.path in common_pictures.folders:
        return replace(section, no_picture="The figure above holds this run.")
    own_pictures = draw_pictures([run], section.anchor)
    return replace(section, pictures=own_pictures.page_pictures, no_picture=own_pictures.why_none)


def _run_title(run: Run) -> str:
    models = ", ".join(dict.fromkeys(point.model for point in run.header.points))
    is_streaming = any(arm.is_streaming for arm in run.header.arms)
    subject = "Streaming the KV cache" if is_streaming else "Prompt and token times"
    return f"{subject}: {models} on {name_processor(run) or 'an unknown processor'}"


def _describe_differences(shown_runs: Sequence[ShownRun]) -> list[str]:
    """Return in a few words what tells each run from the others, the rarest first."""
    traits_by_run = [_list_traits(shown_run) for shown_run in shown_runs]
    trait_counts = Counter(trait for traits in traits_by_run for trait in traits)
    return [
        ", ".join(
            [
                trait
                for trait in sorted(traits, key=lambda trait: trait_counts[trait])
                if trait_counts[trait] < len(shown_runs)
            ][:MOST_TRAITS]
        )
        for traits in traits_by_run
    ]


def _list_traits(shown_run: ShownRun) -> list[str]:
    """Return the settings, sizes, arms and rounds of a run; a text log has none."""
    run = shown_run.run
    if run is None:
        return []
    arm_names = " ".join(arm.name for arm in run.header.arms if arm.is_streaming)
    return [
        *(run.header.settings or ()),
        *(size for size in describe_common_sizes(shown_run.report.rows).split(", ") if size),
        *([f"arms {arm_names}"] if arm_names else ["no streaming"]),
        *([rounds] if (rounds := _count_rounds(shown_run.report)) else []),
    ]


def _make_common_title(shown_runs: Sequence[ShownRun]) -> str:
    if any(shown_run.run is None for shown_run in shown_runs):
        return f"{len(shown_runs)} runs or text logs"
    machines = {
        name_processor(shown_run.run) for shown_run in shown_runs if shown_run.run is not None
    }
    suffix = f" on {machines.pop()}" if len(machines) == 1 and None not in machines else ""
    return f"{len(shown_runs)} runs{suffix}"


def _run_summary(report: RunReport, run: Run) -> str:
    header = run.header
    points = f"{len(header.points)} points" if len(header.points) > 1 else ""
    arms = f"arms {', '.join(arm.name for arm in header.arms)}"
    sizes = [describe_common_sizes(report.rows), points, arms, _count_rounds(report)]
    text = f"{', '.join(size_text for size_text in sizes if size_text)}. {describe_machine(run)}"
    return text[:1].upper() + text[1:]


def _count_rounds(report: RunReport) -> str:
    """Return the measured rounds in words; nothing without one."""
    round_counts = [row.times.samples for row in report.rows if row.times.samples]
    if not round_counts:
        return ""
    low, high = min(round_counts), max(round_counts)
    return format_count_of(low, "round") if low == high else f"{low} to {high} rounds"
