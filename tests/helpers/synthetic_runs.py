"""Run folders as `dejavubench run` leaves them, with known answers.

Each round has a drift of its own that all its arms share, so that only paired statistics recover
an arm's factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dejavubench.analysis.columns import values_by_column
from dejavubench.analysis.integrity.header import experiment_hash
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
    all_token_line,
    digest_of,
    prompt_line,
    rank_file,
    text_log_file,
    to_line,
    token_line,
    total_line,
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
    """Environment of a rank with a GPU."""
    return {"device": "NVIDIA H200", "environment": {"gpu": GPU | {"uuid": uuid}}}


PROMPT_MS, TOKEN_MS = 400.0, 20.0


def arm(mode: str, level: str = "3") -> ArmInfo:
    return ArmInfo(
        name=f"{mode}@{level}",
        mode=mode,
        level=level,
        durability="fdatasync" if mode == "disk" else None,
    )


def point(number: int = 0, **changes: Any) -> PointInfo:
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
    heads, itemsize = (
        sizes.get("kv_head_num") or sizes["head_num"],
        4 if sizes["data_type"] == "fp32" else 2,
    )
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
    return RunHeader(**({"experiment_hash": experiment_hash(fields["experiment"])} | fields))


def microbatch(
    where: PointInfo, which: ArmInfo, iteration: int, number: int | None, drift: float, by: float
) -> Microbatch:
    """One microbatch whose every time is ``drift`` × ``by`` × the time of a point of this size."""
    size = where.ubatch_size * where.input_len / 1024
    token = TOKEN_MS * (1 + 0.1 * where.ubatch_size) * drift * by
    prompt = PROMPT_MS * size * drift * by
    tokens = [token * (1 + 0.01 * step) for step in range(where.output_len - 1)]
    streams = which.mode != "none"
    share = where.streamed_nbytes // 2 if streams else 0
    rest = where.streamed_nbytes - share if streams else 0
    drain = 0.5 * drift if streams else 0.0
    return Microbatch(
        point=where.id,
        arm=which.name,
        iteration=iteration,
        round=number,
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
    arms: Sequence[ArmInfo] = (NONE, AGAIN, arm("mpi")),
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
    """A run with rank 0 as source and rank 1 as sink on one host.

    Args:
        factors: arm → slowdown of its phases.
        infos: what else the two ranks say of themselves.
        events: CUDA events have timed the prompt and the steps as well, a hundredth less each.
        sealed: the ranks name their run and end with a digest, which older records do not.
        logs: the text logs are written, too.
        seed: of drift and noise.
        drift: standard deviation of each round's own factor, in logarithms.
        changes: fields of the header.
    """
    points = [point()] if points is None else list(points)
    top = header(arms, points, **changes)
    rng = np.random.default_rng(seed)
    run_id = {"run_id": top.run_id} if sealed else {}
    source: list[Record] = [_info(0, "source", [1], **(run_id | dict(infos[0])))]
    sink: list[Record] = [_info(1, "sink", [0], **(run_id | dict(infos[1])))]
    left_out = {(item.point, item.arm) for item in skipped}
    source += list(skipped)
    for where in points:
        for iteration in range(-top.warmup, rounds):
            slower = float(np.exp(rng.normal(0.0, drift)))
            for order, which in enumerate(arms):
                if (
                    where.skipped
                    or (where.id, which.name) in left_out
                    or (where.id, None) in left_out
                ):
                    continue
                by = (factors or {}).get(which.name, 1.0) * float(np.exp(rng.normal(0.0, noise)))
                number = iteration if iteration >= 0 else None
                one = microbatch(where, which, iteration + top.warmup, number, slower, by)
                if events:
                    timed = {
                        "prompt_event_ms": 0.99 * one.prompt_ms,
                        "token_event_ms": [0.99 * t for t in one.token_ms],
                    }
                    one = one.model_copy(update=timed)
                _add(source, sink, one, which, order)
                if bad and (bad.point, bad.arm, bad.iteration) == (
                    where.id,
                    which.name,
                    one.iteration,
                ):
                    source[-1] = bad
        for which in arms:
            if which.mode != "none":
                source.append(
                    StreamAlone(
                        point=where.id, arm=which.name, ms=4.0, nbytes=where.streamed_nbytes
                    )
                )
    for name, value in (("mpi-windowed", 10.0), ("disk-write", 12.0), ("memory-copy", 11.0)):
        source.append(
            Ceiling(name=name, unit="GB/s", value=value, samples=[value], shape="16 MiB × 8")
        )
    folder.mkdir(parents=True)
    (folder / RUN_FILE).write_text(top.model_dump_json(indent=2))
    for rank, records in enumerate((source, sink)):
        text = "".join(map(to_line, records))
        seal: dict[str, Any] = {"digest": digest_of(text.encode())} if sealed else {}
        if sealed and rank == 0:
            seal["header_digest"] = digest_of((folder / RUN_FILE).read_bytes())
        (folder / rank_file(rank)).write_text(text + (to_line(End(**seal)) if ended else ""))
    for record in source if logs else ():
        if isinstance(record, Microbatch):
            with (folder / text_log_file(record.point, record.arm, len(points) > 1)).open(
                "a"
            ) as file:
                file.write("\n".join(_text(record)) + "\n")
    return folder


def _text(one: Microbatch) -> list[str]:
    lines = [prompt_line(0, one.iteration, one.prompt_ms)]
    lines += [token_line(0, one.iteration, ms) for ms in one.token_ms]
    return [
        *lines,
        all_token_line(0, one.iteration, one.all_token_ms),
        total_line(0, one.iteration, one.total_ms),
    ]


def _info(rank: int, role: Any, peers: list[int], **more: Any) -> RankInfo:
    known: dict[str, Any] = {
        "host": "node-a",
        "pid": 100 + rank,
        "cores": [rank],
        "threads": 1,
        "peers": peers,
    }
    return RankInfo(rank=rank, role=role, **(known | more))


def _add(
    source: list[Record], sink: list[Record], one: Microbatch, which: ArmInfo, order: int
) -> None:
    place: dict[str, Any] = {"point": one.point, "arm": one.arm, "iteration": one.iteration}
    mark = PhaseMark(phase="tokens", **place)
    source += [mark, one, Iteration(round=one.round, order=order, total_ms=one.total_ms, **place)]
    streamed = one.prompt.nbytes + one.tokens.nbytes
    received = streamed if which.mode in DESTINATIONS and DESTINATIONS[which.mode].remote else 0
    sink.append(mark)
    sink.append(SinkActivity(round=one.round, nbytes=received, messages=17, cpu_s=0.03, **place))
    source.append(Verification(ok=True, nbytes=streamed, tokens_equal=True, **place))


def flat_rows(run: Run) -> list[dict[str, Any]]:
    """Return the rows of a run by the names of their columns."""
    return [values_by_column(row) for row in run_rows(run)]
