"""Run by test_faults.py under mpirun: dejavubench's own command line with one fault in it.

``faulty.py FAULT[:ARGUMENT…] run …`` replaces one of the product's functions and then calls its main. A fault
strikes in iteration 2, so that there are records of iterations before it, and says so in ``struck-<rank>``.
"""

from __future__ import annotations

import errno
import functools
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import torch
from mpi4py import MPI

from dejavubench import kvcache
from dejavubench.bench import environment, job, point, recorder, sink, source
from dejavubench.bench.verify import as_integers
from dejavubench.cli import main
from dejavubench.cli import run as cli_run
from dejavubench.dejavulib import manager, receiver
from dejavubench.dejavulib.destinations import disk, mpi
from dejavubench.kvcache import KVCache, Region, Span
from dejavubench.models.gpt import GPT

RANK = MPI.COMM_WORLD.rank
ITERATION = 2
"""The iteration that a fault strikes in."""

FAULTS: dict[str, Callable[..., None]] = {}


def fault(prepare: Callable[..., None]) -> Callable[..., None]:
    """A fault is a function that puts itself in place; its name is that on the command line."""
    FAULTS[prepare.__name__.replace("_", "-")] = prepare
    return prepare


class Now:
    """Which phase this rank is in, as it records it; both None until the first is marked."""

    phase: str | None = None
    iteration: int | None = None

    @classmethod
    def follow(cls) -> None:
        original = recorder.Recorder.phase

        def phase(self: recorder.Recorder, phase: str, **where: Any) -> None:
            original(self, phase, **where)
            cls.phase, cls.iteration = phase, where.get("iteration")

        recorder.Recorder.phase = phase  # type: ignore[method-assign]


def struck() -> None:
    """Tell the test that the fault has happened."""
    Path(f"struck-{RANK}").touch()


def instead(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace ``owner.name`` by what ``make`` makes of it."""
    original = getattr(owner, name)
    setattr(owner, name, functools.wraps(original)(make(original)))


def now(phase: str) -> bool:
    return Now.phase == phase and (Now.iteration is None or Now.iteration >= ITERATION)


# ---- wrong bytes ----


@fault
def corrupt(layer: str, kv: kvcache.KV, request: str, head: str, position: str) -> None:
    """One byte of the sink's cache is changed as soon as the chunk that it belongs to has arrived."""
    spans = [Span(int(at), int(at) + 1) for at in (layer, request, head, position)]
    byte = Region(*spans)

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def arrived(self: receiver.CacheReceiver, chunk: Any, messages: int) -> None:
            if now("receive") and chunk.region & byte == byte:
                cache = self._cache
                vector = as_integers(cache.tensor(kv))[cache.geometry.index(kv, byte)]
                vector[(0,) * vector.dim()] ^= 0x01
                struck()
            original(self, chunk, messages)

        return arrived

    instead(receiver.CacheReceiver, "_arrived", make)


def _step_at(region: Region, position: int) -> bool:
    return region.positions.start == position


@fault
def drop_at_sink(position: str) -> None:
    """A token's chunk arrives and is acknowledged, but never scattered."""

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def scatter(packed: torch.Tensor, cache: KVCache, region: Region) -> None:
            if now("receive") and _step_at(region, int(position)):
                struck()
                return
            original(packed, cache, region)

        return scatter

    instead(receiver, "scatter", make)


@fault
def drop_at_source(step: str) -> None:
    """A token's chunk is never sent."""

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def flush(self: mpi.MPIDestination, stream: Any, chunk: Any, packed: torch.Tensor) -> None:
            if chunk.step == int(step) and (now("tokens") or now("drain")):
                self._expect_ack(stream)
                struck()
                return
            original(self, stream, chunk, packed)

        return flush

    instead(mpi.MPIDestination, "flush", make)


@fault
def scatter_twice(position: str, wrong: str) -> None:
    """A token's chunk is scattered to its place, and then to that of position ``wrong``."""

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def scatter(packed: torch.Tensor, cache: KVCache, region: Region) -> None:
            original(packed, cache, region)
            if now("receive") and _step_at(region, int(position)):
                original(packed, cache, replace(region, positions=Span(int(wrong), int(wrong) + 1)))
                struck()

        return scatter

    instead(receiver, "scatter", make)


@fault
def gather_step_early() -> None:
    """The chunk of decode step 1 is gathered when the prompt is in place: its position is not written yet."""

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def step_ready(self: manager.CacheManager, step: int, tokens: Any = None) -> None:
            early = now("prompt") or now("tokens")
            if not (early and step == 1):
                original(self, step, tokens)
            if early and step == 0:
                original(self, 1, None)
                self._streamer.wait(self, 60)  # so that it has been gathered before the model goes on
                struck()

        return step_ready

    instead(manager.CacheManager, "step_ready", make)


@fault
def gather_layer_early() -> None:
    """The prompt's chunk of layer 1 is gathered when layer 0 is in place."""

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def layer_ready(self: manager.CacheManager, layer: int) -> None:
            if not now("prompt"):
                original(self, layer)
            elif layer == 0:
                original(self, 0)
                original(self, 1)
                self._streamer.wait(self, 60)
                struck()

        return layer_ready

    instead(manager.CacheManager, "layer_ready", make)


@fault
def corrupt_file(step: str, layer: str) -> None:
    """One byte of the stream file is changed after all of it was written."""

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def check(self: disk.DiskDestination, stream: Any) -> None:
            if now("verify"):
                schedule = stream.schedule
                at = disk.record_offset(schedule, int(step)) + int(layer) * schedule.layer_nbytes(int(step)) + 5
                fd = self._files[stream.id].fd
                os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 0x01]), at)
                struck()
            original(self, stream)

        return check

    instead(disk.DiskDestination, "check", make)


