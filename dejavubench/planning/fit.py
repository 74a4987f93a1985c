"""Does it fit, and how long will it take: bytes and seconds of each point, before anything starts.

The memory is what is known to be allocated, a host's and, on cuda, a card's; allocators and libraries add to it. The
time, on a CPU only, is that of the model's arithmetic and memory traffic at rates that :func:`probe` measures in about
0.1 s on this machine, plus a rough cost of each copy where a level makes one per run.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import prod

import numpy as np

from dejavubench.config.experiment import NO_FP32_ON_CUDA, Experiment
from dejavubench.config.points import ITEMSIZE, TO_DEVICE, Arm, DataType, Point, Split
from dejavubench.dejavulib.kvcache import BOTH, KVGeometry, KVLayout, Span
from dejavubench.errors import UsageError
from dejavubench.machine.hardware import CudaDevice, available_nbytes, cuda_devices, native_bf16
from dejavubench.models.hub.modelspec import ModelSpec, even_cuts
from dejavubench.models.hub.shard import most_parameters
from dejavubench.planning.traffic import requests_in_common
from dejavubench.units import count_text, nbytes_text

MIB = 1 << 20
PROCESS_NBYTES = 250 * MIB
"""Resident memory of a rank with torch and MPI imported and nothing allocated, as measured."""

COMPILER_NBYTES = 170 * MIB
"""Of a rank with a model on a CPU: numba, LLVM and the kernels they have compiled, as measured."""

CUDA_PROCESS_NBYTES = 3 * 1024 * MIB
"""The same with a CUDA context, its libraries and compiled kernels."""

CUDA_CONTEXT_NBYTES = 1024 * MIB
"""Of a card for each process that uses it: context, kernels, cuBLAS workspaces, graphs; rough."""

STAGING_SHARE = 0.5
"""Share of the available memory that staging may take: MPI libraries abort if they cannot allocate beside it."""

PROMPT_SHARE, TOKEN_SHARE = 0.75, 0.6
"""What the model makes of matmul peak in the prompt, and of read bandwidth in a decode step (the design's aims)."""

COPY_S = {"host": 1e-6, "disk": 3e-6, "mpi": 1e-5, "nccl": 1e-5, "nixl": 1.5e-5, "tcp": 3e-5}
"""Seconds of one copy or message of a few bytes that is complete before the next one begins; rough."""

FSYNC_S = 4e-4
"""Seconds until a few bytes are on the device; rough."""


# ---- memory ----


def worker_geometry(point: Point, split: Split | None = None) -> KVGeometry:
    """The cache of one microbatch on the worker that holds most layers: a source's, or of a side that is split so."""
    held = split or point.sources
    return KVGeometry(
        _most_layers(point.spec, held.pipeline_para_size),
        held.ubatch_size,
        point.spec.kv_heads // held.tensor_para_size,
        point.positions,
        point.spec.size_per_head,
        point.itemsize,
        KVLayout(point.kv_layout),
    )


def _most_layers(spec: ModelSpec, stages: int) -> int:
    """Layers of the first stage, which has most."""
    return -(-spec.layer_num // stages)


@dataclass(frozen=True)
class Needs:
    """Bytes that one rank takes: of its host's memory and of its card's."""

    host: int
    device: int = 0


@dataclass(frozen=True)
class Cards:
    """Which of a host's CUDA devices its ranks use, by number: its sources and its sinks, each in order of rank.

    Attributes:
        sinks: empty where what arrives is kept in host memory only.
    """

    sources: tuple[int, ...]
    sinks: tuple[int, ...] = ()


def cards(experiment: Experiment, sources: int, sinks: int, devices: int) -> Cards:
    """Every rank gets the next of a host's devices, in turn; a loopback's sinks those of their sources."""
    numbers = [rank % devices for rank in range(sources + sinks)]
    if not any(arm.mode in TO_DEVICE and not arm.skipped for arm in experiment.arms()):
        return Cards(tuple(numbers[:sources]))
    of_sinks = (
        [rank % devices for rank in range(sinks)] if experiment.nccl_loopback else numbers[sources:]
    )
    return Cards(tuple(numbers[:sources]), tuple(of_sinks))


@dataclass(frozen=True)
class Memory:
    """Bytes that one point takes; of one worker, the one that holds most.

    Attributes:
        weights: as the device multiplies them: a CPU has fp32 for fp16, and for bf16 where it is not native.
        cache: of all microbatches in flight, and those in which they take turns.
        source: all of a source's: process, weights, cache, staging, host buffer, activations; on cuda, in (pinned)
            host memory staging, host buffer and where a naive level's prompt lands, the others on its card, which has
            staging of its own.
        sink: all of a sink's: process, cache, two chunks of each microbatch on their way; on cuda, in host memory what
            comes by mpi, on its card what comes by nccl or nixl.
        disk: what a source writes to its files.
        staging: what of a source's host memory are its staging slots.
    """

    weights: int
    cache: int
    source: Needs
    sink: Needs
    disk: int
    staging: int = 0

    def host(self, sources: int, sinks: int) -> int:
        """Bytes on a host that so many of the ranks run on."""
        return sources * self.source.host + sinks * self.sink.host

    def devices(self, cards: Cards) -> dict[int, int]:
        """Bytes on each of a host's devices that are used, by number."""
        taken: Counter[int] = Counter()
        for numbers, needs in ((cards.sources, self.source), (cards.sinks, self.sink)):
            for number in numbers:
                taken[number] += needs.device
        return dict(taken)


def memory(experiment: Experiment, point: Point) -> Memory:
    """What ``point`` takes on the device that the experiment is for."""
    in_flight = point.pipeline_para_size
    arms = [arm for arm in experiment.arms() if not arm.skipped]
    modes = {arm.mode for arm in arms}
    geometry = worker_geometry(point)
    streamed = in_flight * point.ubatch_size * point.streamed * geometry.token_nbytes
    swaps = any(arm.swaps for arm in arms)
    cache = (in_flight + (experiment.resident if swaps else 0)) * geometry.nbytes
    parameters = most_parameters(point.spec, point.tensor_para_size, point.pipeline_para_size)
    weights = ITEMSIZE[point.data_type] * parameters
    slot = experiment.staging_mib * MIB
    staging = experiment.staging_slots * slot if modes != {"none"} else 0
    host = streamed * len(modes & {"host", "swap-host"})
    arriving = _arriving_nbytes(point, slot)
    if experiment.device == "cuda":
        naive = any(arm.level in ("0", "0-batched") for arm in arms)
        landing = point.ubatch_size * point.input_len * geometry.token_nbytes if naive else 0
        working = _cuda_working_nbytes(point)
        source = Needs(
            host=CUDA_PROCESS_NBYTES + staging + _pinned(host) + _pinned(landing),
            device=CUDA_CONTEXT_NBYTES + weights + cache + staging + working,
        )
        sink = _cuda_sink(arriving, by_mpi="mpi" in modes, to_device=bool(modes & TO_DEVICE))
    else:
        source = Needs(
            PROCESS_NBYTES + weights + cache + staging + host + _cpu_working_nbytes(point)
        )
        successor = _successor_nbytes(point) if point.handed_over else 0
        sink = Needs(PROCESS_NBYTES + arriving + successor)
    return Memory(
        weights=weights,
        cache=cache,
        source=source,
        sink=sink,
        staging=staging,
        disk=streamed
        * len({(arm.mode, arm.durability) for arm in experiment.arms() if arm.on_disk}),
    )


def _arriving_nbytes(point: Point, slot: int) -> int:
    """The caches of the sink that receives most streams, and two chunks of each of them."""
    sources, sinks = point.sources, point.sinks or point.sources
    pieces = requests_in_common(sources.ubatch_size, sinks.ubatch_size, point.requests)
    streams = _most_sources(point.spec, sources, sinks) * pieces
    return (
        point.requests // sinks.ubatch_size * worker_geometry(point, sinks).nbytes
        + 2 * streams * slot
    )


def _most_sources(spec: ModelSpec, sources: Split, sinks: Split) -> int:
    """The most sources from which one sink receives: those with some of its layers, and some of its heads."""
    return _most_overlaps(
        spec.layer_num, sources.pipeline_para_size, sinks.pipeline_para_size
    ) * _most_overlaps(spec.kv_heads, sources.tensor_para_size, sinks.tensor_para_size)


@cache
def _most_overlaps(length: int, parts: int, others: int) -> int:
    """The most of ``parts`` that one of ``others`` overlaps, where both cut ``length`` as evenly as can be."""
    ours, theirs = even_cuts(length, parts), even_cuts(length, others)
    return max(
        bisect_left(ours, stop) - bisect_right(ours, start) + 1 for start, stop in pairwise(theirs)
    )


def _successor_nbytes(point: Point) -> int:
    """What a sink that takes over has beside its cache: its part of the model."""
    split = point.sinks or point.sources
    parameters = most_parameters(point.spec, split.tensor_para_size, split.pipeline_para_size)
    return ITEMSIZE[point.data_type] * parameters + _cpu_working_nbytes(point)


def _pinned(nbytes: int) -> int:
    """What torch takes for one pinned buffer: the next power of two."""
    return 1 << (nbytes - 1).bit_length() if nbytes else 0


def _cuda_sink(arriving: int, by_mpi: bool, to_device: bool) -> Needs:
    """What comes by mpi is kept in host memory; only what comes by nccl or nixl takes a card, and a context there."""
    process = CUDA_PROCESS_NBYTES if to_device else PROCESS_NBYTES
    return Needs(
        process + (arriving if by_mpi else 0), CUDA_CONTEXT_NBYTES + arriving if to_device else 0
    )


def _cpu_working_nbytes(point: Point) -> int:
    """Beside weights and cache: the compiler, one full tensor while weights are drawn, a layer's activations."""
    spec = point.spec
    loading = 4 * spec.head_weights
    activations = 4 * point.ubatch_size * point.input_len * (8 * spec.hidden + 2 * spec.ffn_size)
    return COMPILER_NBYTES + max(loading, activations)


def _cuda_working_nbytes(point: Point) -> int:
    """The same on a card, in the model's type: tensors whose columns come in pairs are there twice; and logits."""
    spec, rows = point.spec, point.ubatch_size * point.input_len
    loading = point.itemsize * max(spec.head_weights, 2 * spec.hidden * spec.ffn_size)
    activations = 2 * rows * (spec.ffn_size + 4 * spec.hidden) * point.itemsize
    return max(loading, activations + point.ubatch_size * spec.vocab_size * (point.itemsize + 4))


def reasons(
    experiment: Experiment,
    sources: int | None = None,
    sinks: int | None = None,
    available: Callable[[], int] = available_nbytes,
    devices: Callable[[], Sequence[CudaDevice]] = cuda_devices,
) -> dict[str, str]:
    """Why points cannot run, and what they would need: point's id → reason.

    Args:
        experiment: all of its points are looked at.
        sources, sinks: how many of the ranks are on this host; without them, all that the points need.
        available: bytes of memory that this host has to give.
        devices: the CUDA devices of this host, asked for on cuda only.
    """
    sources, sinks = _ranks_here(experiment, sources, sinks)
    room, found = available(), {}
    for point in experiment.points():
        if point.problem is not None:
            found[point.id] = point.problem
            continue
        if experiment.device == "cuda" and point.data_type == "fp32":
            found[point.id] = NO_FP32_ON_CUDA
            continue
        needs = memory(experiment, point)
        if experiment.device == "cuda" and (
            short := _short_of(experiment, needs, sources, sinks, devices())
        ):
            found[point.id] = f"{point.spec.name} needs {short}"
        elif (needed := needs.host(sources, sinks)) > room:
            found[point.id] = (
                f"{point.spec.name} needs {nbytes_text(needed)} of memory, {nbytes_text(room)} are available"
            )
        elif sources * needs.staging > STAGING_SHARE * room:
            found[point.id] = (
                f"staging_slots {experiment.staging_slots} × staging_mib {experiment.staging_mib} take "
                f"{nbytes_text(sources * needs.staging)} of memory for {count_text(sources, 'source')}, "
                f"{nbytes_text(room)} are available, of which staging may take half"
            )
    return found


def _ranks_here(experiment: Experiment, sources: int | None, sinks: int | None) -> tuple[int, int]:
    every = experiment.sinks if experiment.needs_sinks else 0
    return experiment.sources if sources is None else sources, every if sinks is None else sinks


def _short_of(
    experiment: Experiment, needs: Memory, sources: int, sinks: int, devices: Sequence[CudaDevice]
) -> str | None:
    """The first device on which the ranks of this host have too little memory, and how much they need."""
    if not devices:
        used = sources or (sinks and needs.sink.device)
        return "a CUDA device, none is found on this host" if used else None
    for number, needed in needs.devices(cards(experiment, sources, sinks, len(devices))).items():
        room = devices[number].nbytes
        if needed > room:
            return f"{nbytes_text(needed)} of GPU memory, {nbytes_text(room)} are on {devices[number].name}"
    return None


def too_few_devices(
    experiment: Experiment,
    sources: int | None = None,
    sinks: int | None = None,
    devices: Callable[[], Sequence[CudaDevice]] = cuda_devices,
) -> str | None:
    """Why nccl or nixl cannot run here: ranks of this host would share a GPU without leave. None if they can.

    Args:
        experiment, sources, sinks, devices: as for :func:`reasons`.
    """
    sources, sinks = _ranks_here(experiment, sources, sinks)
    modes = {
        arm.mode
        for arm in experiment.arms()
        if arm.mode in TO_DEVICE and not arm.skipped and not arm.loopback
    }
    if experiment.device != "cuda" or not modes or sources + sinks <= len(devices()):
        return None
    return (
        f"streaming {min(modes)} needs a GPU for each rank: {count_text(sources + sinks, 'rank')} on this host, "
        f"{count_text(len(devices()), 'GPU')}"
        + ("; --nccl-loopback lets a source and its sink share one" if "nccl" in modes else "")
    )


def refuse_if_none_runs(experiment: Experiment, found: Mapping[str, str]) -> None:
    """What cannot run is skipped in a sweep, but something must run.

    Raises:
        UsageError: every point has a reason not to; the message is the first one's.
    """
    if len(found) == len(experiment.points()):
        raise UsageError(next(iter(found.values())))


# ---- time ----


@dataclass(frozen=True)
class Rates:
    """What one core does: ``matmul`` in fp32 FLOP/s, ``read`` in bytes/s."""

    matmul: float
    read: float


def probe() -> Rates:
    """Measure one core in about 0.1 s: best of a few products and passes over memory with numpy.

    The products are of 64 × 64 matrices, which numpy's BLAS libraries leave to the calling thread.
    """
    matrices = np.ones((256, 64, 64), dtype=np.float32)
    product = np.empty_like(matrices)
    passed = np.ones(32 * MIB // 8)
    product_s = min(_timed(lambda: np.matmul(matrices, matrices, out=product)) for _ in range(10))
    read_s = min(_timed(passed.max) for _ in range(5))
    return Rates(matmul=2 * matrices.shape[0] * 64**3 / product_s, read=passed.nbytes / read_s)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def multiplied(data_type: DataType) -> bool:
    """Whether this CPU multiplies a type as it is."""
    return data_type == "fp32" or (data_type == "bf16" and native_bf16())


def compute_seconds(point: Point, rates: Rates, threads: int) -> tuple[float, float]:
    """Seconds of one microbatch's prompt and of one decode step, over all workers' layers on one worker."""
    spec, batch = point.spec, point.ubatch_size
    hidden, seen = spec.hidden, point.input_len + point.output_len // 2
    layers = spec.layer_weights
    head = spec.head_weights
    # a CPU that multiplies half types does so twice as fast
    matmul = (
        rates.matmul
        * threads
        * (2 if multiplied(point.data_type) and point.data_type != "fp32" else 1)
    )
    prompt = (
        2 * batch * (point.input_len * layers + head)
        + 2 * batch * spec.layer_num * hidden * point.input_len**2
    )
    token = 2 * batch * (layers + head + 2 * spec.layer_num * hidden * seen)
    read = (layers + head) * ITEMSIZE[point.data_type] + batch * seen * point.token_nbytes
    by_reading = read / (rates.read * TOKEN_SHARE)
    return prompt / (matmul * PROMPT_SHARE), max(token / (matmul * PROMPT_SHARE), by_reading)


def naive_seconds(point: Point, arm: Arm) -> float:
    """Seconds that a microbatch waits for copies of single runs; 0 where the level is buffered."""
    if arm.level not in ("0", "0-batched"):
        return 0.0
    geometry = worker_geometry(point)

    def copies(positions: int) -> int:
        region = geometry.region(layers=Span(0, 1), positions=Span(0, positions))
        return geometry.layers * sum(
            prod(count for count, _ in geometry.rows(kv, region).axes) for kv in BOTH
        )

    runs = copies(point.input_len) + (point.generated - 1) * copies(1)
    durable = arm.mode == "disk" and arm.durability != "page-cache"
    if arm.level == "0":
        return runs * (FSYNC_S if durable else COPY_S[arm.mode])
    return runs * COPY_S[arm.mode] / 3 + (point.output_len * FSYNC_S if durable else 0.0)


def iteration_seconds(experiment: Experiment, point: Point, arm: Arm, rates: Rates) -> float:
    """Seconds of one iteration of ``arm``: pipeline-depth microbatches, workers sharing this machine's cores."""
    prompt, token = compute_seconds(point, rates, experiment.threads)
    depth, workers = experiment.pipeline_para_size, experiment.sources
    at_once = min(workers, max(1, len(os.sched_getaffinity(0)) // experiment.threads))
    compute = (prompt + (point.output_len - 1) * token) * (2 * depth - 1) / at_once
    return compute + depth * naive_seconds(point, arm)


def point_seconds(experiment: Experiment, point: Point, rates: Rates) -> float:
    """Seconds of all warm-up iterations and (with ``precision`` the fewest) rounds of a point."""
    each = sum(
        iteration_seconds(experiment, point, arm, rates)
        for arm in experiment.arms()
        if not arm.skipped
    )
    return (experiment.warmup + experiment.rounds) * each
