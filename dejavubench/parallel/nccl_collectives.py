"""Tensor- and pipeline-parallel communication of CUDA tensors over NCCL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from mpi4py import MPI
from torch import Tensor

from dejavubench.dejavulib.waiting import wait_asleep
from dejavubench.parallel.collectives import MPICollectives
from dejavubench.parallel.nccl import INIT_TIMEOUT_S, NCCLCommunicator
from dejavubench.parallel.nccl_pairs import NCCLPair, connect_pairs
from dejavubench.parallel.topology import Topology


class NCCLCollectives:
    """Communication of one source with the others on GPUs; see :class:`~.MPICollectives`.

    Sums, gathers and receives go on torch's current stream. A sum or gather can be captured in a
    CUDA graph once one of its size has been made.

    The stages form a chain of communicators, each used in one direction, and each stage has one for
    its sums. Every rank issues on them in the model's order, so that no two ranks wait for each
    other in a circle. New tokens, which alone go back, are sent by MPI: the host waits for them
    anyway.

    Args:
        sources: the communicator of all sources, in order of their ranks.
        topology: this rank's place.
        spin: how the host waits for tokens, see :class:`~.collectives.MPICollectives`.
        device: this rank's.

    Raises:
        ValueError: ``sources`` is not the communicator of this topology's sources.
        NCCLError: NCCL cannot be set up.
    """

    def __init__(
        self,
        sources: MPI.Intracomm,
        topology: Topology,
        spin: bool,
        device: torch.device,
        timeout_s: float = INIT_TIMEOUT_S,
    ) -> None:
        self.topology = topology
        self.device = device
        self._timeout_s = timeout_s
        self._mpi = MPICollectives(sources, topology, spin)
        self._tensor_communicator = (
            self._make_stage_communicator(sources, timeout_s) if topology.tensor_size > 1 else None
        )
        # Each worker is connected with the one of equal tensor rank in the next stage.
        width = topology.tensor_size
        pairs = [(index, index + width) for index in range(topology.source_count - width)]
        neighbours = connect_pairs(sources, pairs, device, timeout_s)
        self._next_pair: NCCLPair | None = neighbours.get(topology.worker_index + width)
        self._previous_pair: NCCLPair | None = neighbours.get(topology.worker_index - width)

    @property
    def spin(self) -> bool:
        """How the host waits for tokens; see :class:`~.collectives.MPICollectives`."""
        return self._mpi.spin

    @spin.setter
    def spin(self, spin: bool) -> None:
        self._mpi.spin = spin

    def _make_stage_communicator(
        self, sources: MPI.Intracomm, timeout_s: float
    ) -> NCCLCommunicator:
        stage_comm = cast(
            MPI.Intracomm, sources.Split(color=self.topology.stage, key=self.topology.tensor_rank)
        )
        try:
            return NCCLCommunicator(stage_comm, self.device, timeout_s)
        finally:
            stage_comm.Free()

    # ---- within a stage ----

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum over the group in x's own type; in place if x is contiguous."""
        if self._tensor_communicator is None:
            return x
        # In its own type, of which half as many bytes move as of fp32.
        total = x.contiguous()
        self._tensor_communicator.all_reduce(total)
        return total

    def all_gather(self, x: Tensor) -> Tensor:
        """Return every rank's ``x``, of one shape and type, as [tensor_size, *x.shape]."""
        if self._tensor_communicator is None:
            return x.unsqueeze(0)
        own_part = x.contiguous()
        all_parts = own_part.new_empty((self.topology.tensor_size, *x.shape))
        self._tensor_communicator.all_gather(own_part, all_parts)
        return all_parts

    # ---- between stages: ranks of equal tensor rank ----

    def send_hidden(self, hidden: Tensor, microbatch: int) -> None:
        """Begin to send ``hidden`` to the next stage, beside the current stream.

        It must not be changed afterwards. Microbatches are received in the order of sending.
        """
        assert self._next_pair is not None, "the last stage has no next one"
        message = hidden.contiguous()
        # The pair's CUDA stream waits for the kernels that compute it; the host waits for nothing.
        self._next_pair.wait_for_mark(self._next_pair.mark_filled())
        self._next_pair.send(message.data_ptr(), message.numel() * message.element_size())
        message.record_stream(self._next_pair.cuda_stream)  # keeps its memory until it is sent

    def recv_hidden(self, shape: Sequence[int], dtype: torch.dtype, microbatch: int) -> Tensor:
        """Return the previous stage's hidden of this microbatch."""
        assert self._previous_pair is not None, "the first stage has no previous one"
        hidden = torch.empty(*shape, dtype=dtype, device=self.device)
        # Kernels that were issued may still read the memory that ``hidden`` was given.
        self._previous_pair.wait_for_mark(self._previous_pair.mark_filled())
        self._previous_pair.recv(hidden.data_ptr(), hidden.numel() * hidden.element_size())
        torch.cuda.current_stream(self.device).wait_event(self._previous_pair.mark())
        return hidden

    def send_tokens(self, tokens: Tensor, microbatch: int) -> None:
        """Begin to send the last stage's new tokens [B] to the first; wait until they are known."""
        self._mpi.send_tokens(tokens.cpu(), microbatch)

    def recv_tokens(self, ubatch_size: int, microbatch: int) -> Tensor:
        """Return this microbatch's new tokens [B] from the last stage, in host memory."""
        return self._mpi.recv_tokens(ubatch_size, microbatch)

    def finish(self) -> None:
        """Wait until every message that was sent has been received.

        Raises:
            DeadlineError: the next stage did not receive a message in time.
        """
        if self._next_pair is not None:
            wait_asleep(
                self._next_pair.mark().query,
                "hidden states on their way to the next stage",
                self._timeout_s,
            )
        self._mpi.finish()

    def abort(self) -> None:
        """End the operations under way, so that no kernel waits for a rank that is gone."""
        for communicator in self._communicators():
            communicator.abort()

    def close(self) -> None:
        """Finish, and free the communicators; collective."""
        self.finish()
        torch.cuda.synchronize(self.device)
        self._mpi.close()
        for communicator in self._communicators():
            communicator.close()

    def _communicators(self) -> list[NCCLCommunicator | NCCLPair]:
        communicators = (self._tensor_communicator, self._previous_pair, self._next_pair)
        return [communicator for communicator in communicators if communicator is not None]
