"""Tensor- and pipeline-parallel communication of CPU tensors over MPI, and sleeping barriers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from dejavubench.dejavulib.waiting import wait_asleep, wait_yielding
from dejavubench.machine import liveness
from dejavubench.machine.liveness import WAITING
from dejavubench.parallel.topology import Topology

T = TypeVar("T")

# MPI only moves bytes here, so any integer of the size will do.
_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Kinds of messages: the last bit of a tag.
_HIDDEN = 0
_TOKENS = 1


def _view_as_integers(x: Tensor) -> np.ndarray:
    """Return a contiguous tensor's memory as integers: MPI has no type for bf16."""
    return x.view(_SAME_SIZE[x.element_size()]).numpy()


def _make_tag(microbatch: int, message_kind: int) -> int:
    # Two kinds of messages of one microbatch may be under way between the same two ranks.
    return 2 * microbatch + message_kind


class Collectives(Protocol):
    """Communication of one source with the others; see :class:`MPICollectives` for each method.

    Attributes:
        spin: how it waits. It may change while nothing is under way.
    """

    spin: bool

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of ``x`` over the tensor-parallel group, in the type of ``x``.

        Every rank of the group calls it, twice per layer, with the same shape and in the same
        order. ``x`` may be overwritten. On a CPU it blocks; on a CUDA device it is issued on the
        current stream.
        """

    def all_gather(self, x: Tensor) -> Tensor:
        """Return the ``x`` of every rank of the group as [tensor_size, *x.shape].

        Collective like :meth:`all_reduce`. It carries each rank's best token of a step, or its part
        of the logits if tokens are sampled.
        """

    def send_hidden(self, hidden: Tensor, microbatch: int) -> None:
        """Begin to send hidden states [B, T, hidden] to the next stage; never on the last stage.

        May return before they are received, so the tensor must not be changed afterwards.

        Args:
            microbatch: number of the microbatch, which the receiver must name as well.
        """

    def recv_hidden(self, shape: Sequence[int], dtype: torch.dtype, microbatch: int) -> Tensor:
        """Return the hidden states that the previous stage sent for this microbatch.

        On a CPU it blocks; on a CUDA device it makes the current stream wait. Never on the first
        stage.

        Args:
            shape: shape of the tensor that was sent, usually [B, T, hidden].
            dtype: type of the tensor that was sent; a message does not say it.
        """

    def send_tokens(self, tokens: Tensor, microbatch: int) -> None:
        """Begin to send new tokens [B] from the last stage to the first stage.

        Returns once the tokens are in host memory, which may wait for the device.
        """

    def recv_tokens(self, ubatch_size: int, microbatch: int) -> Tensor:
        """Return the microbatch's new tokens, int64 [B] in host memory; blocks until they come.

        The first stage calls it once per step, before it computes the next one.
        """

    def finish(self) -> None:
        """Wait until every message that this rank sent has been received.

        The batch maker calls it at the end of an iteration, so that no message outlives it.
        """


class MPICollectives:
    """Sums and gathers in one source's stage, and messages between stages.

    Making one is collective over the sources. It has communicators of its own, so that its messages
    are never mistaken for others.

    Args:
        sources: the communicator of all sources, in order of their ranks.
        topology: this rank's place.
        spin: wait in blocking MPI calls, which poll busily: the lowest latency, for a core per
            rank. Else test and let other processes run in between, for ranks that share cores.

    Raises:
        ValueError: ``sources`` is not the communicator of this topology's sources.
    """

    def __init__(self, sources: MPI.Intracomm, topology: Topology, spin: bool) -> None:
        if (sources.Get_size(), sources.Get_rank()) != (
            topology.source_count,
            topology.worker_index,
        ):
            raise ValueError(
                f"worker {topology.worker_index} of {topology.source_count} cannot be rank "
                f"{sources.Get_rank()} of a communicator of {sources.Get_size()}"
            )
        self.topology = topology
        self.spin = spin
        self._tensor_comm = sources.Split(color=topology.stage, key=topology.tensor_rank)
        self._pipeline_comm = sources.Split(color=topology.tensor_rank, key=topology.stage)
        self._sends_under_way: list[tuple[MPI.Request, Tensor]] = []

    # ---- within a stage ----

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum over the tensor-parallel group, in place if ``x`` is contiguous.

        Half types are summed in fp32.
        """
        if self.topology.tensor_size == 1:
            return x
        # MPI cannot sum halves; in fp32 the result is also rounded once, and not at every rank.
        total = x.contiguous().float() if x.element_size() < 4 else x.contiguous()
        with liveness.show_state(WAITING):
            if self.spin:
                self._tensor_comm.Allreduce(MPI.IN_PLACE, total.numpy())
            else:
                wait_yielding(self._tensor_comm.Iallreduce(MPI.IN_PLACE, total.numpy()).Test)
        return total.to(x.dtype)

    def all_gather(self, x: Tensor) -> Tensor:
        """Return every rank's ``x``, of one shape and type, as [tensor_size, *x.shape]."""
        if self.topology.tensor_size == 1:
            return x.unsqueeze(0)
        own_part = x.contiguous()
        all_parts = own_part.new_empty((self.topology.tensor_size, *x.shape))
        with liveness.show_state(WAITING):
            if self.spin:
                self._tensor_comm.Allgather(
                    _view_as_integers(own_part), _view_as_integers(all_parts)
                )
            else:
                wait_yielding(
                    self._tensor_comm.Iallgather(
                        _view_as_integers(own_part), _view_as_integers(all_parts)
                    ).Test
                )
        return all_parts

    # ---- between stages: ranks of equal tensor rank ----

    def send_hidden(self, hidden: Tensor, microbatch: int) -> None:
        """Begin to send ``hidden`` to the next stage; it must not be changed afterwards.

        Args:
            microbatch: the microbatch, a small number.
        """
        self._send(hidden, self.topology.stage + 1, _make_tag(microbatch, _HIDDEN))

    def recv_hidden(self, shape: Sequence[int], dtype: torch.dtype, microbatch: int) -> Tensor:
        """Return the previous stage's hidden of this microbatch."""
        return self._recv(shape, dtype, self.topology.stage - 1, _make_tag(microbatch, _HIDDEN))

    def send_tokens(self, tokens: Tensor, microbatch: int) -> None:
        """Begin to send the last stage's new tokens [B] to the first stage."""
        self._send(tokens, 0, _make_tag(microbatch, _TOKENS))

    def recv_tokens(self, ubatch_size: int, microbatch: int) -> Tensor:
        """Return this microbatch's new tokens [B] from the last stage."""
        return self._recv(
            (ubatch_size,),
            torch.long,
            self.topology.stage_count - 1,
            _make_tag(microbatch, _TOKENS),
        )

    def finish(self) -> None:
        """Wait until every message that was sent has been received."""
        with liveness.show_state(WAITING):
            for request, _ in self._sends_under_way:
                self._wait(request)
        self._sends_under_way.clear()

    def close(self) -> None:
        """Finish, and free the communicators; collective."""
        self.finish()
        self._tensor_comm.Free()
        self._pipeline_comm.Free()

    def _send(self, x: Tensor, stage: int, tag: int) -> None:
        # A buffer is kept until its message has been received.
        self._sends_under_way = [
            (request, kept_message)
            for request, kept_message in self._sends_under_way
            if not request.Test()
        ]
        message = x.contiguous()
        self._sends_under_way.append(
            (self._pipeline_comm.Isend(_view_as_integers(message), stage, tag), message)
        )

    def _recv(self, shape: Sequence[int], dtype: torch.dtype, stage: int, tag: int) -> Tensor:
        x = torch.empty(*shape, dtype=dtype)
        with liveness.show_state(WAITING):
            if self.spin:
                self._pipeline_comm.Recv(_view_as_integers(x), stage, tag)
            else:
                self._wait(self._pipeline_comm.Irecv(_view_as_integers(x), stage, tag))
        return x

    def _wait(self, request: MPI.Request) -> None:
        if self.spin:
            request.Wait()
        else:
            wait_yielding(request.Test)


# ---- between measurements: waiting ranks sleep ----


def sleeping_barrier(
    comm: MPI.Intracomm, awaited: str = "barrier", timeout_s: float | None = None
) -> None:
    """Wait, asleep, until all ranks are here.

    Raises:
        DeadlineError: a rank did not come within ``timeout_s``; the message has ``awaited``.
    """
    wait_asleep(comm.Ibarrier().Test, awaited, timeout_s)


def sleeping_bcast(comm: MPI.Intracomm, value: T | None, root: int = 0) -> T:
    """Return ``root``'s small Python object on every rank; the others may give None."""
    sleeping_barrier(comm, "broadcast")  # once all are here, the blocking call takes no time
    shared_value: T = comm.bcast(value, root)
    return shared_value


def sleeping_gather(comm: MPI.Intracomm, value: T, root: int = 0) -> list[T] | None:
    """Return every rank's small Python object in order of rank on ``root``; None elsewhere."""
    sleeping_barrier(comm, "gather")
    return comm.gather(value, root)
