"""Compiled kernels that are kept on disk: found again, never trusted unseen, never in the way."""

from __future__ import annotations

import ast
import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llvmlite import binding
from numba import carray

from dejavubench.models.backends.cpu import code_file, code_folder, compile_lock
from dejavubench.models.backends.cpu.code_cache import Kernel, provide_kernels
from dejavubench.models.backends.cpu.code_folder import FOLDER_VARIABLE
from dejavubench.models.backends.cpu.threads import compiled_kernel, make_job_type
from dejavubench.models.backends.cpu.threads import run_on_all_threads as run_kernel
from helpers.jobs import QUICK, args, run
from helpers.paths import PACKAGE

Answer = make_job_type("Answer", "number")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder for kernels."""
    folder = tmp_path / "kernels"
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    return folder


def compile_kernel() -> Any:
    @compiled_kernel(Answer)
    def work(job):  # type: ignore[no-untyped-def]
        carray(job, 1)[0].number = 42

    return work


def must_not_compile() -> Any:
    pytest.fail("it was compiled anew")


def make_kernel(
    build: Callable[[], Any] = compile_kernel, name: str = "forty-two"
) -> tuple[Kernel, list[str]]:
    """Build a kernel and run it; return it and the messages about it."""
    messages: list[str] = []
    built = Kernel(name, build)
    provide_kernels([built], messages.append)
    assert run_built(built) == 42
    return built, messages


def run_built(built_kernel: Kernel) -> int:
    job = Answer(0)
    run_kernel(built_kernel, job)
    return job.number


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_compiled_kernel_is_loaded_the_next_time(folder: Path) -> None:
    _, messages = make_kernel()
    assert len(messages) == 1
    assert messages[0].startswith("compiling 1 kernel")
    assert str(folder) in messages[0]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(files(folder)) == 1, "no lock and nothing partial is left"
    assert make_kernel(must_not_compile)[1] == [f"1 compiled kernel found in {folder}"]


def test_without_a_folder_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, "")
    assert make_kernel()[1] == ["compiling 1 kernel for this CPU, a few seconds each"]


def test_the_folder_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert code_folder.find_cache_folder() == tmp_path / "dejavubench" / "kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative, so it does not count")
    monkeypatch.setenv("HOME", "/home/someone")
    assert code_folder.find_cache_folder() == Path("/home/someone/.cache/dejavubench/kernels")


# ---- another kernel, another machine, another program ----


def test_a_kernels_file_name_tells_apart_whatever_changes_its_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = {code_file.make_file_name("one"), code_file.make_file_name("two")}
    monkeypatch.setenv("NUMBA_OPT", "1")
    keys.add(code_file.make_file_name("one"))
    monkeypatch.setattr(code_file, "read_cpu_flags", lambda: frozenset({"avx2"}))
    keys.add(code_file.make_file_name("one"))
    for name in ("numba", "llvmlite"):
        code_file._describe_process.cache_clear()
        monkeypatch.setattr(
            code_file, "version", lambda package, name=name: "0.0" if package == name else "1.0"
        )
        keys.add(code_file.make_file_name("one"))
    for call in ("get_host_cpu_name", "hash_sources"):
        code_file._describe_process.cache_clear()
        owner = binding if call == "get_host_cpu_name" else code_file
        monkeypatch.setattr(owner, call, lambda: "another")
        keys.add(code_file.make_file_name("one"))
    code_file._describe_process.cache_clear()
    assert len(keys) == 8


def test_a_helper_that_a_kernel_calls_is_looked_at(tmp_path: Path) -> None:
    """Its file is not the kernel's own, and nothing else changes."""
    package = Path(code_file.__file__).parent
    copy = tmp_path / "models"
    shutil.copytree(package, copy)
    assert code_file.hash_sources(copy) == code_file.hash_sources()
    helper = copy / "elementwise.py"
    helper.write_text(
        helper.read_text().replace("max(x[i], np.float32(0))", "max(x[i], np.float32(1))")
    )
    assert code_file.hash_sources(copy) != code_file.hash_sources()


def test_no_module_that_kernels_import_is_left_out_of_the_digest() -> None:
    """Their own folder is hashed as a whole; others that it imports must be named."""
    no_numbers = ("units.py", "whole_file.py", "machine/interrupts.py")  # messages, files, signals
    without_numbers = {PACKAGE / name for name in no_numbers}
    for source in Path(code_file.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(
                "dejavubench"
            ):
                continue
            module = PACKAGE.parent.joinpath(*str(node.module).split("."))
            for name in node.names:
                inner = module / f"{name.name}.py"
                file = inner if inner.exists() else module.with_suffix(".py")
                assert (
                    file.parent == source.parent
                    or file in code_file.OUTER_SOURCES
                    or file in without_numbers
                    or source.name == "backend.py"  # has no compiled code
                ), f"{source.name} imports {file}"


@pytest.mark.drill
def test_an_edited_helper_is_what_runs(tmp_path: Path) -> None:
    """A copy is run, edited in a helper of the kernel, and run again with the same cache."""
    shutil.copytree(PACKAGE, tmp_path / "dejavubench", ignore=shutil.ignore_patterns("__pycache__"))
    script = """
import torch
from dejavubench.models.backends.cpu.linear import linear
print(linear(torch.full((1, 8), -1.0), torch.ones(1, 8), None, "relu").item())
"""
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        FOLDER_VARIABLE: str(tmp_path / "kernels"),
    }

    def relu_of_minus_8() -> str:
        return subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    assert relu_of_minus_8() == relu_of_minus_8() == "0.0"
    helper = tmp_path / "dejavubench" / "models" / "backends" / "cpu" / "elementwise.py"
    helper.write_text(
        helper.read_text().replace("max(x[i], np.float32(0))", "max(x[i], np.float32(3))")
    )
    assert relu_of_minus_8() == "3.0"


