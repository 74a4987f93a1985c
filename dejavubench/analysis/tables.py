"""Records → rows → a pandas table: one row for each point and arm of a run, or each rank of a text log.

Every column with a unit has it in its name. A time is the median over measured rounds of the maximum over
sources; ``_low`` and ``_high`` are its 95 % bootstrap interval, ``_iqr`` the spread. Missing values are None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavubench.analysis import machine, stats
from dejavubench.analysis.averages import DROPPED
from dejavubench.analysis.machine import ceiling
from dejavubench.analysis.samples import ArmSamples, PointSamples, collect
from dejavubench.records import HELD_AGAINST, OVERHEAD_OF, ArmInfo, Ceiling, RankInfo, Run, Skipped
from dejavubench.records.textlog import RankTimes, TextLog, TextLogError

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]

POINT_COLUMNS = (
    "model",
    "data_type",
    "kv_layout",
    "ubatch_size",
    "input_len",
    "output_len",
    "tensor_para_size",
    "pipeline_para_size",
    "sinks",
    "handed_over",
)


def _timed(name: str) -> tuple[str, ...]:
    return (f"{name}_ms", f"{name}_low_ms", f"{name}_high_ms", f"{name}_iqr_ms")


COLUMNS = (
    *(
        "run",
        "point",
        *POINT_COLUMNS,
        "arm",
        "mode",
        "level",
        "durability",
        "hosts",
        "status",
        "reason",
        "verified",
    ),
    *("samples", "warmups", *_timed("prompt"), *_timed("token"), *_timed("total"), "drain_ms"),
    *("baseline", "overhead_pct", "overhead_low_pct", "overhead_high_pct", "target_pct", "verdict"),
    *("token_overhead_pct", "token_overhead_low_pct", "token_overhead_high_pct"),
    *("noise_floor_pct", "noise_floor_low_pct", "noise_floor_high_pct"),
    *("stall_ms", "largest_lag_bytes", "streamed_bytes", "copies_per_prompt", "copies_per_token"),
    *(
        "alone_ms",
        "alone_gb_per_s",
        "total_gb_per_s",
        "ceiling",
        "ceiling_gb_per_s",
        "ceiling_share_pct",
        "hidden_pct",
    ),
    *("cpu_model_s", "cpu_helper_s", "cpu_sink_s", "statistic"),
    *("prompt_event_ms", "token_event_ms"),
    *("handover_ms", "sink_waited_ms", "sink_first_ms", "sink_token_ms"),
    *("resident_caches", "brought_back_bytes", "bring_ms", "swap_wait_ms"),
    *("resumed_run", "resumed_at_token", "restored_bytes", "restore_ms", "anew_ms"),
    *("prompt_tflop_per_s", "prompt_share_pct", "token_gb_per_s", "token_share_pct"),
)

CEILING_OF_MODE = {
    "mpi": "mpi-windowed",
    "disk": "disk-write",
    "host": "memory-copy",
    "nixl": "nixl-raw",
    "tcp": "tcp-raw",
}
CEILING_FROM_GPU = CEILING_OF_MODE | {"host": "pcie-d2h", "nccl": "nccl-send"}
LOCAL_MODES = ("host", "disk", "swap-host", "swap-disk")
STATISTIC = "median over rounds of the maximum over sources"


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Rows as a pandas table with all of :data:`COLUMNS`."""
    import pandas as pd

    return pd.DataFrame(list(rows), columns=list(COLUMNS)).convert_dtypes()


def run_rows(run: Run) -> list[Row]:
    """One row for each point and arm of the header, also for those that were skipped, failed or not reached.

    Raises:
        RecordError: a record names a point or an arm that the header does not have.
    """
    points = collect(run)
    reasons = {(item.point, item.arm): item.reason for _, item in run.of(Skipped)}
    rows = []
    for point in run.header.points:
        whole = point.skipped or reasons.get((point.id, None))
        rows += [
            _row(run, points[point.id], a, whole or reasons.get((point.id, a.name)))
            for a in run.header.arms
        ]
    return rows


