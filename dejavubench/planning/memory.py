"""Memory of each point, by rank: host memory, GPU memory and files.

What is known to be allocated is counted; allocators and libraries add to it.
"""

from __future__ import annotations

import functools
from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from dejavubench.config.plan import Plan
from dejavubench.config.points import Point, SetupSizes
from dejavubench.dejavulib.kv_cache import KVGeometry, KVLayout
from dejavubench.dejavulib.schedule import MOST_FETCHED_NBYTES
from dejavubench.models.hub.model_spec import ModelSpec, cut_evenly
from dejavubench.models.hub.shard import count_most_parameters
from dejavubench.planning.devices import DeviceNumbers
from dejavubench.planning.staging import Staging, plan_sink_staging, plan_source_staging
from dejavubench.planning.traffic import count_common_requests
from dejavubench.units import MIB

PROCESS_NBYTES = 250 * MIB
"""Resident memory of a rank with torch and MPI imported and nothing allocated, as measured."""

COMPILER_NBYTES = 170 * MIB
"""Added by a model on a CPU: numba, LLVM and the kernels that they have compiled, as measured."""

CUDA_PROCESS_NBYTES = 3 * 1024 * MIB
"""Host memory of a rank with a CUDA context, its libraries and compiled kernels."""

CUDA_CONTEXT_NBYTES = 1024 * MIB
"""GPU memory of each process: context, kernels, cuBLAS workspaces, graphs; rough."""


@dataclass(frozen=True)
class Needs:
    """Bytes that one rank takes of its host's memory and of its GPU's."""

    host_nbytes: int
    device_nbytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that one point takes, per rank: those of the rank that holds most.

    Attributes:
        weights_nbytes: the model's weights on one source.
        cache_nbytes: caches of all microbatches in flight on one source, and the resident ones of
            a swap.
        source: all memory of a source: process, weights, cache, staging, host buffer, activations.
            On cuda, staging, host buffer and bounce buffer are in pinned host memory, the rest on
            the GPU.
        sink: all memory of a sink: process, cache and staging. On cuda, chunks from device memory
            stay on its GPU, others in host memory.
        disk_nbytes: bytes that a source writes to files.
        staging: the staging memory of a source; ``source`` includes it.
    """

    weights_nbytes: int
    cache_nbytes: int
    source: Needs
    sink: Needs
    disk_nbytes: int
    staging: Staging

    def host_nbytes(self, source_count: int, sink_count: int) -> int:
        """Return the memory of a host with this many of the ranks."""
        return source_count * self.source.host_nbytes + sink_count * self.sink.host_nbytes

    def nbytes_by_device(self, assigned_devices: DeviceNumbers) -> dict[int, int]:
        """Return the memory of each of a host's GPUs that is used, by number."""
        used_nbytes: Counter[int] = Counter()
        for device_numbers, needs in (
            (assigned_devices.sources, self.source),
            (assigned_devices.sinks, self.sink),
        ):
            for device_number in device_numbers:
                used_nbytes[device_number] += needs.device_nbytes
        return dict(used_nbytes)


def estimate_memory(plan: Plan, point: Point) -> Memory:
    """Return the memory that ``point`` takes on the device that the plan is for."""
    experiment = plan.experiment
    in_flight = point.pipeline_para_size
    geometry = make_worker_geometry(point)
    streamed_nbytes = (
        in_flight * point.ubatch_size * point.streamed_position_count * geometry.token_nbytes
    )
    is_swapping = any(arm.is_swapping for arm in plan.unskipped_arms)
    # Each microbatch keeps a cache of its own for the undisturbed iteration, also in a swap.
    cache_nbytes = (in_flight + (experiment.resident if is_swapping else 0)) * geometry.nbytes
    weights_nbytes = point.itemsize * count_most_parameters(
        point.spec, point.tensor_para_size, point.pipeline_para_size
    )
    most_position_count = max(point.input_len, point.most_flushed_token_count)
    staging = plan_source_staging(
        plan, point, point.ubatch_size * most_position_count * geometry.token_nbytes
    )
    # Arms of one destination reuse its buffer, whatever their level.
    host_modes = {
        arm.mode
        for arm in plan.unskipped_arms
        if arm.transport and arm.transport.entry.in_host_memory
    }
    buffers_nbytes = streamed_nbytes * len(host_modes)
    if experiment.device == "cuda":
        source = Needs(
            host_nbytes=CUDA_PROCESS_NBYTES
            + staging.host_nbytes
            + round_to_pinned_nbytes(buffers_nbytes)
            + round_to_pinned_nbytes(staging.bounce_nbytes),
            device_nbytes=CUDA_CONTEXT_NBYTES
            + weights_nbytes
            + cache_nbytes
            + staging.device_nbytes
            + (MOST_FETCHED_NBYTES if is_swapping else 0)
            + _estimate_cuda_working_nbytes(point),
        )
        sink = _estimate_cuda_sink(plan, point)
    else:
        working_nbytes = _estimate_cpu_working_nbytes(point)
        source_cache_nbytes = cache_nbytes + staging.host_nbytes + buffers_nbytes
        source = Needs(PROCESS_NBYTES + weights_nbytes + working_nbytes + source_cache_nbytes)
        successor_nbytes = (
            _count_sink_weights_nbytes(point) + working_nbytes if point.handed_over else 0
        )
        slots_nbytes = plan_sink_staging(plan, point, count_arriving_streams(point)).host_nbytes
        arriving_nbytes = count_arriving_nbytes(point)
        sink = Needs(PROCESS_NBYTES + arriving_nbytes + slots_nbytes + successor_nbytes)
    files = {arm.destination_key for arm in plan.arms if arm.on_disk}
    return Memory(
        weights_nbytes=weights_nbytes,
        cache_nbytes=cache_nbytes,
        source=source,
        sink=sink,
        disk_nbytes=streamed_nbytes * len(files),
        staging=staging,
    )


