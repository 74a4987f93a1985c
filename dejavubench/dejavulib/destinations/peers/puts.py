"""Copies from a GPU into memory of other processes, and the words that announce them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from ...boxes import BoxCopy
from ...extents import BaseAddresses
from ...kv_cache import KVCache
from ...strided import ANY_TO_ANY, DEVICE_TO_HOST, CacheCopy
from .shared_words import WORD_NBYTES, PeerMemoryError, SharedWords


class Puts(Protocol):
    """Copies from a GPU into memory of other processes, and the words that announce them.

    What is issued on one CUDA stream is done in the order of the calls.
    """

    own_cuda_stream_handle: int
    """Handle of a CUDA stream that nothing else is issued on."""

    def current_cuda_stream_handle(self) -> int:
        """Return the handle of torch's current stream."""

    def mark(self) -> Any:
        """Mark what has been issued so far on torch's current stream."""

    def wait_for_mark(self, mark: Any) -> None:
        """Let what is issued on the own CUDA stream from now on begin after a mark."""

    def prepare(self, cache: KVCache, copies: Sequence[BoxCopy], bases: BaseAddresses) -> Any:
        """Prepare copies from a cache of this process; ``bases``: of the other cache, as mapped."""

    def put_prepared(self, prepared: Any, cuda_stream_handle: int) -> None:
        """Issue copies of :meth:`prepare`."""

    def put(
        self, source_address: int, target_address: int, nbytes: int, cuda_stream_handle: int
    ) -> None:
        """Issue a copy between two addresses."""

    def store_word(self, value_index: int, target_address: int, cuda_stream_handle: int) -> None:
        """Issue the store of one of the known values in a word, behind all copies before it."""

    def synchronize(self) -> None:
        """Wait until all that was issued on the own CUDA stream is done."""

    def pin(self, words: SharedWords) -> None:
        """Let the device store into shared words. Raises PeerMemoryError: it cannot."""

    def close(self) -> None:
        """Wait until all that was issued is done; unpin the words."""


class CudaPuts:
    """Puts by the copy engines of a CUDA device.

    Args:
        values: int64, the values that words can get. They lie on the device: a word is stored by a
            copy of 8 bytes to host memory. On one CUDA stream it begins after the copies before it
            are done, that is, after their last byte is in the other GPU's memory. A kernel or a
            host function would keep this order, too, but would take a multiprocessor or a thread.
    """

    def __init__(self, device: torch.device, values: np.ndarray) -> None:
        from cupy.cuda import runtime

        self._device = device
        self._copy = runtime.memcpyAsync  # once: an import statement takes 1 µs of each call
        self._values = torch.from_numpy(values).to(device)
        self._first_value_address = self._values.data_ptr()
        torch.cuda.synchronize(device)  # the values arrive before any CUDA stream reads them
        self._cuda_stream = torch.cuda.Stream(device)
        self.own_cuda_stream_handle = self._cuda_stream.cuda_stream
        self._pinned: list[SharedWords] = []

    def current_cuda_stream_handle(self) -> int:
        """Return the handle of torch's current stream."""
        return torch.cuda.current_stream(self._device).cuda_stream

    def mark(self) -> torch.cuda.Event:
        """Return an event after the work issued so far on torch's current stream."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def wait_for_mark(self, mark: torch.cuda.Event) -> None:
        """Let the own CUDA stream wait for an event on the device."""
        self._cuda_stream.wait_event(mark)

    def prepare(self, cache: KVCache, copies: Sequence[BoxCopy], bases: BaseAddresses) -> CacheCopy:
        """Return the copies with CUDA's arguments for them."""
        return CacheCopy(cache, copies, bases)

    def put_prepared(self, prepared: CacheCopy, cuda_stream_handle: int) -> None:
        """Issue prepared copies."""
        prepared.issue(cuda_stream_handle)

    def put(
        self, source_address: int, target_address: int, nbytes: int, cuda_stream_handle: int
    ) -> None:
        """Issue a copy between two addresses, of any two devices."""
        self._copy(target_address, source_address, nbytes, ANY_TO_ANY, cuda_stream_handle)

    def store_word(self, value_index: int, target_address: int, cuda_stream_handle: int) -> None:
        """Issue the copy of one value into a word of pinned host memory."""
        value_address = self._first_value_address + value_index * WORD_NBYTES
        self._copy(target_address, value_address, WORD_NBYTES, DEVICE_TO_HOST, cuda_stream_handle)

    def synchronize(self) -> None:
        """Wait for the own CUDA stream."""
        self._cuda_stream.synchronize()

    def pin(self, words: SharedWords) -> None:
        """Pin shared words, so that a copy to them runs on the device alone.

        Raises:
            PeerMemoryError: CUDA refuses to.
        """
        from cupy.cuda import runtime

        try:
            with torch.cuda.device(self._device):
                runtime.hostRegister(words.address, words.nbytes, PORTABLE)
        except runtime.CUDARuntimeError as error:
            raise PeerMemoryError(f"CUDA does not pin memory of two processes: {error}") from None
        self._pinned.append(words)

    def close(self) -> None:
        """Wait for the device; unpin the words."""
        from cupy.cuda import runtime

        torch.cuda.synchronize(self._device)
        while self._pinned:
            runtime.hostUnregister(self._pinned.pop().address)


PORTABLE = 1
"""CUDA's ``cudaHostRegisterPortable``: pinned for every device of this process."""
