"""NCCL between the ranks of an MPI communicator: the one wrapper that the collectives and the destination share.

cupy brings the calls, torch the tensors and streams; neither is imported before somebody asks for NCCL. cupy offers no
non-blocking initialisation, so communicators are made in a thread that can be given up (:data:`MAKING`).
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from mpi4py import MPI
from torch import Tensor

MAKING = 60.0
"""Seconds within which the other ranks must come to the making of a communicator."""

MULTI_RANK = 23000
"""The first version of NCCL that lets two ranks share one GPU when told to."""

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
_UINT8, _SUM = 1, 0


class NCCLError(Exception):
    """NCCL could not be set up, or went wrong; the message says between which ranks."""


# ---- several ranks on one card ----


class SharedCardError(Exception):
    """Ranks share a card, which NCCL refuses; the message names them."""


class Card(NamedTuple):
    """A physical GPU, or an instance of one: equal on two ranks if it is the same."""

    host: str
    uuid: str


@dataclass(frozen=True)
class Loopback:
    """How NCCL was made to work between ranks of one card: what a record and a label need.

    Attributes:
        way: ``multi-rank`` (NCCL ≥ 2.30: peer memory) or ``fake hosts`` (sockets).
        version: of NCCL, as its own number.
        ranks: the groups of ranks that share a card.
        variables: what was set in this rank's environment.
    """

    way: Literal["multi-rank", "fake hosts"]
    version: int
    ranks: list[list[int]]
    variables: dict[str, str]


def card_of(device: torch.device) -> Card:
    return Card(socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid))


def sharing(cards: Sequence[Card]) -> list[list[int]]:
    """The groups of ranks, by position in ``cards``, that share a card; empty if each has its own."""
    ranks: dict[Card, list[int]] = defaultdict(list)
    for rank, card in enumerate(cards):
        ranks[card].append(rank)
    return [group for group in ranks.values() if len(group) > 1]


def prepare_cards(
    comm: MPI.Intracomm, card: Card, loopback: bool, version: Callable[[], int] | None = None
) -> Loopback | None:
    """Look whether ranks share cards and, if they may, tell NCCL so. Collective; before NCCL is initialised.

    Args:
        card: this rank's, see :func:`card_of`.
        loopback: ranks may share a card.
        version: NCCL's; asked for only if it matters.

    Returns:
        How it is made to work; None if each rank has a card of its own.

    Raises:
        SharedCardError: on every rank: some share a card although they may not.
    """
    cards = comm.allgather(card)
    groups = sharing(cards)
    if not groups:
        return None
    if not loopback:
        raise SharedCardError(
            "; ".join(
                f"ranks {_listed(group)} share one GPU ({cards[group[0]].uuid})" for group in groups
            )
            + ": NCCL needs a GPU for each rank, or --nccl-loopback, which labels every result as loopback on one GPU"
        )
    lowest = min(comm.allgather((version or nccl_version)()))
    one_host = len({card.host for card in cards}) == 1
    way, variables = _loopback_variables(lowest, comm.rank, one_host)
    os.environ.update(variables)
    return Loopback(way, lowest, groups, variables)


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:-1])) + f" and {ranks[-1]}"


def _loopback_variables(
    version: int, rank: int, one_host: bool
) -> tuple[Literal["multi-rank", "fake hosts"], dict[str, str]]:
    """What makes ranks of one card work and makes it fast; what the user has tuned otherwise stays."""
    if version >= MULTI_RANK:
        tuned = {
            "NCCL_BUFFSIZE": str(32 << 20),
            "NCCL_P2P_NVL_CHUNKSIZE": str(4 << 20),
            "NCCL_P2P_PCI_CHUNKSIZE": str(4 << 20),
        }
        return "multi-rank", {**_unset(tuned), "NCCL_MULTI_RANK_GPU_ENABLE": "1"}
    tuned = {
        "NCCL_MAX_P2P_NCHANNELS": "1",  # two are no faster by sockets, and take twice the room from the model
        "NCCL_IB_DISABLE": "1",
        "NCCL_SOCKET_NTHREADS": "8",
        "NCCL_NSOCKS_PERTHREAD": "4",
        "NCCL_BUFFSIZE": str(32 << 20),
        "NCCL_P2P_NET_CHUNKSIZE": str(4 << 20),
        **({"NCCL_SOCKET_IFNAME": "lo"} if one_host else {}),
    }
    return "fake hosts", {**_unset(tuned), "NCCL_HOSTID": f"fakehost{rank}"}


def _unset(variables: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name not in os.environ}


def mps_running(timeout: float = 5.0) -> bool:
    """Whether CUDA's Multi-Process Service answers, without which ranks of one card are time-sliced."""
    pipes = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    if not (pipes / "control").exists():
        return False
    try:
        asked = subprocess.run(
            ["nvidia-cuda-mps-control"],
            input="get_server_list\n",
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


# ---- communicators ----


def nccl_version() -> int:
    """NCCL's own number of the version that is loaded, such as 22809.

    Raises:
        NCCLError: cupy, or its NCCL, is not there.
    """
    return int(_nccl().get_version())


def _nccl() -> Any:
    try:
        from cupy.cuda import nccl
    except ImportError as error:
        raise NCCLError(f"cupy is not there: {error}") from None
    if not nccl.available:
        raise NCCLError("cupy finds no NCCL")
    return nccl


class NCCLCommunicator:
    """One NCCL communicator of the ranks of ``comm``. Making one is collective; so is :meth:`close`.

    Whatever is sent, received or summed is issued on a stream and has not happened when a method returns. Ranks must
    issue what belongs together in the same order.

    Args:
        comm: brings the ranks together; not used after that.
        device: this rank's, whose only user in this communicator it is.
        timeout: seconds in which the others must come.

    Raises:
        NCCLError: NCCL is not there or refuses, or the others did not come.
    """

    def __init__(self, comm: MPI.Intracomm, device: torch.device, timeout: float = MAKING) -> None:
        self.device = device
        self.size, self.rank = comm.size, comm.rank
        id = None
        error = ""
        try:
            id = _nccl().get_unique_id() if comm.rank == 0 else None
            self._nccl = _nccl()
        except (NCCLError, RuntimeError) as mistake:
            error = str(mistake)
        failed = [f"rank {rank}: {said}" for rank, said in enumerate(comm.allgather(error)) if said]
        if failed:
            raise NCCLError("; ".join(failed))
        id = comm.bcast(id)

        def make() -> Any:
            torch.cuda.set_device(device)
            return self._nccl.NcclCommunicator(comm.size, id, comm.rank)

        self._comm = within(timeout, make, f"an NCCL communicator of {comm.size} ranks")

    # ---- what is moved: contiguous tensors on this device ----

    def send(self, x: Tensor, peer: int, stream: torch.cuda.Stream | None = None) -> None:
        self.send_bytes(x.data_ptr(), x.numel() * x.element_size(), peer, self._handle(stream))

    def recv(self, x: Tensor, peer: int, stream: torch.cuda.Stream | None = None) -> None:
        self.recv_bytes(x.data_ptr(), x.numel() * x.element_size(), peer, self._handle(stream))

    def send_bytes(self, address: int, nbytes: int, peer: int, stream: int) -> None:
        """``stream``: CUDA's own handle."""
        self._comm.send(address, nbytes, _UINT8, peer, stream)

    def recv_bytes(self, address: int, nbytes: int, peer: int, stream: int) -> None:
        self._comm.recv(address, nbytes, _UINT8, peer, stream)

    def all_reduce(self, x: Tensor, stream: torch.cuda.Stream | None = None) -> None:
        """The sum over all ranks, in place, in the tensor's own type."""
        address = x.data_ptr()
        self._comm.allReduce(
            address, address, x.numel(), _TYPES[x.dtype], _SUM, self._handle(stream)
        )

    def all_gather(
        self, x: Tensor, everyone: Tensor, stream: torch.cuda.Stream | None = None
    ) -> None:
        """Everyone's ``x`` into ``everyone`` [size, *x.shape], in order of ranks."""
        nbytes = x.numel() * x.element_size()
        self._comm.allGather(
            x.data_ptr(), everyone.data_ptr(), nbytes, _UINT8, self._handle(stream)
        )

    @contextmanager
    def group(self) -> Iterator[None]:
        """What is issued inside becomes one operation."""
        self._nccl.groupStart()
        try:
            yield
        finally:
            self._nccl.groupEnd()

    def _handle(self, stream: torch.cuda.Stream | None) -> int:
        return (stream or torch.cuda.current_stream(self.device)).cuda_stream

    # ---- its end ----

    def check(self) -> None:
        """Raises NCCLError if something that was issued has failed since."""
        try:
            self._comm.check_async_error()
        except RuntimeError as error:
            raise NCCLError(
                f"rank {self.rank} of an NCCL communicator of {self.size}: {error}"
            ) from error

    def abort(self) -> None:
        """Give up what is under way, so that no kernel waits for a rank that is gone; from any thread."""
        self._comm.abort()

    def close(self) -> None:
        """Give the communicator back; what was issued must be complete."""
        self._comm.destroy()


def within(timeout: float, make: Callable[[], Any], what: str) -> Any:
    """What ``make`` gives, called in a thread of its own that is left behind after ``timeout`` seconds.

    Raises:
        NCCLError: it did not come in time, or NCCL refused.
    """
    made: list[Any] = []
    failed: list[Exception] = []

    def work() -> None:
        try:
            made.append(make())
        except Exception as error:  # noqa: BLE001 - raised below, in the thread that asked
            failed.append(error)

    thread = threading.Thread(target=work, name="nccl-make", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise NCCLError(f"{what}: not all ranks came within {timeout:g} s")
    if failed:
        raise NCCLError(f"{what}: {failed[0]}") from failed[0]
    return made[0]


# ---- pairs of ranks ----


class NCCLPair:
    """Two ranks' way to each other: a communicator and a stream of their own.

    One side sends and the other receives, in the same order. What the destination and its sink see of NCCL.

    Args:
        communicator: of the two ranks.
        sends: this side's part.

    Attributes:
        stream: where what is sent or received is issued.
    """

    def __init__(self, communicator: NCCLCommunicator, sends: bool) -> None:
        self._communicator = communicator
        self._other = 1 - communicator.rank
        self.stream = torch.cuda.Stream(communicator.device)
        self._handle = self.stream.cuda_stream
        self._beside = torch.cuda.Stream(communicator.device)
        self._connect(sends)

    def _connect(self, sends: bool) -> None:
        """Move one byte: the first message connects, and waits on the host for the other side to do the same."""

        def meet() -> None:
            torch.cuda.set_device(self._communicator.device)
            self.stream.wait_stream(torch.cuda.current_stream())
            (self._communicator.send if sends else self._communicator.recv)(
                byte, self._other, self.stream
            )
            self.stream.synchronize()

        with torch.cuda.device(self._communicator.device):
            byte = torch.zeros(1, dtype=torch.uint8, device=self._communicator.device)
            torch.cuda.current_stream().synchronize()
        within(MAKING, meet, "the first message between two ranks by NCCL")

    def send(self, address: int, nbytes: int) -> None:
        self._communicator.send_bytes(address, nbytes, self._other, self._handle)

    def recv(self, address: int, nbytes: int) -> None:
        self._communicator.recv_bytes(address, nbytes, self._other, self._handle)

    def group(self) -> AbstractContextManager[None]:
        return self._communicator.group()

    def filled(self) -> torch.cuda.Event:
        """What has been issued so far on torch's current stream."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._communicator.device))
        return event

    def after(self, event: torch.cuda.Event) -> None:
        """What is issued from now on begins after that."""
        self.stream.wait_event(event)

    def beside(self) -> AbstractContextManager[Any]:
        """Inside, torch's current stream is one beside the pair's, where everything received so far is there."""
        self._beside.wait_event(self.mark())
        return torch.cuda.stream(self._beside)

    def mark(self) -> torch.cuda.Event:
        """Complete (``query()``) when everything issued so far is."""
        event = torch.cuda.Event()
        event.record(self.stream)
        return event

    def synchronize(self) -> None:
        """Wait until everything issued is complete; :meth:`abort` ends the wait."""
        self.stream.synchronize()

    def check(self) -> None:
        self._communicator.check()

    def abort(self) -> None:
        self._communicator.abort()

    def close(self) -> None:
        self._communicator.close()


def connect_pairs(
    comm: MPI.Intracomm,
    pairs: Sequence[tuple[int, int]],
    device: torch.device,
    timeout: float = MAKING,
) -> dict[int, NCCLPair]:
    """This rank's pairs, by the rank at the other end. Collective over the ranks in ``pairs``, which all know them all.

    Args:
        comm: in whose ranks ``pairs`` are named.
        pairs: (sending rank, receiving rank), any number a rank.
    """
    mine: dict[int, NCCLPair] = {}
    for number, (source, sink) in enumerate(
        sorted(pairs)
    ):  # one order for all ranks: nobody waits in a circle
        if comm.rank not in (source, sink):
            continue
        both = comm.Create_group(comm.Get_group().Incl([source, sink]), tag=number)
        other = sink if comm.rank == source else source
        mine[other] = NCCLPair(NCCLCommunicator(both, device, timeout), sends=comm.rank == source)
        both.Free()
    return mine