def _row(run: Run, point: PointSamples, arm: ArmInfo, skipped: str | None) -> Row:
    row: Row = dict.fromkeys(COLUMNS)
    row.update(
        run=run.path.name, point=point.point.id, arm=arm.name, mode=arm.mode, statistic=STATISTIC
    )
    row.update(level=arm.level, durability=arm.durability, hosts=hosts(run, arm))
    row.update({name: getattr(point.point, name) for name in POINT_COLUMNS})
    samples = point.arms.get(arm.name)
    if skipped is not None:
        row.update(status="SKIPPED", reason=skipped)
    elif samples is not None and (why := samples.why_failed) is not None:
        row.update(status="FAILED", reason=why, verified=None if samples.failure else "FAILED")
    elif samples is None or not (samples.total or samples.checks or samples.restarts):
        row.update(status="no rounds", reason="the run ended before a measured round of this arm")
    elif samples.restarts:
        row.update(
            status="ok", verified=_verified(samples), baseline="no baseline", **_restart(samples)
        )
    elif not samples.total:
        row.update(status="no rounds", reason="the run ended before a measured round of this arm")
    else:
        row.update(status="ok", verified=_verified(samples))
        row.update(_times(samples), **_overhead(point, samples, run), **_streaming(samples))
        row.update(_rates(run, point, samples), **_model(run, point, samples))
    return row


def _verified(samples: ArmSamples) -> str | None:
    """How many iterations were compared; None where nothing is streamed, so that there is nothing to compare."""
    if samples.checks:
        return f"yes ({len(samples.checks)})"
    return None if samples.arm.mode == "none" else "no"


def _restart(samples: ArmSamples) -> Row:
    """What was put back by all sources, and the times of the slowest; they are of one iteration."""
    restarts = samples.restarts
    steps = [max(each) for each in zip(*(restart.step_ms for restart in restarts), strict=True)]
    anew = [restart.anew_ms for restart in restarts if restart.anew_ms is not None]
    return {
        "resumed_run": restarts[0].of,
        "resumed_at_token": restarts[0].first,
        "restored_bytes": sum(restart.nbytes for restart in restarts),
        "restore_ms": max(restart.restore_ms for restart in restarts),
        "anew_ms": max(anew, default=None),
        "token_ms": float(np.median(steps)),
        "drain_ms": max(restart.drain_ms for restart in restarts),
    }


def _median(series: Mapping[int, float]) -> float | None:
    return stats.estimate(series.values()).median if series else None


def _whole(series: Mapping[int, float]) -> int | None:
    return round(stats.estimate(series.values()).median) if series else None


def _timing(name: str, values: Iterable[float]) -> Row:
    found = list(values)
    if not found:
        return {}
    item = stats.estimate(found)
    bounds: tuple[float | None, float | None] = (
        (item.low, item.high) if item.samples > 1 else (None, None)
    )
    return dict(zip(_timed(name), (item.median, *bounds, item.iqr), strict=True))


def _times(samples: ArmSamples) -> Row:
    return {
        "samples": len(samples.total),
        "warmups": samples.warmups,
        **_timing("prompt", samples.prompt.values()),
        **_timing("token", samples.token.values()),
        **_timing("total", samples.total.values()),
        "drain_ms": _median(samples.drain),
        "prompt_event_ms": _median(samples.prompt_event),
        "token_event_ms": _median(samples.token_event),
        "handover_ms": _median(samples.handover),
        "resident_caches": samples.resident,
        "brought_back_bytes": _whole(samples.swap_nbytes),
        "bring_ms": _median(samples.swap_bring),
        "swap_wait_ms": _median(samples.swap_wait),
        "sink_waited_ms": _median(samples.sink_waited),
        "sink_first_ms": _median(samples.sink_first),
        "sink_token_ms": _median(samples.sink_token),
    }


def _percent(name: str, item: stats.Estimate | None) -> Row:
    if item is None:
        return {}
    bounds = (100 * item.low, 100 * item.high) if item.samples > 1 else (None, None)
    return {
        f"{name}_pct": 100 * item.median,
        f"{name}_low_pct": bounds[0],
        f"{name}_high_pct": bounds[1],
    }


