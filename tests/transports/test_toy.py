"""A destination from outside the package works like a built-in one, and its records without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from dejavubench.records import RUN_FILE, Verification
from dejavubench.transports.registry import PLUGINS_VARIABLE, list_builtin_transports
from helpers.jobs import QUICK, Job, args, run
from helpers.paths import ROOT, TOY

WITH_TOY = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(TOY))), PLUGINS_VARIABLE: "toy_transport"}
ROUNDS = args("--rounds 3 --warmup 1")
LEVELS = ("0", "0-batched", "1", "2", "3")


CALLS = """
import json, sys
from click.testing import CliRunner
from dejavubench.cli import main
results = [CliRunner().invoke(main, words) for words in json.loads(sys.argv[1])]
print(json.dumps([[result.exit_code, result.stderr] for result in results]))
"""


def call_with_plugin(*calls: list[str], folder: Path, plugin: str) -> list[tuple[int, str]]:
    """Call the command line in one new interpreter, which loads a plugin of ``folder``."""
    paths = os.pathsep.join((WITH_TOY["PYTHONPATH"], str(folder)))
    completed = subprocess.run(
        [sys.executable, "-c", CALLS, json.dumps(calls)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, PLUGINS_VARIABLE: plugin},
        check=True,
    )
    return [(status, error) for status, error in json.loads(completed.stdout)]


def run_without_toy(*flags: object, cwd: Path) -> str:
    """Run a command in an interpreter that does not have the toy; return what it prints."""
    inherited = {key: value for key, value in os.environ.items() if key != PLUGINS_VARIABLE}
    completed = subprocess.run(
        [sys.executable, "-m", "dejavubench", *map(str, flags)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**inherited, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


@pytest.fixture(scope="module")
def toy_job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Return a job that has streamed to the toy at all levels."""
    return run(
        tmp_path_factory.mktemp("toy"),
        2,
        *("run", "--streaming", "none,toy", "--level", ",".join(LEVELS), *QUICK, *ROUNDS),
        "--ceilings",
        environment=WITH_TOY,
        cold=True,
    )


@pytest.mark.mpi
def test_a_run_streams_to_the_toy_and_verifies(toy_job: Job) -> None:
    checks = [
        check for _, check in toy_job.run.records_of(Verification) if check.arm.startswith("toy")
    ]
    arms = Counter(check.arm for check in checks)
    assert arms == {f"toy@{level}": 4 for level in LEVELS}
    assert all(check.ok and check.nbytes for check in checks)
    (recorded,) = json.loads((toy_job.folder / RUN_FILE).read_text())["destinations"].items()
    assert recorded[0] == "toy"
    assert recorded[1]["label"] == "toy by MPI"


@pytest.mark.mpi
def test_records_of_the_toy_are_read_without_it(toy_job: Job, tmp_path: Path) -> None:
    runs = json.loads(run_without_toy("process", toy_job.folder, "--format", "json", cwd=tmp_path))
    (row,) = (row for row in runs[0]["rows"] if row["arm"] == "toy@3")
    assert (row["status"], row["verified"], row["hosts"]) == ("ok", "yes (4)", "same host")
    assert row["ceiling"] == "mpi-windowed"
    assert row["ceiling_gb_per_s"] > 0
    assert row["overhead_pct"] is not None
    run_without_toy("figures", toy_job.folder, "--output", tmp_path / "figures", cwd=tmp_path)
    drawn = list((tmp_path / "figures").rglob("*.svg")) + list(
        (tmp_path / "figures").rglob("*.pdf")
    )
    assert drawn


@pytest.mark.mpi
def test_verification_locates_the_byte_that_the_toy_corrupts(tmp_path: Path) -> None:
    with Job(
        tmp_path,
        2,
        *("run", "--streaming", "toy", *QUICK, *ROUNDS),
        environment={**WITH_TOY, "TOY_CORRUPTS": "1"},
    ) as job:
        assert job.wait() == 1, job.stderr
    # Chunk 1 is layer 1 of the prompt. Its last byte is that of the last value.
    assert (
        "verification failed: p000 toy@3, iteration 0: rank 1: layer 1, V, request 1, head 3, "
        "position 7 (element 15) of microbatch 0 is not what the source has"
    ) in job.stderr


