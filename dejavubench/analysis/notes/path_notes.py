"""Part of a report: arms whose bytes took another path than the destination's name promises."""

from __future__ import annotations

from collections.abc import Iterable

from dejavubench.analysis.breakdown.byte_paths import BytePath, path_of_bytes
from dejavubench.analysis.facts.arm_destinations import hosts_of, info_of, loopback_of
from dejavubench.analysis.tables.report_part import RunData, RunPart, make_notes_alone
from dejavubench.records import ArmInfo, Note, NoteKind, Run

OTHER_PATH = NoteKind("other-path", "warning")
"""Kind of the notes on bytes that took another path than the destination's name promises."""

LEAST_CROSSING_SHARE = 0.5
"""Least share of the bytes that must cross an interface where the name promises that."""

LARGEST_STRAY_SHARE = 0.1
"""Largest share that may cross one where the name promises that none does."""

BETWEEN_HOSTS = ("different hosts", "two hosts on one machine")
"""Values of the column ``hosts`` with which bytes must leave the host."""

ON_ONE_HOST = ("same host", "local")
"""Values of the column ``hosts`` with which bytes must stay on the host."""


def _make_notes(run_data: RunData) -> list[Note]:
    """Return one note for each broken promise; none for older records, which do not tell."""
    run = run_data.run
    points = run_data.points
    hosts = run_data.hosts
    if not hosts:
        return []
    notes = []
    for point_id, point in points.items():
        prefix = f"{point_id} " if len(points) > 1 else ""
        for samples in point.arms.values():
            path = path_of_bytes(run, hosts, point, samples) if samples.info.is_streaming else None
            if path is not None and path.why_unreadable is None:
                notes += [
                    OTHER_PATH.note(f"PATH: {prefix}{text}")
                    for text in _describe_broken_promises(run, samples.info, path)
                ]
    return notes


def _describe_broken_promises(run: Run, arm: ArmInfo, path: BytePath) -> Iterable[str]:
    """Yield a sentence for each promise of the destination's name that the bytes broke."""
    info = info_of(run, arm)
    hosts = hosts_of(run, arm)
    # Two ranks on one GPU: the name promises two GPUs, so it promises nothing here.
    if info is None or loopback_of(run, arm) is not None:
        return
    promised_crossing = info.crossing
    if (
        hosts in BETWEEN_HOSTS
        and promised_crossing.between_hosts
        and path.between_hosts_share < LEAST_CROSSING_SHARE
    ):
        share = _format_percent(path.between_hosts_share)
        yield (
            f"interfaces between hosts carried {share} of the bytes of {arm.name} ({path}), "
            f"but {arm.mode} between two hosts should use them for all"
        )
    # "some on the same host" gives no promise either way.
    if hosts not in ON_ONE_HOST or promised_crossing.on_one_host is None:
        return
    if promised_crossing.on_one_host and path.network_share < LEAST_CROSSING_SHARE:
        share = _format_percent(path.network_share)
        yield (
            f"network interfaces carried {share} of the bytes of {arm.name}, "
            f"but {arm.mode} on one host should use one for all"
        )
    if not promised_crossing.on_one_host and path.network_share > LARGEST_STRAY_SHARE:
        yield (
            f"network interfaces carried {_format_percent(path.network_share)} of the bytes of "
            f"{arm.name} ({path}), but {arm.mode} on one host should use none"
        )


def _format_percent(share: float) -> str:
    return f"{min(100, int(100 * share))} %"


PATHS = RunPart(
    "paths",
    "bytes that took another path than promised",
    make_notes_alone(_make_notes),
    (OTHER_PATH,),
)