def _overhead(point: PointSamples, samples: ArmSamples, run: Run) -> Row:
    baselines = point.baselines()
    row = _percent("noise_floor", stats.noise_floor(baselines))
    if samples.arm.role != "streaming":
        return row | {"baseline": "is a baseline"}
    item = stats.paired_overhead(samples.total, baselines)
    target = run.header.experiment.get("target_overhead")
    row |= _percent("overhead", item)
    row |= _percent(
        "token_overhead", stats.paired_overhead(samples.token, point.baselines("token"))
    )
    row["baseline"] = ("no baseline", "none", "none and none#2")[len(baselines)]
    row["target_pct"] = None if target is None else 100 * target
    row["verdict"] = stats.verdict(item, target)
    return row


def _streaming(samples: ArmSamples) -> Row:
    if samples.arm.mode == "none":
        return {"cpu_model_s": _median(samples.cpu_model)}
    return {
        "stall_ms": _median(samples.stall),
        "largest_lag_bytes": samples.lag_nbytes,
        "streamed_bytes": _whole(samples.nbytes),
        "copies_per_prompt": _whole(samples.prompt_copies),
        "copies_per_token": _median(samples.token_copies),
        "cpu_model_s": _median(samples.cpu_model),
        "cpu_helper_s": _median(samples.cpu_helper),
        "cpu_sink_s": _median(samples.cpu_sink),
    }


def _rates(run: Run, point: PointSamples, samples: ArmSamples) -> Row:
    """GB/s are 10⁹ bytes a second: the bytes over T_alone (effective), and over TOTAL (what was sustained)."""
    if samples.arm.mode == "none":
        return {}
    row: Row = {"hidden_pct": _hidden(point, samples)}
    total, nbytes = _median(samples.total), _median(samples.nbytes)
    if total and nbytes:
        row["total_gb_per_s"] = nbytes / total / 1e6
    name = (CEILING_FROM_GPU if machine.on_gpu(run) else CEILING_OF_MODE).get(samples.arm.mode)
    found = ceiling(run, name, point.point.id, samples.arm.durability) if name else None
    if found is not None:
        row.update(ceiling=name, ceiling_gb_per_s=found[0])
    if samples.alone is not None:
        alone_ms, alone_nbytes = samples.alone
        row.update(alone_ms=alone_ms, alone_gb_per_s=alone_nbytes / alone_ms / 1e6)
        if found is not None and found[1] == len(
            machine.sources(run)
        ):  # else the rate of all is held against the ceiling of some
            row["ceiling_share_pct"] = 100 * row["alone_gb_per_s"] / found[0]
    return row


def _model(run: Run, point: PointSamples, samples: ArmSamples) -> Row:
    """What the model alone makes of the machine; of a pipeline, whose stages take turns, nothing is said."""
    if samples.arm.mode != "none" or point.point.pipeline_para_size > 1:
        return {}
    work, id = machine.work(run, point.point), point.point.id
    prompt, token, row = _median(samples.prompt), _median(samples.token), Row()
    if prompt:
        gflop_per_s = work.prompt_flop / prompt / 1e6
        row["prompt_tflop_per_s"] = gflop_per_s / 1e3
        row["prompt_share_pct"] = machine.share(run, "matmul", id, gflop_per_s, "GFLOP/s")
    if token and work.token_nbytes:
        row["token_gb_per_s"] = work.token_nbytes / token / 1e6
        row["token_share_pct"] = machine.share(run, "memory-read", id, row["token_gb_per_s"])
    return row


def _hidden(point: PointSamples, samples: ArmSamples) -> float | None:
    """1 − (T_arm − T_none) / T_alone in percent; None where T_alone is below the noise, or the noise unknown.

    The difference is the paired overhead times T_none. The noise is what the second ``none`` may differ by: the
    farther end of the noise floor's interval.
    """
    baselines = point.baselines()
    floor = stats.noise_floor(baselines)
    overhead = stats.paired_overhead(samples.total, baselines)
    if samples.alone is None or floor is None or overhead is None or floor.samples < 2:
        return None
    none_ms = stats.estimate(value for series in baselines for value in series.values()).median
    alone_ms = samples.alone[0]
    if alone_ms <= none_ms * stats.noise_reach(floor.low, floor.high):
        return None
    return 100 * (1 - overhead.median * none_ms / alone_ms)


