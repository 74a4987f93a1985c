"""What this machine can do, measured between the rounds that it bounds: the same session, the same threads.

Each probe is short and runs after each of the first rounds; the best of all is the ceiling. ``mpi-destination``,
``disk-destination``, ``nixl-destination`` and ``tcp-destination`` are no ceilings: they are this library's flush and
fetch alone, in turn with the raw loop (``mpi-windowed``, ``disk-write``, ``nixl-raw``, ``tcp-raw``) that they are held
against. What a CUDA device can do is measured by :mod:`~dejavubench.bench.probes.device`, and the ways to sinks of
``nixl`` and ``tcp`` by :mod:`~dejavubench.bench.probes.nixl` and :mod:`~dejavubench.bench.probes.tcp`.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from mpi4py import MPI

from dejavubench.dejavulib import pulse
from dejavubench.dejavulib.blockfile import Durability, open_flags
from dejavubench.dejavulib.copies import aligned_buffer
from dejavubench.dejavulib.destinations.base import StorageError, Stream
from dejavubench.dejavulib.destinations.disk import DiskDestination
from dejavubench.dejavulib.destinations.mpi import MPIDestination, MPISinkEndpoint
from dejavubench.dejavulib.kvcache import KVGeometry
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.dejavulib.waiting import wait_asleep
from dejavubench.machine.hardware import available_nbytes
from dejavubench.records import HELD_AGAINST, Ceiling

if TYPE_CHECKING:
    from dejavubench.bench.probes.device import DeviceLink, DeviceProbes
    from dejavubench.bench.probes.nixl import NIXLLink
    from dejavubench.bench.probes.tcp import TCPLink

MESSAGE = 16 << 20
WINDOW = 4
LEAST_MESSAGE = 64 << 10
MESSAGES = 16
LAST_LEVEL_CACHES = 128 << 20
"""At least four times the last-level cache of the machines this was written on; see :func:`last_level_nbytes`."""
PROBE_S = 1.0
"""Seconds that one run of a link's probe may take: on a slow link messages are smaller for it, see :func:`paced`."""

PACED_BY = 4 << 20
"""Bytes that tell how fast a link is."""

PAIRS = 4
"""How often a destination and its raw loop are run in turn, the one or the other first, after a round."""

MATMUL_SIDES = (768, 1024, 2048)

RUN_STRIDE = 4096
"""Bytes between the runs of the copy probes, as between the vectors of a key in ``ft`` at some 256 positions."""

RUNS = 4096
"""Runs of one measurement of them."""

Sample = tuple[float, str]
"""(value, shape): what one shape of a probe gave."""


