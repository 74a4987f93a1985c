"""Compiled kernels of a CPU's decode step, kept on the user's disk between runs.

Numba compiles a kernel in seconds; its object code loads in milliseconds. A file holds the code of
one kernel. Its name is the hash of all that the code depends on, so an outdated file is never found
(:func:`_environment_key`). A digest checks the content before it is loaded; nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llvmlite import binding

from dejavubench.dejavulib import kv_cache
from dejavubench.machine import cpu
from dejavubench.machine.cpu import cpu_flags
from dejavubench.machine.interrupts import hold_interrupts
from dejavubench.models.backends import protocol
from dejavubench.models.backends.protocol import Say
from dejavubench.units import count_text
from dejavubench.whole_file import write_whole

FOLDER_VARIABLE = "DEJAVUBENCH_KERNEL_CACHE"
"""Environment variable with the cache's folder; empty: no cache."""

OUTER_SOURCES = tuple(Path(str(module.__file__)) for module in (protocol, cpu, kv_cache))
"""Modules outside of this package that kernels take numbers from."""

MAGIC = b"dejavubench kernel 1\n"

PATIENCE_S = 120.0
"""Seconds to wait for another process that compiles the same kernel; then this one does, too."""

NOTED_S, POLL_S = 5.0, 0.02
"""Seconds of waiting until a line says so, and between two looks for the other process's file."""


def _say_nothing(text: str) -> None:
    """Say nothing: for kernels that are made when they are first used."""


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
        provide([self])
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
        key = file_name(self.name)
        content = _read(folder / key)
        if content is None:
            return False
        symbol, needed, code = _unpack(content, key)
        _define_numbas_symbols()
        for name in needed:  # LLVM would put address 0 in place of a missing one
            if binding.address_of_symbol(name) is None:
                raise UntrustedError(f"its code calls {name}, which this process does not have")
        # LLVM makes an engine only from a module, so an empty one carries the object file.
        engine = binding.create_mcjit_compiler(binding.parse_assembly(""), _make_target())
        engine.add_object_file(binding.ObjectFileRef.from_data(code))
        engine.finalize_object()
        self._take(engine, engine.get_function_address(symbol))
        return True

    def compile(self, folder: Path | None) -> None:
        """Compile it, and leave the code in ``folder``.

        Raises:
            OSError: the code cannot be written. The kernel is ready nevertheless.
        """
        function = self._build()
        self._take(function, function.address)
        if folder is not None:
            key = file_name(self.name)
            # Private to numba, as is `_final_module` below. Tried with numba 0.68; a version
            # without them raises AttributeError at the first kernel.
            library = function._library
            _, _, (code, _) = library.serialize_using_object_code()
            content = _pack(function._wrapper_name, outer_symbols(library._final_module), code, key)
            write_whole(folder / key, content, mode=0o600)

    def _take(self, owner: object, address: int) -> None:
        if not address:
            raise UntrustedError("its code has no such function")
        self._owner = owner
        self.__dict__["address"] = address


class UntrustedError(Exception):
    """A file or folder of the cache cannot be trusted; the message says why."""


def provide(kernels: Iterable[Kernel], say: Say = _say_nothing) -> None:
    """Load the kernels that are not ready yet, and compile those that no earlier run has left.

    Of several processes that need a kernel at once, one compiles it and the others wait for its
    file.

    Args:
        say: takes one line each about the cache, and about compiling.
    """
    requested = [kernel for kernel in dict.fromkeys(kernels) if not kernel.is_ready]
    folder = _open_folder(say)
    missing = [kernel for kernel in requested if not _load(kernel, folder, say)]
    if loaded := len(requested) - len(missing):
        say(f"{count_text(loaded, 'compiled kernel')} found in {folder}")
    if missing:
        count = count_text(len(missing), "kernel")
        say(f"compiling {count} for this CPU, a few seconds each{_describe_folder(folder)}")
    for kernel in missing:
        with _lock(folder, kernel, say) as is_alone:
            if is_alone and _load(kernel, folder, _say_nothing):
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
        say(f"{folder / file_name(kernel.name)} is not used: {error}")
        return False


# ---- the folder ----