# ---- caches ----


def make_worker_geometry(point: Point, sizes: SetupSizes | None = None) -> KVGeometry:
    """Return the cache of one microbatch on the worker that holds most layers.

    Args:
        sizes: of the setup of the worker's side; None for that of the sources.
    """
    side_sizes = sizes or point.sources
    return KVGeometry(
        # Rounded up: the first stage has most layers.
        layers=-(-point.spec.layer_num // side_sizes.pipeline_para_size),
        requests=side_sizes.ubatch_size,
        heads=point.spec.kv_heads // side_sizes.tensor_para_size,
        positions=point.positions,
        head_size=point.spec.size_per_head,
        itemsize=point.itemsize,
        layout=KVLayout(point.kv_layout),
    )


def count_arriving_nbytes(point: Point) -> int:
    """Return the bytes of the caches of the sink that holds most layers."""
    sinks = point.sinks or point.sources
    return point.request_count // sinks.ubatch_size * make_worker_geometry(point, sinks).nbytes


def count_arriving_streams(point: Point) -> int:
    """Return the streams of the sink that receives most."""
    sources = point.sources
    sinks = point.sinks or point.sources
    request_span_count = count_common_requests(
        sources.ubatch_size, sinks.ubatch_size, point.request_count
    )
    return _count_most_sources(point.spec, sources, sinks) * request_span_count


def _count_most_sources(spec: ModelSpec, sources: SetupSizes, sinks: SetupSizes) -> int:
    """Return the most sources that one sink receives from: they share layers and heads with it."""
    return _count_most_overlaps(
        spec.layer_num, sources.pipeline_para_size, sinks.pipeline_para_size
    ) * _count_most_overlaps(spec.kv_heads, sources.tensor_para_size, sinks.tensor_para_size)


@functools.cache
def _count_most_overlaps(length: int, source_part_count: int, sink_part_count: int) -> int:
    """Return the most parts of the sources that one of the sinks' overlaps; all cuts are even."""
    source_cuts = cut_evenly(length, source_part_count)
    return max(
        bisect_left(source_cuts, stop) - bisect_right(source_cuts, start) + 1
        for start, stop in pairwise(cut_evenly(length, sink_part_count))
    )


# ---- what else a rank has ----


def _count_sink_weights_nbytes(point: Point) -> int:
    """Return the weights that a sink holds if it continues the request."""
    sizes = point.sinks or point.sources
    return point.itemsize * count_most_parameters(
        point.spec, sizes.tensor_para_size, sizes.pipeline_para_size
    )


def round_to_pinned_nbytes(nbytes: int) -> int:
    """Return the bytes that torch takes for one pinned buffer: the next power of two."""
    return 1 << (nbytes - 1).bit_length() if nbytes else 0


def _estimate_cuda_sink(plan: Plan, point: Point) -> Needs:
    """Return the memory of a sink; it has a GPU, and a context there, only if that holds caches."""
    caches_nbytes = count_arriving_nbytes(point)
    staging = plan_sink_staging(plan, point, count_arriving_streams(point))
    if not staging.device_nbytes:
        return Needs(
            PROCESS_NBYTES + (caches_nbytes + staging.host_nbytes if staging.host_nbytes else 0)
        )
    host_nbytes = CUDA_PROCESS_NBYTES + staging.host_nbytes
    device_nbytes = CUDA_CONTEXT_NBYTES + caches_nbytes + staging.device_nbytes
    if point.handed_over:  # the only caches are those that the sink's model goes on over
        return Needs(
            host_nbytes,
            device_nbytes
            + _count_sink_weights_nbytes(point)
            + _estimate_cuda_working_nbytes(point),
        )
    return Needs(host_nbytes + (caches_nbytes if staging.host_nbytes else 0), device_nbytes)


def _estimate_cpu_working_nbytes(point: Point) -> int:
    """Return the compiler's memory, plus the larger of a drawn tensor and a layer's activations."""
    spec = point.spec
    loading_nbytes = 4 * spec.head_weight_count
    activations_nbytes = (
        4 * point.ubatch_size * point.input_len * (8 * spec.hidden + 2 * spec.ffn_size)
    )
    return COMPILER_NBYTES + max(loading_nbytes, activations_nbytes)


def _estimate_cuda_working_nbytes(point: Point) -> int:
    """Return the larger of a tensor being loaded and a layer's activations with the logits.

    A tensor whose columns come in pairs is there twice while it is loaded.
    """
    spec = point.spec
    row_count = point.ubatch_size * point.input_len
    loading_nbytes = point.itemsize * max(spec.head_weight_count, 2 * spec.hidden * spec.ffn_size)
    activations_nbytes = 2 * row_count * (spec.ffn_size + 4 * spec.hidden) * point.itemsize
    return max(
        loading_nbytes,
        activations_nbytes + point.ubatch_size * spec.vocab_size * (point.itemsize + 4),
    )
