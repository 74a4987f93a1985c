"""The machine of a run as its records tell it, and how much of what it can do the model makes use of."""

from __future__ import annotations

from dataclasses import dataclass

from dejavubench.records import ArmInfo, Ceiling, PointInfo, RankInfo, Run

ITEMSIZE = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Bytes of one element of the cache, and of a weight where the device multiplies in that type."""

LOOPBACK = "nccl-loopback"
"""The destination of ranks that share one GPU: what it gives is no remote GPU's."""


def sources(run: Run) -> list[RankInfo]:
    return [info for _, info in run.of(RankInfo) if info.role == "source"]


def on_gpu(run: Run) -> bool:
    """Whether the model ran on a CUDA device."""
    return any(info.device is not None for info in sources(run))


def processor(run: Run) -> str | None:
    """Where the model ran: the name of the GPU, with their number if there are several, or else of the CPU."""
    names = [info.device for info in sources(run) if info.device is not None]
    if not names:
        return run.header.environment.get("cpu_model")
    known = [uuid for info in sources(run) if (uuid := _uuid(info))]
    count = len(set(known)) if len(known) == len(names) else len(names)
    return f"{count} × {names[0]}" if count > 1 else names[0]


def destination(run: Run, arm: ArmInfo) -> str:
    """The arm's mode, or :data:`LOOPBACK` where a source and its sink share a GPU, whatever the arm is called."""
    if LOOPBACK in (arm.mode, arm.name.partition("@")[0]) or (arm.mode == "nccl" and _one_gpu(run)):
        return LOOPBACK
    return arm.mode


def _one_gpu(run: Run) -> bool:
    infos = dict(run.of(RankInfo))
    pairs = [(info, infos[peer]) for info in sources(run) for peer in info.peers if peer in infos]
    return any(_uuid(here) is not None and _uuid(here) == _uuid(there) for here, there in pairs)


def _uuid(info: RankInfo) -> str | None:
    return (info.environment.get("gpu") or {}).get("uuid")


# ---- what a microbatch takes ----


@dataclass(frozen=True)
class Work:
    """What one microbatch of a point cannot do without, over all workers.

    Attributes:
        prompt_flop: of the prompt's products: every weight of the layers with every position, the head with each
            request's last one, and half of a full attention, since no position sees a later one.
        token_nbytes: read by the middle decode step: every weight once, and the keys and values of the positions seen;
            None where it is not recorded in which type the weights were held.
    """

    prompt_flop: float
    token_nbytes: float | None


def work(run: Run, point: PointInfo) -> Work:
    """From a point's sizes."""
    queries, batch = point.head_num * point.size_per_head, point.ubatch_size
    keys = (point.kv_head_num or point.head_num) * point.size_per_head
    layers = point.layer_weights or 12 * point.layer_num * queries**2
    head = point.head_weights or min(
        point.vocab_size * queries, point.parameters - layers
    )  # of older records
    attention = point.layer_num * queries * point.input_len**2
    seen = (
        point.input_len + point.output_len / 2
    )  # the first decode step sees P + 1 positions, the last P + T − 1
    cached = 2 * point.layer_num * keys * ITEMSIZE[point.data_type]
    itemsize = weights_itemsize(run, point)
    return Work(
        prompt_flop=2 * batch * (point.input_len * layers + head + attention),
        token_nbytes=None
        if itemsize is None
        else (layers + head) * itemsize + batch * seen * cached,
    )


def weights_itemsize(run: Run, point: PointInfo) -> int | None:
    """Bytes of one weight, as it is read.

    Older records do not say: on a CPU they were then of the type that it multiplied, which of the half types was bf16
    at most, where all ranks had it.
    """
    if point.weight_nbytes is not None:
        return point.weight_nbytes
    if on_gpu(run) or point.data_type == "fp32":
        return ITEMSIZE[point.data_type]
    if point.data_type == "fp16":
        return 4
    native = [info.environment.get("native_bf16") for _, info in run.of(RankInfo)]
    if not native or None in native:
        return None
    return 2 if all(native) else 4


# ---- what the machine can do ----


def ceiling(
    run: Run, name: str, point: str, durability: str | None, unit: str = "GB/s"
) -> tuple[float, int] | None:
    """A ceiling, best of each rank that measured it, summed over ranks; and how many ranks these are.

    One measured at this point goes before one of the whole run; the disk's counts for its own durability alone.
    """
    measured = [
        (rank, item)
        for rank, item in run.of(Ceiling)
        if item.name == name and item.unit == unit and item.durability in (None, durability)
    ]
    for where in (point, None):
        best: dict[int, float] = {}
        for rank, item in measured:
            if item.point == where:
                best[rank] = max(best.get(rank, 0.0), item.value)
        if best:
            return sum(best.values()), len(best)
    return None


def share(run: Run, name: str, point: str, rate: float, unit: str = "GB/s") -> float | None:
    """``rate`` in percent of a ceiling; None where that was not measured by every source."""
    found = ceiling(run, name, point, None, unit)
    return 100 * rate / found[0] if found is not None and found[1] == len(sources(run)) else None
