"""Lose one of 2 ranks within a stream, for test_cuda_ipc.py: ``ipc_killed.py source|sink LEVEL``.

A lost source fails and gives up; a lost sink stops. Both stay, so that the launcher has nothing to
clean up: the other rank ends by itself.
"""

from __future__ import annotations

import os
import sys
import time

import torch
from mpi4py import MPI
from nccl_pair import make_streams, select_device

from dejavubench.dejavulib.destinations.base import StreamingError
from dejavubench.dejavulib.destinations.cuda_ipc import CudaIPCDestination, CudaIPCSinkEndpoint
from dejavubench.dejavulib.kv_cache import KVCache, KVGeometry
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.packing import device_staging
from dejavubench.dejavulib.receiver import CacheReceiver, receive_all
from dejavubench.dejavulib.schedule import DEVICE_SLOT_COUNT
from dejavubench.dejavulib.streamer import Streamer

SLOT, DEADLINE, LAST_CHUNK = 1 << 20, 2.0, 5
GEOMETRY = KVGeometry(layers=8, requests=4, heads=8, positions=130, head_size=64, itemsize=2)


class LostError(Exception):
    """The failure of a source that is to be lost."""


def send(streamer: Streamer, manager: CacheManager, is_lost: bool) -> None:
    try:
        manager.begin()
        for layer in range(GEOMETRY.layers):
            manager.layer_ready(layer)
        for step in range(21):
            if is_lost and step == LAST_CHUNK:
                raise LostError
            manager.step_ready(step)
        manager.drain()
    finally:
        streamer.close()


def receive(receiver: CacheReceiver, is_lost: bool) -> None:
    receiver.begin()
    taken = 0
    while is_lost:
        taken += receiver.poll()
        while taken == LAST_CHUNK:
            time.sleep(60)
    receive_all([receiver])


def main(lost: str, level: str) -> None:
    world = MPI.COMM_WORLD
    one_gpu = torch.cuda.device_count() < 2
    device = select_device(world, one_gpu)
    role = ("source", "sink")[world.rank]
    peer = 1 - world.rank
    (stream,) = make_streams(GEOMETRY, peer, 100, 20, SLOT, 1)
    cache = KVCache.allocate(GEOMETRY, torch.int16, device)
    began = time.monotonic()
    try:
        if role == "source":
            destination = CudaIPCDestination.connect(world.Dup(), [peer], device, DEADLINE)
            streamer = Streamer(destination, device_staging(SLOT, 4, device))
            manager = CacheManager(cache, [stream], LEVELS[level], streamer, DEADLINE)
            began = time.monotonic()
            send(streamer, manager, role == lost)
        else:
            slots = device_staging(SLOT, DEVICE_SLOT_COUNT, device)
            endpoint = CudaIPCSinkEndpoint.connect(
                world.Dup(), [peer], [cache.k, cache.v, *slots], [(cache, stream)]
            )
            receiver = CacheReceiver(cache, stream, LEVELS[level], endpoint, slots)
            began = time.monotonic()
            receive(receiver, role == lost)
    except LostError:
        time.sleep(60)
    except StreamingError as error:
        print(
            f"{role}: StreamingError: {error}: ended after {time.monotonic() - began:.1f} s",
            flush=True,
        )
        time.sleep(0.5)  # the launcher passes it on before it ends the other
    os._exit(3)


if __name__ == "__main__":
    main(*sys.argv[1:])
