"""The mpi destination between real ranks: every byte in all layouts and levels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.destinations.mpi import MPISinkEndpoint
from helpers.fake_destination import WHOLE_LAYERS, schedule_of, small_geometry
from helpers.jobs import run
from helpers.paths import DRIVERS

WORKER = ("-m", "mpi4py", str(DRIVERS / "stream_worker.py"))


def stream_variants(folder: Path, ranks: int, *variants: str) -> None:
    """Run variants (see the worker) in one job, which checks every byte and counts messages."""
    lines = run(folder, ranks, *variants, driver=WORKER).stdout.splitlines()
    for variant, line in zip(variants, lines, strict=True):
        assert re.fullmatch(re.escape(variant.replace(",", " ")) + r": [1-9]\d* messages", line), (
            lines
        )


@pytest.mark.mpi
def test_every_byte_arrives_from_one_source_at_one_sink(tmp_path: Path) -> None:
    stream_variants(tmp_path, 2, "1,layers,3,3")


@pytest.mark.mpi
def test_data_of_several_ranks_does_not_mix(tmp_path: Path) -> None:
    """Two sources and one sink, or the reverse; stages or tensor ranks; other batch sizes."""
    stream_variants(tmp_path, 3, "2,layers,3,3", "1,layers,2,3", "2,heads,3,2")


class RequestInPieces:
    """A request of which each test moves one piece on."""

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces

    def Test(self) -> bool:  # noqa: N802 - the name is MPI's
        self.pieces -= 1
        return self.pieces <= 0


class CommInPieces:
    """A communicator whose messages come in five pieces."""

    def Irecv(self, *_message: object) -> RequestInPieces:  # noqa: N802 - the name is MPI's
        return RequestInPieces(5)


def test_one_look_takes_all_pieces_of_a_chunk() -> None:
    """Between two looks the sink sleeps, so a piece per look would cost a nap per piece."""
    comm: Any = CommInPieces()
    stream = Stream(id=0, schedule=schedule_of(small_geometry(), WHOLE_LAYERS), peer=1)
    packed = torch.zeros(8, dtype=torch.uint8)
    scattered: list[torch.Tensor] = []
    receive = MPISinkEndpoint(comm).receive(stream, packed, scattered.append)
    assert receive.poll()
    assert scattered == [packed]
