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

# ruff: noqa: F401 - the names imported for type checkers are what __getattr__ gives at run time

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .copies import (
        Packing,
        aligned_buffer,
        device_staging,
        gather,
        pinned_buffer,
        scatter,
        staging,
    )
    from .destinations.base import (
        Buffer,
        Capabilities,
        Destination,
        LocalDestination,
        ReadableDestination,
        RemoteDestination,
        StorageError,
        Stream,
        StreamingError,
        WrongBytesError,
    )
    from .destinations.disk import DiskDestination, SavedStream
    from .destinations.host import HostDestination
    from .destinations.mpi import MPIDestination, MPISinkEndpoint
    from .destinations.nccl import NCCLDestination, NCCLSinkEndpoint
    from .destinations.nixl import NIXLDestination, NIXLSinkEndpoint
    from .destinations.tcp import TCPDestination, TCPSinkServer
    from .device import BounceBuffer, DeviceStaging
    from .exchange import Exchange, RegionPair, Setup, exchanges, stream_in, stream_out
    from .geometry import Extents, KVGeometry, KVLayout, Region, Span
    from .kvcache import KVCache
    from .levels import DEFAULT_LEVEL, LEVELS, Level
    from .manager import CacheManager
    from .receiver import CacheReceiver, SinkEndpoint, largest_chunk, receive_all, receiving_slots
    from .schedule import Chunk, StreamSchedule
    from .streamer import Streamer
    from .swapper import SwapCost, Swapper
    from .transfers import StreamStats

_MODULES: dict[str, tuple[str, ...]] = {
    "copies": (
        "Packing",
        "aligned_buffer",
        "device_staging",
        "gather",
        "pinned_buffer",
        "scatter",
        "staging",
    ),
    "destinations.base": (
        "Buffer",
        "Capabilities",
        "Destination",
        "LocalDestination",
        "ReadableDestination",
        "RemoteDestination",
        "StorageError",
        "Stream",
        "StreamingError",
        "WrongBytesError",
    ),
    "destinations.disk": ("DiskDestination", "SavedStream"),
    "destinations.host": ("HostDestination",),
    "destinations.mpi": ("MPIDestination", "MPISinkEndpoint"),
    "destinations.nccl": ("NCCLDestination", "NCCLSinkEndpoint"),
    "destinations.nixl": ("NIXLDestination", "NIXLSinkEndpoint"),
    "destinations.tcp": ("TCPDestination", "TCPSinkServer"),
    "device": ("BounceBuffer", "DeviceStaging"),
    "geometry": ("Extents", "KVGeometry", "KVLayout", "Region", "Span"),
    "kvcache": ("KVCache",),
    "levels": ("DEFAULT_LEVEL", "LEVELS", "Level"),
    "manager": ("CacheManager",),
    "exchange": ("Exchange", "RegionPair", "Setup", "exchanges", "stream_in", "stream_out"),
    "receiver": (
        "CacheReceiver",
        "SinkEndpoint",
        "largest_chunk",
        "receive_all",
        "receiving_slots",
    ),
    "schedule": ("Chunk", "StreamSchedule"),
    "streamer": ("Streamer",),
    "swapper": ("Swapper", "SwapCost"),
    "transfers": ("StreamStats",),
}
"""The public names by the module that has them; a test compares them with the imports above."""

_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [*_MODULE_OF]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value  # so that it is found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
