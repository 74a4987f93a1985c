"""NCCL communicators between the ranks of an MPI communicator.

cupy brings the calls, torch the tensors and streams. cupy is imported when NCCL is first asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
from mpi4py import MPI
from torch import Tensor

T = TypeVar("T")

INIT_TIMEOUT_S = 60.0
"""Seconds within which the other ranks must come to the making of a communicator."""

# NCCL's numbers of its types, ncclDataType_t.
_TYPES = {
    torch.int8: 0,
    torch.uint8: 1,
    torch.int32: 2,
    torch.int64: 4,
    torch.float16: 6,
    torch.float32: 7,
    torch.float64: 8,
    torch.bfloat16: 9,
}
_UINT8 = 1
_SUM = 0


class _CupyCommunicator(Protocol):
    """``cupy.cuda.nccl.NcclCommunicator``: the calls that are used. Types are NCCL's numbers."""

    def send(
        self, address: int, count: int, dtype: int, peer: int, cuda_stream_handle: int
    ) -> None:
        """Issue a send of ``count`` elements on the CUDA stream with this handle."""

    def recv(
        self, address: int, count: int, dtype: int, peer: int, cuda_stream_handle: int
    ) -> None:
        """Issue a receive of ``count`` elements on the CUDA stream with this handle."""

    def allReduce(  # noqa: N802 - cupy's name
        self,
        source: int,
        target: int,
        count: int,
        dtype: int,
        operation: int,
        cuda_stream_handle: int,
    ) -> None:
        """Issue the reduction of ``count`` elements; both addresses may be equal."""

    def allGather(  # noqa: N802 - cupy's name
        self, source: int, target: int, count: int, dtype: int, cuda_stream_handle: int
    ) -> None:
        """Issue the gathering of ``count`` elements from each rank, in order of ranks."""

    def check_async_error(self) -> None:
        """Raise RuntimeError if an operation that was issued has failed since."""

    def abort(self) -> None:
        """End operations under way and free the communicator; not collective."""

    def destroy(self) -> None:
        """Free the communicator; collective."""


class _CupyNCCL(Protocol):
    """The module ``cupy.cuda.nccl``."""

    def get_version(self) -> int:
        """Return NCCL's own number of its version."""

    def get_unique_id(self) -> tuple[int, ...]:
        """Return the id that all ranks of one new communicator must give."""

    def NcclCommunicator(  # noqa: N802 - cupy's name
        self, size: int, unique_id: tuple[int, ...], rank: int
    ) -> _CupyCommunicator:
        """Make a communicator; blocks until all ``size`` ranks have come."""

    def groupStart(self) -> None:  # noqa: N802 - cupy's name
        """Begin to collect this thread's operations into one."""

    def groupEnd(self) -> None:  # noqa: N802 - cupy's name
        """Issue the collected operations as one."""


class NCCLError(Exception):
    """NCCL could not be set up, or failed; the message says between which ranks."""


def read_nccl_version() -> int:
    """Return NCCL's own number of the version that is loaded, such as 22809.

    Raises:
        NCCLError: cupy or its NCCL is missing.
    """
    return int(_import_nccl().get_version())


def _import_nccl() -> _CupyNCCL:
    try:
        from cupy.cuda import nccl
    except ImportError as error:
        raise NCCLError(f"cupy is missing: {error}") from None
    if not nccl.available:
        raise NCCLError("cupy finds no NCCL")
    module: _CupyNCCL = nccl
    return module


