"""What a run's hosts and control groups granted it, where a reader must know it to judge the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from dejavubench.cgroups import Throttling
from dejavubench.cores import Demand
from dejavubench.filesystem import Place, durability_note
from dejavubench.records import End, RankInfo, RecordError, Run

T = TypeVar("T")

DISK_MODES = ("disk", "swap-disk")


def notes(run: Run) -> list[str]:
    """One line a finding; none of a run whose records are from before these were taken.

    Raises:
        RecordError: a rank's environment holds something else than what is recorded there.
    """
    return [*_disks(run), *_quotas(run), *_demands(run)]


# ---- the stream directory ----


def _disks(run: Run) -> list[str]:
    arms = [arm for arm in run.header.arms if arm.mode in DISK_MODES]
    if not arms:
        return []
    places = [(info.host, place) for _, info, place in _recorded(run, "stream_dir", Place)]
    found = [f"stream directory: {text}" for text in _by_host((host, str(place)) for host, place in places)]
    types = dict.fromkeys(place.type for _, place in places)
    for durability in dict.fromkeys(arm.durability for arm in arms if arm.durability is not None):
        for note in (durability_note(type, durability) for type in types):
            found += [] if note is None else [f"disk: {note}"]
    return found


# ---- CPU ----


def _quotas(run: Run) -> list[str]:
    quotas = {rank: cpus for rank, _, cpus in _recorded(run, "cpu_quota", float)}
    said: list[tuple[str, str]] = []
    for rank, info in run.of(RankInfo):
        throttled = _throttled(run, rank)
        if rank in quotas:
            text = f"the control group allows the time of {quotas[rank]:.3g} cores"
            text += "; it was not throttled" if throttled is not None and not throttled.periods else ""
        elif throttled is not None and throttled.periods:
            text = "a control group bounds CPU time"
        else:
            continue
        if throttled is not None and throttled.periods:
            text += f"; it was throttled for {throttled.seconds:.3g} s in {throttled.periods} periods while measuring"
        said.append((info.host, f"CPU: {text}"))
    return _by_host(said)


def _throttled(run: Run, rank: int) -> Throttling | None:
    """What a rank counted while it measured."""
    for at, end in run.of(End):
        if at == rank and "cpu_throttling" in end.environment:
            counted = _as(dict[str, Throttling], end.environment["cpu_throttling"], rank, "cpu_throttling")
            return counted.get("measured")
    return None


def _demands(run: Run) -> list[str]:
    demands = [(info.host, demand.note()) for _, info, demand in _recorded(run, "cpu_demand", Demand)]
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
    return [text if len(hosts) == 1 else f"{text} ({', '.join(here)})" for text, here in hosts.items()]
