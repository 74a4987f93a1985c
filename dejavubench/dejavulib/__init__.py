"""DéjàVuLib in Python: stream a KV cache out while the model goes on, and read it back.

It is one folder that can be lifted out: it imports nothing of the package around it. It needs
numpy, torch and, by destination, mpi4py, xxhash, pydantic, cupy or nixl. Names below are loaded
when they are first used, so importing this package, its levels or its registry loads no torch.

Stream a cache to disk and read it back in another process's place:

>>> import tempfile, torch
>>> from pathlib import Path
>>> from dejavubench.dejavulib import (
...     LEVELS, CacheManager, DiskDestination, KVCache, KVGeometry, SavedStream, Stream,
...     Streamer, StreamSchedule, staging,
... )
>>> geometry = KVGeometry(layers=2, requests=1, heads=4, positions=16, head_size=8, itemsize=4)
>>> cache = KVCache.allocate(geometry, torch.float32)
>>> schedule = StreamSchedule(geometry, geometry.whole, input_len=5, steps=2, slot_nbytes=1 << 16)
>>> stream = Stream(0, schedule)
>>> folder = tempfile.TemporaryDirectory()
>>> disk = DiskDestination(Path(folder.name), "demo", keep=True)
>>> streamer = Streamer(disk, staging(1 << 16, slots=2))
>>> manager = CacheManager(cache, [stream], LEVELS["3"], streamer)
>>> manager.begin()
>>> for layer in range(geometry.layers):  # the prompt, layer by layer
...     k = v = torch.randn(1, 4, 5, 8)
...     cache.store(layer, 0, k, v)
...     manager.layer_ready(layer)
>>> manager.step_ready(0)
>>> for step in (1, 2):  # two decode steps
...     for layer in range(geometry.layers):
...         k = v = torch.randn(1, 4, 1, 8)
...         cache.store(layer, 4 + step, k, v)
...     manager.step_ready(step)
>>> manager.drain()
>>> streamer.close()
>>> back = KVCache.allocate(geometry, torch.float32)
>>> saved = SavedStream(Path(folder.name) / "demo-stream0.kv", stream, {})
>>> saved.restore(back).steps, torch.equal(back.k, cache.k), torch.equal(back.v, cache.v)
(3, True, True)
>>> folder.cleanup()
"""

from __future__ import annotations

import ast
from functools import cache
from importlib import import_module, resources
from typing import TYPE_CHECKING, Any

# The one list of public names. ``as`` makes each name public for type checkers, too.
if TYPE_CHECKING:
    from .packing import (
        Packing as Packing,
        aligned_buffer as aligned_buffer,
        device_staging as device_staging,
        gather as gather,
        pinned_buffer as pinned_buffer,
        scatter as scatter,
        staging as staging,
    )
    from .destinations.base import (
        Buffer as Buffer,
        Destination as Destination,
        LocalDestination as LocalDestination,
        ReadableDestination as ReadableDestination,
        RemoteDestination as RemoteDestination,
        StorageError as StorageError,
        Stream as Stream,
        StreamingError as StreamingError,
        WrongBytesError as WrongBytesError,
    )
    from .destinations.cuda_ipc import (
        CudaIPCDestination as CudaIPCDestination,
        CudaIPCSinkEndpoint as CudaIPCSinkEndpoint,
    )
    from .destinations.disk import (
        DiskDestination as DiskDestination,
        SavedStream as SavedStream,
    )
    from .destinations.host import HostDestination as HostDestination
    from .destinations.mpi import (
        MPIDestination as MPIDestination,
        MPISinkEndpoint as MPISinkEndpoint,
    )
    from .destinations.nccl import (
        NCCLDestination as NCCLDestination,
        NCCLSinkEndpoint as NCCLSinkEndpoint,
    )
    from .destinations.nixl import (
        NIXLDestination as NIXLDestination,
        NIXLSinkEndpoint as NIXLSinkEndpoint,
    )
    from .destinations.tcp import (
        TCPDestination as TCPDestination,
        TCPSinkServer as TCPSinkServer,
    )
    from .destinations.registry import DestinationEntry as DestinationEntry
    from .device import (
        BounceBuffer as BounceBuffer,
        DeviceStaging as DeviceStaging,
    )
    from .exchange import (
        Exchange as Exchange,
        RegionPair as RegionPair,
        Setup as Setup,
        exchanges as exchanges,
        stream_in as stream_in,
        stream_out as stream_out,
    )
    from .geometry import (
        Extents as Extents,
        KVGeometry as KVGeometry,
        KVLayout as KVLayout,
    )
    from .kv_cache import KVCache as KVCache
    from .levels import (
        DEFAULT_LEVEL as DEFAULT_LEVEL,
        LEVELS as LEVELS,
        Level as Level,
    )
    from .manager import CacheManager as CacheManager
    from .receiver import (
        CacheReceiver as CacheReceiver,
        SinkEndpoint as SinkEndpoint,
        largest_chunk as largest_chunk,
        receive_all as receive_all,
        receiving_slots as receiving_slots,
    )
    from .regions import (
        Region as Region,
        Span as Span,
    )
    from .schedule import (
        Chunk as Chunk,
        StreamSchedule as StreamSchedule,
    )
    from .streamer import Streamer as Streamer
    from .swapping.swap_cost import SwapCost as SwapCost
    from .swapping.swapper import Swapper as Swapper
    from .transfers import StreamStats as StreamStats
    from .upload import DeviceUpload as DeviceUpload


@cache
def _find_public_names() -> dict[str, str]:
    """Return the module of each public name, by the imports above, which do not run."""
    source = resources.files(__package__).joinpath("__init__.py").read_text(encoding="utf-8")
    return {
        name.name: node.module
        for block in ast.parse(source).body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for name in node.names
    }


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name == "__all__":
        return [*_find_public_names()]
    if name not in _find_public_names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_find_public_names()[name]}", __name__), name)
    globals()[name] = value  # so that it is found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_find_public_names()})