def hosts(run: Run, arm: ArmInfo) -> str | None:
    """``local``, ``same host``, ``different hosts``, ``some on the same host`` or ``loopback on one GPU``.

    ``two hosts on one machine`` are two networks of it, or two names that it goes by: containers, or an emulation. None
    for ``none`` or when unknown.
    """
    if arm.mode == "none":
        return None
    if arm.mode in LOCAL_MODES:
        return "local"
    if machine.destination(run, arm) == machine.LOOPBACK:
        return "loopback on one GPU"
    infos = dict(run.of(RankInfo))
    if arm.mode == "tcp":  # the sink is no rank; the source knows whether it runs beside it
        sinks = [info.environment.get("tcp_sink") for info in machine.sources(run)]
        pairs = [
            (sink["same_host"], sink.get("same_machine", False))
            for sink in sinks
            if sink is not None
        ]
    else:
        pairs = [
            (info.host == infos[peer].host, _one_machine(info, infos[peer]))
            for info in infos.values()
            if info.role == "source"
            for peer in info.peers
            if peer in infos
        ]
    same = [host for host, _ in pairs]
    if not same or any(same):
        return None if not same else "same host" if all(same) else "some on the same host"
    return "two hosts on one machine" if any(machine for _, machine in pairs) else "different hosts"


def _one_machine(source: RankInfo, sink: RankInfo) -> bool:
    """Older records do not tell."""
    return source.environment.get("machine", "") == sink.environment.get("machine")


def against_raw(run: Run) -> dict[str, stats.Estimate]:
    """Destinations alone: by what is held against what, their rate over that of the raw loop, pair by pair."""
    ratios: dict[str, list[float]] = {}
    found = {(rank, item.point, item.durability, item.name): item for rank, item in run.of(Ceiling)}
    for (rank, point, durability, name), own in found.items():
        raw = found.get((rank, point, durability, HELD_AGAINST.get(name, "")))
        if raw is not None:
            what = f"{name} / {raw.name}" + (f", {durability}" if durability else "")
            ratios.setdefault(what, []).extend(
                a / b for a, b in zip(own.samples, raw.samples, strict=True)
            )
    return {name: stats.estimate(values) for name, values in ratios.items() if values}


def own_shares(run: Run) -> dict[str, float]:
    """By naive loop, how many percent of the time of one run are this program's own: best against best."""
    best: dict[tuple[str, str | None], float] = {}
    for _, item in run.of(Ceiling):
        key = (item.name, item.durability)
        best[key] = min(best.get(key, item.value), item.value)
    return {
        name + (f", {durability}" if durability else ""): 100 * best[overhead, None] / whole
        for overhead, of in OVERHEAD_OF.items()
        for (name, durability), whole in best.items()
        if name == of and (overhead, None) in best
    }


def log_rows(log: TextLog) -> list[Row]:
    """One row a rank of a text log; the first two samples are dropped as warm-up, as the paper's scripts do.

    Raises:
        TextLogError: the log is too short.
    """
    ranks = log.ranks
    if all(len(times.totals) <= DROPPED for times in ranks.values()):
        most = max(len(times.totals) for times in ranks.values())
        raise TextLogError(
            f"{log.path} is too short: {most} TOTAL lines, and the first {DROPPED} are dropped as warm-up"
        )
    return [_log_row(log.path, rank, times) for rank, times in sorted(ranks.items())]


def _log_row(path: Path, rank: int, times: RankTimes) -> Row:
    row: Row = dict.fromkeys(COLUMNS)
    row.update(run=str(path), arm=path.stem, baseline="no baseline", verified="not recorded")
    row.update(
        statistic=f"median over iterations of rank {rank}, without the first {DROPPED} tokens of each"
    )
    if len(times.totals) <= DROPPED:
        row.update(status="too short", reason=f"rank {rank} has {len(times.totals)} TOTAL lines")
        return row
    row.update(status="ok", samples=len(times.totals) - DROPPED, warmups=DROPPED)
    row.update(_timing("prompt", times.prompts[DROPPED:]))
    steps = [item[DROPPED:] for item in times.tokens[DROPPED:] if len(item) > DROPPED]
    row.update(_timing("token", [float(np.median(item)) for item in steps]))
    row.update(_timing("total", times.totals[DROPPED:]))
    return row
