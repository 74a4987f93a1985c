"""For tests of analysis: run folders as `dejavubench run` leaves them, with known answers.

Each round has a drift of its own that all its arms share, so that only paired statistics recover
an arm's factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dejavubench.analysis.columns import values_by_column
from dejavubench.analysis.integrity.header import compute_experiment_hash
from dejavubench.analysis.tables.run_rows import run_rows
from dejavubench.dejavulib.destinations.registry import DESTINATIONS
from dejavubench.records import (
    RUN_FILE,
    ArmInfo,
    Ceiling,
    End,
    Iteration,
    Microbatch,
    PhaseMark,
    PhaseStreaming,
    PointInfo,
    RankInfo,
    Record,
    Run,
    RunHeader,
    SinkActivity,
    Skipped,
    StreamAlone,
    Verification,
    digest_of,
    format_all_token_line,
    format_prompt_line,
    format_token_line,
    format_total_line,
    name_rank_file,
    name_text_log_file,
    to_line,
)

NONE = ArmInfo(name="none", mode="none", role="baseline")
AGAIN = ArmInfo(name="none#2", mode="none", role="repeat")

ENVIRONMENT = {
    "cpu_model": "AMD EPYC 9V74 80-Core Processor",
    "cores": 2,
    "hostnames": ["node-a"],
    "mpi_library": "MPICH 5.0.2",
    "versions": {"torch": "2.13.0"},
    "date": "2025-01-02",
}

GPU = {
    "name": "NVIDIA H200",
    "uuid": "aaaa",
    "driver": "580.1",
    "cuda": "13.0",
    "nccl": "2.28.9",
    "mps": True,
    "pcie_generation": "5",
    "pcie_width": "16",
}
GPU_ENVIRONMENT = ENVIRONMENT | {"gpu": GPU, "gpus": ["NVIDIA H200"], "cuda_aware_mpi": False}


def on_gpu(uuid: str = "aaaa") -> dict[str, Any]:
    """Return the fields of a rank with a GPU."""
    return {"device": "NVIDIA H200", "environment": {"gpu": GPU | {"uuid": uuid}}}


PROMPT_MS, TOKEN_MS = 400.0, 20.0
CEILINGS = {"mpi-windowed": 10.0, "disk-write": 12.0, "memory-copy": 11.0}
"""GB/s of each ceiling."""


def arm_of(mode: str, level: str = "3") -> ArmInfo:
    return ArmInfo(
        name=f"{mode}@{level}",
        mode=mode,
        level=level,
        durability="fdatasync" if mode == "disk" else None,
    )


def point_of(number: int = 0, **changes: Any) -> PointInfo:
    sizes: dict[str, Any] = {
        "id": f"p{number:03d}",
        "model": "gpt2",
        "parameters": 124_439_808,
        "layer_num": 12,
        "head_num": 12,
        "size_per_head": 64,
        "vocab_size": 50257,
        "data_type": "bf16",
        "kv_layout": "hnd",
        "ubatch_size": 4,
        "input_len": 256,
        "output_len": 6,
        "tensor_para_size": 1,
        "pipeline_para_size": 1,
    }
    sizes |= changes
    streamed = sizes["input_len"] + (sizes.get("handed_over") or sizes["output_len"]) - 1
    heads = sizes.get("kv_head_num") or sizes["head_num"]
    itemsize = 4 if sizes["data_type"] == "fp32" else 2
    token = 2 * sizes["layer_num"] * heads * sizes["size_per_head"] * itemsize
    sizes.setdefault("positions", sizes["input_len"] + sizes["output_len"] - 1)
    sizes.setdefault("streamed_nbytes", sizes["ubatch_size"] * streamed * token)
    return PointInfo(**sizes)


def header(arms: Sequence[ArmInfo], points: Sequence[PointInfo], **changes: Any) -> RunHeader:
    fields: dict[str, Any] = {
        "name": "synthetic",
        "run_id": "0123456789abcdef",
        "started_utc": "2025-01-02T03:04:05Z",
        "command": ["dejavubench", "run"],
        "experiment": {"target_overhead": None},
        "warmup": 2,
        "arms": list(arms),
        "points": list(points),
        "environment": ENVIRONMENT,
    }
    fields |= changes
    return RunHeader(
        **({"experiment_hash": compute_experiment_hash(fields["experiment"])} | fields)
    )


def make_microbatch(
    point: PointInfo,
    arm: ArmInfo,
    iteration: int,
    round_number: int | None,
    drift: float,
    factor: float,
) -> Microbatch:
    """Return a microbatch whose times are ``drift`` × ``factor`` × those of its sizes."""
    size = point.ubatch_size * point.input_len / 1024
    token = TOKEN_MS * (1 + 0.1 * point.ubatch_size) * drift * factor
    prompt = PROMPT_MS * size * drift * factor
    tokens = [token * (1 + 0.01 * step) for step in range(point.output_len - 1)]
    streams = arm.mode != "none"
    share = point.streamed_nbytes // 2 if streams else 0
    rest = point.streamed_nbytes - share if streams else 0
    drain = 0.5 * drift if streams else 0.0
    return Microbatch(
        point=point.id,
        arm=arm.name,
        iteration=iteration,
        round=round_number,
        ubatch=0,
        prompt_ms=prompt,
        token_ms=tokens,
        all_token_ms=sum(tokens),
        drain_ms=drain,
        total_ms=prompt + sum(tokens) + drain,
        prompt=PhaseStreaming(
            nbytes=share, copies=12 * streams, stall_ms=0.2 * streams, lag_nbytes=share
        ),
        tokens=PhaseStreaming(
            nbytes=rest,
            copies=len(tokens) * streams,
            stall_ms=0.1 * streams,
            lag_nbytes=1000 * streams,
        ),
        drain=PhaseStreaming(stall_ms=drain),
        cpu_model_s=0.5,
        cpu_helper_s=0.02 * streams,
    )


def write_run(
    folder: Path,
    arms: Sequence[ArmInfo] = (NONE, AGAIN, arm_of("mpi")),
    points: Sequence[PointInfo] | None = None,
    factors: Mapping[str, float] | None = None,
    rounds: int = 12,
    noise: float = 0.002,
    skipped: Iterable[Skipped] = (),
    bad: Verification | None = None,
    ended: bool = True,
    infos: Sequence[Mapping[str, Any]] = ({}, {}),
    events: bool = False,
    sealed: bool = True,
    logs: bool = False,
    seed: int = 7,
    drift: float = 0.15,
    **changes: Any,
) -> Path:
    """Write a run with rank 0 as source and rank 1 as sink on one host; return its folder.

    Args:
        factors: arm → slowdown of its phases.
        bad: takes the place of the verification of its point, arm and iteration.
        infos: what else the two ranks say of themselves.
        events: CUDA events have timed the prompt and the steps as well, a hundredth less each.
        sealed: the ranks name their run and end with a digest, which older records do not.
        logs: the text logs are written, too.
        seed: of drift and noise.
        drift: standard deviation of each round's own factor, in logarithms.
        changes: fields of the header.
    """
    points = [point_of()] if points is None else list(points)
    skipped = list(skipped)
    run_header = header(arms, points, **changes)
    own_run = {"run_id": run_header.run_id} if sealed else {}
    source: list[Record] = [_make_info(0, "source", [1], **(own_run | dict(infos[0]))), *skipped]
    sink: list[Record] = [_make_info(1, "sink", [0], **(own_run | dict(infos[1])))]
    slowdowns = _Slowdowns(np.random.default_rng(seed), factors or {}, drift, noise)
    for point in points:
        measured_arms = _measured_arms(point, arms, skipped)
        for order, arm, microbatch in _make_microbatches(
            point, measured_arms, run_header.warmup, rounds, slowdowns
        ):
            _add_records(
                source, sink, _with_events(microbatch) if events else microbatch, arm, order
            )
            place = (point.id, arm.name, microbatch.iteration)
            if bad and (bad.point, bad.arm, bad.iteration) == place:
                source[-1] = bad
        source += _make_streams_alone(point, arms)
    source += _make_ceilings()
    _write_records(folder, run_header, (source, sink), ended, sealed)
    if logs:
        _write_text_logs(folder, source, has_several_points=len(points) > 1)
    return folder


@dataclass(frozen=True)
class _Slowdowns:
    """Factors of times: known ones of the arms, and random ones of rounds and microbatches."""

    rng: np.random.Generator
    factors: Mapping[str, float]
    drift: float
    noise: float

    def draw_for_round(self) -> float:
        return float(np.exp(self.rng.normal(0.0, self.drift)))

    def draw_for_arm(self, arm: ArmInfo) -> float:
        return self.factors.get(arm.name, 1.0) * float(np.exp(self.rng.normal(0.0, self.noise)))


def _make_microbatches(
    point: PointInfo,
    measured_arms: Sequence[tuple[int, ArmInfo]],
    warmup: int,
    rounds: int,
    slowdowns: _Slowdowns,
) -> Iterator[tuple[int, ArmInfo, Microbatch]]:
    """Yield the microbatches of all rounds, each with its arm and the arm's place in the order."""
    for iteration in range(warmup + rounds):
        round_number = iteration - warmup if iteration >= warmup else None
        round_factor = slowdowns.draw_for_round()
        for order, arm in measured_arms:
            arm_factor = slowdowns.draw_for_arm(arm)
            yield (
                order,
                arm,
                make_microbatch(point, arm, iteration, round_number, round_factor, arm_factor),
            )


