"""The command line: quick help, one message a usage error, dry runs of every config."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dejavubench.cli import main
from dejavubench.experiment import Experiment

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(ROOT.glob("configs/*/*.toml"))
HEAVY = {"torch", "mpi4py", "pandas", "matplotlib", "numpy"}
MPIRUN = Path(sys.executable).parent / "mpirun"


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    from dejavubench.cli.errors import LAUNCHED

    for variable in (*LAUNCHED, "DEJAVULIB_BASELINE"):
        monkeypatch.delenv(variable, raising=False)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def refused(*arguments: str) -> str:
    """The one line of a usage error."""
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("Error: ")
    return result.stderr.removeprefix("Error: ").rstrip("\n")


# ---- help ----


@pytest.mark.parametrize("arguments", [[], ["run"], ["process"], ["figures"]], ids=lambda a: "-".join(a) or "group")
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from dejavubench.cli import main\n"
        "try:\n"
        f"    main({[*arguments, '--help']}, prog_name='dejavubench')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        f"print('HEAVY', sorted({HEAVY} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.startswith("Usage: dejavubench")
    assert done.stdout.endswith("HEAVY []\n")


def test_help_of_run_has_every_field_with_its_default() -> None:
    text = " ".join(invoke("run", "--help").stdout.split())
    for key in Experiment.model_fields:
        assert "--" + key.replace("_", "-") in text
    assert "Requests in a microbatch. [default: 1]" in text
    assert "--rounds, --times N" in text
    assert "Compare every byte that arrived, outside the clock. [default: on]" in text


def test_version() -> None:
    from dejavubench import __version__

    assert invoke("--version").stdout == f"dejavubench, version {__version__}\n"


def test_python_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dejavubench", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.startswith("Usage: dejavubench [OPTIONS] COMMAND")


# ---- flags ----


def test_hyphens_and_underscores_are_one_spelling() -> None:
    lengths = ["--model", "gpt2", "--dry-run"]
    one = invoke("run", "--ubatch_size", "4", "--input_len=256", "--times", "3", *lengths)
    other = invoke("run", "--ubatch-size", "4", "--input-len=256", "--rounds", "3", *lengths)
    assert one.exit_code == other.exit_code == 0
    assert "2 warm-up iterations, 3 rounds" in one.stdout
    row = next(line for line in one.stdout.splitlines() if line.startswith("p000"))
    assert row.split()[:8] == ["p000", "gpt2", row.split()[2], "hnd", "4", "256", "32", "288"]
    assert [line.split()[:9] for line in other.stdout.splitlines() if line.startswith("p000")] == [row.split()[:9]]


def test_level_of_the_environment_is_honoured_and_the_flag_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEJAVULIB_BASELINE", "0")
    assert "Arms     mpi@0\n" in invoke("run", "--dry-run", "--model", "gpt2", "--streaming", "mpi").stdout
    flag = invoke("run", "--dry-run", "--model", "gpt2", "--streaming", "mpi", "--level", "2")
    assert "Arms     mpi@2\n" in flag.stdout


# ---- usage errors ----


@pytest.mark.parametrize("rest", [(), ("--rounds", "3")])
def test_bare_streaming_names_the_choices(rest: tuple[str, ...]) -> None:
    message = refused("run", "--streaming", *rest)
    assert message == "--streaming: no destination is named; choose one or more of none, host, disk, mpi, nccl"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--nonsense", "3"], "No such option '--nonsense'. (see dejavubench run --help)"),
        (["walk"], "No such command 'walk'."),
        (["run", "--model"], "Option '--model' requires an argument."),
        (["run", "--model", "gpt3"], "--model: unknown model 'gpt3'; did you mean gpt2?"),
        (["run", "--ckpt_path", "x"], "--ckpt-path: checkpoints cannot be loaded yet; weights are random, from --seed"),
        (["run", "none.toml"], "none.toml: No such file or directory"),
        (
            ["run", "--model", "gpt2", "--tensor_para_size", "5"],
            "tensor_para_size 5 does not divide the 12 heads of gpt2",
        ),
        (
            ["run", "--streaming", "mpi", "--level", "9"],
            "--level: there is no level '9'; levels are 0, 0-batched, 1, 2, 3",
        ),
        (["run", "--streaming", "nccl"], "streaming nccl moves the cache from GPU to GPU: it needs a CUDA device"),
    ],
)
def test_usage_error_is_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    found = refused(*arguments)
    if message.startswith("No such"):  # click's own words, which may carry suggestions
        assert found.startswith(message.split("'")[0])
        assert arguments[-1 if arguments == ["walk"] else 1] in found
    else:
        assert found == message


@pytest.mark.mpi
@pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this Python")
@pytest.mark.parametrize(
    "flags", [["--model", "gpt3"], ["--nonsense"], ["--streaming"]], ids=["value", "unknown-flag", "bare-streaming"]
)
def test_usage_error_under_mpi_is_said_once(flags: list[str]) -> None:
    command = [MPIRUN, "-n", "2", sys.executable, "-m", "dejavubench", "run", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.mpi
@pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this Python")
def test_only_what_rank_0_reads_counts(tmp_path: Path) -> None:
    """Rank 0's environment is wrong and rank 1's is not: both end, and one of them says why."""
    command = [MPIRUN]
    for baseline in ("9", "3"):
        program = ["-m", "dejavubench", "run", "--streaming", "mpi", "--log-dir", str(tmp_path)]
        command += ["-n", "1", "env", f"DEJAVULIB_BASELINE={baseline}", sys.executable, *program, ":"]
    done = subprocess.run(command[:-1], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "Error: DEJAVULIB_BASELINE: there is no level '9'; levels are 0, 0-batched, 1, 2, 3\n"
    assert list(tmp_path.iterdir()) == []


# ---- dry runs ----


def test_the_configs_are_there() -> None:
    names = {path.relative_to(ROOT / "configs").as_posix() for path in CONFIGS}
    figures = ("fig2", "appendix_a", "fig7", "fig25")
    assert {f"{folder}/{figure}.toml" for folder in ("cpu", "paper") for figure in figures} <= names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT / "configs").as_posix())
def test_dry_run_of_every_config(path: Path, tmp_path: Path) -> None:
    result = invoke("run", str(path), "--dry-run", "--log-dir", str(tmp_path))
    assert result.exit_code == 0
    experiment = Experiment.model_validate(_validated(path))
    assert experiment.figure == path.stem
    for point in experiment.points():
        assert sum(line.startswith(f"{point.id} ") for line in result.stdout.splitlines()) in (1, 2)
    assert ", ".join(arm.name for arm in experiment.arms()) in result.stdout
    assert list(tmp_path.iterdir()) == []


def _validated(path: Path) -> dict[str, object]:
    from dejavubench.experiment import load

    return load(path, {}, {}).model_dump()


def test_dry_run_shows_what_skipped_points_need() -> None:
    result = invoke(
        "run", "--dry-run", "--model", "gpt2,bloom-176b", "--input-len", "8,2000", "--streaming", "none,nccl"
    )
    lines = result.stdout.splitlines()
    assert "nccl@3 SKIPPED: no CUDA device" in lines
    assert "p001 SKIPPED: input_len 2000 and output_len 32 take 2031 positions; gpt2 has 1024" in lines
    assert result.exit_code == 0


def test_dry_run_of_what_cannot_run_here_says_so_and_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    from dejavubench import fit

    monkeypatch.setattr(fit, "reasons", lambda experiment: {"p000": "gpt2 needs 2 GiB of memory, 1 GiB are available"})
    result = invoke("run", "--dry-run", "--model", "gpt2")
    assert result.exit_code == 0
    assert "p000 SKIPPED: gpt2 needs 2 GiB of memory, 1 GiB are available" in result.stdout
    assert result.stdout.endswith("No point can run here.\n")


def test_dry_run_does_not_import_mpi_or_torch() -> None:
    program = (
        "import sys\n"
        "from dejavubench.cli import main\n"
        "try:\n"
        "    main(['run', '--dry-run', '--model', 'gpt2', '--streaming', 'mpi'], prog_name='dejavubench')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "print('HEAVY', sorted({'torch', 'mpi4py'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.endswith("HEAVY []\n")


def test_paper_fig25_is_the_papers() -> None:
    from dejavubench.experiment import load

    experiment = load(ROOT / "configs/paper/fig25.toml", {}, {})
    assert {(p.input_len, p.output_len, p.data_type) for p in experiment.points()} == {(500, 500, "fp16")}
    assert {p.spec.name for p in experiment.points()} == {"opt-13b", "opt-66b", "bloom-176b"}
