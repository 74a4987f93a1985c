"""Compiled kernels of a CPU's decode step, kept on the user's disk between runs.

Numba compiles a kernel in seconds; its object code loads in milliseconds. A file holds the code of
one kernel. Its name is the hash of all that the code depends on, so an outdated file is never found
(:mod:`.code_file`). A digest checks the content before it is loaded; nothing is unpickled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from llvmlite import binding

from dejavubench.machine.interrupts import hold_interrupts
from dejavubench.models.backends.cpu.code_file import (
    UntrustedError,
    make_file_name,
    pack_code,
    unpack_code,
)
from dejavubench.models.backends.cpu.code_folder import open_folder, read_file
from dejavubench.models.backends.cpu.compile_lock import lock_kernel
from dejavubench.models.backends.protocol import Say
from dejavubench.units import format_count_of
from dejavubench.whole_file import write_whole


def _discard(text: str) -> None:
    """Print nothing: for kernels that are made when they are first used."""


class Kernel:
    """One kernel, which is loaded or compiled when its address is first asked for.

    Args:
        name: the kernel and everything that it is compiled for.
        build: compiles it and returns numba's C function.
    """

    def __init__(self, name: str, build: Callable[[], Any]) -> None:
        self.name = name
        self._build = build
        self._owner: object = None  # frees the code when it is freed

    @functools.cached_property
    def address(self) -> int:
        """Address of its code, ``void (*)(Job *)``; loads or compiles it at first."""
        provide_kernels([self])
        return self.__dict__["address"]

    @property
    def is_ready(self) -> bool:
        """Whether the code is loaded, so that :attr:`address` waits for nothing."""
        return "address" in self.__dict__

    def load(self, folder: Path) -> bool:
        """Take the code from ``folder``. Return whether it is there.

        Raises:
            UntrustedError: there is a file, but it cannot be trusted.
        """
        key = make_file_name(self.name)
        content = read_file(folder / key)
        if content is None:
            return False
        symbol, needed_symbols, code = unpack_code(content, key)
        _define_numbas_symbols()
        for name in needed_symbols:  # LLVM would put address 0 in place of a missing one
            if binding.address_of_symbol(name) is None:
                raise UntrustedError(f"its code calls {name}, which this process does not have")
        # LLVM makes an engine only from a module, so an empty one carries the object file.
        engine = binding.create_mcjit_compiler(binding.parse_assembly(""), _make_target())
        engine.add_object_file(binding.ObjectFileRef.from_data(code))
        engine.finalize_object()
        self._keep_code(engine, engine.get_function_address(symbol))
        return True

    def compile(self, folder: Path | None) -> None:
        """Compile it, and leave the code in ``folder``.

        Raises:
            OSError: the code cannot be written. The kernel is ready nevertheless.
        """
        function = self._build()
        self._keep_code(function, function.address)
        if folder is not None:
            key = make_file_name(self.name)
            # Private to numba, as is `_final_module` below. Tried with numba 0.68; a version
            # without them raises AttributeError at the first kernel.
            library = function._library
            _, _, (code, _) = library.serialize_using_object_code()
            content = pack_code(function._wrapper_name, library._final_module, code, key)
            write_whole(folder / key, content, mode=0o600)

    def _keep_code(self, owner: object, address: int) -> None:
        if not address:
            raise UntrustedError("its code has no such function")
        self._owner = owner
        self.__dict__["address"] = address


def provide_kernels(kernels: Iterable[Kernel], say: Say = _discard) -> None:
    """Load the kernels that are not ready yet, and compile those that no earlier run has left.

    Of several processes that need a kernel at once, one compiles it and the others wait for its
    file.

    Args:
        say: takes one line each about the cache, and about compiling.
    """
    requested_kernels = [kernel for kernel in dict.fromkeys(kernels) if not kernel.is_ready]
    folder = open_folder(say)
    missing_kernels = [kernel for kernel in requested_kernels if not _load(kernel, folder, say)]
    if loaded_count := len(requested_kernels) - len(missing_kernels):
        say(f"{format_count_of(loaded_count, 'compiled kernel')} found in {folder}")
    if missing_kernels:
        count = format_count_of(len(missing_kernels), "kernel")
        say(f"compiling {count} for this CPU, a few seconds each{_describe_folder(folder)}")
    for kernel in missing_kernels:
        with lock_kernel(folder, make_file_name(kernel.name), say) as is_alone:
            if is_alone and _load(kernel, folder, _discard):
                continue  # another process has compiled it meanwhile
            try:
                with hold_interrupts():
                    kernel.compile(folder)
            except OSError as error:
                say(f"compiled kernels are not kept: {error.filename}: {error.strerror}")
                folder = None


def _describe_folder(folder: Path | None) -> str:
    return "" if folder is None else f"; the next run finds them in {folder}"


def _load(kernel: Kernel, folder: Path | None, say: Say) -> bool:
    if folder is None:
        return False
    try:
        with hold_interrupts():
            return kernel.load(folder)
    except (UntrustedError, OSError) as error:
        say(f"{folder / make_file_name(kernel.name)} is not used: {error}")
        return False


@functools.cache
def _define_numbas_symbols() -> None:
    """Let object code find the functions of numba's that it calls when it fails."""
    from numba.core.registry import cpu_target  # .threads has set its variables by now
    from numba.core.runtime import rtsys

    rtsys.initialize(cpu_target.target_context)


def _make_target() -> binding.TargetMachine:
    """Return a new description of this machine, for one engine to keep."""
    return binding.Target.from_default_triple().create_target_machine()
