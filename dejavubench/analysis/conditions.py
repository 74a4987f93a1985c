"""Notes on what hosts and control groups granted a run, for a reader who judges its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from dejavubench.config.points import ON_DISK
from dejavubench.machine.cgroups import Throttling
from dejavubench.machine.cores import Demand
from dejavubench.machine.filesystem import Place, durability_note
from dejavubench.records import End, RankInfo, RecordError, Run

T = TypeVar("T")


def notes(run: Run) -> list[str]:
    """One line a finding; none of a run whose records are from before these were taken.

    Raises:
        RecordError: a rank's environment holds something else than what is recorded there.
    """
    return [*_disks(run), *_quotas(run), *_demands(run)]


# ---- the stream directory ----


def _disks(run: Run) -> list[str]:
    arms = [arm for arm in run.header.arms if arm.mode in ON_DISK]
    if not arms:
        return []
    places = [(info.host, place) for _, info, place in _recorded(run, "stream_dir", Place)]
    found = [
        f"stream directory: {text}"
        for text in _by_host((host, str(place)) for host, place in places)
    ]
    types = dict.fromkeys(place.type for _, place in places)
    for durability in dict.fromkeys(arm.durability for arm in arms if arm.durability is not None):
        for note in (durability_note(type, durability) for type in types):
            found += [] if note is None else [f"disk: {note}"]
    return found


# ---- CPU ----


def _quotas(run: Run) -> list[str]:
    quotas = {rank: cpus for rank, _, cpus in _recorded(run, "cpu_quota", float)}
    hosts: dict[str, list[int]] = {}
    for rank, info in run.of(RankInfo):
        hosts.setdefault(info.host, []).append(rank)
    said = []
    for host, ranks in hosts.items():
        allowed = min((quotas[rank] for rank in ranks if rank in quotas), default=None)
        counted = [found for rank in ranks if (found := _throttled(run, rank)) is not None]
        # ranks share the counters, and read them at slightly different times
        worst = max(counted, key=lambda each: (each.periods, each.seconds), default=None)
        text = _quota(allowed, worst)
        said += [] if text is None else [(host, f"CPU: {text}")]
    return _by_host(said)


def _quota(allowed: float | None, throttled: Throttling | None) -> str | None:
    words = [] if allowed is None else [f"the control group allows {allowed:.3g} CPUs"]
    if throttled is not None and throttled.periods:
        words.append(
            f"the control group was throttled for {throttled.seconds:.3g} s in {throttled.periods} periods of the "
            "measured points"
        )
    elif throttled is not None and words:
        words.append("it was not throttled in the measured points")
    return "; ".join(words) or None


def _throttled(run: Run, rank: int) -> Throttling | None:
    """Return the throttling that a rank counted while it measured."""
    for at, end in run.of(End):
        if at == rank and "cpu_throttling" in end.environment:
            counted = _as(
                dict[str, Throttling], end.environment["cpu_throttling"], rank, "cpu_throttling"
            )
            return counted.get("measured")
    return None


def _demands(run: Run) -> list[str]:
    demands = [
        (info.host, demand.note()) for _, info, demand in _recorded(run, "cpu_demand", Demand)
    ]
    return _by_host((host, f"CROWDED: {note}") for host, note in demands if note is not None)


# ---- reading ----


def _recorded(run: Run, key: str, kind: type[T]) -> Iterator[tuple[int, RankInfo, T]]:
    for rank, info in run.of(RankInfo):
        value = info.environment.get(key)
        if value is not None:
            yield rank, info, _as(kind, value, rank, key)


def _as(kind: type[T], value: Any, rank: int, key: str) -> T:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RecordError(f"rank {rank}: environment {key}: {first['msg']}") from None


def _by_host(said: Iterable[tuple[str, str]]) -> list[str]:
    """Each text once; with the hosts that it is of, where they differ."""
    hosts: dict[str, dict[str, None]] = {}
    for host, text in said:
        hosts.setdefault(text, {})[host] = None
    return [
        text if len(hosts) == 1 else f"{text} ({', '.join(here)})" for text, here in hosts.items()
    ]
