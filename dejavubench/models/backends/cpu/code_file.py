"""Name and content of the file of one compiled kernel.

The name is the hash of all that the code depends on, so an outdated file is never found. A digest
checks the content; nothing is unpickled.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from importlib.metadata import version
from pathlib import Path

from llvmlite import binding

from dejavubench.dejavulib import kv_cache
from dejavubench.machine import cpu
from dejavubench.machine.cpu import read_cpu_flags
from dejavubench.models.backends import protocol

OUTER_SOURCES = tuple(Path(str(module.__file__)) for module in (protocol, cpu, kv_cache))
"""Modules outside of this package that kernels take numbers from."""

FILE_SIGNATURE = b"dejavubench kernel 1\n"


class UntrustedError(Exception):
    """A file or folder of the cache cannot be trusted; the message says why."""


def make_file_name(name: str) -> str:
    """Return the file's name: 64 hex digits of all that the kernel's code depends on."""
    return hashlib.sha256(f"{name}\n{_describe_environment()}".encode()).hexdigest()


def _describe_environment() -> str:
    """Return versions, CPU, and the variables that change what numba makes of a kernel."""
    forced_variables = {
        name: value for name, value in sorted(os.environ.items()) if name.startswith("NUMBA_")
    }
    return f"{_describe_process()} {sorted(read_cpu_flags())} {forced_variables}"


@functools.cache
def _describe_process() -> str:
    """Return the part that stays the same while this process runs."""
    processor = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    return f"{hash_sources()} {sys.version} {version('numba')} {version('llvmlite')} {processor}"


def hash_sources(kernels: Path = Path(__file__).parent) -> str:
    """Return a hash of all sources that a kernel may call or take a number from.

    These are all modules of this package, and the modules outside of it in :data:`OUTER_SOURCES`.
    """
    digest = hashlib.sha256()
    for file in [*sorted(kernels.glob("*.py")), *OUTER_SOURCES]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def list_outer_symbols(module: binding.ModuleRef) -> list[str]:
    """Return the names of outer functions and variables in compiled code."""
    symbols = (*module.functions, *module.global_variables)
    declared_names = [symbol.name for symbol in symbols if symbol.is_declaration]
    # Those of LLVM are instructions.
    return [name for name in declared_names if not name.startswith("llvm.")]


def pack_code(symbol: str, module: binding.ModuleRef, code: bytes, key: str) -> bytes:
    """Return the content of a file: a kernel's symbol, those that it needs, and its object code."""
    needed_symbols = list_outer_symbols(module)
    body = f"{symbol}\n{' '.join(needed_symbols)}\n".encode() + code
    return FILE_SIGNATURE + hashlib.sha256(key.encode() + body).digest() + body


def unpack_code(content: bytes, key: str) -> tuple[str, list[str], bytes]:
    """Return the kernel's symbol, the symbols that its code needs, and its object code.

    Raises:
        UntrustedError: :func:`pack_code` did not make it for this key.
    """
    start = len(FILE_SIGNATURE) + hashlib.sha256().digest_size
    digest, body = content[len(FILE_SIGNATURE) : start], content[start:]
    if (
        not content.startswith(FILE_SIGNATURE)
        or hashlib.sha256(key.encode() + body).digest() != digest
    ):
        raise UntrustedError("it is damaged, or another kernel's; delete it")
    symbol, needed_symbols, code = body.split(b"\n", 2)
    return symbol.decode(), needed_symbols.decode().split(), code
