"""Two emulated hosts: bytes arrive, the link has its limit, and nothing is left behind.

Skipped where this user may not make network namespaces, or mpirun is not MPICH's.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from dejavubench.analysis.reports.report import make_report
from dejavubench.analysis.trace.clocks import clocks_of
from dejavubench.machine.launcher import RANK_VARIABLES
from dejavubench.records import Ceiling, RankInfo, Run, Verification, read_run
from helpers import chrome_trace
from helpers.cli_calls import call
from helpers.jobs import GONE_WITHIN, PATIENCE, TINY, args
from helpers.paths import ROOT, SCRIPTS
from helpers.synthetic_runs import flat_rows
from helpers.waits import until

SCRIPT = SCRIPTS / "two_hosts.py"
SMALL = (*TINY, *args("--ubatch-size 2 --input-len 8 --output-len 6 --warmup 0"))
BOTH_DESTINATIONS = args("--streaming none,mpi,tcp --peer 10.77.0.2:7601 --level 0,3")
NAMESPACES = Path("/var/run/netns")

pytestmark = pytest.mark.mpi


@pytest.fixture(autouse=True)
def two_hosts_or_skip(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Skip where two hosts cannot be had; afterwards those that this test had must be gone."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import two_hosts

    try:
        two_hosts.mpirun_program()
        with two_hosts.two_hosts(1e9):
            assert len(namespaces_of(os.getpid())) == 2
    except two_hosts.NoHostsError as error:
        pytest.skip(str(error))
    yield
    assert namespaces_of(os.getpid()) == []


def namespaces_of(pid: int) -> list[str]:
    """Return the namespaces that a process has made and not removed."""
    return sorted(path.name for path in NAMESPACES.glob(f"host*-{pid}"))


@contextmanager
def script_under_way(cwd: Path, *flags: object) -> Iterator[subprocess.Popen[bytes]]:
    """Start the script in a folder of its own, with its stderr in ``stderr`` there."""
    inherited = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
    with (cwd / "stderr").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *map(str, flags)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=err,
            cwd=cwd,
            env={**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(PATIENCE)
        assert namespaces_of(process.pid) == []


def run_script(cwd: Path, *flags: object) -> tuple[int, str]:
    """Run the script; return its exit status and stderr."""
    with script_under_way(cwd, *flags) as process:
        status = process.wait(PATIENCE)
    return status, (cwd / "stderr").read_text()


def until_during(process: subprocess.Popen[bytes], happened: Callable[[], bool]) -> None:
    """Wait until something has happened while the script runs."""

    def happened_in_time() -> bool:
        assert process.poll() is None, "the script has ended"
        return happened()

    until(happened_in_time, "the event", PATIENCE)


def two_hosts_interface() -> str:
    import two_hosts

    return str(two_hosts.INTERFACE)


def run_of(cwd: Path) -> Run:
    (folder,) = (cwd / "logs").iterdir()
    return read_run(folder)


def test_a_link_that_is_handed_over_runs() -> None:
    """The kernel may say so a second after both ends are up, and MPI looks once, as it starts."""
    import two_hosts

    with two_hosts.two_hosts(None) as hosts:
        for host in hosts:
            state = Path("/sys/class/net") / two_hosts.INTERFACE / "operstate"
            command = ["ip", "netns", "exec", host.namespace, "cat", str(state)]
            process = subprocess.run(command, capture_output=True, text=True, check=True)
            assert process.stdout == "up\n"


@pytest.mark.drill
def test_both_destinations_arrive_at_the_other_host_over_a_limited_link(tmp_path: Path) -> None:
    rate = 100e6  # bytes a second
    status, errors = run_script(
        tmp_path, "--rate", "800Mbit/s", "--", "run", *SMALL, *BOTH_DESTINATIONS, "--rounds", "1"
    )
    assert status == 0, errors
    run = run_of(tmp_path)
    checks = [check for _, check in run.records_of(Verification) if check.arm != "none"]
    assert {check.arm for check in checks} >= {"mpi@0", "mpi@3", "tcp@0", "tcp@3"}
    assert all(check.ok and check.tokens_equal for check in checks)
    assert [info.host for _, info in run.records_of(RankInfo)] == ["host1", "host2"]
    assert run.header.environment["hostnames"] == ["host1", "host2"]
    rows = {row["arm"]: row for row in flat_rows(run)}
    assert {rows[name]["hosts"] for name in ("mpi@3", "tcp@3")} == {"two hosts on one machine"}
    for name in ("mpi@0", "mpi@3", "tcp@0", "tcp@3"):
        interface, _, share = rows[name]["path"].partition(": ")
        assert interface == two_hosts_interface()
        assert int(share.removesuffix(" %")) >= 80  # 66 bytes are more than a packet's headers here
    assert not [note for note in make_report(run).note_texts if note.startswith("PATH")]
    (note,) = [note for note in make_report(run).note_texts if note.startswith("hosts:")]
    assert note == (
        "hosts: source 0 on host1; sink 1 on host2; tcp to 10.77.0.2:7601; "
        "link between them: 800Mbit/s"
    )
    check_clocks(run, tmp_path / "trace.json")
    ceilings = {ceiling.name: ceiling for _, ceiling in run.records_of(Ceiling)}
    for name in ("mpi-windowed", "mpi-destination", "tcp-raw", "tcp-destination"):
        assert ceilings[name].value * 1e9 <= 1.1 * rate
    assert {ceilings[name].unit for name in ("mpi-message", "tcp-message")} == {"us"}


def check_clocks(run: Run, path: Path) -> None:
    """Assert offsets of the hosts' clocks, which are 0 because both hosts share one kernel."""
    for environment in (info.facts for _, info in run.records_of(RankInfo) if info.rank == 1):
        assert environment.clock is not None
        assert environment.clock.round_trips == 100
    for rank, clock in clocks_of(run).items():
        for measured in (clock.start, clock.end):
            assert measured is not None
            assert abs(measured.offset_ns) <= measured.error_ns
            assert measured.reference == "host1"
        assert clock.is_reference == (rank == 0)
    arguments = [str(run.path), "--arm", "mpi@3", "-o", str(path)]
    assert call("trace", *arguments).exit_code == 0
    trace = chrome_trace.read(path)
    assert trace.process(0) == "rank 0, source, host host1"
    assert re.fullmatch("rank 1, sink, host host2, clock ±[0-9.e+]+ µs", trace.process(1))
    assert trace.data["clocks"][1]["start"]["error_ns"] > 0


