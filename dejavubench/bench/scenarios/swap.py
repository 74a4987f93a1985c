"""Swap: microbatches take turns in fewer caches than there are microbatches in flight.

The other microbatches' caches are in host memory or on disk meanwhile (the paper's microbatch
swapping). The library's ``Swapper`` moves them; the model computes over the caches that are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dejavubench import records
from dejavubench.bench.checks.digests import compute_digests, describe_digest_difference
from dejavubench.bench.engine.batch_maker import BatchMaker, MarkPhase, tokens_of
from dejavubench.bench.engine.clock import MicrobatchClock
from dejavubench.bench.engine.microbatch_stream import MicrobatchStream
from dejavubench.bench.point.source import Source
from dejavubench.bench.point.source_destinations import SourceDestinations, StreamFiles
from dejavubench.bench.recording.microbatches import IterationId
from dejavubench.bench.scenarios.base import RecordedIteration, ScenarioPart
from dejavubench.bench.scenarios.streaming import (
    NO_ITERATION,
    measure_iteration,
    record_iteration,
)
from dejavubench.config.arms import Arm
from dejavubench.dejavulib.kv_cache import KVCache
from dejavubench.dejavulib.swapping.swapper import Swapper

# Where a device fails, caches of waiting microbatches are lost: there is no request to go on with.
SWAPPED_FILES = StreamFiles(prefix="swap-", may_stay=False, outlives_failure=False)


@dataclass(frozen=True)
class Swap:
    """The swapper of one store, and the batch maker over the caches that are in place."""

    swapper: Swapper
    maker: BatchMaker

    @property
    def streams(self) -> list[MicrobatchStream]:
        """The swapper's microbatches, which the batch maker reports progress to."""
        return list[MicrobatchStream](self.swapper.microbatches)


class Swaps:
    """The swaps of one source by store, each made when an arm first needs it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._experiment = source.rank_at_point.experiment
        self._stores = SourceDestinations(
            source.rank_at_point, source.caches, source.staging, SWAPPED_FILES
        )
        self._swaps: dict[str, Swap] = {}
        # Host memory and disk as stores share these caches: only one arm works at a time.
        self._resident_caches: list[KVCache] = []

    def open_swap(self, arm: Arm) -> Swap:
        """Return the swap of the arm's store; resident caches are made with the first one."""
        if arm.mode not in self._swaps:
            source = self._source
            if not self._resident_caches:
                dtype = source.caches[0].k.dtype
                geometry = source.worker_view.geometry
                self._resident_caches = [
                    KVCache.allocate(geometry, dtype, source.model.device)
                    for _ in range(self._experiment.resident)
                ]
            streams = [stream for (stream,) in source.worker_view.local_streams()]
            streamer = self._stores.open_streamer(arm)
            timeout_s = self._experiment.drain_timeout
            swapper = Swapper(self._resident_caches, streams, streamer, timeout_s)
            maker = source.make_maker(swapper.current, swapper.step_begins, self._resident_caches)
            self._swaps[arm.mode] = Swap(swapper, maker)
        return self._swaps[arm.mode]

    def prepare(self, arm: Arm, pattern: int) -> None:
        """Fill resident caches, slots and store with the pattern; begin all streams."""
        streams = self.open_swap(arm).streams  # makes the resident caches, which are filled below
        caches: Sequence[KVCache] = (*self._source.caches, *self._resident_caches)
        for cache in caches:
            cache.fill(pattern)
        self._source.begin(streams)
        self._stores.fill(arm, pattern)

    def cpu_seconds(self, arm: Arm) -> float:
        """Return the CPU seconds of the helper and of the thread that brings caches back."""
        swap = self._swaps.get(arm.mode)
        swap_cpu_s = swap.swapper.cpu_seconds() if swap else 0.0
        return self._stores.cpu_seconds(arm) + swap_cpu_s

    def find_failure(self, arm: Arm) -> str | None:
        """Return the helper's storage error, once it has one."""
        return self._stores.find_failure(arm)

    def close_failed(self, arm: Arm) -> None:
        """End the swapper's thread before its store is closed."""
        swap = self._swaps.pop(arm.mode, None)
        if swap is not None:
            swap.swapper.close()
        self._stores.close_failed(arm)

    def close(self) -> None:
        """End the swappers' threads, and close the stores."""
        for swap in self._swaps.values():
            swap.swapper.close()
        self._stores.close()


class SwapSource(ScenarioPart):
    """Computes over the caches in place on a source, while the swapper moves the others."""

    def __init__(self, source: Source) -> None:
        swaps = Swaps(source)
        super().__init__(swaps)
        self.held.callback(swaps.close)
        self._swaps = swaps
        self.source = source
        self.rank_at_point = source.rank_at_point
        self._newest_iteration = NO_ITERATION
        self._digests: list[list[str]] = []  # of each microbatch's undisturbed cache

    def expect(
        self, undisturbed_clocks: list[MicrobatchClock] | None, tokens: torch.Tensor
    ) -> None:
        """Keep a digest of each undisturbed cache, which is overwritten afterwards."""
        super().expect(undisturbed_clocks, tokens)
        written_count = self.rank_at_point.point.written_position_count
        self._digests = [compute_digests(cache, written_count) for cache in self.source.caches]

    def prepare(self, arm: Arm, pattern: int) -> None:
        """Fill resident caches, slots and store with the pattern; begin all streams."""
        self._swaps.prepare(arm, pattern)

    def run(self, arm: Arm, mark: MarkPhase) -> None:
        """Run with a batch maker over the caches in place, which waits for each turn's cache."""
        swap = self._swaps.open_swap(arm)
        self._newest_iteration = measure_iteration(
            lambda: swap.maker.run(swap.streams, mark), lambda: self._swaps.cpu_seconds(arm)
        )
        self.generated = tokens_of(self._newest_iteration.clocks)

    def record(self, arm: Arm, iteration_id: IterationId) -> RecordedIteration:
        """Write the microbatches, and the cost of swapping, bytes and times, behind them."""
        swap = self._swaps.open_swap(arm)
        swapper = swap.swapper
        recorded_iteration = record_iteration(
            self.rank_at_point, iteration_id, self._newest_iteration, swap.streams
        )
        # Managers of a microbatch share its times: each has the chunks of its own turns.
        managers = [
            swapper.managers(microbatch)[0] for microbatch in range(len(swapper.microbatches))
        ]
        self.rank_at_point.context.chunk_file.write(
            arm, iteration_id, self._newest_iteration.clocks, managers
        )
        cost = swapper.cost
        self.rank_at_point.write(
            records.Swapping(
                **iteration_id,
                resident=self.rank_at_point.experiment.resident,
                nbytes=cost.nbytes,
                bring_ms=cost.bring_s * 1e3,
                wait_ms=cost.wait_s * 1e3,
            )
        )
        return recorded_iteration

    def verify(self, arm: Arm) -> str | None:
        """Bring every microbatch back once more, and compare it with its undisturbed cache."""
        worker_view = self.source.worker_view
        swapper = self._swaps.open_swap(arm).swapper
        # Wrong bytes that no later step reads leave the tokens right, so bytes are compared, too.
        for microbatch, expected_digests in enumerate(self._digests):
            hashes = compute_digests(
                swapper.bring_back(microbatch), worker_view.point.written_position_count
            )
            if difference := describe_digest_difference(
                hashes, expected_digests, worker_view, microbatch
            ):
                return difference
        return None
