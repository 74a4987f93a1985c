"""Faults of mpi/faulty.py that only verification can notice: wrong bytes and wrong tokens."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from injection import fault, is_struck_in, note_strike, replace_call
from mpi4py import MPI

from dejavubench.bench.checks.cache_bits import as_integers
from dejavubench.dejavulib import kv_cache, manager, receiver, swapper
from dejavubench.dejavulib.destinations import disk, mpi
from dejavubench.dejavulib.destinations.disk.stream_file import record_offset
from dejavubench.dejavulib.kv_cache import KVCache, Region, Span
from dejavubench.dejavulib.packing import Packing
from dejavubench.models.gpt import GPT, ChosenTokens


@fault
def corrupt(layer: str, kv: kv_cache.KV, request: str, head: str, position: str) -> None:
    """Change one byte of the sink's cache as soon as its chunk has arrived."""
    spans = [Span(int(index), int(index) + 1) for index in (layer, request, head, position)]
    byte = Region(*spans)

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def arrived(self: receiver.CacheReceiver, came: Any) -> None:
            if is_struck_in("receive") and came.chunk.region & byte == byte:
                cache = self._cache
                vector = as_integers(cache.tensor(kv))[cache.geometry.index(kv, byte)]
                vector[(0,) * vector.dim()] ^= 0x01
                note_strike()
            original(self, came)

        return arrived

    replace_call(receiver.CacheReceiver, "_finish_chunk", make)


def _step_at(region: Region, position: int) -> bool:
    return region.positions.start == position


@fault
def drop_at_sink(position: str) -> None:
    """A token's chunk arrives and is acknowledged, but never scattered."""

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def scatter(self: Packing, packed: torch.Tensor) -> None:
            if is_struck_in("receive") and _step_at(self.region, int(position)):
                note_strike()
                return
            original(self, packed)

        return scatter

    replace_call(Packing, "scatter", make)


@fault
def drop_at_source(step: str) -> None:
    """A token's chunk is never sent."""

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def flush(self: mpi.MPIDestination, stream: Any, chunk: Any, packed: torch.Tensor) -> None:
            if chunk.step == int(step) and (is_struck_in("tokens") or is_struck_in("drain")):
                sending = mpi._SentChunk(MPI.REQUEST_NULL, *self._expect_ack(stream))
                self._under_way[stream.key].append(sending)
                note_strike()
                return
            original(self, stream, chunk, packed)

        return flush

    replace_call(mpi.MPIDestination, "flush", make)


@fault
def scatter_twice(position: str, wrong: str) -> None:
    """A token's chunk is scattered to its place, and then to that of position ``wrong``."""

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def scatter(self: Packing, packed: torch.Tensor) -> None:
            original(self, packed)
            if is_struck_in("receive") and _step_at(self.region, int(position)):
                elsewhere = replace(self.region, positions=Span(int(wrong), int(wrong) + 1))
                original(Packing(self.cache, elsewhere), packed)
                note_strike()

        return scatter

    replace_call(Packing, "scatter", make)


@fault
def gather_step_early() -> None:
    """Gather the chunk of decode step 1 too early, before its position is written."""

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def step_ready(self: manager.CacheManager, step: int, tokens: Any = None) -> None:
            early = is_struck_in("prompt") or is_struck_in("tokens")
            if not (early and step == 1):
                original(self, step, tokens)
            if early and step == 0:
                original(self, 1, None)
                # so that it has been gathered before the model goes on
                self._streamer.wait(self._byte_progress, 60)
                note_strike()

        return step_ready

    replace_call(manager.CacheManager, "step_ready", make)


@fault
def gather_layer_early() -> None:
    """The prompt's chunk of layer 1 is gathered when layer 0 is in place."""

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def layer_ready(self: manager.CacheManager, layer: int) -> None:
            if not is_struck_in("prompt"):
                original(self, layer)
            elif layer == 0:
                original(self, 0)
                original(self, 1)
                self._streamer.wait(self._byte_progress, 60)
                note_strike()

        return layer_ready

    replace_call(manager.CacheManager, "layer_ready", make)


def _stream_files() -> list[int]:
    """Descriptors of this process's open stream files, which need not have names any more."""
    links = {fd: os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}
    return [int(fd.name) for fd, target in links.items() if ".kv" in target]


@fault
def corrupt_file(step: str, layer: str) -> None:
    """One byte of the stream file is changed after all of it was written."""

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def check(self: disk.DiskDestination, stream: Any) -> None:
            if is_struck_in("verify"):
                schedule = stream.schedule
                index = (
                    record_offset(schedule, int(step))
                    + int(layer) * schedule.layer_nbytes(int(step))
                    + 5
                )
                (fd,) = _stream_files()
                os.pwrite(fd, bytes([os.pread(fd, 1, index)[0] ^ 0x01]), index)
                note_strike()
            original(self, stream)

        return check

    replace_call(disk.DiskDestination, "check", make)


@fault
def corrupt_flush(step: str) -> None:
    """Change the packed chunk of a step before its checksum is made and before it is written."""

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def flush(
            self: disk.DiskDestination, stream: Any, chunk: Any, packed: torch.Tensor
        ) -> None:
            if chunk.step == int(step) and (is_struck_in("tokens") or is_struck_in("drain")):
                packed[0] ^= 0x01
                note_strike()
            original(self, stream, chunk, packed)

        return flush

    replace_call(disk.DiskDestination, "flush", make)


@fault
def wrong_token(step: str, request: str) -> None:
    """Let the model take a wrong token once. Its cache follows, so all bytes are right."""
    calls = 0

    def make(original: Callable[..., ChosenTokens]) -> Callable[..., ChosenTokens]:
        def greedy(self: GPT, logits: torch.Tensor) -> ChosenTokens:
            nonlocal calls
            tokens, check = original(self, logits)
            tokens = tokens.clone()
            if is_struck_in("prompt") or is_struck_in("tokens") or is_struck_in("take over"):
                if calls == int(step):
                    tokens[int(request)] = (tokens[int(request)] + 1) % self.spec.vocab_size
                    note_strike()
                calls += 1
            return ChosenTokens(tokens, check)

        return greedy

    replace_call(GPT, "greedy", make)


@fault
def corrupt_brought_back() -> None:
    """Change one byte of V of the last stage's microbatch 1 before it is brought back."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def bring_back(self: swapper.Swapper, microbatch: int) -> KVCache:
            cache: KVCache = original(self, microbatch)
            if microbatch == 1 and is_struck_in("verify") and MPI.COMM_WORLD.rank == 1:
                as_integers(cache.v).view(-1)[0] ^= 1
                note_strike()
            return cache

        return bring_back

    replace_call(swapper.Swapper, "bring_back", make)
