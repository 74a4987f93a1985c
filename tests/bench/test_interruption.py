"""The last words after Ctrl-C, without a job: who speaks, and what stands for slow tables."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest

from dejavubench.bench.failures import interrupt
from dejavubench.bench.failures.interrupt import Interruption, Patience
from dejavubench.bench.recording.measured_so_far import MeasuredSoFar
from dejavubench.bench.recording.recorder import Recorder
from dejavubench.records import RankFailure, read_rank

GO_ON = "to measure the rest: mpirun -n 2 dejavubench run --continue"


@dataclass
class Fake:
    """Stands for the ranks, and for what they would do to processes."""

    rank: int = 0
    size: int = 2
    host: str = "here"
    hosts: tuple[str, ...] = ("here", "here")
    first_pid: int = 4242
    did: list[tuple[object, ...]] = field(default_factory=list)

    @property
    def world(self) -> Fake:
        return self

    def abort(self, world: object, status: int) -> NoReturn:
        self.did.append(("abort", status))
        raise SystemExit(status)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    ranks = Fake()
    own_handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(interrupt, "abort_job", ranks.abort)
    monkeypatch.setattr(os, "kill", lambda *arguments: ranks.did.append(("kill", *arguments)))
    yield ranks
    signal.signal(signal.SIGINT, own_handler)


def make_interruption(
    fake: Any, folder: Path, tables_of: Any, tables_s: float = 2.0
) -> Interruption:
    recorder = Recorder(folder, fake.rank, has_several_points=False, to_stdout=False)
    recorder.mark_phase("tokens", point="p000")
    patience = Patience(tables_s, tell_s=0.01, let_speak_s=0.01)
    return Interruption(fake, recorder, lambda: "3 of 9 points", tables_of, patience=patience)


def test_rank_0_says_what_was_measured_and_shows_it(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interruption = make_interruption(
        fake, tmp_path / "r", lambda folder: f"tables of {folder.name}\n"
    )
    with pytest.raises(SystemExit):
        interruption.end(KeyboardInterrupt())
    assert capsys.readouterr().err.splitlines() == [
        "dejavubench: rank 0 interrupted in phase tokens",
        "3 of 9 points",
        f"records: {tmp_path / 'r'}",
        "tables of r",
        f"{GO_ON} {tmp_path / 'r'}",
    ]
    assert fake.did == [("abort", 130)]
    (failure,) = read_rank(tmp_path / "r" / "rank-0000.jsonl").records_of(RankFailure)
    assert (failure.phase, failure.error) == ("tokens", "KeyboardInterrupt: ")


@pytest.mark.parametrize("tables_are", ["slow", "failing", "absent"])
def test_a_command_stands_for_tables_that_are_not_to_be_had(
    tables_are: str,
    fake: Fake,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    never = threading.Event()

    def tables_of(folder: Path) -> str:
        if tables_are == "failing":
            raise ValueError("a torn record")
        never.wait()
        return "too late"

    folder = tmp_path / "my run"
    interruption = make_interruption(
        fake, folder, None if tables_are == "absent" else tables_of, tables_s=0.05
    )
    with pytest.raises(SystemExit):
        interruption.end(KeyboardInterrupt())
    never.set()
    *_, tables, rest = capsys.readouterr().err.splitlines()
    assert tables == f"tables: dejavubench process '{folder}'"
    assert rest == f"{GO_ON} '{folder}'"


def test_another_rank_interrupts_rank_0_and_prints_only_if_rank_0_does_not_end(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.rank = 1
    interruption = make_interruption(fake, tmp_path / "r", lambda folder: "tables")
    with pytest.raises(SystemExit):
        interruption.end(KeyboardInterrupt())
    assert fake.did == [("kill", 4242, signal.SIGINT), ("abort", 130)]
    words = capsys.readouterr().err
    assert words.startswith("dejavubench: rank 1 interrupted in phase tokens\n3 of 9 points\n")
    assert f"\ntables: dejavubench process {tmp_path / 'r'}\n" in words
    assert words.endswith(f"{GO_ON} {tmp_path / 'r'}\n")


def test_on_another_host_it_cannot_interrupt_rank_0(fake: Fake, tmp_path: Path) -> None:
    fake.rank, fake.host, fake.hosts = 1, "there", ("here", "there")
    interruption = make_interruption(fake, tmp_path / "r", None)
    with pytest.raises(SystemExit):
        interruption.end(KeyboardInterrupt())
    assert fake.did == [("abort", 130)]


def test_the_heartbeat_prints_for_a_thread_within_a_call_and_never_twice(
    fake: Fake, tmp_path: Path
) -> None:
    interruption = make_interruption(fake, tmp_path / "r", lambda folder: "tables")
    folder = tmp_path / "r"
    message = f"3 of 9 points\nrecords: {folder}\ntables\n{GO_ON} {folder}"
    assert interruption.make_last_words() == message
    assert interruption.make_last_words() is None


def test_a_tally_says_points_and_rounds() -> None:
    measured_so_far = MeasuredSoFar(dict.fromkeys(("p000", "p001", "p002"), 6), ["none", "mpi@3"])
    assert measured_so_far.describe() == "nothing was measured"
    measured_so_far.begin("p000")
    assert measured_so_far.describe() == "0 of 3 points measured; p000: no round measured yet"
    measured_so_far.begin("p001")
    for arm in ("mpi@3", "none", "mpi@3"):
        measured_so_far.count_round(arm)
    assert measured_so_far.describe() == (
        "1 of 3 points measured; p001: rounds measured of 6: none 1, mpi@3 2"
    )
    one_point = MeasuredSoFar({"p000": 2}, ["none"])
    one_point.begin("p000")
    assert one_point.describe() == "no round measured yet"
    for _ in range(3):
        one_point.count_round("none")
    assert (
        one_point.describe() == "rounds measured: none 3"
    )  # more than the fewest, for a precision