# ---- what is not trusted ----


@pytest.mark.parametrize("damaged_part", ["magic", "digest", "symbol", "code", "end", "all"])
def test_a_damaged_file_is_said_and_replaced(folder: Path, damaged_part: str) -> None:
    make_kernel()
    (file,) = folder.iterdir()
    good_code = file.read_bytes()
    place = {"magic": 3, "digest": 30, "symbol": 60, "code": len(good_code) - 500}
    if damaged_part in place:
        changed = bytearray(good_code)
        changed[place[damaged_part]] ^= 1
        file.write_bytes(changed)
    else:
        file.write_bytes(b"" if damaged_part == "all" else good_code[:-1])
    _, messages = make_kernel()
    assert "is not used: it is damaged" in messages[0]
    assert messages[1].startswith("compiling")
    assert make_kernel(must_not_compile)[1] == [f"1 compiled kernel found in {folder}"]


def test_another_kernels_file_is_not_taken(folder: Path) -> None:
    make_kernel(name="another")
    (file,) = folder.iterdir()
    file.rename(folder / code_file.make_file_name("forty-two"))
    assert "another kernel's" in make_kernel()[1][0]


def test_code_that_needs_what_is_not_here_is_not_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_file, "list_outer_symbols", lambda module: ["no_such_function"])
    make_kernel()
    assert "calls no_such_function" in make_kernel()[1][0]


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o777])
def test_a_folder_that_is_open_to_others_is_not_read(folder: Path, mode: int) -> None:
    make_kernel()
    folder.chmod(mode)
    _, messages = make_kernel()
    assert f"mode {mode:04o}" in messages[0]
    assert len(files(folder)) == 1


def test_a_folder_of_another_user_is_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_kernel()
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert f"it belongs to user {owner}, not to {owner + 1}" in make_kernel()[1][0]


def test_a_link_in_the_folders_place_is_not_followed(folder: Path, tmp_path: Path) -> None:
    make_kernel()
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert "it must be a folder" in make_kernel()[1][0]


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "writable by others"])
def test_a_file_that_is_not_plainly_the_users_is_not_read(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    make_kernel()
    (file,) = folder.iterdir()
    if kind == "writable by others":
        file.chmod(0o666)
    else:
        file.rename(tmp_path / "aside")
        if kind == "link":
            file.symlink_to(tmp_path / "aside")
        elif kind == "folder":
            file.mkdir()
        else:
            os.mkfifo(file)
    assert "is not used: " in make_kernel()[1][0]


# ---- where nothing can be kept ----


def test_a_folder_of_kernels_that_cannot_be_made_is_reported(folder: Path) -> None:
    folder.write_text("a file in its place")
    assert make_kernel()[1][0].startswith("compiled kernels are not kept")


def test_a_full_disk_is_said_once_and_leaves_nothing_torn(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "replace", full)
    messages: list[str] = []
    kernels = [Kernel(name, compile_kernel) for name in ("one", "two")]
    provide_kernels(kernels, messages.append)
    assert [run_built(built_kernel) for built_kernel in kernels] == [42, 42]
    assert [line.rpartition(": ")[2] for line in messages[1:]] == ["No space left on device"]
    assert files(folder) == []


# ---- several processes ----


def test_a_kernel_that_another_process_compiles_is_waited_for(folder: Path) -> None:
    make_kernel()
    (file,) = folder.iterdir()
    ready, lock = file.read_bytes(), folder / f"{file.name}.lock"
    file.unlink()
    with lock.open("w") as lock_of_another:
        fcntl.flock(lock_of_another, fcntl.LOCK_EX)

        def finish() -> None:
            file.write_bytes(ready)
            file.chmod(0o600)
            fcntl.flock(lock_of_another, fcntl.LOCK_UN)

        timer = threading.Timer(0.3, finish)
        timer.start()
        make_kernel(must_not_compile)
        timer.join()


def test_a_process_that_takes_too_long_is_not_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_lock, "PATIENCE_S", 0.3)
    monkeypatch.setattr(compile_lock, "NOTE_AFTER_S", 0.1)
    folder.mkdir(mode=0o700)
    with (folder / f"{code_file.make_file_name('forty-two')}.lock").open("w") as lock_of_another:
        fcntl.flock(lock_of_another, fcntl.LOCK_EX)
        messages = make_kernel()[1]
    assert messages.count("another process compiles this kernel; waiting up to 0.3 s for it") == 1


@pytest.mark.mpi
@pytest.mark.drill
def test_a_job_compiles_once_and_the_next_one_not_at_all(tmp_path: Path) -> None:
    flags = (*QUICK, *args("--tensor_para_size 2 --streaming none --rounds 1 --warmup 0"))
    environment = {FOLDER_VARIABLE: str(tmp_path / "kernels")}
    first_job = run(tmp_path / "first", 2, "run", *flags, environment=environment)
    assert first_job.stderr.count("compiling ") == 1
    second_job = run(tmp_path / "second", 2, "run", *flags, environment=environment)
    assert "compiling " not in second_job.stderr
