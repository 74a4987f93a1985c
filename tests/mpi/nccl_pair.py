"""Two ranks, one pair and random caches, for the scripts that stream from GPU to GPU."""

from __future__ import annotations

import torch
from mpi4py import MPI

from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.kv_cache import BOTH, KVCache, KVGeometry
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.parallel.nccl_pairs import NCCLPair, connect_pairs
from dejavubench.parallel.shared_gpus import LoopbackFacts, identify_gpu, prepare_gpus


def select_device(world: MPI.Intracomm, one_gpu: bool) -> torch.device:
    """Make this rank's device current and return it; all ranks share one if ``one_gpu``."""
    device = torch.device("cuda", 0 if one_gpu else world.rank)
    torch.cuda.set_device(device)
    return device


def connect(
    world: MPI.Intracomm, device: torch.device, source: int, loopback: bool
) -> tuple[NCCLPair, LoopbackFacts | None]:
    """Connect the two ranks, of which ``source`` sends; return the link and facts of a loopback."""
    loopback_facts = prepare_gpus(world, identify_gpu(device), loopback)
    return connect_pairs(world, [(source, 1 - source)], device)[1 - world.rank], loopback_facts


def make_streams(
    geometry: KVGeometry, peer: int, input_len: int, steps: int, slot: int, count: int
) -> list[Stream]:
    schedule = StreamSchedule(geometry, geometry.whole, input_len, steps, slot)
    return [Stream(number, schedule, peer) for number in range(count)]


def random_cache(geometry: KVGeometry, device: torch.device, seed: int) -> KVCache:
    """Return a cache of random bits, the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    cache = KVCache.allocate(geometry, torch.int16)
    for kv in BOTH:
        cache.bytes(kv).random_(0, 256, generator=generator)
    return KVCache(geometry, cache.k.to(device), cache.v.to(device))
