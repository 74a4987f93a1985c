"""The command line: quick help, one message a usage error, dry runs of every config."""

import re
import shlex
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest

from dejavubench.config.experiment import Experiment
from dejavubench.config.options.field import flag_of
from dejavubench.config.plan import Plan
from dejavubench.machine import gpu
from dejavubench.machine.gpu import CudaDevice
from dejavubench.planning import duration, fit
from dejavubench.records import Iteration
from dejavubench.records.figures import FIGURES
from dejavubench.transports.nixl import NOT_INSTALLED, has_nixl
from dejavubench.transports.registry import list_modes
from helpers.cli_calls import call, heavy_after, usage_error_of
from helpers.committed_runs import runs_of
from helpers.fake_gpu import H200, pretend_cupy, refuse_question
from helpers.gpu_durations import estimate_iteration_seconds, estimate_run_seconds
from helpers.jobs import args
from helpers.paths import CONFIGS, ROOT

CONFIG_FILES = sorted(CONFIGS.glob("*/*.toml"))
GPUS = {"h200": 1, "h200x2": 2, "h200x4": 4}
"""H200s of one host that the configs of a folder are for."""

GPU_CONFIG_FILES = [path for path in CONFIG_FILES if path.parent.name in GPUS]
MOST_RUN_S = 9 * 60
"""Longest estimate of a run on several GPUs, in seconds."""

HEAVY = {"torch", "mpi4py", "pandas", "matplotlib", "numpy"}
MPIRUN = Path(sys.executable).parent / "mpirun"


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    from dejavubench.machine.launcher import RANK_VARIABLES

    for variable in (*RANK_VARIABLES, "DEJAVULIB_BASELINE"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has; tests of cuda give themselves a device."""
    _have(monkeypatch)


def _have(monkeypatch: pytest.MonkeyPatch, *devices: CudaDevice) -> None:
    monkeypatch.setattr(gpu, "list_cuda_devices", lambda: devices)


def _have_gpus_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that this is the machine that a config's folder is for."""
    count = GPUS.get(path.parent.name, 0)
    _have(monkeypatch, *[H200] * count)
    if count > 1:
        pretend_cupy(monkeypatch)
        monkeypatch.setattr(
            gpu, "find_peer_pairs", lambda: frozenset(permutations(range(count), 2))
        )


# ---- help ----


@pytest.mark.parametrize(
    "arguments",
    [[], ["run"], ["plan"], ["sink"], ["process"], ["figures"]],
    ids=lambda a: "-".join(a) or "group",
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    printed = heavy_after(HEAVY, *arguments, "--help")
    assert printed.startswith("Usage: dejavubench")
    assert printed.endswith("HEAVY []\n")


def test_help_asks_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "list_cuda_devices", refuse_question)
    assert call("run", "--help").exit_code == 0


def test_help_of_run_has_every_field_with_its_default() -> None:
    text = " ".join(call("run", "--help").stdout.split())
    for key in Experiment.model_fields:
        assert flag_of(key) in text
    assert "Requests per microbatch. [default: 1]" in text
    assert "--rounds, --times N" in text
    assert "Compare every byte that arrived, outside the clock. [default: on]" in text


def test_version_prints_that_of_the_package() -> None:
    from dejavubench import __version__

    assert call("--version").stdout == f"dejavubench, version {__version__}\n"


def test_python_m_starts_the_same_command() -> None:
    completed = subprocess.run(
        [sys.executable, "-m", "dejavubench", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert completed.stdout.startswith("Usage: dejavubench [OPTIONS] COMMAND")


# ---- flags ----


def test_hyphens_and_underscores_in_flags_of_run_are_one_spelling() -> None:
    lengths = ["--model", "gpt2", "--dry-run"]
    underscore_call = call("run", "--ubatch_size", "4", "--input_len=256", "--times", "3", *lengths)
    hyphen_call = call("run", "--ubatch-size", "4", "--input-len=256", "--rounds", "3", *lengths)
    assert underscore_call.exit_code == hyphen_call.exit_code == 0
    assert "2 warm-up iterations, 3 rounds" in underscore_call.stdout
    row = next(line for line in underscore_call.stdout.splitlines() if line.startswith("p000"))
    assert row.split()[:8] == ["p000", "gpt2", row.split()[2], "hnd", "4", "256", "32", "288"]
    assert [
        line.split()[:9] for line in hyphen_call.stdout.splitlines() if line.startswith("p000")
    ] == [row.split()[:9]]


def test_level_of_the_environment_is_honoured_and_the_flag_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEJAVULIB_BASELINE", "0")
    assert (
        "Arms     mpi@0\n"
        in call("run", "--dry-run", "--model", "gpt2", "--streaming", "mpi").stdout
    )
    flag = call("run", "--dry-run", "--model", "gpt2", "--streaming", "mpi", "--level", "2")
    assert "Arms     mpi@2\n" in flag.stdout


# ---- usage errors ----


@pytest.mark.parametrize("rest", [(), ("--rounds", "3")])
def test_bare_streaming_names_the_choices(rest: tuple[str, ...]) -> None:
    message = usage_error_of("run", "--streaming", *rest)
    choices = ", ".join(("none", *list_modes()))
    assert message == f"--streaming: no destination is given; choose one or more of {choices}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--nonsense", "3"], "No such option '--nonsense'. (see dejavubench run --help)"),
        (["walk"], "No such command 'walk'."),
        (["run", "--model"], "Option '--model' requires an argument."),
        (["run", "--model", "gpt3"], "--model: unknown model 'gpt3'; did you mean gpt2?"),
        (["run", "--ckpt_path", "x"], "--ckpt-path: x is not a folder"),
        (["run", "none.toml"], "none.toml does not exist; CONFIG is a TOML file"),
        (
            ["run", *args("--model gpt2 --tensor_para_size 5")],
            "--tensor-para-size 5 does not divide the 12 heads of gpt2",
        ),
        (
            ["run", *args("--streaming mpi --level 9")],
            "--level: there is no level '9'; levels are 0, 0-batched, 1, 2, 3",
        ),
        (
            ["run", "--device", "cuda"],
            "--device cuda: no CUDA device is found here: there is no NVIDIA driver, or it lists "
            "none",
        ),
        (
            ["run", "--streaming", "nccl"],
            "--streaming nccl moves the cache from GPU to GPU: it needs a CUDA device",
        ),
    ],
)
def test_usage_error_is_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    error = usage_error_of(*arguments)
    if message.startswith("No such"):  # click's own words, which may carry suggestions
        assert error.startswith(message.split("'")[0])
        assert arguments[-1 if arguments == ["walk"] else 1] in error
    else:
        assert error == message


