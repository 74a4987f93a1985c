"""The trace of a median round as a file inside a page."""

from __future__ import annotations

import base64
import gzip
import io

from markupsafe import Markup

from dejavubench.analysis.number_texts import format_nbytes
from dejavubench.analysis.page.contents import PageDownload
from dejavubench.analysis.trace import document
from dejavubench.analysis.trace.build import Trace, build
from dejavubench.analysis.trace.choice import ChosenIteration, TraceError, choose
from dejavubench.records import RecordError, Run

LARGEST_NBYTES = 1_000_000
"""Bytes of the largest trace that a page carries, compressed. Mail servers refuse large pages."""


def make_trace_download(run: Run) -> tuple[PageDownload | None, str]:
    """Return the trace of the arm with the largest overhead, or the reason why there is none."""
    try:
        trace = build(run, choose(run, None, None, "median"))
    except (TraceError, RecordError) as error:
        return None, str(error)
    content = _compress(trace)
    if len(content) > LARGEST_NBYTES:
        return None, (
            f"it has {format_nbytes(len(content))}, more than the {format_nbytes(LARGEST_NBYTES)} "
            "that a page carries. dejavubench trace writes it to a file"
        )
    base64_text = base64.b64encode(content).decode("ascii")
    return PageDownload(
        name=f"{run.path.name}-{trace.choice.arm_name.replace('/', '-')}.trace.json.gz",
        address=Markup(f"data:application/gzip;base64,{base64_text}"),
        nbytes=len(content),
        description=_describe(trace.choice),
        notes=trace.notes,
    ), ""


def _describe(iteration: ChosenIteration) -> str:
    """Return a sentence on the round of a trace.

    The overhead of this one round is left out: it may differ from that of the run even in sign.
    """
    return (
        f"{iteration.point_id} {iteration.arm_name}, round {iteration.round + 1} alone "
        f"({iteration.way_chosen}): TOTAL {iteration.total_ms:.1f} ms"
    )


def _compress(trace: Trace) -> bytes:
    text = io.StringIO()
    document.write(trace, text)
    # File names of hosts may hold bytes that are not UTF-8. Without a time, equal runs give equal
    # pages.
    return gzip.compress(text.getvalue().encode("utf-8", "backslashreplace"), mtime=0)