@fault
def corrupt_flush(step: str) -> None:
    """The packed chunk of a step is changed before it is written and before its checksum is made."""

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def flush(self: disk.DiskDestination, stream: Any, chunk: Any, packed: torch.Tensor) -> None:
            if chunk.step == int(step) and (now("tokens") or now("drain")):
                packed[0] ^= 0x01
                struck()
            original(self, stream, chunk, packed)

        return flush

    instead(disk.DiskDestination, "flush", make)


@fault
def wrong_token(step: str, request: str) -> None:
    """The model takes another token than the likeliest once; its cache follows, so all bytes are right."""
    calls = 0

    def make(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def greedy(self: GPT, logits: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            tokens = original(self, logits).clone()
            if now("prompt") or now("tokens"):
                if calls == int(step):
                    tokens[int(request)] = (tokens[int(request)] + 1) % self.spec.vocab_size
                    struck()
                calls += 1
            return tokens

        return greedy

    instead(GPT, "greedy", make)


# ---- what ends a job ----

WHERE: dict[str, tuple[Any, str]] = {
    "source load": (point, "random_weights"),
    "source prompt": (GPT, "forward"),
    "source tokens": (GPT, "forward"),
    "source drain": (mpi.MPIDestination, "completed"),
    "source verify": (source, "send_pieces"),
    "sink load": (sink.Sink, "__init__"),
    "sink prepare": (sink.Sink, "prepare"),
    "sink receive": (receiver.CacheReceiver, "poll"),
    "sink verify": (sink, "compare"),
}
"""What a role does in a phase: where an exception comes from."""


@fault
def throw(role: str, phase: str) -> None:
    """An exception in the middle of a phase, on the source (rank 0) or the sink (rank 1)."""
    if role != ("source", "sink")[RANK]:
        return

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def work(*args: Any, **kwargs: Any) -> Any:
            if now(phase) or (phase == "load" and role == "sink"):  # a sink marks no load: it has nothing to load
                struck()
                raise RuntimeError("injected")
            return 0 if phase == "drain" and now("tokens") else original(*args, **kwargs)  # leave some for the drain

        return work

    instead(*WHERE[f"{role} {phase}"], make)


@fault
def linger(phase: str) -> None:
    """The source stays in a phase, for the test to kill somebody meanwhile."""
    if RANK == 0:

        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def work(*args: Any, **kwargs: Any) -> Any:
                if now(phase):
                    struck()
                    time.sleep(300)
                return 0 if phase == "drain" and now("tokens") else original(*args, **kwargs)

            return work

        instead(*WHERE[f"source {phase}"], make)


@fault
def deaf_sink() -> None:
    """The sink takes nothing any more, though its process lives."""

    def make(original: Callable[..., bool]) -> Callable[..., bool]:
        def poll(self: receiver.CacheReceiver) -> bool:
            if now("receive"):
                struck()
                return False
            return original(self)

        return poll

    instead(receiver.CacheReceiver, "poll", make)


@fault
def disk_full() -> None:
    """In the token phase the device has no room any more."""

    def make(original: Callable[..., int]) -> Callable[..., int]:
        def pwritev(fd: int, buffers: Sequence[Any], offset: int) -> int:
            if now("tokens"):
                struck()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(fd, buffers, offset)

        return pwritev

    instead(os, "pwritev", make)


@fault
def record_limit(nbytes: str) -> None:
    """No file of this process can grow beyond so many bytes: records cannot be written any more."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(nbytes), int(nbytes)))


@fault
def late(how: str) -> None:
    """Rank 1 stays behind before the session begins, or fails there, while rank 0 waits for it within MPI."""
    if RANK == 1:

        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def agreed(*args: Any) -> NoReturn:
                original(*args)
                struck()
                while how == "interrupt" or not Path("struck-0").exists():
                    time.sleep(0.02)
                time.sleep(0.5)  # rank 0 is in a collective call by now
                raise RuntimeError("injected")

            return agreed

        instead(cli_run, "agreed", make)
    else:

        def announce(original: Callable[[], str]) -> Callable[[], str]:
            def hostname() -> str:  # the first thing that the ranks tell each other
                struck()
                return original()

            return hostname

        instead(environment, "hostname", announce)


@fault
def records_full_at_start() -> None:
    """Rank 0 cannot write ``run.json``."""

    def full(*_: Any) -> NoReturn:
        struck()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    instead(job, "write_header", lambda _: full)


# ---- not faults, but what a test needs to be certain of ----


@fault
def no_fault() -> None:
    """The command line as it is."""


@fault
def frozen_clock() -> None:
    """Every run starts in the same second."""

    class Frozen(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)

    job.datetime = Frozen  # type: ignore[misc]


@fault
def slow_model() -> None:
    """Each step of the model takes 0.1 s more."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            time.sleep(0.1)
            return original(*args, **kwargs)

        return forward

    instead(GPT, "forward", make)


if __name__ == "__main__":
    name, *arguments = sys.argv.pop(1).split(":")
    Now.follow()
    FAULTS[name](*arguments)
    main()