class NCCLCommunicator:
    """One NCCL communicator of the ranks of ``comm``.

    Making one is collective, and so is :meth:`close`.

    Sends, receives and sums are issued on a CUDA stream. They have not happened when a method
    returns. All ranks must issue them in the same order.

    Args:
        comm: brings the ranks together; not used afterwards.
        device: this rank's; no other rank of the communicator uses it.
        timeout_s: seconds within which the other ranks must come.

    Raises:
        NCCLError: NCCL is missing or refuses, or a rank did not come.
    """

    def __init__(
        self, comm: MPI.Intracomm, device: torch.device, timeout_s: float = INIT_TIMEOUT_S
    ) -> None:
        self.device = device
        self.size = comm.size
        self.rank = comm.rank
        unique_id = None
        error = ""
        try:
            unique_id = _import_nccl().get_unique_id() if comm.rank == 0 else None
            self._nccl = _import_nccl()
        except (NCCLError, RuntimeError) as cause:
            error = str(cause)
        # All ranks or none: a rank alone in NCCL's initialisation would wait for the others.
        failures = [
            f"rank {rank}: {message}"
            for rank, message in enumerate(comm.allgather(error))
            if message
        ]
        if failures:
            raise NCCLError("; ".join(failures))
        unique_id = comm.bcast(unique_id)

        def make() -> _CupyCommunicator:
            torch.cuda.set_device(device)  # a new thread begins on device 0
            return self._nccl.NcclCommunicator(comm.size, unique_id, comm.rank)

        self._comm = call_within(timeout_s, make, f"an NCCL communicator of {comm.size} ranks")

    # ---- moving contiguous tensors of this device ----

    def send(self, x: Tensor, peer: int, cuda_stream: torch.cuda.Stream | None = None) -> None:
        """Issue a send of a contiguous tensor on ``cuda_stream``, or on torch's current one."""
        self.send_bytes(x.data_ptr(), x.numel() * x.element_size(), peer, self._handle(cuda_stream))

    def recv(self, x: Tensor, peer: int, cuda_stream: torch.cuda.Stream | None = None) -> None:
        """Issue a receive into a contiguous tensor; ``cuda_stream`` as for :meth:`send`."""
        self.recv_bytes(x.data_ptr(), x.numel() * x.element_size(), peer, self._handle(cuda_stream))

    def send_bytes(self, address: int, nbytes: int, peer: int, cuda_stream_handle: int) -> None:
        """Send memory of the device; ``cuda_stream_handle`` is CUDA's own handle."""
        self._comm.send(address, nbytes, _UINT8, peer, cuda_stream_handle)

    def recv_bytes(self, address: int, nbytes: int, peer: int, cuda_stream_handle: int) -> None:
        """Receive into memory of the device; ``cuda_stream_handle`` is CUDA's own handle."""
        self._comm.recv(address, nbytes, _UINT8, peer, cuda_stream_handle)

    def all_reduce(self, x: Tensor, cuda_stream: torch.cuda.Stream | None = None) -> None:
        """Sum over all ranks, in place, in the tensor's own type."""
        address = x.data_ptr()
        self._comm.allReduce(
            address, address, x.numel(), _TYPES[x.dtype], _SUM, self._handle(cuda_stream)
        )

    def all_gather(
        self, x: Tensor, all_parts: Tensor, cuda_stream: torch.cuda.Stream | None = None
    ) -> None:
        """Write every rank's ``x`` to ``all_parts`` [size, *x.shape], in order of ranks."""
        nbytes = x.numel() * x.element_size()
        self._comm.allGather(
            x.data_ptr(), all_parts.data_ptr(), nbytes, _UINT8, self._handle(cuda_stream)
        )

    @contextmanager
    def group(self) -> Iterator[None]:
        """Make one operation of those that are issued inside."""
        self._nccl.groupStart()
        try:
            yield
        finally:
            self._nccl.groupEnd()

    def _handle(self, cuda_stream: torch.cuda.Stream | None) -> int:
        return (cuda_stream or torch.cuda.current_stream(self.device)).cuda_stream

    # ---- its end ----

    def check(self) -> None:
        """Raise NCCLError if an operation that was issued has failed since."""
        try:
            self._comm.check_async_error()
        except RuntimeError as error:
            raise NCCLError(
                f"rank {self.rank} of an NCCL communicator of {self.size}: {error}"
            ) from error

    def abort(self) -> None:
        """End the operations under way, so that no kernel waits for a rank that is gone.

        Any thread may call it.
        """
        self._comm.abort()

    def close(self) -> None:
        """Free the communicator; every operation must be complete."""
        self._comm.destroy()


def call_within(timeout_s: float, make: Callable[[], T], task: str) -> T:
    """Return ``make()``, which is called in a thread that is left behind after ``timeout_s``.

    Raises:
        NCCLError: it took longer, or it failed; the message begins with ``task``.
    """
    # CuPy has no non-blocking initialisation that could be given up without a thread.
    answers: list[T] = []
    failures: list[Exception] = []

    def keep_outcome() -> None:
        try:
            answers.append(make())
        except Exception as error:  # noqa: BLE001 - raised below, in the thread that asked
            failures.append(error)

    # A daemon: the interpreter may end although it still waits.
    thread = threading.Thread(target=keep_outcome, name="nccl-make", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        raise NCCLError(f"{task}: not all ranks came within {timeout_s:g} s")
    if failures:
        raise NCCLError(f"{task}: {failures[0]}") from failures[0]
    return answers[0]