@pytest.mark.mpi
@pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this Python")
@pytest.mark.parametrize(
    "flags",
    [["--model", "gpt3"], ["--streaming"]],
    ids=["value", "bare-streaming"],
)
def test_a_usage_error_under_mpi_is_printed_once(flags: list[str]) -> None:
    command = [str(MPIRUN), "-n", "2", sys.executable, "-m", "dejavubench", "run", *flags]
    completed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert completed.returncode == 2
    assert completed.stdout == ""
    assert completed.stderr.startswith("Error: ")
    assert completed.stderr.count("\n") == 1


@pytest.mark.mpi
@pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this Python")
def test_only_the_environment_of_rank_0_counts(tmp_path: Path) -> None:
    """Rank 0's environment is wrong and rank 1's is not: both end, and one of them says why."""
    command = [str(MPIRUN)]
    for baseline in ("9", "3"):
        program = ["-m", "dejavubench", "run", "--streaming", "mpi", "--log-dir", str(tmp_path)]
        command += [
            "-n",
            "1",
            "env",
            f"DEJAVULIB_BASELINE={baseline}",
            sys.executable,
            *program,
            ":",
        ]
    completed = subprocess.run(command[:-1], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert completed.returncode == 2
    assert (
        completed.stderr
        == "Error: DEJAVULIB_BASELINE: there is no level '9'; levels are 0, 0-batched, 1, 2, 3\n"
    )
    assert list(tmp_path.iterdir()) == []


# ---- dry runs ----


def test_every_figure_has_a_config_for_each_machine() -> None:
    config_names = {path.relative_to(CONFIGS).as_posix() for path in CONFIG_FILES}
    figures = ("fig2", "appendix_a", "fig7", "fig25")
    names_of_figures = {
        f"{folder}/{figure}.toml" for folder in ("cpu", "h200", "paper") for figure in figures
    }
    assert names_of_figures <= config_names
    assert "h200/fig25_nccl_loopback.toml" in config_names


@pytest.mark.parametrize(
    "path", CONFIG_FILES, ids=lambda path: path.relative_to(CONFIGS).as_posix()
)
def test_a_dry_run_shows_all_points_and_arms_of_every_config(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _have_gpus_of(path, monkeypatch)
    dry_run = call("run", str(path), "--dry-run", "--log-dir", str(tmp_path))
    assert dry_run.exit_code == 0
    plan = _plan(path)
    assert plan.experiment.figure == _figure_of(path)
    for point in plan.points:
        assert sum(line.startswith(f"{point.id} ") for line in dry_run.stdout.splitlines()) in (
            1,
            2,
        )
    assert ", ".join(arm.name for arm in plan.arms) in dry_run.stdout
    assert list(tmp_path.iterdir()) == []


def _plan(path: Path) -> Plan:
    from dejavubench.config.resolve import load

    return load(path, {}, {})


def _figure_of(path: Path) -> str | None:
    """Return the figure that a config's name begins with; hand-over and swap have none."""
    return next((name for name in FIGURES if f"{path.stem}_".startswith(f"{name}_")), None)


@pytest.mark.parametrize(
    "path", CONFIG_FILES, ids=lambda path: path.relative_to(CONFIGS).as_posix()
)
def test_the_comment_of_every_config_starts_as_many_ranks_as_it_needs(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _have_gpus_of(path, monkeypatch)
    (command,) = re.findall(r"^#   (.*dejavubench run .*)$", path.read_text(), re.MULTILINE)
    launcher, _, arguments = command.partition("dejavubench ")
    launched_rank_count = int(launcher.split()[2]) if launcher else 1
    assert launcher.startswith(f"mpirun -n {launched_rank_count} ") or not launcher
    assert f" {path.relative_to(ROOT).as_posix()}" in command
    dry_run = call(*shlex.split(arguments), "--dry-run")
    assert f"\nRanks    {launched_rank_count} " in dry_run.stdout


def test_a_dry_run_shows_what_skipped_points_need() -> None:
    dry_run = call(
        "run",
        "--dry-run",
        "--model",
        "gpt2,bloom-176b",
        "--input-len",
        "8,2000",
        "--streaming",
        "none,nccl",
    )
    lines = dry_run.stdout.splitlines()
    assert "nccl@3 SKIPPED: no CUDA device" in lines
    assert (
        "p001 SKIPPED: --input-len 2000 and --output-len 32 take 2031 positions, but gpt2 has 1024"
        in lines
    )
    assert dry_run.exit_code == 0


def test_a_dry_run_of_an_experiment_that_cannot_run_here_says_so_and_exits_with_0(
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    monkeypatch.setattr(
        fit,
        "find_skip_reasons",
        lambda plan, room: {"p000": "gpt2 needs 2 GiB of memory; 1 GiB are available"},
    )
    dry_run = call("run", "--dry-run", "--model", "gpt2")
    assert dry_run.exit_code == 0
    assert "p000 SKIPPED: gpt2 needs 2 GiB of memory; 1 GiB are available" in dry_run.stdout
    assert dry_run.stdout.endswith("No point can run here.\n")


@pytest.mark.parametrize("name", ["fig25", "fig25_nccl_loopback"])
def test_a_run_for_a_gpu_is_planned_without_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _have(monkeypatch)
    dry_run = call("run", str(CONFIGS / f"h200/{name}.toml"), "--dry-run")
    assert dry_run.exit_code == 0
    assert "GPUs     none here; the table counts one per rank" in dry_run.stdout
    assert "p000 SKIPPED: opt-13b needs a CUDA device; none is found on this host" in dry_run.stdout


@pytest.mark.parametrize(
    "path", GPU_CONFIG_FILES, ids=lambda path: path.relative_to(CONFIGS).as_posix()
)
def test_configs_for_h200s_fit_the_gpus_of_their_machine(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _have_gpus_of(path, monkeypatch)
    monkeypatch.setattr(
        fit, "measure_available_nbytes", lambda: 64 << 30
    )  # of the host beside the GPUs
    dry_run = call("run", str(path), "--dry-run")
    plan = _plan(path)
    assert plan.experiment.device == "cuda"
    missing = {arm.mode: arm.skipped for arm in plan.arms if arm.skipped}
    lacks_nixl = "nixl" in plan.experiment.streaming and not has_nixl()
    assert missing == ({"nixl": NOT_INSTALLED} if lacks_nixl else {})
    assert [point.problem for point in plan.points if point.problem] == []
    assert "Cannot run" not in dry_run.stdout
    lines = dry_run.stdout.splitlines()
    skipped = [line for line in lines if line.startswith("p") and " SKIPPED: " in line]
    assert all(line.endswith("GiB of GPU memory; NVIDIA H200 has 140 GiB") for line in skipped)
    skipped_models = {"opt-66b"} if path == CONFIGS / "h200/fig2.toml" else set()
    assert {line.split()[2] for line in skipped} == skipped_models
    assert f"GPUs     {GPUS[path.parent.name]} × NVIDIA H200 (140 GiB)\n" in dry_run.stdout


@pytest.mark.parametrize(
    "path",
    [path for path in GPU_CONFIG_FILES if GPUS[path.parent.name] > 1],
    ids=lambda path: path.relative_to(CONFIGS).as_posix(),
)
def test_a_run_on_several_h200s_is_estimated_to_end_within_nine_minutes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _have_gpus_of(path, monkeypatch)
    assert estimate_run_seconds(_plan(path)) <= MOST_RUN_S


def test_the_estimate_of_an_iteration_is_near_what_one_h200_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _have(monkeypatch, H200)
    (run,) = (run for run in runs_of("h200") if run.header.name == "fig25")
    (point,) = _plan(CONFIGS / "h200/fig25.toml").points
    measured_s = [
        record.total_ms / 1e3 for _, record in run.records_of(Iteration) if record.arm == "none"
    ]
    estimated_s = estimate_iteration_seconds(point)
    assert all(0.9 < estimated_s / seconds < 1.25 for seconds in measured_s)


def test_a_dry_run_on_cuda_shows_the_gpus_memory_and_gives_no_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def probe() -> duration.Rates:
        raise AssertionError("the CPU's rates say nothing of a GPU")

    _have(monkeypatch, H200, H200)
    monkeypatch.setattr(duration, "probe_core", probe)
    lengths = args("--ubatch-size 8 --input-len 500 --output-len 500")
    dry_run = call("run", "--dry-run", "--model", "opt-13b", "--streaming", "none,nccl", *lengths)
    (row,) = (line for line in dry_run.stdout.splitlines() if line.startswith("p000"))
    assert row.split() == [
        *("p000", "opt-13b", "fp16", "hnd", "8", "500", "500", "1024"),
        *("3.00", "GiB", "3.00", "GiB", "6.00", "GiB", "31.9", "GiB", "6.10", "GiB", "-", "-"),
    ]
    assert "GPUs     2 × NVIDIA H200 (140 GiB)\n" in dry_run.stdout
    assert dry_run.stdout.endswith("The time on a GPU is not estimated.\n")
    assert "Weights of" not in dry_run.stdout


def test_a_dry_run_says_when_ranks_would_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    _have(monkeypatch, H200)
    arguments = ("run", *args("--dry-run --model gpt2 --streaming none,nccl"))
    refused_dry_run, loopback_dry_run = call(*arguments), call(*arguments, "--nccl-loopback")
    assert (
        "Cannot run with all ranks on this host: --streaming nccl needs one GPU per rank"
        in refused_dry_run.stdout
    )
    assert "Cannot run" not in loopback_dry_run.stdout
    assert "Arms     none, none#2, nccl-loopback@3\n" in loopback_dry_run.stdout


@pytest.mark.parametrize("device", [None, H200], ids=["cpu", "cuda"])
def test_a_dry_run_fits_80_columns(
    device: CudaDevice | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _have(monkeypatch, *([device] if device else []))
    path = CONFIGS / "paper/fig25.toml"
    lines = call("run", str(path), "--dry-run").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    points = [line.split() for line in lines if line.startswith("p005") and "SKIPPED:" not in line]
    assert points[0] == ["p005", "bloom-176b", "fp16", "ft", "8", "500", "500", "1024"]
    assert points[1][-1] == "SKIPPED"


def test_a_dry_run_does_not_import_mpi_or_torch() -> None:
    printed = heavy_after(
        {"torch", "mpi4py"}, "run", "--dry-run", "--model", "gpt2", "--streaming", "mpi"
    )
    assert printed.endswith("HEAVY []\n")


def test_the_config_of_fig25_has_the_sizes_of_the_paper() -> None:
    from dejavubench.config.resolve import load

    plan = load(CONFIGS / "paper/fig25.toml", {}, {})
    assert {(point.input_len, point.output_len, point.data_type) for point in plan.points} == {
        (500, 500, "fp16")
    }
    assert {point.spec.name for point in plan.points} == {"opt-13b", "opt-66b", "bloom-176b"}