def _make_streams_alone(point: PointInfo, arms: Iterable[ArmInfo]) -> list[Record]:
    return [
        StreamAlone(point=point.id, arm=arm.name, ms=4.0, nbytes=point.streamed_nbytes)
        for arm in arms
        if arm.mode != "none"
    ]


def _make_ceilings() -> list[Record]:
    return [
        Ceiling(name=name, unit="GB/s", value=value, samples=[value], shape="16 MiB × 8")
        for name, value in CEILINGS.items()
    ]


def _measured_arms(
    point: PointInfo, arms: Sequence[ArmInfo], skipped: Sequence[Skipped]
) -> list[tuple[int, ArmInfo]]:
    """Return the arms of a point that are not skipped, each with its place in the order."""
    left_out = {record.arm for record in skipped if record.point == point.id}
    if point.skipped or None in left_out:  # the whole point
        return []
    return [(order, arm) for order, arm in enumerate(arms) if arm.name not in left_out]


def _with_events(microbatch: Microbatch) -> Microbatch:
    """Return a microbatch with times of CUDA events, which are a hundredth less."""
    event_times = {
        "prompt_event_ms": 0.99 * microbatch.prompt_ms,
        "token_event_ms": [0.99 * ms for ms in microbatch.token_ms],
    }
    return microbatch.model_copy(update=event_times)


