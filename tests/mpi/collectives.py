"""Test each collective on 4 ranks; test_parallel.py runs this under mpirun."""

from __future__ import annotations

import time

import torch
from mpi4py import MPI

from dejavubench.dejavulib.waiting import DeadlineError
from dejavubench.parallel.collectives import (
    MPICollectives,
    sleeping_barrier,
    sleeping_bcast,
    sleeping_gather,
)
from dejavubench.parallel.topology import Topology


def sums_and_gathers(mpi: MPICollectives, place: Topology) -> None:
    mine, size = place.tensor_rank, place.tensor_size
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for shape in ((3, 5), (1,), (2, 3, 4)):
            base = torch.arange(torch.Size(shape).numel()).view(shape)
            x = (base + mine).to(dtype)
            total = mpi.all_reduce(x)
            assert total.dtype == dtype
            assert torch.equal(total, (base * size + sum(range(size))).to(dtype))
            gathered = mpi.all_gather((base + mine).to(dtype))
            assert torch.equal(
                gathered, torch.stack([(base + rank).to(dtype) for rank in range(size)])
            )
    # 1 + 2⁻⁹ + 2⁻⁹ is 1 when each sum is rounded to bf16, but not when the sum is made in fp32
    parts = [1.0, 2**-9, 2**-9 + 2**-8, 0.0]
    total = mpi.all_reduce(torch.tensor([parts[mine]], dtype=torch.bfloat16))
    assert total.item() == torch.tensor(sum(parts[:size])).bfloat16().item()
    turned = torch.arange(6.0).view(2, 3).t()  # not contiguous
    assert torch.equal(
        mpi.all_reduce(turned.clone(memory_format=torch.preserve_format)), turned * size
    )
    assert torch.equal(mpi.all_gather(turned)[-1], turned)
    with torch.inference_mode():
        assert torch.equal(mpi.all_reduce(torch.ones(4)), torch.full((4,), float(size)))


def send_to_next_stage(mpi: MPICollectives, place: Topology) -> None:
    """Send several microbatches at once and take them out of order; too large for eager sends."""
    shape, microbatches = (2, 300, 512), 4

    def hidden(stage: int, microbatch: int) -> torch.Tensor:
        return torch.full(
            shape, 100.0 * stage + 10 * microbatch + place.tensor_rank, dtype=torch.bfloat16
        )

    if place.stage < place.stages - 1:
        for microbatch in range(microbatches):
            mpi.send_hidden(hidden(place.stage, microbatch), microbatch)
    if place.stage > 0:
        for microbatch in reversed(range(microbatches)):
            got = mpi.recv_hidden(shape, torch.bfloat16, microbatch)
            assert torch.equal(got, hidden(place.stage - 1, microbatch))
    for microbatch in range(microbatches):
        tokens = torch.tensor([microbatch, place.tensor_rank, 2**40])
        if place.stage == place.stages - 1:
            mpi.send_tokens(tokens, microbatch)
        if place.stage == 0:
            assert torch.equal(mpi.recv_tokens(3, microbatch), tokens)
    mpi.finish()


def politeness(world: MPI.Intracomm) -> None:
    assert sleeping_bcast(world, {"a": world.rank}, root=1) == {"a": 1}
    gathered = sleeping_gather(world, world.rank * "x", root=2)
    assert gathered == (["", "x", "xx", "xxx"] if world.rank == 2 else None)
    used = time.process_time()
    if world.rank == 0:
        time.sleep(1.0)
    sleeping_barrier(world)
    burnt = time.process_time() - used
    assert burnt < 0.5, f"rank {world.rank} burnt {burnt:.2f} s of the second that rank 0 slept"
    late = world.Dup()
    if world.rank != 0:
        try:
            sleeping_barrier(late, "rank 0's arrival", timeout=0.05)
        except DeadlineError as error:
            assert "rank 0's arrival" in str(error)  # noqa: PT017
        else:
            raise AssertionError("the barrier opened although rank 0 was not there")
    world.Barrier()
    if world.rank == 0:
        sleeping_barrier(late)  # the others' part of it is still under way


def wrong_communicator(world: MPI.Intracomm) -> None:
    try:
        MPICollectives(MPI.COMM_SELF, Topology(world.size, world.rank, world.size), spin=True)
    except ValueError as error:
        assert f"worker {world.rank} of 4" in str(error)  # noqa: PT017
    else:
        raise AssertionError("a communicator of one rank was taken for that of four")


def main() -> None:
    torch.set_num_threads(1)
    world = MPI.COMM_WORLD
    for tensor_size, stages in ((4, 1), (2, 2), (1, 4)):
        for spin in (True, False):
            place = Topology(world.size, world.rank, tensor_size, stages)
            mpi = MPICollectives(world, place, spin)
            sums_and_gathers(mpi, place)
            send_to_next_stage(mpi, place)
            mpi.close()
    politeness(world)
    wrong_communicator(world)
    sleeping_barrier(world)
    if world.rank == 0:
        print("all well")


if __name__ == "__main__":
    main()