def cache_folder() -> Path | None:
    """Return the folder of compiled kernels; None: none are kept."""
    folder_text = os.environ.get(FOLDER_VARIABLE)
    if folder_text is not None:
        return Path(folder_text).absolute() if folder_text else None
    base = os.environ.get("XDG_CACHE_HOME")
    return (
        (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache")
        / "dejavubench"
        / "kernels"
    )


def _open_folder(say: Say) -> Path | None:
    """Return the folder, made if need be; None, after a line to ``say``, if it must not be used."""
    try:
        folder = cache_folder()
        if folder is None:
            return None
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        _check_owned(folder.lstat(), stat.S_ISDIR, 0o077, "be a folder")
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no home is known
        say(f"compiled kernels are not kept: {error}")
    except UntrustedError as error:
        say(f"compiled kernels are neither read from {folder} nor kept there: {error}")
    else:
        return folder
    return None


def _check_owned(
    status: os.stat_result, is_kind: Callable[[int], bool], closed_bits: int, requirement: str
) -> None:
    """Raise UntrustedError unless it is this user's, of that kind, and closed to others."""
    if not is_kind(status.st_mode):
        raise UntrustedError(f"it must {requirement}")
    if status.st_uid != os.geteuid():
        raise UntrustedError(f"it belongs to user {status.st_uid}, not to {os.geteuid()}")
    if status.st_mode & closed_bits:
        raise UntrustedError(
            f"others have access to it (mode {stat.S_IMODE(status.st_mode):04o}); "
            "close it with chmod go="
        )


def _read(file: Path) -> bytes | None:
    """Return the content of a file of this user's; None if there is no such file."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as opened:
        _check_owned(os.fstat(descriptor), stat.S_ISREG, 0o022, "be a regular file")
        return opened.read()


@contextmanager
def _lock(folder: Path | None, kernel: Kernel, say: Say) -> Iterator[bool]:
    """Yield whether this process alone compiles a kernel now.

    It does not after too long a wait, or if files cannot be locked. The operating system frees the
    lock of a process that dies.
    """
    if folder is None:
        yield False
        return
    path = folder / f"{file_name(kernel.name)}.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:  # nothing can be written here, which storing the kernel will say
        yield False
        return
    try:
        is_alone = _try_lock(descriptor, say)
        yield is_alone
        if is_alone:
            with contextlib.suppress(OSError):
                path.unlink()
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, say: Say) -> bool:
    """Return whether the lock was got, after at most ``PATIENCE_S`` of waiting."""
    began = time.monotonic()
    has_noted = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = time.monotonic() - began
            if waited > PATIENCE_S:
                return False
            if waited > NOTED_S and not has_noted:
                say(f"another process compiles this kernel; waiting up to {PATIENCE_S:g} s for it")
                has_noted = True
            time.sleep(POLL_S)
        except OSError:  # a file system without locks
            return False
        else:
            return True


# ---- names and contents of files ----


def file_name(name: str) -> str:
    """Return the file's name: 64 hex digits of all that the kernel's code depends on."""
    return hashlib.sha256(f"{name}\n{_environment_key()}".encode()).hexdigest()


def _environment_key() -> str:
    """Return versions, CPU, and the variables that change what numba makes of a kernel."""
    forced = {
        name: value for name, value in sorted(os.environ.items()) if name.startswith("NUMBA_")
    }
    return f"{_static_key()} {sorted(cpu_flags())} {forced}"


@functools.cache
def _static_key() -> str:
    """Return the part that stays the same while this process runs."""
    processor = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    return f"{source_digest()} {sys.version} {version('numba')} {version('llvmlite')} {processor}"


def source_digest(kernels: Path = Path(__file__).parent) -> str:
    """Return a hash of all sources that a kernel may call or take a number from.

    These are all modules of this package, and the modules outside of it in :data:`OUTER_SOURCES`.
    """
    digest = hashlib.sha256()
    for file in [*sorted(kernels.glob("*.py")), *OUTER_SOURCES]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def outer_symbols(module: binding.ModuleRef) -> list[str]:
    """Return the names of outer functions and variables in compiled code."""
    symbols = (*module.functions, *module.global_variables)
    named = [symbol.name for symbol in symbols if symbol.is_declaration]
    return [name for name in named if not name.startswith("llvm.")]  # those are instructions


def _pack(symbol: str, needed: Sequence[str], code: bytes, key: str) -> bytes:
    body = f"{symbol}\n{' '.join(needed)}\n".encode() + code
    return MAGIC + hashlib.sha256(key.encode() + body).digest() + body


def _unpack(content: bytes, key: str) -> tuple[str, list[str], bytes]:
    """Return the kernel's symbol, the symbols that its code needs, and its object code.

    Raises:
        UntrustedError: :func:`_pack` did not make it for this key.
    """
    start = len(MAGIC) + hashlib.sha256().digest_size
    digest, body = content[len(MAGIC) : start], content[start:]
    if not content.startswith(MAGIC) or hashlib.sha256(key.encode() + body).digest() != digest:
        raise UntrustedError("it is damaged, or another kernel's; delete it")
    symbol, needed, code = body.split(b"\n", 2)
    return symbol.decode(), needed.decode().split(), code


@functools.cache
def _define_numbas_symbols() -> None:
    """Let object code find the functions of numba's that it calls when it fails."""
    from numba.core.registry import cpu_target  # .threads has set its variables by now
    from numba.core.runtime import rtsys

    rtsys.initialize(cpu_target.target_context)


def _make_target() -> binding.TargetMachine:
    """Return a new description of this machine, for one engine to keep."""
    return binding.Target.from_default_triple().create_target_machine()