def test_a_run_that_fails_fails_the_script_with_its_message(tmp_path: Path) -> None:
    status, errors = run_script(
        tmp_path, "--rate", "unlimited,1Gbit/s", "--", "run", *SMALL, "--streaming", "nowhere"
    )
    assert status == 2
    assert errors.count("there is no destination 'nowhere'") == 1
    assert "Traceback" not in errors


def test_an_interrupted_script_leaves_nothing(tmp_path: Path) -> None:
    endless = ("--rounds", "1000000", "--no-ceilings")
    with script_under_way(
        tmp_path, "--rate", "1Gbit/s", "--", "run", *SMALL, *BOTH_DESTINATIONS, *endless
    ) as process:
        until_during(
            process,
            lambda: any(
                "iteration" in path.read_text() for path in tmp_path.glob("logs/*/rank-0000.jsonl")
            ),
        )
        pids = {info.pid for _, info in run_of(tmp_path).records_of(RankInfo)}
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert "ended by SIGINT" in (tmp_path / "stderr").read_text()

    def gone() -> bool:
        return not any(Path(f"/proc/{pid}").exists() for pid in pids)

    until(gone, "the end of all ranks", GONE_WITHIN)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            args("--rate fast -- run"),
            "'fast' is not a rate such as 25GB/s, 23.3GiB/s or 200Gbit/s, nor unlimited",
        ),
        (
            args("--rate 1Gbit/s -- plan"),
            "'plan' does not run under mpirun: write -- run …, or -- doctor",
        ),
    ],
)
def test_senseless_flags_are_one_message(
    tmp_path: Path, flags: Sequence[str], message: str
) -> None:
    status, errors = run_script(tmp_path, *flags)
    assert status == 2
    assert message in errors
    assert "Traceback" not in errors


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import two_hosts

    monkeypatch.setattr(shutil, "which", lambda name: None if name == "tc" else f"/bin/{name}")
    with (
        pytest.raises(two_hosts.NoHostsError, match="two hosts need the program tc"),
        two_hosts.two_hosts(None),
    ):
        pass
