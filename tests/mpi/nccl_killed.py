"""Stop one of 2 ranks within a stream, for test_nccl.py.

``nccl_killed.py source|sink LEVEL AHEAD``: the sink issues AHEAD receives before announcements.

The rank stops but stays, so that the launcher has nothing to clean up. Only its own deadline ends
the other rank.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch
from mpi4py import MPI
from nccl_pair import connect, make_streams, select_device

from dejavubench.dejavulib.destinations.base import StreamingError
from dejavubench.dejavulib.destinations.nccl import NCCLDestination, NCCLSinkEndpoint
from dejavubench.dejavulib.kv_cache import KVCache, KVGeometry
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.packing import device_staging
from dejavubench.dejavulib.receiver import CacheReceiver, receive_all
from dejavubench.dejavulib.streamer import Streamer

SLOT, DEADLINE = 1 << 20, 2.0
GEOMETRY = KVGeometry(layers=8, requests=4, heads=8, positions=130, head_size=64, itemsize=2)


class Stopping:
    """A link that stops its rank for ever at message ``last``, which the other side waits for."""

    def __init__(self, link: Any, last_chunk: int) -> None:
        self._link = link
        self._left = last_chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    def send(self, address: int, nbytes: int) -> None:
        self._count()
        self._link.send(address, nbytes)

    def recv(self, address: int, nbytes: int) -> None:
        self._count()
        self._link.recv(address, nbytes)

    def _count(self) -> None:
        self._left -= 1
        while self._left < 0:
            time.sleep(60)


def main(stops: str, level: str, ahead: str) -> None:
    world = MPI.COMM_WORLD
    device = select_device(world, one_gpu=False)
    link, _ = connect(world, device, 0, loopback=False)
    role = ("source", "sink")[world.rank]
    ends = Stopping(link, 5) if role == stops else link
    peer = 1 - world.rank
    (stream,) = make_streams(GEOMETRY, peer, input_len=100, steps=20, slot=SLOT, count=1)
    cache = KVCache.allocate(GEOMETRY, torch.int16, device)
    comm = world.Dup()
    began = time.monotonic()
    try:
        if role == "source":
            streamer = Streamer(
                NCCLDestination(comm, {peer: ends}, DEADLINE), device_staging(SLOT, 4, device)
            )
            manager = CacheManager(cache, [stream], LEVELS[level], streamer, DEADLINE)
            try:
                manager.begin()
                for layer in range(GEOMETRY.layers):
                    manager.layer_ready(layer)
                for step in range(21):
                    manager.step_ready(step)
                manager.drain()
            finally:
                streamer.close()
        else:
            endpoint = NCCLSinkEndpoint(comm, {peer: ends}, DEADLINE, {peer: int(ahead)})
            receiver = CacheReceiver(cache, stream, LEVELS[level], endpoint)
            receiver.begin()
            receive_all([receiver])
    except StreamingError as error:
        torch.cuda.synchronize()  # no kernel is left that waits
        print(
            f"{role}: StreamingError: {error}: ended after {time.monotonic() - began:.1f} s",
            flush=True,
        )
        time.sleep(0.5)  # the launcher passes it on before it ends the other
    os._exit(3)


if __name__ == "__main__":
    main(*sys.argv[1:])
