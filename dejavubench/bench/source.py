"""The source's part in a point: the model, its caches, and the streaming of each arm."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from mpi4py import MPI

from dejavubench.bench.batchmaker import BatchMaker, Clocked, NoStreaming, Streamed
from dejavubench.bench.ends import destination_of
from dejavubench.bench.handover import Teller
from dejavubench.bench.prompts import make_prompts
from dejavubench.bench.restart import PutBack, Resumed, go_on, put_back
from dejavubench.bench.side import Side
from dejavubench.bench.steps import steps_of
from dejavubench.bench.verify import compare_packed, digests, serve_pieces, written_outside
from dejavubench.config.experiment import Experiment
from dejavubench.config.interrupted import stream_name
from dejavubench.config.points import Arm, Mode
from dejavubench.dejavulib import pulse
from dejavubench.dejavulib.copies import staging
from dejavubench.dejavulib.destinations.base import (
    Destination,
    StorageError,
    Stream,
    WrongBytesError,
)
from dejavubench.dejavulib.destinations.disk.savedstream import SavedStream
from dejavubench.dejavulib.device import DeviceStaging, Landing
from dejavubench.dejavulib.device_receiver import device_slots
from dejavubench.dejavulib.kvcache import BOTH, KV, KVCache
from dejavubench.dejavulib.levels import DEFAULT_LEVEL, LEVELS
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.schedule import Chunk
from dejavubench.dejavulib.streamer import Streamer
from dejavubench.dejavulib.swapper import Swapper, Swapping
from dejavubench.models.gpt import GPT
from dejavubench.parallel.collectives import Collectives
from dejavubench.transports.session import Session, SourceContext


@dataclass(frozen=True)
class Place:
    """Where and as whom this rank streams.

    Attributes:
        sessions: this rank's part in each destination of the run, by its name.
    """

    verification: MPI.Intracomm
    handover: MPI.Intracomm
    sessions: Mapping[str, Session]
    stream_dir: Path
    identity: dict[str, str]


@dataclass(frozen=True)
class Swap:
    """An arm in which microbatches take turns, and the batch maker over the caches that are in place."""

    swapper: Swapper
    maker: BatchMaker


class Source:
    """One worker that runs the model.

    Args:
        side: this worker's place in the point's plan.
        model: its part of the model, loaded.
    """

    def __init__(
        self, side: Side, experiment: Experiment, model: GPT, collectives: Collectives, place: Place
    ) -> None:
        self.side = side
        self.experiment = experiment
        self.place = place
        self.device = model.device
        self.caches = [
            KVCache.allocate(side.geometry, model.dtype, model.device) for _ in range(side.ubatches)
        ]
        self.prompts = make_prompts(
            side.point, side.ubatches, experiment.seed, experiment.given_prompts
        )
        self._model, self._collectives = model, collectives
        self.maker = self._maker_over(self.caches)
        self._swaps: dict[Mode, Swap] = {}
        self._resident: list[KVCache] = []  # where microbatches take turns, in all arms that swap
        self._digests: list[
            list[str]
        ] = []  # of each microbatch's undisturbed cache, where some arm swaps
        self._teller = Teller(side.topology, place.handover) if side.point.handed_over else None
        self._streamers: dict[tuple[str, str | None], Streamer] = {}
        self._managers: dict[tuple[str, str | None, str], list[CacheManager]] = {}
        self._silent = [NoStreaming() for _ in self.caches]
        self._slots: dict[
            str, list[torch.Tensor]
        ] = {}  # staging of all arms, of which one at a time works; by device
        self._device_staging: DeviceStaging | None = None  # likewise
        self._landing = Landing()  # likewise
        self._pattern = 0  # of the arm that was prepared last
        self._fetched: torch.Tensor | None = None  # what verification reads a chunk into

    def _maker_over(
        self, caches: list[KVCache], before_step: Callable[[int, int], None] | None = None
    ) -> BatchMaker:
        steps = steps_of(self._model, caches, self.prompts, self.experiment.sampling)
        asked = [each.tokens for each in self.prompts]
        return BatchMaker(
            self._model, steps, self._collectives, asked, self.side.point.output_len, before_step
        )

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    # ---- an iteration ----

    def reference(self, mark: Callable[[str], None]) -> list[Clocked]:
        """One iteration without streaming, before anything is measured; its tokens are what every arm must give."""
        self.maker.steps.thorough = True  # nothing is measured yet
        clocks, _ = self.maker.run(self._silent_streams(), mark)
        self.maker.steps.thorough = False
        if self.experiment.swap:
            self._digests = [digests(cache, self.side.point.written) for cache in self.caches]
        return clocks

    def prepare(self, arm: Arm, pattern: int, level: str | None = None) -> None:
        """Fill everything that the arm writes to with its pattern, outside the clock."""
        streams = self.streams(arm, level)  # which makes, the first time, what is filled
        for cache in (*self.caches, *self._resident):
            cache.fill(pattern)
        for stream, prompt in zip(streams, self.prompts, strict=True):
            known = prompt.tokens.numpy() if self.maker.model.shard.first else None
            stream.begin(known)
        self._pattern = pattern
        if arm.mode != "none":
            self._fill_streaming(arm, pattern)

    def _fill_streaming(self, arm: Arm, pattern: int) -> None:
        """Fill what the library holds for an arm: staging, and wherever its destination keeps chunks."""
        streamer = self._streamer(arm)
        for slot in streamer.staging():
            slot.fill_(pattern)
        for ubatch in self.side.remote() if arm.remote else self.side.local():
            for stream in ubatch:
                for buffer in streamer.destination.buffers(stream):
                    buffer.fill_(pattern)
        if self.on_cuda:
            torch.cuda.synchronize(self.device)  # chunks are packed on a stream of their own

    def run(self, arm: Arm, mark: Callable[[str], None]) -> tuple[list[Clocked], float]:
        if arm.swaps:
            return self._swap(arm).maker.run(self.streams(arm), mark)
        if self._teller is None:
            return self.maker.run(self.streams(arm), mark)
        return self.maker.run(self.streams(arm), mark, self.side.point.generated, self._teller.tell)

    def put_back(self, saved: list[SavedStream]) -> PutBack:
        """Put back what a killed run has streamed of each microbatch."""
        return put_back(saved, self.caches, self.maker.model.shard.first)

    def resume(self, arm: Arm, back: PutBack, first: int, mark: Callable[[str], None]) -> Resumed:
        """Go on from decode step ``first`` over what was put back; from the beginning where that is 0."""
        streams = self.streams(arm)
        if first == 0:
            clocks, _ = self.maker.run(streams, mark)
            return Resumed(clocks, 0.0)
        known = back.tokens(first) if self.maker.model.shard.first else [[] for _ in self.caches]
        return go_on(self.maker, streams, self.side.geometry.layers, known, first, mark)

    def handed_over(self, clocks: list[Clocked]) -> float | None:
        """Wait for the sinks' first token; milliseconds since the last computation here, on the rank that knows."""
        return None if self._teller is None else self._teller.heard(clocks)

    def alone(self, arm: Arm) -> float:
        """Stream the arm's chunks at level 3 with no compute beside them; milliseconds, first chunk to drained."""
        managers = self.streams(arm, DEFAULT_LEVEL)
        began = time.perf_counter()
        for manager in managers:
            for layer in range(self.side.geometry.layers):
                manager.layer_ready(layer)
            for step in range(self.side.point.generated):
                manager.step_ready(step)
        for manager in managers:
            manager.drain()
        return (time.perf_counter() - began) * 1e3

    def helper_cpu_s(self, arm: Arm) -> float:
        """CPU seconds so far of the arm's helper thread, and of what brings swapped caches back."""
        streamer, swap = self._streamers.get((arm.mode, arm.durability)), self._swaps.get(arm.mode)
        return (streamer.cpu_seconds() if streamer else 0.0) + (
            swap.swapper.cpu_seconds() if swap else 0.0
        )

    # ---- streaming ----

    def streams(self, arm: Arm, level: str | None = None) -> list[Streamed]:
        """One a microbatch in flight; ``level`` other than the arm's own if given."""
        if arm.mode == "none":
            return self._silent_streams()
        if arm.swaps:
            return list[Streamed](self._swap(arm).swapper.microbatches)
        return cast(list[Streamed], self._managers_of(arm, level or cast(str, arm.level)))

    def _silent_streams(self) -> list[Streamed]:
        return list[Streamed](self._silent)

    def _managers_of(self, arm: Arm, level: str) -> list[CacheManager]:
        key = (arm.mode, arm.durability, level)
        if key not in self._managers:
            streams = self.side.remote() if arm.remote else self.side.local()
            streamer, timeout = self._streamer(arm), self.experiment.drain_timeout
            self._managers[key] = [
                CacheManager(cache, streams[ubatch], LEVELS[level], streamer, timeout)
                for ubatch, cache in enumerate(self.caches)
            ]
        return self._managers[key]

    def _swap(self, arm: Arm) -> Swap:
        if arm.mode not in self._swaps:
            if not self._resident:
                kind, geometry = self.caches[0].k.dtype, self.side.geometry
                self._resident = [
                    KVCache.allocate(geometry, kind) for _ in range(self.experiment.resident)
                ]
            streams = [stream for (stream,) in self.side.local()]
            swapper = Swapper(
                self._resident, streams, self._streamer(arm), self.experiment.drain_timeout
            )
            self._swaps[arm.mode] = Swap(
                swapper, self._maker_over(swapper.current, swapper.step_begins)
            )
        return self._swaps[arm.mode]

    def swapping(self, arm: Arm) -> Swapping:
        """What swapping cost in this iteration."""
        return self._swap(arm).swapper.cost

    def _streamer(self, arm: Arm) -> Streamer:
        key = (arm.mode, arm.durability)
        if key not in self._streamers:
            self._streamers[key] = self._make_streamer(
                self._destination(arm), holds_failure=arm.on_disk and not arm.swaps
            )
        return self._streamers[key]

    def failure(self, arm: Arm) -> str | None:
        """Why nothing is streamed any more of an arm whose device has failed."""
        streamer = self._streamers.get((arm.mode, arm.durability))
        return None if streamer is None else streamer.failure

    def give_up(self, arm: Arm) -> None:
        """Close what an arm that has failed holds; arms of the same destination begin anew."""
        key = (arm.mode, arm.durability)
        swap, streamer = self._swaps.pop(arm.mode, None), self._streamers.pop(key, None)
        self._managers = {
            each: managers for each, managers in self._managers.items() if each[:2] != key
        }
        with contextlib.suppress(StorageError):  # that it has failed is known
            if swap is not None:
                swap.swapper.close()
            if streamer is not None:
                streamer.close()

    def _make_streamer(self, destination: Destination, holds_failure: bool) -> Streamer:
        if destination.capabilities.device_memory:
            return Streamer(destination, self._slots_of("cuda"))
        if self.on_cuda and self._device_staging is None:
            self._device_staging = self._stage_on_device()
        slots = self._slots_of("cpu") if destination.staged else ()
        return Streamer(destination, slots, self._device_staging, self._landing, holds_failure)

    def _slots_of(self, device: str) -> list[torch.Tensor]:
        if device not in self._slots:
            slot, slots = self.side.slot_nbytes, self.experiment.staging_slots
            on_device = device == "cuda"
            self._slots[device] = (
                device_slots(slot, slots, self.device)
                if on_device
                else staging(slot, slots, self.on_cuda)
            )
        return self._slots[device]

    def _stage_on_device(self) -> DeviceStaging:
        on_device = DeviceStaging(
            device_slots(self.side.slot_nbytes, self.experiment.staging_slots, self.device)
        )
        whole = self.side.local()[0][0].schedule
        on_device.calibrate(self.caches[0], whole.all_chunks(LEVELS[DEFAULT_LEVEL]))
        return on_device

    @property
    def ways(self) -> dict[str, str]:
        """How chunks of each kind leave the device, once something has been streamed from it."""
        return {} if self._device_staging is None else self._device_staging.ways

    def _destination(self, arm: Arm) -> Destination:
        kind = f"swap-{arm.durability}" if arm.swaps else f"{arm.durability}"
        run_id, rank = self.place.identity["run"], self.side.topology.rank
        return self._session(arm).open_source(
            SourceContext(
                caches=self.caches,
                streams=self.side.remote() if arm.remote else self.side.local(),
                peers=self.side.peers(),
                slots=self._slots_of,
                device=self.device,
                timeout=self.experiment.drain_timeout,
                durability=arm.durability,
                folder=self.place.stream_dir,
                file_name=stream_name(run_id, self.side.point.id, rank, kind),
                keep=self.experiment.keep and not arm.swaps,
                identity=self.place.identity,
            )
        )

    def _session(self, arm: Arm) -> Session:
        return self.place.sessions[destination_of(arm)]

    # ---- verification ----

    def verify(self, arm: Arm) -> str | None:
        """Compare what this arm's destination holds with the caches; None, or where they first differ.

        For a remote arm the sink compares, and this side sends what it has. For disk the checksums come first.
        """
        if arm.mode == "none":
            return None
        if arm.swaps:
            return self._swapped_wrongly(arm)
        managers = self._managers_of(arm, cast(str, arm.level))
        if arm.remote:
            held = [(manager.cache, stream) for manager in managers for stream in manager.streams]
            serve_pieces(self.place.verification, held)
            return None
        for ubatch, manager in enumerate(managers):
            found = self._held_wrongly(arm, manager, ubatch)
            if found:
                return found
        return None

    def _held_wrongly(self, arm: Arm, manager: CacheManager, ubatch: int) -> str | None:
        destination = self._streamer(arm).destination
        if self._fetched is None:
            self._fetched = staging(self.side.slot_nbytes, 1, self.on_cuda)[0]
        fetched = self._fetched

        def fetch(stream: Stream, chunk: Chunk) -> torch.Tensor:
            packed = fetched[: chunk.nbytes]
            destination.fetch(stream, chunk, packed)
            pulse.progress()
            return packed

        try:
            session = self._session(arm)
            for stream in manager.streams:
                session.check(destination, stream)
            found = compare_packed(fetch, manager.cache, manager.streams, self.side, ubatch)
            if found is None:
                outside = [
                    session.outside(destination, stream, self._pattern)
                    for stream in manager.streams
                ]
                found = written_outside(outside, self.side, ubatch)
            return found
        except (
            WrongBytesError
        ) as error:  # the destination itself says that it does not hold what was written
            return str(error)

    def _swapped_wrongly(self, arm: Arm) -> str | None:
        """Bring every microbatch back once more, and compare it with what it is undisturbed."""
        for ubatch, expected in enumerate(self._digests):
            found = digests(self._swap(arm).swapper.bring_back(ubatch), self.side.point.written)
            for (layer, kv), here, there in zip(self._layers(), found, expected, strict=True):
                if here != there:
                    return f"microbatch {ubatch}, layer {layer}, {kv.upper()} is not what it is undisturbed"
        return None

    def _layers(self) -> list[tuple[int, KV]]:
        """K and V of each layer, by its number in the whole model, in the order of digests."""
        return [
            (self.side.locate(layer, 0)[0], kv)
            for layer in range(self.side.geometry.layers)
            for kv in BOTH
        ]

    def close(self) -> None:
        for swap in self._swaps.values():
            swap.swapper.close()
        for streamer in self._streamers.values():
            streamer.close()


def tokens(clocks: list[Clocked]) -> torch.Tensor:
    """Generated tokens [U, B, T] of an iteration; empty on stages that do not see them."""
    if not clocks[0].tokens:
        return torch.empty(0)
    return torch.stack([torch.stack(clock.tokens, dim=1) for clock in clocks])
