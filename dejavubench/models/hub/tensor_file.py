"""The header of one safetensors file, checked as the safetensors library checks it.

Only the header and both ends of each tensor are read: https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dejavubench.errors import DataError
from dejavubench.text_file import LFS_POINTER, escape

READ_TYPES = frozenset({"F64", "F32", "F16", "BF16"})
"""The stored types that become weights."""

SAMPLE = 4096
"""Bytes at either end of each tensor that the identity is made of, beside the headers."""

PIECE = 16 << 20
"""Bytes of two tensors that are compared at once."""

BITS = {
    name: bits
    for bits, type_names in (
        (64, ("F64", "I64", "U64", "C64")),
        (32, ("F32", "I32", "U32")),
        (16, ("F16", "BF16", "I16", "U16")),
        (8, ("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0")),
    )
    for name in type_names
}
"""Bits of one element, to explain what the library refuses."""


class CheckpointError(DataError, ValueError):
    """A folder cannot be used; the message, of one line, names the file and perhaps the tensor."""

    def __init__(self, message: str) -> None:
        super().__init__(escape(message))


@dataclass(frozen=True)
class Header:
    """The names, types, shapes and places of one safetensors file's tensors.

    Attributes:
        types: types of its tensors, as the format names them: F32, BF16, …
        spans: the first byte of each tensor, and the one after its last.
    """

    path: Path
    types: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    spans: Mapping[str, tuple[int, int]]
    digest: bytes

    @classmethod
    def read(cls, path: Path) -> Header:
        """Read a file's header.

        Raises:
            CheckpointError: the library refuses the file; the message names the tensor at fault.
        """
        try:
            raw_header, size = _read_header(path)
            try:
                # The library judges the file, but does not say where each tensor lies.
                with safe_open(path, framework="np"):
                    pass
            except SafetensorError as error:
                raise CheckpointError(
                    f"{path}: {_find_fault(raw_header, size) or str(error)}"
                ) from None
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror or error}") from None
        entries: dict[str, Any] = json.loads(raw_header)
        entries.pop("__metadata__", None)
        # Offsets count from the end of the header, behind its 8-byte length.
        begin = 8 + len(raw_header)
        types = {name: entry["dtype"] for name, entry in entries.items()}
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
        spans = {
            name: (begin + start, begin + stop) for name, (start, stop) in _iterate_offsets(entries)
        }
        return cls(
            path=path,
            types=types,
            shapes=shapes,
            spans=spans,
            digest=hashlib.blake2b(raw_header, digest_size=16).digest(),
        )

    def sample(self) -> bytes:
        """Return a digest of both ends of every tensor."""
        digest = hashlib.blake2b(self.digest, digest_size=16)
        with self.path.open("rb") as file:
            for start, stop in sorted(self.spans.values()):
                for offset in (start, max(start, stop - SAMPLE)):
                    file.seek(offset)
                    digest.update(file.read(min(SAMPLE, stop - offset)))
        return digest.digest()

    def has_same_tensor(self, name: str, other_header: Header, other_name: str) -> bool:
        """Return whether two tensors have the same type, shape and content. Reads all of both."""
        if (self.types[name], self.shapes[name]) != (
            other_header.types[other_name],
            other_header.shapes[other_name],
        ):
            return False
        with self.path.open("rb") as own_file, other_header.path.open("rb") as other_file:
            own_file.seek(self.spans[name][0])
            other_file.seek(other_header.spans[other_name][0])
            remaining_nbytes = self.spans[name][1] - self.spans[name][0]
            while remaining_nbytes > 0:
                piece_nbytes = min(PIECE, remaining_nbytes)
                if own_file.read(piece_nbytes) != other_file.read(piece_nbytes):
                    return False
                remaining_nbytes -= piece_nbytes
        return True


def is_lfs_pointer(path: Path) -> bool:
    """Return whether Git LFS has left its pointer in place of the file."""
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER.encode()


def _read_header(path: Path) -> tuple[bytes, int]:
    """Return the raw header, and the size of the file."""
    if not path.is_file():
        raise CheckpointError(f"{path}: not a regular file")
    file_nbytes = path.stat().st_size
    with path.open("rb") as file:
        first_bytes = file.read(256)
        header_nbytes = int.from_bytes(first_bytes[:8], "little")
        if not 2 <= header_nbytes <= file_nbytes - 8:
            problem = (
                _recognise_kind(first_bytes) or "not a safetensors file, or cut off in its header"
            )
            raise CheckpointError(f"{path}: {problem}")
        file.seek(8)
        return file.read(header_nbytes), file_nbytes


def _recognise_kind(first_bytes: bytes) -> str | None:
    """Return the kind of a file by its first bytes; None if it is not known."""
    if first_bytes.startswith(LFS_POINTER.encode()):
        return "this is a Git LFS pointer, not the weights: run 'git lfs pull' in its folder"
    if first_bytes.lstrip()[:1] == b"<":
        return "this is an HTML page, perhaps a server's error message, not a safetensors file"
    if first_bytes.startswith(b"GGUF"):
        return "this is a GGUF file of llama.cpp, not a safetensors file"
    # torch.save writes a zip archive, and wrote a bare pickle of protocol 2 before.
    if first_bytes.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "this is a pickle of torch.save, not a safetensors file"
    return "the file is empty" if not first_bytes else None


def _iterate_offsets(entries: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, int]]]:
    for name, entry in entries.items():
        start, stop = entry["data_offsets"]
        yield name, (start, stop)


def _find_fault(raw_header: bytes, size: int) -> str | None:
    """Return which tensor of a refused header is wrong; None if the library says it better."""
    try:
        entries = json.loads(raw_header)
        entries.pop("__metadata__", None)
        ordered_entries = sorted(_iterate_offsets(entries), key=lambda entry: entry[1])
        end = 0
        for name, (start, stop) in ordered_entries:
            fault = _find_entry_fault(entries[name], start, stop)
            if fault is None and 8 + len(raw_header) + stop > size:
                fault = (
                    f"ends at byte {8 + len(raw_header) + stop}, the file at {size}: it is cut off"
                )
            if fault is None and start != end:
                fault = f"begins at byte {start} of the data, the tensor before it ends at {end}"
            if fault is not None:
                return f"tensor {name} {fault}"
            end = stop
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    surplus_nbytes = size - 8 - len(raw_header) - end
    return f"{surplus_nbytes} bytes at its end belong to no tensor" if surplus_nbytes else None


def _find_entry_fault(entry: Mapping[str, Any], start: int, stop: int) -> str | None:
    """Return the fault of one tensor's type, shape or size; None without one."""
    dtype = entry["dtype"]
    shape = entry["shape"]
    if dtype not in BITS:
        # Newer types, which the table lacks: the library's own message is the better one.
        if str(dtype).startswith(("F4", "F6", "F8")):
            return None
        return f"is stored as {dtype!r}, a type that the safetensors library does not know"
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        return f"has the impossible shape {shape}"
    nbytes = prod(shape) * BITS[dtype] // 8
    if nbytes != stop - start:
        text = " × ".join(map(str, shape)) or "a scalar"
        return f"of type {dtype}, {text}, takes {nbytes} bytes; the header gives it {stop - start}"
    return None
