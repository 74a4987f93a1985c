"""A GPU's memory of another process of this host, mapped here by CUDA IPC."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from .shared_words import PeerMemoryError


class SharedTensor(NamedTuple):
    """A tensor in a GPU's memory, for the process that maps it.

    Attributes:
        address: its address in the process that owns it.
        nbytes: its bytes.
        handle: CUDA's handle of the allocation that it lies in.
        offset: bytes of the allocation before it.
    """

    address: int
    nbytes: int
    handle: bytes
    offset: int


def export_tensors(tensors: Iterable[torch.Tensor]) -> list[SharedTensor]:
    """Share tensors with other processes of this host. They stay allocated until unmapped there.

    Raises:
        PeerMemoryError: torch has not allocated them by cudaMalloc.
    """
    from cupy.cuda import runtime

    # Torch cuts allocations of cudaMalloc into tensors, and a handle is that of an allocation.
    segments = torch.cuda.memory_snapshot()
    handles: dict[int, bytes] = {}
    shared = []
    for tensor in tensors:
        address = tensor.data_ptr()
        allocation = find_allocation(address, segments)
        if allocation not in handles:
            handles[allocation] = runtime.ipcGetMemHandle(allocation)
        nbytes = tensor.numel() * tensor.element_size()
        shared.append(SharedTensor(address, nbytes, handles[allocation], address - allocation))
    return shared


def find_allocation(address: int, segments: Sequence[Any]) -> int:
    """Return the address of the allocation that an address lies in."""
    for segment in segments:
        allocation = int(segment["address"])
        if allocation <= address < allocation + segment["total_size"]:
            if segment.get("is_expandable"):
                raise PeerMemoryError(
                    "torch's expandable segments cannot be shared with another process. Take "
                    "expandable_segments:True out of PYTORCH_CUDA_ALLOC_CONF"
                )
            return allocation
    raise PeerMemoryError(
        f"torch's allocator {torch.cuda.get_allocator_backend()} has no segment at {address:#x}: "
        "only memory of its native allocator can be shared. Unset PYTORCH_CUDA_ALLOC_CONF"
    )


class MappedTensors:
    """Tensors of another process, mapped into this one for one of its devices.

    Args:
        shared: from :func:`export_tensors` of the other process.

    Attributes:
        addresses: maps the address of each tensor in its own process to the one in this process.

    Raises:
        PeerMemoryError: CUDA refuses to map them.
    """

    def __init__(self, shared: Sequence[SharedTensor], device: torch.device) -> None:
        from cupy.cuda import runtime

        self._device = device
        self._bases: dict[bytes, int] = {}
        self.addresses: dict[int, int] = {}
        try:
            # CUDA gives the current device access to the memory, where the two can have it.
            with torch.cuda.device(device):
                for tensor in shared:
                    if tensor.handle not in self._bases:
                        self._bases[tensor.handle] = runtime.ipcOpenMemHandle(tensor.handle)
                    self.addresses[tensor.address] = self._bases[tensor.handle] + tensor.offset
        except runtime.CUDARuntimeError as error:
            self.close()
            raise PeerMemoryError(f"CUDA does not map the other GPU's memory: {error}") from None

    def close(self) -> None:
        """Unmap the memory; nothing may be on its way there."""
        from cupy.cuda import runtime

        with torch.cuda.device(self._device):
            while self._bases:
                _, base = self._bases.popitem()
                runtime.ipcCloseMemHandle(base)


def find_peer_access_problem(device: int, bus_id: str) -> str | None:
    """Return why a device of this process cannot write to a GPU's memory, or None.

    Args:
        device: number of the device.
        bus_id: PCI bus id of the GPU, from :func:`read_bus_id` in any process of this host.
    """
    from cupy.cuda import runtime

    try:
        other_device = runtime.deviceGetByPCIBusId(bus_id)
    except runtime.CUDARuntimeError:
        return (
            f"GPU {bus_id} is not visible to the process of GPU {read_bus_id(device)}. "
            "Take it into CUDA_VISIBLE_DEVICES"
        )
    if other_device == device or runtime.deviceCanAccessPeer(device, other_device):
        return None
    return f"GPU {read_bus_id(device)} cannot access the memory of GPU {bus_id} (no peer access)"


def read_bus_id(device: int) -> str:
    """Return the PCI bus id of a device of this process."""
    from cupy.cuda import runtime

    return str(runtime.deviceGetPCIBusId(device))
