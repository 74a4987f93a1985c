"""Check collectives with one GPU per rank, for test_nccl.py: arguments TENSOR_SIZE STAGES."""

from __future__ import annotations

import sys

import torch
from mpi4py import MPI
from nccl_pair import one_device_each

from dejavubench.parallel.collectives import sleeping_barrier
from dejavubench.parallel.nccl_collectives import NCCLCollectives
from dejavubench.parallel.shared_gpus import gpu_of, prepare_gpus
from dejavubench.parallel.topology import Topology


def sums_and_gathers(nccl: NCCLCollectives, place: Topology, device: torch.device) -> None:
    mine, size = place.tensor_rank, place.tensor_size
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for shape in ((3, 5), (1,), (2, 300, 512)):
            base = (torch.arange(torch.Size(shape).numel(), device=device) % 50).view(shape)
            x = (base + mine).to(dtype)
            total = nccl.all_reduce(x)
            assert total is x, "in place"
            assert torch.equal(total, (base * size + sum(range(size))).to(dtype))
            gathered = nccl.all_gather((base + mine).to(dtype))
            assert torch.equal(
                gathered, torch.stack([(base + rank).to(dtype) for rank in range(size)])
            )


def check_captured_graph(nccl: NCCLCollectives, place: Topology, device: torch.device) -> None:
    """Replay a sum and a gather of a CUDA graph with other data, without synchronising between."""
    x = torch.zeros(8, 4096, dtype=torch.float16, device=device)
    nccl.all_gather(nccl.all_reduce(x + 1))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total = nccl.all_reduce(x + place.tensor_rank)
        everyone = nccl.all_gather(total * (1 + place.tensor_rank))
    size = place.tensor_size
    for value in range(5):
        x.fill_(value)
        graph.replay()
        expected = size * value + sum(range(size))
        assert (total == expected).all()
        for rank in range(size):
            assert (everyone[rank] == expected * (1 + rank)).all()


def send_to_next_stage(nccl: NCCLCollectives, place: Topology, device: torch.device) -> None:
    """Several microbatches on their way at once, and tokens back while the next ones are sent."""
    shape, microbatches = (4, 500, 1024), 4

    def hidden(stage: int, microbatch: int) -> torch.Tensor:
        return torch.full(
            shape, 100.0 * stage + 10 * microbatch, dtype=torch.bfloat16, device=device
        )

    for step in range(3):
        for microbatch in range(microbatches):
            if place.stage > 0:
                got = nccl.recv_hidden(shape, torch.bfloat16, microbatch)
                assert torch.equal(got, hidden(place.stage - 1, microbatch) + step)
            if place.stage < place.stages - 1:
                torch.cuda._sleep(1_000_000)
                nccl.send_hidden(hidden(place.stage, microbatch) + step, microbatch)
            elif place.stages > 1:
                nccl.send_tokens(torch.tensor([microbatch, step, 2**40], device=device), microbatch)
        for microbatch in range(microbatches):
            if place.stage == 0 and place.stages > 1:
                assert nccl.recv_tokens(3, microbatch).tolist() == [microbatch, step, 2**40]
    nccl.finish()


def main(tensor_size: int, stages: int) -> None:
    world = MPI.COMM_WORLD
    device = one_device_each(world, one_gpu=False)
    assert prepare_gpus(world, gpu_of(device), loopback=False) is None
    place = Topology(world.size, world.rank, tensor_size, stages)
    nccl = NCCLCollectives(world, place, True, device)
    sums_and_gathers(nccl, place, device)
    check_captured_graph(nccl, place, device)
    send_to_next_stage(nccl, place, device)
    nccl.close()
    sleeping_barrier(world)
    if world.rank == 0:
        print("all well")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
