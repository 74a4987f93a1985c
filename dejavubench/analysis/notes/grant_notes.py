"""Part of a report: what hosts and control groups granted a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dejavubench.analysis.facts.arm_destinations import run_destinations
from dejavubench.analysis.tables.report_part import RunPart, make_notes_alone
from dejavubench.records import End, Note, NoteKind, RankInfo, Run

STREAM_DIRECTORY = NoteKind("stream-directory", "info")
"""Kind of the note on the file system that disk arms wrote to."""

DURABILITY = NoteKind("durability", "info")
"""Kind of the note on what a durability means on that file system."""

CPU_QUOTA = NoteKind("cpu-quota", "info")
"""Kind of the note on the CPU time that control groups allowed, and how often they throttled."""

CROWDED = NoteKind("crowded", "warning")
"""Kind of the note on ranks with more busy threads than cores."""


def make_notes(run: Run) -> list[Note]:
    """Return one note per finding; none for older records without these facts.

    Raises:
        RecordError: a rank's environment has a value of another type.
    """
    return [*_note_disks(run), *_note_quotas(run), *_note_demands(run)]


# ---- the stream directory ----


def _note_disks(run: Run) -> list[Note]:
    """Note where disk arms streamed to, and what their durability means there."""
    destinations = run_destinations(run)
    arms = [
        arm
        for arm in run.header.arms
        if arm.mode in destinations and destinations[arm.mode].on_storage
    ]
    if not arms:
        return []
    folders = [
        (info.host, folder)
        for _, info in run.records_of(RankInfo)
        if (folder := info.facts.stream_dir) is not None
    ]
    findings = [
        STREAM_DIRECTORY.note(f"stream directory: {text}")
        for text in join_by_host((host, str(folder)) for host, folder in folders)
    ]
    # A durability means the same on all file systems of one type.
    folder_by_type = {folder.type: folder for _, folder in folders}
    for durability in dict.fromkeys(arm.durability for arm in arms if arm.durability is not None):
        for folder in folder_by_type.values():
            note = folder.describe_durability(durability)
            findings += [] if note is None else [DURABILITY.note(f"disk: {note}")]
    return findings


# ---- CPU ----


def _note_quotas(run: Run) -> list[Note]:
    """Note how many CPUs control groups allowed, and how long they throttled a host's ranks."""
    hosts: dict[str, dict[int, RankInfo]] = {}
    for rank, info in run.records_of(RankInfo):
        hosts.setdefault(info.host, {})[rank] = info
    throttlings = {rank: end.facts.cpu_throttling for rank, end in run.records_of(End)}
    texts = []
    for host, ranks in hosts.items():
        quotas = [info.facts.cpu_quota for info in ranks.values()]
        # Ranks may be in different groups; the tightest one slows all, as they wait for each other.
        tightest_quota = min((quota for quota in quotas if quota is not None), default=None)
        host_throttlings = [
            by_period["measured"]
            for rank in ranks
            if (by_period := throttlings.get(rank)) is not None and "measured" in by_period
        ]
        # Ranks of one control group read the same counters, so sums would count twice.
        worst_throttling = max(
            host_throttlings,
            key=lambda throttling: (throttling.periods, throttling.seconds),
            default=None,
        )
        clauses = (
            []
            if tightest_quota is None
            else [f"the control group allows {tightest_quota:.3g} CPUs"]
        )
        if worst_throttling is not None and worst_throttling.periods:
            clauses.append(
                f"the control group was throttled for {worst_throttling.seconds:.3g} s in "
                f"{worst_throttling.periods} periods of the measured points"
            )
        elif worst_throttling is not None and clauses:
            clauses.append("it was not throttled in the measured points")
        if clauses:
            texts.append((host, f"CPU: {'; '.join(clauses)}"))
    return [CPU_QUOTA.note(text) for text in join_by_host(texts)]


def _note_demands(run: Run) -> list[Note]:
    texts = (
        (info.host, f"CROWDED: {condition}{note}")
        for _, info in run.records_of(RankInfo)
        for condition, note in _describe_crowding(run, info)
        if note is not None
    )
    return [CROWDED.note(text) for text in join_by_host(texts)]


def _describe_crowding(run: Run, info: RankInfo) -> Iterator[tuple[str, str | None]]:
    """Yield words on the points of a sweep, and the note on the demand of the host there."""
    if not info.facts.points and info.facts.cpu_demand is not None:
        yield "", info.facts.cpu_demand.describe_shortage()
    for point in map(run.header.with_settings, run.header.points):
        point_environment = info.facts.points.get(point.id)
        if point_environment is not None and point_environment.cpu_demand is not None:
            yield (
                f"with --threads {point.threads}: ",
                point_environment.cpu_demand.describe_shortage(),
            )


def join_by_host(texts: Iterable[tuple[str, str]]) -> list[str]:
    """Return each text once, with its hosts if the hosts' texts differ."""
    hosts: dict[str, dict[str, None]] = {}
    for host, text in texts:
        hosts.setdefault(text, {})[host] = None
    return [
        text if len(hosts) == 1 else f"{text} ({', '.join(host_names)})"
        for text, host_names in hosts.items()
    ]


GRANTS = RunPart(
    "grants",
    "what hosts and control groups granted",
    make_notes_alone(lambda run_data: make_notes(run_data.run)),
    (STREAM_DIRECTORY, DURABILITY, CPU_QUOTA, CROWDED),
    is_long=True,
)
