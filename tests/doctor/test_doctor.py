"""``dejavubench doctor``: its output and exit status, and real examinations of this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from dejavubench.doctor import examination
from dejavubench.doctor.checks.registry import CHECKS
from dejavubench.doctor.facts.job import Job
from dejavubench.machine.launcher import RANK_VARIABLES
from helpers import cli_calls
from helpers.cli_calls import heavy_after
from helpers.doctor_facts import GPUS, HOST, make_job, two_hosts
from helpers.jobs import PATIENCE, args, run
from helpers.paths import ROOT


def bad_job() -> Job:
    return make_job(
        replace(rank, mpi=replace(rank.mpi, thread_level=0)) for rank in make_job().ranks
    )


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a call of the command that shows a made-up job and examines no machine."""

    def call(examined_job: Job, *arguments: str) -> Result:
        monkeypatch.setattr(examination, "examine", lambda subjects: examined_job)
        return cli_calls.call("doctor", *arguments)

    return call


@pytest.mark.parametrize(
    ("examined_job", "status", "last_line"),
    [
        (make_job(), 0, "0 WARN · 0 BAD: nothing here spoils a measurement."),
        (two_hosts(), 0, "0 WARN · 0 BAD: nothing here spoils a measurement."),
        (bad_job(), 1, "1 BAD: fix what is BAD before you measure."),
    ],
    ids=["healthy", "two-hosts", "bad"],
)
def test_the_table_ends_with_what_the_exit_status_says(
    invoke: Callable[..., Result], examined_job: Job, status: int, last_line: str
) -> None:
    doctor_call = invoke(examined_job)
    assert doctor_call.exit_code == status
    lines = doctor_call.stdout.splitlines()
    assert re.fullmatch(r"doctor · dejavubench \S+ · \d ranks? · \d{4}-\d\d-\d\dT[\d:]+Z", lines[0])
    assert lines[-1].endswith(last_line)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_the_table_fits_the_terminal_and_breaks_no_word(
    invoke: Callable[..., Result], columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    doctor_call = invoke(bad_job())
    assert max(map(len, doctor_call.stdout.splitlines())) <= min(80, int(columns))
    words = set(doctor_call.stdout.split())
    assert {"MPI_THREAD_SINGLE:", "MPI_THREAD_MULTIPLE.", "fdatasync,", "BAD", "→"} <= words


def test_json_has_findings_and_facts(invoke: Callable[..., Result], tmp_path: Path) -> None:
    examined_job = replace(two_hosts(), hosts=(replace(HOST, ranks=(0,), gpus=GPUS),))
    document = json.loads(invoke(examined_job, "--format", "json").stdout)
    assert document["schema"] == document["schema_version"] == 1
    assert document["status"] == "OK"
    link = document["findings"][-1]
    assert link == {
        "check": "link",
        "status": "OK",
        "ranks": [0, 1],
        "hosts": ["node1", "node2"],
        "seen": "node1 to node2: 0.6 µs; 9 GB/s there, 8.5 GB/s back, in messages of 4.00 MiB",
        "advice": "",
    }
    assert document["facts"]["links"][0]["gb_s"] == [9.0, 8.5]
    assert document["facts"]["hosts"][0]["gpus"]["peers"] == [[0, 1], [1, 0]]


def test_findings_overwrite_a_file_by_force_only(
    invoke: Callable[..., Result], tmp_path: Path
) -> None:
    file = tmp_path / "findings.json"
    doctor_call = invoke(bad_job(), "-o", str(file))
    assert doctor_call.exit_code == 1
    assert doctor_call.stdout == ""
    assert re.fullmatch(
        r"\d+ OK · \d+ WARN · [1-9]\d* BAD: fix what is BAD before you measure\.\n",
        doctor_call.stderr,
    )
    assert json.loads(file.read_text())["status"] == "BAD"
    second_call = invoke(make_job(), "-o", str(file))
    assert second_call.exit_code == 2
    assert "exists. Use --force" in second_call.stderr
    assert invoke(make_job(), "-o", str(file), "--force").exit_code == 0
    assert json.loads(file.read_text())["status"] == "OK"


def test_a_job_that_ended_early_shows_what_is_known(invoke: Callable[..., Result]) -> None:
    doctor_call = invoke(Job(make_job().ranks, problem="no answer from rank 1 within 30 s: start"))
    assert doctor_call.exit_code == 1
    assert "BAD     examination" in doctor_call.stdout
    assert "thread level" in doctor_call.stdout


def test_help_of_doctor_imports_nothing_heavy() -> None:
    printed = heavy_after({"torch", "mpi4py", "numpy", "rich"}, "doctor", "--help")
    assert "Check this machine" in printed
    assert printed.endswith("HEAVY []\n")


def test_an_examination_needs_no_torch() -> None:
    code = (
        "import sys, dejavubench.doctor.examination, dejavubench.doctor.report;"
        "print([name for name in ('torch', 'mpi4py', 'numba') if name in sys.modules])"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert completed.stdout.strip() == "[]"


# ---- real examinations ----


@pytest.mark.mpi
def test_two_ranks_examine_their_machine(tmp_path: Path) -> None:
    """Machines differ, but every one of them shows the probes that ranks do together."""
    completed = run(tmp_path, 2, "doctor", cold=True)
    assert completed.stderr == ""
    lines = completed.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(completed.stdout.split())
    assert "2 ranks on 1 host" in text
    latency, rate = r"\S+ [µm]s( .at best \S+ [µm]s.)?", r"\S+ [GM]B/s"
    assert re.search(rf"link all same host: {latency}; {rate} there, {rate} back", text)
    assert re.search(r"CMA all (allowed: tried|not allowed: )", text)
    assert re.search(r"GB/s in writes of 4.00 MiB with fdatasync, \S+ ms for 4 KiB", text)
    check_names = {check.name for check in CHECKS}
    assert {name for name in check_names if f" {name} " in text} >= {
        "launcher",
        "UCX",
        "load",
        "GPUs",
    }
    assert {path.name for path in tmp_path.iterdir()} == {"stdout", "stderr"}


def test_the_launcher_of_another_mpi_is_bad(tmp_path: Path) -> None:
    """Rank 0 reports, without MPI; rank 1 says nothing. No launcher is needed to see it."""
    mpi_probe = subprocess.run(
        [sys.executable, "-m", "dejavubench.machine.mpi_probe"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    prefix = "OMPI" if json.loads(mpi_probe.stdout)["name"] != "Open MPI" else "MV2"
    inherited = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    outputs = []
    for rank in range(2):
        variables = {f"{prefix}_COMM_WORLD_RANK": str(rank), f"{prefix}_COMM_WORLD_SIZE": "2"}
        completed = subprocess.run(
            [sys.executable, "-m", "dejavubench", *args("doctor --format json --dir /proc/self")],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**inherited, **variables, "PYTHONPATH": str(ROOT)},
            timeout=PATIENCE,
        )
        assert completed.returncode == (1 if rank == 0 else 0), completed.stderr
        outputs.append(completed.stdout)
    assert outputs[1] == ""
    findings = {finding["check"]: finding for finding in json.loads(outputs[0])["findings"]}
    assert findings["launcher"]["status"] == "BAD"
    assert "It started 2 ranks. MPI was not started" in findings["launcher"]["seen"]
    assert findings["launcher"]["advice"].startswith("Start the ranks with the mpirun of ")
