"""Swap: microbatches take turns in fewer caches than there are microbatches in flight.

The other microbatches' caches are in host memory or on disk meanwhile (the paper's microbatch
swapping). The library's ``Swapper`` moves them; the model computes over the caches that are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dejavubench import records
from dejavubench.bench.checks.digests import digests, digests_differ
from dejavubench.bench.engine.batch_maker import BatchMaker, MarkPhase
from dejavubench.bench.engine.clock import MicrobatchClock
from dejavubench.bench.engine.microbatch_stream import MicrobatchStream
from dejavubench.bench.point.source import Source
from dejavubench.bench.point.source_destinations import SourceDestinations, StreamFiles
from dejavubench.bench.recording.microbatches import IterationId
from dejavubench.bench.scenarios.base import RecordedIteration
from dejavubench.bench.scenarios.plain import PlainSink, PlainSource
from dejavubench.config.arms import Arm
from dejavubench.dejavulib.kv_cache import KVCache
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.swapper import Swapper

# Where a device fails, caches of waiting microbatches are lost: there is no request to go on with.
SWAPPED_FILES = StreamFiles(prefix="swap-", may_stay=False, outlives_failure=False)


@dataclass(frozen=True)
class Swap:
    """The swapper of one store, and the batch maker over the caches that are in place."""

    swapper: Swapper
    maker: BatchMaker


class SwapSource(PlainSource):
    """Computes over the caches in place on a source, while the swapper moves the others."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.destinations = SourceDestinations(
            self.rank_at_point, source.caches, source.staging, SWAPPED_FILES
        )
        self._swaps: dict[str, Swap] = {}
        # Host memory and disk as stores share these caches: only one arm works at a time.
        self._resident_caches: list[KVCache] = []
        self._digests: list[list[str]] = []  # of each microbatch's undisturbed cache

    def expect(
        self, undisturbed_clocks: list[MicrobatchClock] | None, tokens: torch.Tensor
    ) -> None:
        """Keep a digest of each undisturbed cache, which is overwritten afterwards."""
        super().expect(undisturbed_clocks, tokens)
        written_positions = self.rank_at_point.point.written_positions
        self._digests = [digests(cache, written_positions) for cache in self.source.caches]

    def prepare(self, arm: Arm, pattern: int) -> None:
        """Fill resident caches, slots and store with the pattern; begin all streams."""
        streams = self.streams(arm)  # makes the resident caches, which are filled below
        caches: Sequence[KVCache] = (*self.source.caches, *self._resident_caches)
        for cache in caches:
            cache.fill(pattern)
        self.source.begin(streams)
        self.destinations.fill(arm, pattern)

    def iterate(
        self, streams: list[MicrobatchStream], arm: Arm, mark: MarkPhase
    ) -> tuple[list[MicrobatchClock], float]:
        """Run with a batch maker over the caches in place, which waits for each turn's cache."""
        return self._swap(arm).maker.run(streams, mark)

    def streams(self, arm: Arm) -> list[MicrobatchStream]:
        """Return the swapper's microbatches, which the batch maker reports progress to."""
        return list[MicrobatchStream](self._swap(arm).swapper.microbatches)

    def managers(self, arm: Arm) -> Sequence[CacheManager]:
        """Return one manager per microbatch; it has the times of all turns."""
        swapper = self._swap(arm).swapper
        # Managers of a microbatch share its times: each has the chunks of its own turns.
        return [swapper.managers(microbatch)[0] for microbatch in range(len(swapper.microbatches))]

    def helper_cpu_s(self, arm: Arm) -> float:
        """Return the CPU seconds of the helper and of the thread that brings caches back."""
        swap = self._swaps.get(arm.mode)
        swap_cpu_s = swap.swapper.cpu_seconds() if swap else 0.0
        return super().helper_cpu_s(arm) + swap_cpu_s

    def record(self, arm: Arm, iteration_id: IterationId) -> RecordedIteration:
        """Write the cost of swapping, bytes and times, behind the plain records."""
        recorded_iteration = super().record(arm, iteration_id)
        cost = self._swap(arm).swapper.cost
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
        view = self.source.view
        swapper = self._swap(arm).swapper
        # Wrong bytes that no later step reads leave the tokens right, so bytes are compared, too.
        for microbatch, expected_digests in enumerate(self._digests):
            hashes = digests(swapper.bring_back(microbatch), view.point.written_positions)
            if difference := digests_differ(hashes, expected_digests, view, microbatch):
                return difference
        return None

    def close_failed(self, arm: Arm) -> None:
        """End the swapper's thread before its destination is closed."""
        swap = self._swaps.pop(arm.mode, None)
        if swap is not None:
            swap.swapper.close()
        super().close_failed(arm)

    def close(self) -> None:
        """End the swappers' threads, and close the stores."""
        for swap in self._swaps.values():
            swap.swapper.close()
        self.destinations.close()

    def _swap(self, arm: Arm) -> Swap:
        """Return the swapper of the arm's store; resident caches are made with the first one."""
        if arm.mode not in self._swaps:
            source = self.source
            experiment = self.rank_at_point.experiment
            if not self._resident_caches:
                dtype = source.caches[0].k.dtype
                geometry = source.view.geometry
                self._resident_caches = [
                    KVCache.allocate(geometry, dtype, source.model.device)
                    for _ in range(experiment.resident)
                ]
            streams = [stream for (stream,) in source.view.local_streams()]
            streamer = self.destinations.streamer(arm)
            swapper = Swapper(self._resident_caches, streams, streamer, experiment.drain_timeout)
            maker = source.maker_over(swapper.current, swapper.step_begins, self._resident_caches)
            self._swaps[arm.mode] = Swap(swapper, maker)
        return self._swaps[arm.mode]


class SwapSink(PlainSink):
    """Sink side of a swap arm: idle, because only sources swap."""
