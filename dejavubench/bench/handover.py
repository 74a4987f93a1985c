"""Hand-over: sources stop after their first tokens, and sinks go on from the cache that came.

A sink has a part of the model of its own setup. What it needs beside the cache is each request's tokens so far: one
source, the *teller*, tells them to the sinks that embed tokens, and hears from the last stage of the sinks when the
first token of their own is known. Both sides' times are by their own clocks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from mpi4py import MPI

from dejavubench.bench.batchmaker import BatchMaker, Clocked, NoStreaming, Streamed
from dejavubench.bench.prompts import make_prompts
from dejavubench.bench.side import Side
from dejavubench.bench.steps import steps_of
from dejavubench.config.experiment import Experiment
from dejavubench.dejavulib.kvcache import KVCache
from dejavubench.dejavulib.waiting import wait_asleep
from dejavubench.models.gpt import GPT
from dejavubench.parallel.collectives import Collectives
from dejavubench.parallel.topology import Topology

_TOKENS, _GOES_ON = 1, 2  # tags


def teller(topology: Topology) -> int:
    """The rank of the source that knows new tokens first: of the last stage the first."""
    return topology.sources[-topology.tensor_size]


def listeners(topology: Topology) -> range:
    """Ranks of the sinks that embed tokens: those of their first stage."""
    return topology.sinks[: topology.sink_width]


def answerer(topology: Topology) -> int:
    """The rank of the sink that knows new tokens first."""
    return topology.sinks[-topology.sink_width]


class Teller:
    """The source's part; on the sources that are not the teller it does nothing.

    Args:
        comm: of all ranks, for this alone.
    """

    def __init__(self, topology: Topology, comm: MPI.Intracomm) -> None:
        self._topology, self._comm = topology, comm
        self._tells = topology.rank == teller(topology)
        self._leaving: list[MPI.Request] = []

    def tell(self, clocks: list[Clocked]) -> None:
        """All tokens so far of all requests, as soon as they are known."""
        if self._tells:
            tokens = torch.cat(
                [torch.stack(clock.tokens, dim=1) for clock in clocks]
            )  # [requests, tokens]
            ready = np.ascontiguousarray(tokens.numpy())
            self._leaving = [
                self._comm.Isend(ready, rank, _TOKENS) for rank in listeners(self._topology)
            ]

    def heard(self, clocks: list[Clocked]) -> float | None:
        """Milliseconds from the end of the last computation here until a sink's first token was known here."""
        if not self._tells:
            return None
        answer = self._comm.Irecv(bytearray(1), answerer(self._topology), _GOES_ON)
        wait_asleep(answer.Test, "the sinks' first token")
        took = (time.perf_counter() - max(clock.computed for clock in clocks)) * 1e3
        MPI.Request.Waitall(self._leaving)
        return took


@dataclass(frozen=True)
class TakenOver:
    """One iteration on one sink, in milliseconds by its own clock.

    Attributes:
        waited_ms: from the start until the cache was whole and the tokens were known.
        first_ms: from then until every microbatch has its first token, as far as this stage goes.
        rest_ms: of each later step, over all microbatches.
        tokens: new ones [requests, T − k]; empty on stages that do not see them.
    """

    waited_ms: float
    first_ms: float
    rest_ms: list[float]
    tokens: torch.Tensor


class Successor:
    """The sink's part: its model goes on over the caches that its receivers have filled.

    Args:
        model: this sink's part, loaded.
        caches: where the sources' keys and values arrive, one a microbatch.
        comm: as the teller's.
    """

    def __init__(
        self,
        side: Side,
        experiment: Experiment,
        model: GPT,
        collectives: Collectives,
        caches: list[KVCache],
        comm: MPI.Intracomm,
    ) -> None:
        point = side.point
        asked = replace(point, ubatch_size=side.split.ubatch_size)
        self._prompts = make_prompts(
            asked, side.ubatches, experiment.seed, experiment.given_prompts
        )
        steps = steps_of(model, caches, self._prompts, experiment.sampling)
        prompts = [each.tokens for each in self._prompts]
        self._maker = BatchMaker(model, steps, collectives, prompts, point.output_len)
        self._side, self._comm = side, comm
        self._known, self._last = point.generated, point.output_len
        self._silent: list[Streamed] = [NoStreaming() for _ in caches]

    def run(self, began: float) -> TakenOver:
        """Go on to the last token, once this sink's cache is whole; ``began``: when the iteration did."""
        topology = self._side.topology
        clocks = [Clocked() for _ in self._prompts]
        if topology.rank in listeners(topology):
            self._listen(clocks)
        ready = time.perf_counter()
        self._maker.go_on(clocks, self._silent, self._known, self._known + 1)
        first = time.perf_counter()
        if topology.rank == answerer(topology):
            self._comm.Send(bytearray(1), teller(topology), _GOES_ON)
        self._maker.go_on(clocks, self._silent, self._known + 1, self._last)
        rest = np.sum([clock.step_ms[1:] for clock in clocks], axis=0).tolist()
        return TakenOver((ready - began) * 1e3, (first - ready) * 1e3, rest, self._tokens(clocks))

    def _listen(self, clocks: list[Clocked]) -> None:
        """Put the tokens that sources have generated where this stage would have put its own."""
        told = torch.empty(self._side.point.requests, self._known, dtype=torch.long)
        wait_asleep(
            self._comm.Irecv(told.numpy(), teller(self._side.topology), _TOKENS).Test,
            "the sources' tokens",
        )
        for clock, prompts in zip(clocks, self._prompts, strict=True):
            clock.tokens = list(told[prompts.numbers].unbind(1))

    def _tokens(self, clocks: list[Clocked]) -> torch.Tensor:
        new = self._last - self._known
        if len(clocks[0].tokens) < new:
            return torch.empty(0)
        return torch.cat([torch.stack(clock.tokens[-new:], dim=1) for clock in clocks])