FAULTY = """
from toy_transport import ToyConnector, ToyTransport

from dejavubench.dejavulib.destinations.registry import DestinationEntry
from dejavubench.errors import UsageError
from dejavubench.transports.registry import register


class FaultyTransport(ToyTransport):
    entry = DestinationEntry("faulty", remote=True)


class FaultyConnector(ToyConnector):
    def facts(self):
        if self.rank.worker == 0 and not self.rank.is_source:
            raise UsageError("no facts here")
        return {}


class Missing(FaultyTransport):
    def missing(self, options):
        raise RuntimeError("no answer")


class Connector(FaultyTransport):
    def connector(self, rank):
        if not rank.is_source:
            raise UsageError("no connector here")
        return ToyConnector(rank)


class Facts(FaultyTransport):
    def connector(self, rank):
        return FaultyConnector(rank)
"""


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("kind", "status", "message"),
    [
        ("Missing", 1, "RuntimeError: no answer\ndejavubench: rank 0 failed in phase start\n"),
        ("Connector", 2, "Error: no connector here"),
        ("Facts", 2, "Error: no facts here"),
    ],
)
def test_a_destination_that_fails_at_the_start_on_one_rank_ends_the_job(
    kind: str, status: int, message: str, tmp_path: Path
) -> None:
    (tmp_path / "faulty_toy.py").write_text(f"{FAULTY}\nregister({kind}())\n")
    environment = {
        "PYTHONPATH": f"{WITH_TOY['PYTHONPATH']}{os.pathsep}{tmp_path}",
        PLUGINS_VARIABLE: "faulty_toy",
    }
    words = ("run", "--streaming", "faulty", *QUICK, *ROUNDS)
    with Job(tmp_path, 2, *words, environment=environment) as job:
        assert job.wait(60.0) == status, job.stderr
    assert message in job.stderr


def test_a_dry_run_knows_the_toy(tmp_path: Path) -> None:
    completed = subprocess.run(
        [
            sys.executable,
            "-m",
            "dejavubench",
            "run",
            "--dry-run",
            "--streaming",
            "none,toy",
            *QUICK,
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **WITH_TOY},
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert "toy@3" in completed.stdout
    assert "Ranks    2 " in completed.stdout


def test_an_entry_point_registers_the_toy(tmp_path: Path) -> None:
    """As an installed package does: its metadata names the module."""
    metadata = tmp_path / "toy_streams-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-streams\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[dejavubench.destinations]\ntoy = toy_transport\n")
    paths = os.pathsep.join((WITH_TOY["PYTHONPATH"], str(tmp_path)))
    inherited = {key: value for key, value in os.environ.items() if key != PLUGINS_VARIABLE}
    command = "from dejavubench.transports.registry import list_modes; print(*list_modes())"
    completed = subprocess.run(
        [sys.executable, "-c", command],
        capture_output=True,
        text=True,
        env={**inherited, "PYTHONPATH": paths},
        check=False,
    )
    assert set(completed.stdout.split()) == {
        *(transport.name for transport in list_builtin_transports()),
        "toy",
    }, completed.stderr


def test_a_plugin_that_cannot_be_loaded_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    completed = subprocess.run(
        [sys.executable, "-m", "dejavubench", "run", "--streaming", "toy", "--dry-run"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", PLUGINS_VARIABLE: "broken"},
        check=False,
    )
    assert completed.returncode == 2
    assert completed.stderr.count("\n") <= 3
    assert "DEJAVUBENCH_PLUGINS names broken, which cannot be loaded" in completed.stderr
    assert "Traceback" not in completed.stderr


UNKNOWN_OPTION = """
from dejavubench.dejavulib.destinations.registry import DestinationEntry
from dejavubench.transports.registry import register
from toy_transport import ToyTransport
class Wishful(ToyTransport):
    entry = DestinationEntry("wishful", remote=True)
    {}
register(Wishful())
"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('options = ("wings",)', "--streaming wishful: its plugin names an option 'wings', which "),
        (
            'missing = lambda self, options: options.value("wings")',
            "a destination's plugin asks for an option 'wings', which ",
        ),
    ],
)
def test_a_plugin_that_names_an_unknown_option_is_a_usage_error(
    body: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "wishful.py").write_text(UNKNOWN_OPTION.format(body))
    calls = [["run", "--streaming", mode, "--dry-run"] for mode in ("wishful", "host")]
    wishful, host = call_with_plugin(*calls, folder=tmp_path, plugin="wishful")
    end = "dejavubench does not have. Fix or uninstall the plugin\n"
    assert wishful == (2, f"Error: {message}{end}")
    assert host == (0, "")


def test_a_broken_plugin_does_not_keep_help_from_being_read(tmp_path: Path) -> None:
    calls = (["--help"], ["run", "--help"], ["process", "--help"])
    outcomes = call_with_plugin(*calls, folder=tmp_path, plugin="no_such_module")
    assert outcomes == [(0, "")] * 3


@pytest.mark.mpi
def test_a_host_without_the_plugin_is_named(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text(
        "import os\n"
        "if os.environ['PMI_RANK'] == '1':\n"
        "    raise ImportError('not on this host')\n"
        "import toy_transport\n"
    )
    paths = os.pathsep.join((WITH_TOY["PYTHONPATH"], str(tmp_path)))
    with Job(
        tmp_path,
        2,
        *("run", "--streaming", "toy", *QUICK),
        environment={"PYTHONPATH": paths, PLUGINS_VARIABLE: "elsewhere"},
    ) as job:
        assert job.wait() == 2, job.stderr
    assert job.stderr.startswith("Error: rank 1: DEJAVUBENCH_PLUGINS names elsewhere, which ")
    assert "Traceback" not in job.stderr
