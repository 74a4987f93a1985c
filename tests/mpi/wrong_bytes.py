"""Faults of mpi/faulty.py that only verification can notice: wrong bytes and wrong tokens."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from injection import fault, inject, is_struck_in, note_strike
from mpi4py import MPI

from dejavubench.bench.checks.cache_bits import as_integers
from dejavubench.dejavulib import kv_cache, manager, receiver
from dejavubench.dejavulib.destinations import disk, mpi
from dejavubench.dejavulib.destinations.disk.stream_file import find_record_offset
from dejavubench.dejavulib.kv_cache import KVCache, Region, Span
from dejavubench.dejavulib.packing import Packing
from dejavubench.dejavulib.swapping import swapper
from dejavubench.models.gpt import GPT, ChosenTokens


@fault
def corrupt(layer: str, kv: kv_cache.KV, request: str, head: str, position: str) -> None:
    """Change one byte of the sink's cache as soon as its chunk has arrived."""
    spans = [Span(int(index), int(index) + 1) for index in (layer, request, head, position)]
    byte = Region(*spans)

    def change_byte(sink: receiver.CacheReceiver, arrival: Any) -> None:
        if is_struck_in("receive") and arrival.chunk.region & byte == byte:
            cache = sink._cache
            vector = as_integers(cache.tensor(kv))[cache.geometry.index(kv, byte)]
            vector[(0,) * vector.dim()] ^= 0x01
            note_strike()

    inject(receiver.CacheReceiver, "_finish_chunk", before=change_byte)


def _begins_at(region: Region, position: int) -> bool:
    return region.positions.start == position


@fault
def drop_at_sink(position: str) -> None:
    """Let a token's chunk arrive and be acknowledged, but never scatter it."""

    def drop(scatter: Callable[..., None], packing: Packing, packed: torch.Tensor) -> None:
        if is_struck_in("receive") and _begins_at(packing.region, int(position)):
            note_strike()
        else:
            scatter(packing, packed)

    inject(Packing, "scatter", around=drop)


@fault
def drop_at_source(step: str) -> None:
    """Never send a token's chunk."""

    def drop(
        flush: Callable[..., None],
        destination: mpi.MPIDestination,
        stream: Any,
        chunk: Any,
        packed: torch.Tensor,
    ) -> None:
        if chunk.step == int(step) and (is_struck_in("tokens") or is_struck_in("drain")):
            sending = mpi._SentChunk(MPI.REQUEST_NULL, *destination._expect_ack(stream))
            destination._under_way[stream.key].append(sending)
            note_strike()
        else:
            flush(destination, stream, chunk, packed)

    inject(mpi.MPIDestination, "flush", around=drop)


@fault
def scatter_twice(position: str, wrong: str) -> None:
    """Scatter a token's chunk to its place, and then to that of position ``wrong``."""

    def scatter_again(scatter: Callable[..., None], packing: Packing, packed: torch.Tensor) -> None:
        scatter(packing, packed)
        if is_struck_in("receive") and _begins_at(packing.region, int(position)):
            elsewhere = replace(packing.region, positions=Span(int(wrong), int(wrong) + 1))
            scatter(Packing(packing.cache, elsewhere), packed)
            note_strike()

    inject(Packing, "scatter", around=scatter_again)


@fault
def gather_step_early() -> None:
    """Gather the chunk of decode step 1 too early, before its position is written."""

    def announce_early(
        step_ready: Callable[..., None], cache: manager.CacheManager, step: int, tokens: Any = None
    ) -> None:
        is_early = is_struck_in("prompt") or is_struck_in("tokens")
        if not (is_early and step == 1):
            step_ready(cache, step, tokens)
        if is_early and step == 0:
            step_ready(cache, 1, None)
            # Wait until it has been gathered, before the model goes on.
            cache._streamer.wait(cache._byte_progress, 60)
            note_strike()

    inject(manager.CacheManager, "step_ready", around=announce_early)


@fault
def gather_layer_early() -> None:
    """Gather the prompt's chunk of layer 1 when only layer 0 is in place."""

    def announce_early(
        layer_ready: Callable[..., None], cache: manager.CacheManager, layer: int
    ) -> None:
        if not is_struck_in("prompt"):
            layer_ready(cache, layer)
        elif layer == 0:
            layer_ready(cache, 0)
            layer_ready(cache, 1)
            cache._streamer.wait(cache._byte_progress, 60)
            note_strike()

    inject(manager.CacheManager, "layer_ready", around=announce_early)


def _stream_files() -> list[int]:
    """Return the descriptors of open stream files, which need not have names any more."""
    links = {fd: os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}
    return [int(fd.name) for fd, target in links.items() if ".kv" in target]


@fault
def corrupt_file(step: str, layer: str) -> None:
    """Change one byte of the stream file after all of it was written."""

    def change_byte(_: disk.DiskDestination, stream: Any) -> None:
        if is_struck_in("verify"):
            schedule = stream.schedule
            layer_offset = int(layer) * schedule.layer_nbytes(int(step))
            index = (
                find_record_offset(schedule, int(step)) + layer_offset + 5
            )  # any byte of the layer
            (fd,) = _stream_files()
            os.pwrite(fd, bytes([os.pread(fd, 1, index)[0] ^ 0x01]), index)
            note_strike()

    inject(disk.DiskDestination, "check", before=change_byte)


@fault
def corrupt_flush(step: str) -> None:
    """Change the packed chunk of a step before its checksum is made and before it is written."""

    def change_byte(_: disk.DiskDestination, stream: Any, chunk: Any, packed: torch.Tensor) -> None:
        if chunk.step == int(step) and (is_struck_in("tokens") or is_struck_in("drain")):
            packed[0] ^= 0x01
            note_strike()

    inject(disk.DiskDestination, "flush", before=change_byte)


@fault
def wrong_token(step: str, request: str) -> None:
    """Let the model take a wrong token once. Its cache follows, so all bytes are right."""
    calls = 0

    def choose_wrongly(
        greedy: Callable[..., ChosenTokens], model: GPT, logits: torch.Tensor
    ) -> ChosenTokens:
        nonlocal calls
        tokens, check = greedy(model, logits)
        tokens = tokens.clone()
        if is_struck_in("prompt") or is_struck_in("tokens") or is_struck_in("take over"):
            if calls == int(step):
                tokens[int(request)] = (tokens[int(request)] + 1) % model.spec.vocab_size
                note_strike()
            calls += 1
        return ChosenTokens(tokens, check)

    inject(GPT, "greedy", around=choose_wrongly)


@fault
def corrupt_brought_back() -> None:
    """Change one byte of V of the last stage's microbatch 1 before it is brought back."""

    def bring_back_wrongly(
        bring_back: Callable[..., KVCache], caches: swapper.Swapper, microbatch: int
    ) -> KVCache:
        cache = bring_back(caches, microbatch)
        if microbatch == 1 and is_struck_in("verify") and MPI.COMM_WORLD.rank == 1:
            as_integers(cache.v).view(-1)[0] ^= 1
            note_strike()
        return cache

    inject(swapper.Swapper, "bring_back", around=bring_back_wrongly)
