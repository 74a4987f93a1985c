"""Restart: a source puts back what a killed run has streamed to disk, and goes on from there.

A step's record in the stream's file has the token ids that went into the step, so that the last complete step, whose
new token nobody has written down, is computed again. What was put back is streamed anew, in the file of this run: it
can be resumed in its turn, and is verified like any other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from dejavubench.bench.batchmaker import BatchMaker, Clocked, Streamed
from dejavubench.bench.side import Side
from dejavubench.config.interrupted import Interrupted
from dejavubench.dejavulib.destinations.base import StreamingError
from dejavubench.dejavulib.destinations.disk import streamfile
from dejavubench.dejavulib.destinations.disk.savedstream import Restored, SavedStream
from dejavubench.dejavulib.kvcache import KVCache
from dejavubench.errors import UsageError


def open_saved(side: Side, interrupted: Interrupted, identity: dict[str, str]) -> list[SavedStream]:
    """The files of this source, one a microbatch.

    Raises:
        UsageError: one of them cannot be gone on with, as :class:`SavedStream` says.
    """
    name = interrupted.stream_name(side.topology.rank)
    try:
        return [
            SavedStream(
                interrupted.stream_dir / streamfile.file_name(name, stream.id), stream, identity
            )
            for (stream,) in side.local()
        ]
    except StreamingError as error:
        raise UsageError(f"resume: {error}") from None


@dataclass
class PutBack:
    """What one source has put back of all its microbatches.

    Attributes:
        ms: what reading, checking and scattering took.
    """

    restored: list[Restored]
    nbytes: int
    ms: float

    @property
    def steps(self) -> int:
        """Steps that all its microbatches have."""
        return min(each.steps for each in self.restored)

    @property
    def wrong(self) -> list[str]:
        return [each.wrong for each in self.restored if each.wrong is not None]

    def tokens(self, steps: int) -> list[list[torch.Tensor]]:
        """For each microbatch the new tokens [B] of the first ``steps`` steps: what went into the one after each."""
        return [
            [
                torch.from_numpy(each.tokens[step + 1][:, 0].astype(np.int64))
                for step in range(steps)
            ]
            for each in self.restored
        ]


def put_back(files: list[SavedStream], caches: list[KVCache], embeds: bool) -> PutBack:
    """Put back all that is good; ``embeds``: this stage needs the token ids as well."""
    began = time.perf_counter()
    restored = [file.restore(cache) for file, cache in zip(files, caches, strict=True)]
    if embeds:
        for file, each in zip(files, restored, strict=True):
            _only_known(each, file)
    nbytes = sum(
        sum(map(file.schedule.step_nbytes, range(r.steps)))
        for file, r in zip(files, restored, strict=True)
    )
    return PutBack(restored, nbytes, (time.perf_counter() - began) * 1e3)


def _only_known(restored: Restored, file: SavedStream) -> None:
    """Give up the steps from the first one on whose token ids are not in the file."""
    unknown = next((step for step, ids in enumerate(restored.tokens) if (ids < 0).any()), None)
    if unknown is not None:
        restored.wrong = (
            f"{file.path}: token ids of step {unknown} are not in it; {unknown} steps are good"
        )
        del restored.tokens[unknown:]


@dataclass(frozen=True)
class Resumed:
    """The rest of an iteration on one source.

    Attributes:
        clocks: of the microbatches; their tokens begin with those that were known.
        again_ms: what handing over to this run's stream took of what was put back.
    """

    clocks: list[Clocked]
    again_ms: float


def go_on(
    maker: BatchMaker,
    streams: list[Streamed],
    layers: int,
    known: list[list[torch.Tensor]],
    first: int,
    mark: Callable[[str], None],
) -> Resumed:
    """Stream what was put back, then take every microbatch from decode step ``first`` to its end.

    Args:
        layers: of this worker.
        known: for each microbatch the tokens [B] of the steps before, on stages that embed them.
    """
    clocks = [Clocked(tokens=list(tokens)) for tokens in known]
    mark("stream again")
    began = time.perf_counter()
    for stream, tokens in zip(streams, known, strict=True):
        for layer in range(layers):
            stream.layer_ready(layer)
        for step in range(first):
            stream.step_ready(step, tokens[step - 1].numpy() if step and tokens else None)
    again_ms = (time.perf_counter() - began) * 1e3
    mark("tokens")
    maker.go_on(clocks, streams, first, maker.output_len)
    mark("drain")
    maker.drain(clocks, streams)
    return Resumed(clocks, again_ms)
