"""From the times of chunks to the numbers of a round that a prediction needs."""

from __future__ import annotations

import pytest

from dejavubench.analysis.prediction.chunk_rounds import ChunkRounds, PhaseShape, add_round
from dejavubench.records import ChunkList, ChunkTimes, ListedChunk

MS = 1_000_000
"""Nanoseconds of a millisecond."""


def rounds_of(ready_ms: list[int], complete_ms: list[int]) -> ChunkRounds:
    """Return the numbers of one round of a prompt without steps, from stamps of its chunks."""
    chunks = [
        ListedChunk(phase="prompt", step=0, layer=layer, layers=1, nbytes=8, extents=1)
        for layer in range(len(ready_ms))
    ]
    listed = ChunkList(
        point="p000", arm="mpi@2", ubatch=0, prompt_parts=[], token_parts=[], chunks=chunks
    )
    ready = [MS * time for time in ready_ms]
    times = ChunkTimes(
        point="p000",
        arm="mpi@2",
        round=1,
        iteration=1,
        ubatch=0,
        began_ns=0,
        ready=ready,
        begun=ready,
        gathered=ready,
        posted=ready,
        complete=[MS * time for time in complete_ms],
    )
    rounds = ChunkRounds(PhaseShape(nbytes=8, extent_count=1), None, from_device=False)
    add_round(rounds, 1, listed, times)
    return rounds


def test_a_layer_is_ready_early_by_what_the_first_layer_lacks() -> None:
    """Layers are 12 ms apart and the first is ready after 4: attention and MLP take the other 8."""
    rounds = rounds_of([4, 16, 28], [10, 22, 40])
    assert rounds.layer_lead_share[1] == pytest.approx(8 / 12)
    assert rounds.tail_ms[1] == 12
    # The prompt's compute ends at 28 + 8 ms.
    assert rounds.prompt_stall_ms[1] == pytest.approx(40 - 36)


def test_nobody_waits_for_a_layer_that_is_there_before_the_compute_ends() -> None:
    assert rounds_of([4, 16, 28], [10, 22, 30]).prompt_stall_ms[1] == 0


def test_without_layers_of_their_own_the_wait_is_the_tail() -> None:
    """At level 1 all chunks are ready at once, when the prompt ends."""
    rounds = rounds_of([36, 36], [40, 47])
    assert rounds.layer_lead_share == {}
    assert rounds.prompt_stall_ms[1] == rounds.tail_ms[1] == 11


def test_a_slow_start_hides_how_early_layers_are() -> None:
    """A device begins late: the first layer is ready after more than its share."""
    rounds = rounds_of([9, 12, 15], [10, 14, 20])
    assert rounds.layer_lead_share[1] == 0
    assert rounds.prompt_stall_ms[1] == 5
