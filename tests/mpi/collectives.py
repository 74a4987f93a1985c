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

LATE_S = 1.0
"""Time by which rank 0 is late, which the other ranks sleep through."""


def check_sums_and_gathers(mpi: MPICollectives, topology: Topology) -> None:
    own_rank = topology.tensor_rank
    size = topology.tensor_size
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for shape in ((3, 5), (1,), (2, 3, 4)):
            base = torch.arange(torch.Size(shape).numel()).view(shape)
            tensor = (base + own_rank).to(dtype)
            total = mpi.all_reduce(tensor)
            assert total.dtype == dtype
            assert torch.equal(total, (base * size + sum(range(size))).to(dtype))
            gathered = mpi.all_gather((base + own_rank).to(dtype))
            assert torch.equal(
                gathered, torch.stack([(base + rank).to(dtype) for rank in range(size)])
            )
    # 1 + 2⁻⁹ + 2⁻⁹ is 1 when each sum is rounded to bf16, but not when the sum is made in fp32.
    parts = [1.0, 2**-9, 2**-9 + 2**-8, 0.0]
    total = mpi.all_reduce(torch.tensor([parts[own_rank]], dtype=torch.bfloat16))
    assert total.item() == torch.tensor(sum(parts[:size])).bfloat16().item()
    transposed = torch.arange(6.0).view(2, 3).t()  # not contiguous
    assert torch.equal(
        mpi.all_reduce(transposed.clone(memory_format=torch.preserve_format)), transposed * size
    )
    assert torch.equal(mpi.all_gather(transposed)[-1], transposed)
    with torch.inference_mode():
        assert torch.equal(mpi.all_reduce(torch.ones(4)), torch.full((4,), float(size)))


def check_sends_to_next_stage(mpi: MPICollectives, topology: Topology) -> None:
    """Send several microbatches at once and take them out of order; too large for eager sends."""
    shape = (2, 300, 512)
    microbatches = 4

    def hidden(stage: int, microbatch: int) -> torch.Tensor:
        return torch.full(
            shape, 100.0 * stage + 10 * microbatch + topology.tensor_rank, dtype=torch.bfloat16
        )

    if topology.stage < topology.stage_count - 1:
        for microbatch in range(microbatches):
            mpi.send_hidden(hidden(topology.stage, microbatch), microbatch)
    if topology.stage > 0:
        for microbatch in reversed(range(microbatches)):
            received = mpi.recv_hidden(shape, torch.bfloat16, microbatch)
            assert torch.equal(received, hidden(topology.stage - 1, microbatch))
    for microbatch in range(microbatches):
        tokens = torch.tensor([microbatch, topology.tensor_rank, 2**40])
        if topology.stage == topology.stage_count - 1:
            mpi.send_tokens(tokens, microbatch)
        if topology.stage == 0:
            assert torch.equal(mpi.recv_tokens(3, microbatch), tokens)
    mpi.finish()


def check_sleeping_collectives(world: MPI.Intracomm) -> None:
    assert sleeping_bcast(world, {"a": world.rank}, root=1) == {"a": 1}
    gathered = sleeping_gather(world, world.rank * "x", root=2)
    assert gathered == (["", "x", "xx", "xxx"] if world.rank == 2 else None)


def check_that_a_barrier_sleeps(world: MPI.Intracomm) -> None:
    cpu_s_before = time.process_time()
    if world.rank == 0:
        time.sleep(LATE_S)
    sleeping_barrier(world)
    cpu_s = time.process_time() - cpu_s_before
    assert cpu_s < LATE_S / 2, f"rank {world.rank} used {cpu_s:.2f} s while rank 0 slept {LATE_S} s"


def check_that_a_barrier_has_a_deadline(world: MPI.Intracomm) -> None:
    barrier_comm = world.Dup()
    if world.rank != 0:
        try:
            sleeping_barrier(barrier_comm, "rank 0's arrival", timeout_s=0.05)
        except DeadlineError as error:
            assert "rank 0's arrival" in str(error)  # noqa: PT017
        else:
            raise AssertionError("the barrier opened although rank 0 was not there")
    world.Barrier()
    if world.rank == 0:
        sleeping_barrier(barrier_comm)  # the others' part of it is still under way


def check_wrong_communicator(world: MPI.Intracomm) -> None:
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
            topology = Topology(world.size, world.rank, tensor_size, stages)
            mpi = MPICollectives(world, topology, spin)
            check_sums_and_gathers(mpi, topology)
            check_sends_to_next_stage(mpi, topology)
            mpi.close()
    check_sleeping_collectives(world)
    check_that_a_barrier_sleeps(world)
    check_that_a_barrier_has_a_deadline(world)
    check_wrong_communicator(world)
    sleeping_barrier(world)
    if world.rank == 0:
        print("all well")


if __name__ == "__main__":
    main()
