"""Draw a file of ``dejavubench trace`` as a picture, for a page that cannot show a timeline.

python contrib/draw_trace.py trace.json trace.png --begin 600 --end 800
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7")
"""Colours of lanes, which people with colour-blindness can tell apart."""

ROW_INCHES = 0.32
"""Height of a lane, in inches."""


@click.command()
@click.argument("trace", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("picture", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--begin", default=0.0, help="First millisecond that is drawn.")
@click.option("--end", type=float, help="Last millisecond that is drawn. [default: the last one]")
@click.option("--rows", default=16, help="Rows of one lane that are drawn.", show_default=True)
def draw(trace: Path, picture: Path, begin: float, end: float | None, rows: int) -> None:
    """Draw the lanes of TRACE, from --begin to --end, into PICTURE (.png, .pdf, .svg)."""
    document = json.loads(trace.read_text(encoding="utf-8"))
    events = document["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    if end is None:
        end = max(event["ts"] + event["dur"] for event in slices) / 1e3
    # Times of the file are microseconds.
    slices = [
        event
        for event in slices
        if event["ts"] + event["dur"] >= begin * 1e3 and event["ts"] <= end * 1e3
    ]
    lanes = _titles(events, slices, rows)
    colours = _colours(lanes)
    slices = [event for event in slices if event["tid"] in lanes]
    height = ROW_INCHES * len(lanes) + 1.1
    figure, axes = pyplot.subplots(figsize=(10, height), layout="constrained")
    places = {tid: row for row, tid in enumerate(lanes)}
    for event in slices:
        start, length = event["ts"] / 1e3, event["dur"] / 1e3
        colour = colours[event["tid"]]
        # A white edge parts neighbours, but would hide a sliver.
        edge_colour = "white" if length > (end - begin) / 200 else colour
        axes.barh(
            places[event["tid"]],
            length,
            left=start,
            height=0.7,
            color=colour,
            edgecolor=edge_colour,
            linewidth=0.6,
        )
    axes.set(
        xlim=(begin, end),
        ylim=(len(lanes) - 0.5, -0.5),
        yticks=range(len(lanes)),
        yticklabels=lanes.values(),
        xlabel="ms",
    )
    trace_facts = document["otherData"]
    axes.set_title(
        f"{trace_facts['run']} {trace_facts['point']} {trace_facts['arm']}, "
        f"round {trace_facts['round']}",
        size=10,
    )
    figure.savefig(picture, dpi=110)
    click.echo(str(picture))


def _titles(
    events: list[dict[str, Any]], slices: list[dict[str, Any]], rows: int
) -> dict[int, str]:
    """Return the titles of the lanes of ``slices``, by the lane's number.

    Args:
        rows: a lane whose events overlap more often than this is cut; its title counts its rows.
    """
    used_lanes = {event["tid"] for event in slices}
    return {
        event["tid"]: f"rank {event['pid'] - 1}  {event['args']['name']}"
        for event in events
        if event["name"] == "thread_name"
        and event["tid"] in used_lanes
        and _row(event["args"]["name"]) <= rows
    }


def _colours(titles: dict[int, str]) -> dict[int, str]:
    """Return each lane's colour. The rows of one lane share theirs: ``wire`` and ``wire (2)``."""
    titles_in_order = list(
        dict.fromkeys(re.sub(r" \(\d+\)$", "", title) for title in titles.values())
    )
    return {
        lane: COLOURS[titles_in_order.index(re.sub(r" \(\d+\)$", "", title)) % len(COLOURS)]
        for lane, title in titles.items()
    }


def _row(title: str) -> int:
    """Return the number of a lane's row: 3 for ``wire (3)``, 1 for ``wire``."""
    number_match = re.search(r"\((\d+)\)$", title)
    return int(number_match[1]) if number_match else 1


if __name__ == "__main__":
    draw()
