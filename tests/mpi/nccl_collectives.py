"""Check collectives with one GPU per rank, for test_nccl.py: arguments TENSOR_SIZE STAGES."""

from __future__ import annotations

import sys

import torch
from mpi4py import MPI
from nccl_pair import select_device

from dejavubench.parallel.collectives import sleeping_barrier
from dejavubench.parallel.nccl_collectives import NCCLCollectives
from dejavubench.parallel.shared_gpus import identify_gpu, prepare_gpus
from dejavubench.parallel.topology import Topology


def check_sums_and_gathers(nccl: NCCLCollectives, topology: Topology, device: torch.device) -> None:
    own_rank = topology.tensor_rank
    size = topology.tensor_size
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for shape in ((3, 5), (1,), (2, 300, 512)):
            base = (torch.arange(torch.Size(shape).numel(), device=device) % 50).view(shape)
            tensor = (base + own_rank).to(dtype)
            total = nccl.all_reduce(tensor)
            assert total is tensor, "in place"
            assert torch.equal(total, (base * size + sum(range(size))).to(dtype))
            gathered = nccl.all_gather((base + own_rank).to(dtype))
            assert torch.equal(
                gathered, torch.stack([(base + rank).to(dtype) for rank in range(size)])
            )


def check_captured_graph(nccl: NCCLCollectives, topology: Topology, device: torch.device) -> None:
    """Replay a sum and a gather of a CUDA graph with other data, without synchronising between."""
    tensor = torch.zeros(8, 4096, dtype=torch.float16, device=device)
    nccl.all_gather(nccl.all_reduce(tensor + 1))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total = nccl.all_reduce(tensor + topology.tensor_rank)
        gathered = nccl.all_gather(total * (1 + topology.tensor_rank))
    size = topology.tensor_size
    for value in range(5):
        tensor.fill_(value)
        graph.replay()
        expected = size * value + sum(range(size))
        assert (total == expected).all()
        for rank in range(size):
            assert (gathered[rank] == expected * (1 + rank)).all()


def check_sends_to_next_stage(
    nccl: NCCLCollectives, topology: Topology, device: torch.device
) -> None:
    """Send several microbatches at once, and tokens back while the next ones are sent."""
    shape = (4, 500, 1024)
    microbatches = 4

    def hidden(stage: int, microbatch: int) -> torch.Tensor:
        return torch.full(
            shape, 100.0 * stage + 10 * microbatch, dtype=torch.bfloat16, device=device
        )

    for step in range(3):
        for microbatch in range(microbatches):
            if topology.stage > 0:
                received = nccl.recv_hidden(shape, torch.bfloat16, microbatch)
                assert torch.equal(received, hidden(topology.stage - 1, microbatch) + step)
            if topology.stage < topology.stage_count - 1:
                torch.cuda._sleep(1_000_000)
                nccl.send_hidden(hidden(topology.stage, microbatch) + step, microbatch)
            elif topology.stage_count > 1:
                nccl.send_tokens(torch.tensor([microbatch, step, 2**40], device=device), microbatch)
        for microbatch in range(microbatches):
            if topology.stage == 0 and topology.stage_count > 1:
                assert nccl.recv_tokens(3, microbatch).tolist() == [microbatch, step, 2**40]
    nccl.finish()


def main(tensor_size: int, stages: int) -> None:
    world = MPI.COMM_WORLD
    device = select_device(world, one_gpu=False)
    assert prepare_gpus(world, identify_gpu(device), loopback=False) is None
    topology = Topology(world.size, world.rank, tensor_size, stages)
    nccl = NCCLCollectives(world, topology, True, device)
    check_sums_and_gathers(nccl, topology, device)
    check_captured_graph(nccl, topology, device)
    check_sends_to_next_stage(nccl, topology, device)
    nccl.close()
    sleeping_barrier(world)
    if world.rank == 0:
        print("all well")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
