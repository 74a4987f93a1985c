"""A bare source and sink of nixl; test_nixl.py runs this under mpirun.

Rank 0 prints how far it gets while the sink takes nothing, that all arrives afterwards, how it
refuses a remote buffer of another size, and the CPU time of both processes while they sleep.
"""

from __future__ import annotations

import time

import torch
from mpi4py import MPI

from dejavubench.dejavulib.destinations.base import Stream, StreamingError
from dejavubench.dejavulib.destinations.nixl import NIXLDestination, NIXLSinkEndpoint
from dejavubench.dejavulib.kv_cache import KVGeometry
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.packing import staging
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.dejavulib.waiting import wait_asleep

CHUNKS, SLOTS = 5, 2
GEOMETRY = KVGeometry(layers=CHUNKS, requests=2, heads=2, positions=64, head_size=16, itemsize=4)
SCHEDULE = StreamSchedule(
    GEOMETRY,
    GEOMETRY.whole,
    input_len=GEOMETRY.positions,
    steps=0,
    slot_nbytes=GEOMETRY.nbytes // CHUNKS,
)
WHOLE = SCHEDULE.layer_nbytes(0)
DEAF_S, ASLEEP_S = 0.5, 1.0


def send(comm: MPI.Intracomm) -> list[str]:
    slots = staging(WHOLE, CHUNKS)
    destination = NIXLDestination(comm, [1], slots)
    stream = Stream(id=0, schedule=SCHEDULE, peer=1)
    chunks = list(SCHEDULE.all_chunks(LEVELS["2"]))
    destination.begin(stream)
    for chunk in chunks:
        destination.flush(stream, chunk, slots[chunk.index].fill_(1 + chunk.index))
    until = time.monotonic() + DEAF_S
    while time.monotonic() < until:
        complete = destination.poll_completed(stream)
    begun = sum(
        extent.write is not None or extent.is_written
        for extent in destination._under_way[stream.key]
    )
    lines = [f"{begun} of {CHUNKS} begun, {complete} complete"]
    comm.Barrier()
    wait_asleep(lambda: destination.poll_completed(stream) == CHUNKS, "all chunks", 30.0)
    lines.append(f"all {CHUNKS} complete")
    destination.begin(stream)
    try:
        destination.flush(stream, chunks[0], slots[0])
        wait_asleep(lambda: destination.poll_completed(stream) == 1, "a refusal", 30.0)
    except StreamingError as error:
        text = f"rank 1 has a buffer of {WHOLE // 2} bytes for a chunk of {WHOLE}"
        assert text in str(error), error  # noqa: PT017
        lines.append("refused")
    if not any(comm.allgather(is_busy())):
        lines.append("idle")
    destination.close()
    return lines


def receive(comm: MPI.Intracomm) -> None:
    slots = staging(WHOLE, SLOTS)
    endpoint = NIXLSinkEndpoint(comm, [0], slots)
    stream = Stream(id=0, schedule=SCHEDULE, peer=0)
    posted = [endpoint.receive(stream, slot) for slot in slots]
    until = time.monotonic() + DEAF_S
    while time.monotonic() < until:
        endpoint.agent.advance()  # what it lets move is not taken
    comm.Barrier()
    for number in range(CHUNKS):
        wait_asleep(posted[number].poll, "a chunk", 30.0)
        slot = slots[number % SLOTS]
        assert torch.equal(slot, torch.full_like(slot, 1 + number))
        endpoint.acknowledge(stream)
        if number + SLOTS < CHUNKS:
            posted.append(endpoint.receive(stream, slot))
    endpoint.receive(stream, slots[0][: WHOLE // 2])
    endpoint.finish()
    comm.allgather(is_busy())
    endpoint.close()


def is_busy() -> bool:
    """Return True if this process uses more than a tenth of a core while it sleeps."""
    used = time.process_time()
    time.sleep(ASLEEP_S)
    return time.process_time() - used > ASLEEP_S / 10


if __name__ == "__main__":
    torch.set_num_threads(1)
    world = MPI.COMM_WORLD
    if world.rank == 0:
        print("\n".join(send(world)))
    else:
        receive(world)
