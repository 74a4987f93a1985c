"""`make figures…` with stand-ins for mpirun, dejavubench and MPS: their calls and leftovers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from dejavubench.analysis.figures.registry import load_figures
from helpers.paths import ROOT, SCRIPTS
from helpers.waits import until

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")

PROGRAMS = {
    "venv/bin/python": "exit 1",
    "venv/bin/pytest": "printf 'pytest %s\\n' \"$*\" >> calls",
    "venv/bin/dejavubench": "printf '%s\\n' \"$*\" >> calls",
    "venv/bin/mpirun": """
        printf '%s\\n' "$* mps=${CUDA_MPS_PIPE_DIRECTORY:-none}" >> calls
        case "$*" in *loopback*) ;; *) exit 0;; esac
        test -d "$CUDA_MPS_PIPE_DIRECTORY" || exit 9
        test -z "$WAIT" || sleep 30
        exit ${END:-0}
    """,
    "path/nvidia-cuda-mps-control": """
        if [ "$1" = -d ]; then echo "mps start" >> calls; exit ${MPS:-0}; fi
        read -r what; echo "mps $what" >> calls
    """,
    "path/nvidia-smi": """
        for number in $(seq "${GPUS:-1}"); do echo "GPU $number: NVIDIA H200 (UUID: GPU-0)"; done
    """,
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the Makefile, an installed environment, and programs that note their calls."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPTS / "figures.mk", tmp_path / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    for name, text in PROGRAMS.items():
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    for kind in ("run", "gpu", "dev"):
        (tmp_path / f"venv/.installed-{kind}").touch()
    (tmp_path / "tmp").mkdir()
    return tmp_path


def start(place: Path, target: str = "figures-gpu", **variables: str) -> subprocess.Popen[str]:
    environment = {
        "PATH": f"{place}/path:{os.environ['PATH']}",
        "TMPDIR": str(place / "tmp"),
        **variables,
    }
    command = ["make", target, "VENV=venv"]
    pipe = subprocess.PIPE
    # A job in a shell's background inherits SIGINT as ignored.
    ignored = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return subprocess.Popen(
            command,
            cwd=place,
            env=environment,
            stdout=pipe,
            stderr=pipe,
            text=True,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGINT, ignored)


def read_calls(place: Path) -> list[str]:
    path = place / "calls"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("target", ["figures", "figures-full"])
def test_each_figure_of_the_registry_is_measured_and_drawn(place: Path, target: str) -> None:
    make = start(place, target)
    _, errors = make.communicate(timeout=60)
    assert make.returncode == 0, errors
    runs = [call.split() for call in read_calls(place) if call.startswith("-n ")]
    measured_figures = [(run[1], run[4].removeprefix("configs/cpu/")) for run in runs]
    quick_figures = [
        (str(figure.quick_run.rank_count), f"{figure.name}.toml")
        for figure in load_figures()
        if figure.quick_run
    ]
    assert measured_figures == quick_figures
    flags = [figure.quick_run.flags for figure in load_figures() if figure.quick_run]
    assert [flag in " ".join(run) for flag, run in zip(flags, runs, strict=True)] == [
        target == "figures"
    ] * len(runs)
    assert [call.split()[0] for call in read_calls(place)[-2:]] == ["process", "figures"]


def test_every_config_runs_and_mps_is_up_for_the_loopback_alone(place: Path) -> None:
    make = start(place)
    _, errors = make.communicate(timeout=60)
    assert make.returncode == 0, errors
    runs = [call.split() for call in read_calls(place) if call.startswith("-n ")]
    measured_figures = [(run[1], run[4].removeprefix("configs/h200/")) for run in runs]
    assert measured_figures == [
        ("1", "fig2.toml"),
        ("1", "appendix_a.toml"),
        ("1", "fig7.toml"),
        ("2", "fig25.toml"),
        ("2", "fig25_llama.toml"),
        ("2", "fig25_nccl_loopback.toml"),
    ]
    assert [run[-1] == "mps=none" for run in runs] == [True] * 5 + [False]
    assert all(run[6].startswith("logs/gpu-") for run in runs)
    assert [call for call in read_calls(place) if call.startswith("mps")] == [
        "mps start",
        "mps quit",
    ]
    assert [call.split()[0] for call in read_calls(place)[-2:]] == ["process", "figures"]
    assert list((place / "tmp").iterdir()) == []


@pytest.mark.parametrize("gpus", ["0", "1", "2", "8"])
def test_runs_of_two_gpus_are_made_where_there_are_two_and_else_named(
    place: Path, gpus: str
) -> None:
    make = start(place, GPUS=gpus)
    output, errors = make.communicate(timeout=60)
    assert make.returncode == 0, errors
    calls = read_calls(place)
    runs = [call.split() for call in calls if "configs/h200x2/" in call]
    measured = [
        (run[1], run[4].removeprefix("configs/h200x2/"), run[-2] if "--streaming" in run else None)
        for run in runs
    ]
    has_two = int(gpus) > 1
    assert measured == has_two * [
        ("2", "fig25.toml", None),
        ("2", "handoff.toml", None),
        ("2", "handoff.toml", "nccl"),
        ("2", "handoff.toml", "mpi"),
        ("2", "swap.toml", None),
    ]
    left_out = f"Left out: configs/h200x2 needs two GPUs. nvidia-smi -L lists {gpus} here.\n"
    assert (left_out in output) != has_two
    assert [call.split()[0] for call in calls[-2:]] == ["process", "figures"]


def test_a_run_that_fails_fails_the_target_and_stops_mps(place: Path) -> None:
    make = start(place, END="3")
    _, errors = make.communicate(timeout=60)
    assert make.returncode == 2
    assert "Error 3" in errors
    assert read_calls(place)[-1] == "mps quit"
    assert list((place / "tmp").iterdir()) == []


def test_interrupted_it_stops_mps(place: Path) -> None:
    make = start(place, WAIT="1")
    until(lambda: "fig25_nccl_loopback" in " ".join(read_calls(place)), "the run under MPS", 30)
    os.killpg(make.pid, signal.SIGINT)  # as Ctrl-C does: everything in the foreground
    make.communicate(timeout=60)
    assert make.returncode != 0
    assert read_calls(place)[-1] == "mps quit"
    assert list((place / "tmp").iterdir()) == []


def test_mps_that_does_not_start_is_an_error(place: Path) -> None:
    make = start(place, MPS="1")
    make.communicate(timeout=60)
    assert make.returncode == 2
    assert read_calls(place)[-1] == "mps start"
    assert list((place / "tmp").iterdir()) == []


def test_without_mps_nothing_is_measured(place: Path) -> None:
    (place / "path/nvidia-cuda-mps-control").unlink()
    make = start(place)
    _, errors = make.communicate(timeout=60)
    if shutil.which("nvidia-cuda-mps-control"):
        pytest.skip("this machine has MPS")
    assert make.returncode == 2
    assert "nvidia-cuda-mps-control was not found" in errors
    assert read_calls(place) == []


def test_tests_on_a_gpu_fail_where_there_is_no_device_to_run_them(place: Path) -> None:
    make = start(place, "test-gpu")  # the stand-in for python ends with 1, as without a device
    _, errors = make.communicate(timeout=60)
    assert make.returncode == 2
    assert "torch finds no CUDA device" in errors
    assert read_calls(place) == []


def test_tests_on_a_gpu_are_those_with_the_mark(place: Path) -> None:
    (place / "venv/bin/python").write_text("#!/bin/sh\nexit 0\n")
    make = start(place, "test-gpu")
    _, errors = make.communicate(timeout=60)
    assert make.returncode == 0, errors
    assert read_calls(place) == ["pytest -q -m gpu --durations=15"]