def _write_records(
    folder: Path,
    run_header: RunHeader,
    records_of_ranks: Iterable[Sequence[Record]],
    ended: bool,
    sealed: bool,
) -> None:
    """Write the header and a file per rank; sealed, the End holds the digest of what it follows."""
    folder.mkdir(parents=True)
    (folder / RUN_FILE).write_text(run_header.model_dump_json(indent=2))
    for rank, records in enumerate(records_of_ranks):
        text = "".join(map(to_line, records))
        seal: dict[str, Any] = {"digest": digest_of(text.encode())} if sealed else {}
        if sealed and rank == 0:
            seal["header_digest"] = digest_of((folder / RUN_FILE).read_bytes())
        (folder / name_rank_file(rank)).write_text(text + (to_line(End(**seal)) if ended else ""))


def _write_text_logs(folder: Path, records: Iterable[Record], has_several_points: bool) -> None:
    for record in records:
        if isinstance(record, Microbatch):
            path = folder / name_text_log_file(record.point, record.arm, has_several_points)
            with path.open("a") as file:
                file.write("\n".join(_log_lines(record)) + "\n")


def _log_lines(microbatch: Microbatch) -> list[str]:
    iteration = microbatch.iteration
    return [
        format_prompt_line(rank=0, microbatch=iteration, ms=microbatch.prompt_ms),
        *(format_token_line(rank=0, iteration=iteration, ms=ms) for ms in microbatch.token_ms),
        format_all_token_line(rank=0, iteration=iteration, ms=microbatch.all_token_ms),
        format_total_line(rank=0, iteration=iteration, ms=microbatch.total_ms),
    ]


def _make_info(rank: int, role: Any, peers: list[int], **more: Any) -> RankInfo:
    fields: dict[str, Any] = {
        "host": "node-a",
        "pid": 100 + rank,
        "cores": [rank],
        "threads": 1,
        "peers": peers,
    }
    return RankInfo(rank=rank, role=role, **(fields | more))


def _add_records(
    source: list[Record], sink: list[Record], microbatch: Microbatch, arm: ArmInfo, order: int
) -> None:
    """Add the records of an iteration with one microbatch; the last of the source verifies it."""
    place: dict[str, Any] = {
        "point": microbatch.point,
        "arm": microbatch.arm,
        "iteration": microbatch.iteration,
    }
    mark = PhaseMark(phase="tokens", **place)
    number = microbatch.round
    iteration = Iteration(round=number, order=order, total_ms=microbatch.total_ms, **place)
    source += [mark, microbatch, iteration]
    streamed = microbatch.prompt.nbytes + microbatch.tokens.nbytes
    received = streamed if arm.mode in DESTINATIONS and DESTINATIONS[arm.mode].remote else 0
    sink.append(mark)
    sink.append(SinkActivity(round=number, nbytes=received, messages=17, cpu_s=0.03, **place))
    source.append(Verification(ok=True, nbytes=streamed, tokens_equal=True, **place))


def flat_rows(run: Run) -> list[dict[str, Any]]:
    """Return the rows of a run by the names of their columns."""
    return [values_by_column(row) for row in run_rows(run)]