def last_level_nbytes() -> int:
    """Bytes of the largest cache of CPU 0; 0 where the kernel does not tell."""
    sizes = [0]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        sizes.append(
            int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]]
            if text[-1] in "KM"
            else int(text)
        )
    return max(sizes)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Memory:
    """Read and copy bandwidth over two buffers of at least four times the last-level cache.

    Never more than a quarter of the memory that is free beside the model: where that is too little, the shape tells.
    """

    def __init__(self) -> None:
        elements = (
            min(max(LAST_LEVEL_CACHES, 4 * last_level_nbytes()), available_nbytes() // 8) // 4
        )
        self._from = torch.ones(elements)
        self._to = torch.zeros(elements)

    def read(self) -> list[Sample]:
        nbytes = self._from.nbytes
        shapes: list[tuple[str, Callable[[], object]]] = [
            ("sum", self._from.sum),
            ("max", self._from.max),
            ("dot", lambda: torch.dot(self._from, self._from)),
        ]
        return [
            (nbytes / _seconds(work) / 1e9, f"{what} of {nbytes >> 20} MiB")
            for what, work in shapes
        ]

    def copy(self) -> list[Sample]:
        nbytes = self._from.nbytes
        return [
            (
                nbytes / _seconds(lambda: self._to.copy_(self._from)) / 1e9,
                f"{nbytes >> 20} MiB, bytes copied",
            )
        ]


def run_copy() -> list[Sample]:
    """Microseconds of one 16-byte copy in the naive loop of ``host``."""
    runs, place, times = _runs()
    whole, out = runs.numpy().data, place.numpy().data
    views = [whole[at : at + 16] for at in range(0, times * RUN_STRIDE, RUN_STRIDE)]
    began = time.perf_counter()
    at = 0
    for view in views:
        out[at : at + 16] = view
        at += 16
    return [((time.perf_counter() - began) / times * 1e6, f"16 B, {RUN_STRIDE} B apart")]


def run_copy_compiled() -> list[Sample]:
    """The same copies in one call of torch: what the loop costs where Python does not run it."""
    runs, place, times = _runs()
    took = _seconds(lambda: place.view(times, 16).copy_(runs.view(times, RUN_STRIDE)[:, :16]))
    return [(took / times * 1e6, f"16 B, {RUN_STRIDE} B apart")]


def _runs() -> tuple[torch.Tensor, torch.Tensor, int]:
    return aligned_buffer(RUNS * RUN_STRIDE), aligned_buffer(RUNS * 16), RUNS


def run_write_overhead() -> list[Sample]:
    """Microseconds of the naive loop's write where nothing is kept: Python and the system call alone."""
    data = aligned_buffer(16).numpy().data
    with open(os.devnull, "wb", buffering=0) as nowhere:
        took = _seconds(lambda: [os.pwrite(nowhere.fileno(), data, 0) for _ in range(RUNS)])
    return [(took / RUNS * 1e6, "16 B to /dev/null")]


def matmul(dtype: torch.dtype) -> list[Sample]:
    """GFLOP/s of square products in the type that the model computes in."""
    samples = []
    for side in MATMUL_SIDES:
        a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
        samples.append((2 * side**3 / _seconds(lambda a=a, b=b: torch.mm(a, b)) / 1e9, f"{side}³"))  # type: ignore[misc]
    return samples


def paced(bytes_per_s: float, messages: int) -> int:
    """Bytes of a message, a power of two, of which ``messages`` take no more than :data:`PROBE_S` on a link so fast.

    A window of small ones fills a slow link as well as one of large ones fills a fast link.
    """
    nbytes = MESSAGE
    while nbytes > LEAST_MESSAGE and messages * nbytes > bytes_per_s * PROBE_S:
        nbytes //= 2
    return nbytes


def message_stream(messages: int, peer: int | None = None, nbytes: int = MESSAGE) -> Stream:
    """A stream whose chunks are whole messages, so that nothing but flush and fetch is left to measure."""
    width = 256
    geometry = KVGeometry(messages, 1, 1, nbytes // (2 * 4 * width), width, 4)
    return Stream(0, StreamSchedule(geometry, geometry.whole, geometry.positions, 0, nbytes), peer)


def size_text(nbytes: int) -> str:
    """``16 MiB``, ``512 KiB``."""
    return f"{nbytes >> 20} MiB" if nbytes >> 20 else f"{nbytes >> 10} KiB"


class Link:
    """Bandwidth between one source and its sink; each method runs on both, and only the source has a sample."""

    def __init__(self, comm: MPI.Intracomm, peer: int, source: bool) -> None:
        self._comm = comm
        self._peer = peer
        self._source = source
        self._slots = [aligned_buffer(MESSAGE).fill_(slot) for slot in range(WINDOW)]
        self._message = 0  # bytes; not known before the first probe

    def _pace(self) -> int:
        """Bytes of the probes' messages: the source tries the link once and tells the sink what follows."""
        if not self._message:
            first, told = self._slots[0].numpy()[:PACED_BY], bytearray(8)
            self.meet()
            if self._source:
                began = time.perf_counter()
                self._comm.Send(first, self._peer)
                self._comm.Recv(bytearray(1), self._peer)
                self._message = paced(PACED_BY / (time.perf_counter() - began), MESSAGES)
                self._comm.Send(self._message.to_bytes(8, "little"), self._peer)
            else:
                self._comm.Recv(first, self._peer)
                self._comm.Send(bytearray(1), self._peer)
                self._comm.Recv(told, self._peer)
                self._message = int.from_bytes(told, "little")
        return self._message

    def _messages(self) -> list[np.ndarray]:
        """A window of them."""
        nbytes = self._pace()
        return [slot.numpy()[:nbytes] for slot in self._slots]

    def ping_pong(self) -> list[Sample]:
        """One message back and forth."""
        samples, largest = [], self._pace()
        for nbytes, times in ((64 << 10, 50), (1 << 20, 20), (MESSAGE, 4)):
            if nbytes > largest:
                break
            buffer = self._slots[0].numpy()[:nbytes]
            self.meet()
            began = time.perf_counter()
            for _ in range(times):
                if self._source:
                    self._comm.Send(buffer, self._peer)
                    self._comm.Recv(buffer, self._peer)
                else:
                    self._comm.Recv(buffer, self._peer)
                    self._comm.Send(buffer, self._peer)
            samples.append(
                (2 * times * nbytes / (time.perf_counter() - began) / 1e9, f"{nbytes >> 10} KiB")
            )
        return samples if self._source else []

    def windowed(self) -> list[Sample]:
        """The raw loop: windows of messages issued at once, then a word back (as osu_bw does)."""
        word, messages = bytearray(1), self._messages()
        self.meet()
        began = time.perf_counter()
        for _ in range(MESSAGES // WINDOW):
            if self._source:
                MPI.Request.Waitall([self._comm.Isend(message, self._peer) for message in messages])
                self._comm.Recv(word, self._peer)
            else:
                MPI.Request.Waitall([self._comm.Irecv(message, self._peer) for message in messages])
                self._comm.Send(word, self._peer)
        return self._sample(time.perf_counter() - began)

    def destination(self) -> list[Sample]:
        """The ``mpi`` destination's flush on this side, fetch and acknowledgement on the other."""
        nbytes = self._pace()
        stream, slots = (
            message_stream(MESSAGES, self._peer, nbytes),
            [slot[:nbytes] for slot in self._slots],
        )
        chunks = list(stream.schedule.all_chunks(LEVELS["2"]))
        self.meet()
        began = time.perf_counter()
        if self._source:
            destination = MPIDestination(self._comm)
            destination.begin(stream)
            for number, chunk in enumerate(chunks):
                while number - destination.completed(stream) >= WINDOW:
                    pass
                destination.flush(stream, chunk, slots[number % WINDOW])
            while destination.completed(stream) < len(chunks):
                pass
        else:
            endpoint = MPISinkEndpoint(self._comm)
            posted = deque(
                endpoint.post(stream, slots[number % WINDOW]) for number in range(WINDOW)
            )
            for number in range(len(chunks)):
                posted.popleft().Wait()
                endpoint.acknowledge(stream)
                if number + WINDOW < len(chunks):
                    posted.append(endpoint.post(stream, slots[number % WINDOW]))
            endpoint.finish()
        return self._sample(time.perf_counter() - began)

    def message(self) -> list[Sample]:
        """Microseconds of the naive loop's one message of 16 bytes, and how many of them are this program's own.

        A send to MPI_PROC_NULL goes through everything but the library's transport.
        """
        run = self._slots[0].numpy().data[:16]
        times = 2000
        self.meet()
        if not self._source:
            for _ in range(times):
                self._comm.Recv(run, self._peer)
            return []
        send = self._comm.Ssend
        began = time.perf_counter()
        for _ in range(times):
            send(run, self._peer)
        return [((time.perf_counter() - began) / times * 1e6, "16 B, MPI_Ssend")]

    def message_overhead(self) -> list[Sample]:
        """Microseconds of a message that goes nowhere: the loop, the view and mpi4py, without MPI's transport."""
        run = self._slots[0].numpy().data[:16]
        times = 2000
        send = self._comm.Ssend
        took = _seconds(lambda: [send(run, MPI.PROC_NULL) for _ in range(times)])
        return [(took / times * 1e6, "16 B to MPI_PROC_NULL")] if self._source else []

    def meet(self) -> None:
        """Begin together: asleep until the other side has come, which may be measuring memory, then at once."""
        come = [
            self._comm.Isend(bytearray(1), self._peer),
            self._comm.Irecv(bytearray(1), self._peer),
        ]
        wait_asleep(lambda: MPI.Request.Testall(come), "the other side of a link")
        self._comm.Sendrecv(bytearray(1), self._peer, recvbuf=bytearray(1), source=self._peer)

    def confirm(self) -> None:
        """A word from the sink, for which the source waits without sleeping."""
        if self._source:
            self._comm.Recv(bytearray(1), self._peer)
        else:
            self._comm.Send(bytearray(1), self._peer)

    def _sample(self, seconds: float) -> list[Sample]:
        if not self._source:
            return []
        shape = f"{size_text(self._message)} messages, window {WINDOW}"
        return [(MESSAGES * self._message / seconds / 1e9, shape)]


class Disk:
    """Sequential writes of one size, each as durable as the option says: a raw loop and the destination.

    Both overwrite files whose blocks are there already, so that neither allocates.
    """

    CHUNKS = 8
    NBYTES = 2 * CHUNKS * MESSAGE + (1 << 20)
    """What both files take."""

    def __init__(self, directory: Path, name: str, durability: Durability) -> None:
        self.durability = durability
        self._data = aligned_buffer(MESSAGE).fill_(1)
        self._destination = DiskDestination(directory, f"{name}-ceiling", durability, False, {})
        self._raw = os.open(directory / f"{name}-raw", open_flags(durability), 0o600)
        os.unlink(directory / f"{name}-raw")
        self._stream = message_stream(self.CHUNKS)
        try:
            self._write_raw()
        except OSError:
            self.close()
            raise

    def _write_raw(self) -> None:
        for number in range(self.CHUNKS):
            done = 0
            while done < MESSAGE:
                done += os.pwrite(
                    self._raw, self._data.numpy().data[done:], number * MESSAGE + done
                )
            if self.durability != "page-cache":
                os.fdatasync(self._raw)

    def write(self) -> list[Sample]:
        """The raw loop, over a file that has just been written whole, as the destination's has."""
        self._write_raw()
        os.fdatasync(self._raw)
        return self._sample(_seconds(self._write_raw))

    def destination(self) -> list[Sample]:
        """The ``disk`` destination's flush."""
        self._destination.begin(self._stream)
        chunks = list(self._stream.schedule.all_chunks(LEVELS["2"]))
        began = time.perf_counter()
        for chunk in chunks:
            self._destination.flush(self._stream, chunk, self._data)
        return self._sample(time.perf_counter() - began)

    def run(self) -> list[Sample]:
        """Microseconds of one 16-byte write in the naive loop, as durable as the option says."""
        times, views = (32 if self.durability == "fdatasync" else RUNS), self._data.numpy()
        if self.durability == "direct":  # the destination gathers them into pages of its own
            return []
        began = time.perf_counter()
        for at in range(0, 16 * times, 16):
            os.pwrite(self._raw, views[at : at + 16].data, at)
            if self.durability == "fdatasync":
                os.fdatasync(self._raw)
        return [((time.perf_counter() - began) / times * 1e6, f"16 B, {self.durability}")]

    def _sample(self, seconds: float) -> list[Sample]:
        shape = f"{self.CHUNKS} × {MESSAGE >> 20} MiB, {self.durability}"
        return [(self.CHUNKS * MESSAGE / seconds / 1e9, shape)]

    def close(self) -> None:
        os.close(self._raw)
        self._destination.close()


@dataclass
class Probe:
    """One thing to measure, and what it has given: of each time the samples of all its shapes.

    ``problem``: the first reason why a disk could not be measured.
    """

    name: str
    unit: str
    run: Callable[[], list[Sample]]
    durability: Durability | None = None
    samples: list[list[Sample]] = field(default_factory=list)
    problem: str | None = None

    def __call__(self) -> str | None:
        """Measure; return what keeps the disk from being measured, the first time."""
        try:
            self.samples.append(self.run())
        except (OSError, StorageError) as error:
            if self.durability is None:  # of a link, whose other side waits
                raise
            why = getattr(error, "strerror", None) or error
            known, self.problem = self.problem, f"{self.name} ({self.durability}): {why}"
            return None if known else self.problem
        return None


def _measured(probe: Probe) -> str | None:
    """Measure; return what keeps the disk from being measured, the first time."""
    problem = probe()
    pulse.progress()
    return problem


class Ceilings:
    """The probes that make sense on one rank at one point.

    Args:
        dtype: what the model computes in.
        link: between this rank and its peer, if something is streamed between them.
        disks: of each durability that something is streamed with.
        memory: None on a sink, which then measures its side of the link alone, and beside ``device``.
        device: of the CUDA device that the model runs on, in place of the CPU's memory, products and copies.
        device_link: by NCCL between this rank and its peer, if something is streamed so.
        tcp_link: between this rank and its sink of ``tcp``, likewise.
        nixl_link: between this rank and its peer by NIXL, likewise.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        link: Link | None,
        disks: Sequence[Disk],
        memory: Memory | None,
        device: DeviceProbes | None = None,
        device_link: DeviceLink | None = None,
        tcp_link: TCPLink | None = None,
        nixl_link: NIXLLink | None = None,
    ) -> None:
        self._closing = [*disks, *(link for link in (tcp_link, nixl_link) if link is not None)]
        self._probes: list[Probe] = []
        if memory is not None:
            self._probes += [
                Probe("memory-read", "GB/s", memory.read),
                Probe("memory-copy", "GB/s", memory.copy),
                Probe("matmul", "GFLOP/s", lambda: matmul(dtype)),
                Probe("run-copy", "us", run_copy),
                Probe("run-copy-compiled", "us", run_copy_compiled),
            ]
        if device is not None:
            self._probes += device.probes()
        if link is not None:
            self._probes += [
                Probe("mpi-ping-pong", "GB/s", link.ping_pong),
                Probe("mpi-windowed", "GB/s", link.windowed),
                Probe("mpi-destination", "GB/s", link.destination),
                Probe("mpi-message", "us", link.message),
                Probe("mpi-message-overhead", "us", link.message_overhead),
            ]
        if device_link is not None:
            self._probes.append(Probe("nccl-send", "GB/s", device_link.send))
        if nixl_link is not None:
            self._probes += [
                Probe("nixl-raw", "GB/s", nixl_link.raw),
                Probe("nixl-destination", "GB/s", nixl_link.destination),
            ]
        if tcp_link is not None:
            self._probes += [
                Probe("tcp-raw", "GB/s", tcp_link.raw),
                Probe("tcp-destination", "GB/s", tcp_link.destination),
                Probe("tcp-message", "us", tcp_link.message),
            ]
        for disk in disks:
            self._probes += [
                Probe("disk-write", "GB/s", disk.write, disk.durability),
                Probe("disk-destination", "GB/s", disk.destination, disk.durability),
                Probe("disk-run", "us", disk.run, disk.durability),
            ]
        if disks:
            self._probes.append(Probe("disk-run-overhead", "us", run_write_overhead))

    def run(self) -> list[str]:
        """Each probe once, but destinations and the raw loops that they are held against :data:`PAIRS` times.

        Returns:
            What could not be measured for the first time, and why.
        """
        named = {(probe.name, probe.durability): probe for probe in self._probes}
        pairs = [
            (probe, named[HELD_AGAINST[probe.name], probe.durability])
            for probe in self._probes
            if probe.name in HELD_AGAINST
        ]
        in_pairs = [probe for pair in pairs for probe in pair]
        once = [probe for probe in self._probes if probe not in in_pairs]
        problems = [_measured(probe) for probe in once]
        for number in range(PAIRS):
            for pair in pairs:
                counts = [len(probe.samples) for probe in pair]
                problems += [_measured(probe) for probe in pair[:: 1 if number % 2 else -1]]
                if any(
                    len(probe.samples) == count for probe, count in zip(pair, counts, strict=True)
                ):
                    for probe, count in zip(pair, counts, strict=True):
                        del probe.samples[count:]  # samples of a pair are compared one by one
        return [problem for problem in problems if problem is not None]

    def records(self, point: str) -> Iterator[Ceiling]:
        """One record a probe: the best, and the best shape of each time. Rates are best high, times best low."""
        for probe in self._probes:
            best = min if probe.unit == "us" else max
            times = [best(samples) for samples in probe.samples if samples]
            if times:
                value, shape = best(times)
                yield Ceiling(
                    name=probe.name,
                    unit=probe.unit,
                    value=value,
                    samples=[v for v, _ in times],
                    shape=shape,
                    point=point,
                    durability=probe.durability,
                )

    def close(self) -> None:
        for each in self._closing:
            each.close()
