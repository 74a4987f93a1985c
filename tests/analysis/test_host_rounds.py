"""Conditions by round and the ways of an arm's bytes, from records with known answers. CPU only.

One real job streams by MPI between two ranks of this host, fp32, one thread.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dejavubench.analysis.facts.host_rounds import (
    MOST_OTHER_CORES,
    format_round_numbers,
    read_host_rounds,
)
from dejavubench.analysis.integrity import read_checked
from dejavubench.analysis.reports import formats
from dejavubench.analysis.reports.report import make_report
from dejavubench.analysis.tables.report_part import NoteLine
from dejavubench.bench.environment.sampler import Member, make_sampler
from dejavubench.bench.recording.microbatches import IterationId
from dejavubench.machine.readings.processes import read_pid_namespace
from dejavubench.records import ArmInfo, RecordError, read_run
from dejavubench.records.conditions import (
    CarriedBytes,
    GpuWindow,
    HostInfo,
    Window,
    format_condition_line,
    read_conditions,
)
from dejavubench.records.destination_info import CrossingInfo, DestinationInfo
from dejavubench.records.names import name_conditions_file
from helpers.jobs import PATIENCE, QUICK, args, run
from helpers.synthetic_runs import AGAIN, NONE, arm_of, flat_rows, point_of, write_run

MPI = arm_of("mpi")
RUN_ID = "0123456789abcdef"
NBYTES = point_of().streamed_nbytes
QUIET: dict[str, Any] = {
    "wall_s": 1.0,
    "cost_s": 0.001,
    "load": 1.0,
    "own_cpu_s": 1.0,
    "other_cpu_s": 0.02,
    "steal_s": 0.0,
    "cpu_wait_s": 0.1,
    "io_wait_s": 0.0,
    "cpu_mhz": 2500.0,
    "carried": {},
}


def add_host(
    folder: Path,
    changes: Mapping[tuple[int, str], Mapping[str, Any]] | None = None,
    rounds: int = 10,
    host: Mapping[str, Any] | None = None,
    arms: tuple[ArmInfo, ...] = (NONE, AGAIN, MPI),
    idle: Mapping[str, Any] | None = None,
    first_rank: int = 0,
) -> Path:
    """Write the conditions of one host of a synthetic run.

    Args:
        changes: fields of windows, by round and arm; an arm ``""`` stands for all of a round.
        host: fields of the host.
        idle: fields of an idle window; None without one.
    """
    host_fields = {"run_id": RUN_ID, "host": "node-a", "ranks": [0, 1], "cpus": [0, 1]} | dict(
        host or {}
    )
    lines: list[HostInfo | Window] = [HostInfo(**host_fields)]
    if idle is not None:
        lines.append(Window(point="p000", **(QUIET | dict(idle))))
    for number in range(-2, rounds):
        for arm in arms:
            fields = {**QUIET, "point": "p000", "arm": arm.name, "iteration": number + 2}
            if number >= 0:
                fields["round"] = number
                fields |= (changes or {}).get((number, ""), {})
                fields |= (changes or {}).get((number, arm.name), {})
            lines.append(Window(**fields))
    (folder / name_conditions_file(first_rank)).write_text(
        "".join(map(format_condition_line, lines))
    )
    return folder


def notes_of(folder: Path, beginning: str) -> list[str]:
    return [note for note in make_report(read_run(folder)).note_texts if note.startswith(beginning)]


def texts_of_kind(folder: Path, kind: str) -> list[str]:
    return [note.text for note in make_report(read_run(folder)).notes if note.kind == kind]


# ---- rounds that are marked ----


def test_rounds_in_which_others_took_cores_are_marked_and_counted(tmp_path: Path) -> None:
    busy = {"other_cpu_s": 0.9}
    folder = write_run(tmp_path / "run", rounds=10)
    add_host(folder, {(number, ""): busy for number in (0, 1, 2, 4, 5, 6, 8)})
    (note,) = texts_of_kind(folder, "disturbed")
    assert note == (
        "other processes took 0.9 of 2 cores in 7 of 10 rounds (1–3, 5–7, 9), which are marked and "
        "still count"
    )
    rows = {row["arm"]: row for row in flat_rows(read_run(folder))}
    assert {row["disturbed_rounds"] for row in rows.values()} == {7}
    assert rows["mpi@3"]["samples"] == 10  # marked rounds are kept
    assert rows["mpi@3"]["granted_cores"] == 2
    assert rows["mpi@3"]["other_cores"] == pytest.approx(0.7 * 0.9 + 0.3 * 0.02)
    assert rows["mpi@3"]["cpu_wait_pct"] == pytest.approx(10)
    assert rows["mpi@3"]["throttled_rounds"] is None


@pytest.mark.parametrize(
    ("window", "disturbed"),
    [
        ({"other_cpu_s": 0.19}, False),
        ({"other_cpu_s": 0.21}, True),
        ({"other_cpu_s": 0.01, "wall_s": 0.01}, False),  # one tick in a short iteration
        ({"other_cpu_s": None}, False),
        ({"steal_s": 0.04}, False),
        ({"steal_s": 0.06}, True),
    ],
)
def test_a_round_is_marked_by_the_share_that_others_took(
    tmp_path: Path, window: Mapping[str, Any], disturbed: bool
) -> None:
    folder = add_host(write_run(tmp_path / "run", rounds=2), {(1, ""): window}, rounds=2)
    rows = flat_rows(read_run(folder))
    assert {row["disturbed_rounds"] for row in rows} == {int(disturbed)}


def make_noise_line(folder: Path) -> NoteLine:
    """Return the one line on noise that people read."""
    (line,) = [
        line for line in make_report(read_run(folder)).note_lines if line.text.startswith("noise: ")
    ]
    return line


def test_noise_and_what_disturbed_it_are_read_on_one_line(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=12)
    add_host(folder, {(number, ""): {"other_cpu_s": 0.9} for number in (0, 1, 2)}, rounds=12)
    run_report = make_report(read_run(folder))
    row = next(row for row in flat_rows(read_run(folder)) if row["arm"] == "none#2")
    low, high = row["noise_floor_low_pct"], row["noise_floor_high_pct"]
    assert low < 0 < high < 1
    floor = f"two identical baselines (none, none#2) differ by −{-low:.2f} to +{high:.2f} %"
    marked = (
        "other processes took 0.9 of 2 cores in 3 of 12 rounds (1–3), which are marked and still "
        "count"
    )
    assert make_noise_line(folder) == ("warning", f"noise: {floor}; {marked}")
    # Programs still find each fact by its kind.
    by_kind = {note.kind: note.text for note in run_report.notes}
    assert (by_kind["noise-floor"], by_kind["disturbed"]) == (floor, marked)
    printed = formats.as_markdown(run_report)
    assert printed.count("differ by") == printed.count("other processes took 0.9") == 1


@pytest.mark.parametrize(
    ("rounds", "taken_text"),
    [
        (6, ", while other processes took 0.79 of 2 cores."),
        (5, ", while other processes took 0.66 of 2 cores."),
        (4, ")."),
    ],
)
def test_a_cost_beside_busy_programs_says_what_they_took(
    tmp_path: Path, rounds: int, taken_text: str
) -> None:
    folder = write_run(tmp_path / "run", factors={"mpi@3": 1.2}, rounds=10)
    add_host(folder, {(number, ""): {"other_cpu_s": 1.3} for number in range(rounds)})
    text = formats.as_markdown(make_report(read_run(folder)))
    (sentence,) = (line for line in text.splitlines() if ": a cost, beyond this machine" in line)
    assert sentence.endswith(taken_text)


def test_a_quiet_run_has_a_line_of_its_noise_alone(tmp_path: Path) -> None:
    quiet_run = add_host(write_run(tmp_path / "run", rounds=6), rounds=6)
    severity, text = make_noise_line(quiet_run)
    assert severity == "info"
    assert re.fullmatch(
        r"noise: two identical baselines \(none, none#2\) differ by [+−]\S+ to \S+ %", text
    )
    line_of_one_round = make_noise_line(write_run(tmp_path / "one", rounds=1)).text
    assert re.search(r"differ by [+−]\S+ % in a single round$", line_of_one_round)
    line_of_three_rounds = make_noise_line(write_run(tmp_path / "few", rounds=3)).text
    assert line_of_three_rounds.endswith(" % over only 3 rounds")


def test_noise_is_explained_by_what_was_measured(tmp_path: Path) -> None:
    noisy: dict[str, Any] = {"noise": 0.2, "rounds": 6}
    undisturbed_run = add_host(write_run(tmp_path / "quiet", **noisy), rounds=6)
    hidden = " % cannot be told from noise"
    severity, text = make_noise_line(undisturbed_run)
    assert severity == "warning"
    assert text.endswith(
        f"{hidden} (other processes took at most 0.02 of 2 cores in any round, so look for "
        "another cause)"
    )
    busy = write_run(tmp_path / "busy", **noisy)
    add_host(busy, {(3, ""): {"other_cpu_s": 1.5}}, rounds=6)
    assert make_noise_line(busy).text.endswith(
        f"{hidden}; other processes took 1.5 of 2 cores in 1 of 6 rounds (4), which are marked "
        "and still count"
    )
    stolen = write_run(tmp_path / "stolen", **noisy)
    add_host(stolen, {(3, ""): {"steal_s": 0.5}}, rounds=6)
    assert f"{hidden}; the hypervisor took 0.5 of 2 cores" in make_noise_line(stolen).text
    older = make_noise_line(write_run(tmp_path / "older", **noisy)).text
    assert older.endswith(f"{hidden} (look whether another program is running)")


def test_noise_is_explained_at_the_point_that_has_it(tmp_path: Path) -> None:
    """Two points; the calm one was measured in another session, beside a busier program."""
    folder = write_run(tmp_path / "r", points=[point_of(0), point_of(1)], noise=0.1, rounds=6)
    reaches = {row["point"]: row["noise_reach_pct"] for row in flat_rows(read_run(folder))}
    worst, calm = sorted(reaches, key=lambda name: -reaches[name])
    lines: list[HostInfo | Window] = [
        HostInfo(run_id=RUN_ID, host="node-a", ranks=[0, 1], cpus=[0, 1])
    ]
    for name, other_cores in ((calm, 1.9), (worst, 1.4)):
        for number in range(6):
            busy = {**QUIET, "other_cpu_s": other_cores, "iteration": number + 2, "round": number}
            lines += [Window(point=name, arm=arm.name, **busy) for arm in (NONE, AGAIN, MPI)]
    (folder / name_conditions_file(0)).write_text("".join(map(format_condition_line, lines)))
    text = make_noise_line(folder).text
    assert f" % at {worst}, by less at {calm}; " in text
    assert " (there other processes took 1.4 of 2 cores); other processes took 1." in text


def test_stolen_time_and_limits_of_a_gpu_mark_rounds(tmp_path: Path) -> None:
    limited = GpuWindow(clock_mhz=1200, power_w=700, temperature_c=80, limited_s={"power": 0.3})
    free = GpuWindow(clock_mhz=1800, power_w=300, temperature_c=50, limited_s={"power": 0.005})
    slow = free.model_copy(update={"reasons": ["power brake"]})
    folder = write_run(tmp_path / "run", rounds=3)
    gpus = {0: free, 1: limited, 2: slow}
    changes: dict[tuple[int, str], dict[str, Any]] = {
        (number, ""): {"gpus": {"aaaa": gpu}} for number, gpu in gpus.items()
    }
    changes[0, ""]["steal_s"] = 0.2
    add_host(folder, changes, rounds=3)
    assert texts_of_kind(folder, "disturbed") == [
        "the hypervisor took 0.2 of 2 cores in 1 of 3 rounds (1)"
    ]
    assert texts_of_kind(folder, "throttled") == [
        "limits (power in 1, power brake in 1) held a GPU's clock down in 2 of 3 rounds (2–3), "
        "which are marked and still count"
    ]
    row = flat_rows(read_run(folder))[0]
    assert row["throttled_rounds"] == 2
    assert (row["gpu_mhz"], row["gpu_power_w"], row["gpu_temperature_c"]) == (1800, 300, 50)
    (note,) = notes_of(folder, "conditions, ")
    assert "GPU 0: 1800 MHz after the iteration, 300 W, 50 °C, clock limited" in note


def test_each_gpu_of_a_host_has_words_of_its_own(tmp_path: Path) -> None:
    busy = GpuWindow(clock_mhz=1980, power_w=600, limited_s={"power": 0.1, "thermal": 0.04})
    idle = GpuWindow(clock_mhz=1980, power_w=121, limited_s={})
    older = GpuWindow(power_w=90)
    folder = write_run(tmp_path / "run", rounds=2)
    gpus = {"gpus": {"aaaa": busy, "bbbb": idle, "cccc": older}}
    add_host(folder, {(number, ""): gpus for number in range(2)}, rounds=2)
    (note,) = notes_of(folder, "conditions, ")
    assert note.endswith(
        "GPU 0: 1980 MHz after the iteration, 600 W, clock limited 10 % of the time; "
        "GPU 1: 1980 MHz after the iteration, 121 W, clock limited 0 % of the time; "
        "GPU 2: 90 W"
    )


def test_older_records_say_nothing_of_conditions(tmp_path: Path) -> None:
    older_run = read_run(write_run(tmp_path / "run", rounds=2))
    run_report = make_report(older_run)
    assert not [note for note in run_report.notes if note.kind in ("disturbed", "conditions")]
    assert {
        flat_rows(older_run)[0][name] for name in ("path", "disturbed_rounds", "load_average")
    } == {None}
    assert not any("path (≥ share of bytes)" in block.columns for block in run_report.blocks)


def test_an_unreadable_source_is_reported_once_with_its_reason(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=2)
    add_host(
        folder,
        {(0, ""): {"unreadable": {"load": "it went away"}}},
        rounds=2,
        host={"unreadable": {"CPU clock": "nobody tells"}},
    )
    assert notes_of(folder, "conditions not readable") == [
        "conditions not readable: CPU clock: nobody tells; load: it went away"
    ]


def test_numbers_of_rounds_are_written_as_ranges() -> None:
    assert format_round_numbers([6, 0, 1, 2, 8]) == "1–3, 7, 9"


# ---- the way of the bytes ----


def make_carried_bytes(nbytes: float, packets: int = 0) -> CarriedBytes:
    return CarriedBytes(out_nbytes=round(nbytes), out_packets=packets, in_nbytes=1)


def read_paths(folder: Path) -> dict[str, str]:
    return {row["arm"]: row["path"] for row in flat_rows(read_run(folder))}


def test_a_share_is_less_headers_and_less_the_paired_windows(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=2)
    headers = 66 * 1000
    changes: dict[tuple[int, str], dict[str, Any]] = {}
    for number in range(2):
        # Something else sends 0.2 of the bytes per second; the arm's window is 1.5 s long.
        for name in ("none", "none#2"):
            changes[number, name] = {"carried": {"eth0": make_carried_bytes(0.2 * NBYTES)}}
        traffic = make_carried_bytes(0.3 * NBYTES + 0.973 * NBYTES + headers, packets=1000)
        changes[number, "mpi@3"] = {
            "wall_s": 1.5,
            "carried": {"eth0": traffic, "lo": make_carried_bytes(100)},
        }
    add_host(folder, changes, rounds=2)
    assert read_paths(folder) == {"none": None, "none#2": None, "mpi@3": "eth0: 97 %"}


def test_several_interfaces_and_hosts_add_up(tmp_path: Path) -> None:
    infos = ({"host": "node-a"}, {"host": "node-b"})
    folder = write_run(tmp_path / "run", rounds=2, infos=infos)
    both_interfaces = {
        "eth0": make_carried_bytes(0.505 * NBYTES),
        "mlx5_0/1": make_carried_bytes(0.485 * NBYTES),
        "lo": make_carried_bytes(10),
    }
    add_host(
        folder, {(n, "mpi@3"): {"carried": both_interfaces} for n in (0, 1)}, 2, {"ranks": [0]}
    )
    # The sink's host sends acknowledgements, which are none of the arm's bytes.
    carried_counts = {"carried": {"eth0": make_carried_bytes(NBYTES)}}
    host = {"ranks": [1], "host": "node-b"}
    add_host(folder, {(n, "mpi@3"): carried_counts for n in (0, 1)}, 2, host, first_rank=1)
    assert read_paths(folder)["mpi@3"] == "eth0: 50 %, mlx5_0/1: 48 %"


def test_silence_of_all_interfaces_names_no_other_way(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=2)
    add_host(folder, rounds=2)
    assert read_paths(folder)["mpi@3"] == "not on a network interface"
    add_host(folder, rounds=2, host={"unreadable": {"interfaces": "no /proc"}})
    assert read_paths(folder)["mpi@3"] == "not readable: no /proc"
    add_host(folder, rounds=2, host={"unreadable": {"GPU": "no NVML"}})
    assert read_paths(folder)["mpi@3"] == "not on a network interface, NVLink not readable"
    assert notes_of(folder, "conditions not readable") == ["conditions not readable: GPU: no NVML"]
    links = {
        (n, "mpi@3"): {"carried": {"NVLink": make_carried_bytes(0.985 * NBYTES)}} for n in (0, 1)
    }
    add_host(folder, links, rounds=2)
    assert read_paths(folder)["mpi@3"] == "NVLink: 98 %"


def test_without_baselines_the_idle_window_is_the_paired_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=2, arms=(MPI,))
    carried = {
        (n, "mpi@3"): {"carried": {"eth0": make_carried_bytes(1.5 * NBYTES)}} for n in (0, 1)
    }
    add_host(folder, carried, 2, arms=(MPI,))
    assert read_paths(folder)["mpi@3"] is None  # nothing to compare with
    idle = {"wall_s": 0.5, "carried": {"eth0": make_carried_bytes(0.4 * NBYTES)}}
    add_host(folder, carried, 2, arms=(MPI,), idle=idle)
    assert read_paths(folder)["mpi@3"] == "eth0: 70 %"


@pytest.mark.parametrize(
    ("crossing", "far", "carried", "note"),
    [
        (CrossingInfo(between_hosts=True), True, {"eth0": 0.99}, None),
        (
            CrossingInfo(between_hosts=True),
            True,
            {"lo": 0.99},
            "PATH: interfaces between hosts carried 0 % of the bytes of mpi@3 (lo: 99 %), "
            "but mpi between two hosts should use them for all",
        ),
        (CrossingInfo(between_hosts=True), False, {}, None),
        (
            CrossingInfo(on_one_host=True),
            False,
            {},
            "PATH: network interfaces carried 0 % of the bytes of mpi@3, "
            "but mpi on one host should use one for all",
        ),
        (CrossingInfo(on_one_host=False), False, {"NVLink": 0.99}, None),
        (
            CrossingInfo(on_one_host=False),
            False,
            {"lo": 0.8},
            "PATH: network interfaces carried 80 % of the bytes of mpi@3 (lo: 80 %), "
            "but mpi on one host should use none",
        ),
    ],
)
def test_a_way_that_the_name_does_not_promise_gets_a_note(
    tmp_path: Path,
    crossing: CrossingInfo,
    far: bool,
    carried: Mapping[str, float],
    note: str | None,
) -> None:
    infos: tuple[dict[str, str], ...] = ({}, {"host": "node-b"} if far else {})
    info = DestinationInfo(label="mpi", remote=True, crossing=crossing)
    folder = write_run(tmp_path / "run", rounds=2, infos=infos, destinations={"mpi": info})
    ways = {name: make_carried_bytes((share + 0.001) * NBYTES) for name, share in carried.items()}
    add_host(folder, {(n, "mpi@3"): {"carried": ways} for n in (0, 1)}, 2, {"ranks": [0]})
    assert notes_of(folder, "PATH") == ([] if note is None else [note])


# ---- the files ----


def test_files_that_are_damaged_or_of_another_run_are_left_out(tmp_path: Path) -> None:
    folder = add_host(write_run(tmp_path / "run", rounds=2), rounds=2)
    path = folder / name_conditions_file(0)
    text = path.read_text()
    path.write_text(text[:-20])
    (log,) = read_conditions(folder)
    assert log.is_torn
    assert len(log.windows) == 11
    for damaged, why in (
        (text.replace('"wall_s":1.0', '"wall_s":"1"', 1), "wall_s"),
        (text.partition("\n")[2], "the first line"),
        (text.partition("\n")[0] + "\n" + text, "the first line"),
        (text.replace(RUN_ID, "other", 1), "is of run other"),
        (text.replace("p000", "p009"), "names point p009"),
        (text.replace("mpi@3", "mpi@9"), "arm mpi@9"),
    ):
        path.write_text(damaged)
        damaged_run = read_checked(folder)
        assert re.search(why, damaged_run.damaged_files[path.name])
        assert read_host_rounds(damaged_run) == []
        with pytest.raises(RecordError, match=why):
            read_host_rounds(read_run(folder))


class FakeCommunicator:
    def Ibarrier(self) -> Any:  # noqa: N802 - as MPI spells it
        return SimpleNamespace(Test=lambda: True)


def make_member(host: str = "a", machine: str = "m", **changes: Any) -> Member:
    fields: dict[str, Any] = {
        "namespace": read_pid_namespace(),
        "pids": frozenset({os.getpid()}),
        "cores": frozenset(os.sched_getaffinity(0)),
        "gpu": None,
    }
    return Member(host, machine, **(fields | changes))


def test_the_first_rank_of_each_host_writes_a_window_per_iteration(
    tmp_path: Path,
) -> None:
    members = [make_member("b"), make_member("a"), make_member("a"), make_member("c", "other")]
    for rank in range(3):
        sampler = make_sampler(tmp_path, RUN_ID, rank, members)
        sampler.begin_window()
        sampler.end_window(IterationId(point="p000", arm="none", iteration=0, round=None))
        sampler.record_idle(cast(Any, FakeCommunicator()), "p000", 0.0)
        sampler.close()
    log_of_b, log_of_a = read_conditions(tmp_path)
    assert [log.host.ranks for log in (log_of_b, log_of_a)] == [[0], [1, 2]]
    assert log_of_a.host.cpus == sorted(os.sched_getaffinity(0))
    assert [(window.arm, window.round) for window in log_of_a.windows] == [
        ("none", None),
        (None, None),
    ]
    assert all(window.own_cpu_s is not None for window in log_of_a.windows)


def test_a_sink_outside_the_job_is_part_of_what_is_measured() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        this_member = Member.of_this_process(
            "a", "m", frozenset({0}), None, [server.getsockname()[1]]
        )
        assert this_member.pids == {os.getpid()}
        program = "import socket; s = socket.create_server(('127.0.0.1', 0)); "
        program += "print(s.getsockname()[1], flush=True); input()"
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, "-c", program], **pipes) as sink:
            assert sink.stdout is not None
            port = int(sink.stdout.readline())
            this_member = Member.of_this_process("a", "m", frozenset({0}), None, [port])
            sink.communicate("\n", timeout=PATIENCE)
    assert this_member.pids == {os.getpid(), sink.pid}


def test_gpus_without_their_library_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    make_sampler(tmp_path, RUN_ID, 0, [make_member("a", gpu="aaaa")]).close()
    (log,) = read_conditions(tmp_path)
    assert "nvidia-ml-py is not installed" in log.host.unreadable["GPU"]


def test_process_numbers_of_another_namespace_are_not_looked_up(tmp_path: Path) -> None:
    members = [make_member("a"), make_member("b", namespace="pid:[1]")]
    sampler = make_sampler(tmp_path, RUN_ID, 0, members)
    sampler.begin_window()
    sampler.end_window(IterationId(point="p000", arm="none", iteration=0, round=0))
    sampler.close()
    (log,) = read_conditions(tmp_path)
    assert log.windows[0].other_cpu_s is None
    assert "namespaces" in log.host.unreadable["CPU time of the job"]


@pytest.mark.mpi
def test_a_job_records_conditions_and_the_way_of_its_only_arm(tmp_path: Path) -> None:
    job = run(tmp_path, 2, "run", *QUICK, *args("--streaming mpi --rounds 3 --warmup 1"))
    (log,) = read_conditions(job.folder)
    assert log.host.ranks == [0, 1]
    arms_and_rounds = [(window.arm, window.round) for window in log.windows]
    assert arms_and_rounds == [
        ("mpi@3", None),
        (None, None),  # no arm shows what the machine carries without streaming
        *(("mpi@3", number) for number in range(3)),
    ]
    assert all(window.wall_s > 0 and window.cost_s > 0 for window in log.windows)
    assert [window.carried is not None for window in log.windows] == [True] * 5
    (row,) = flat_rows(job.run)
    assert row["path"] == "not on a network interface"
    assert not notes_of(job.folder, "PATH")


@pytest.mark.mpi
@pytest.mark.drill
def test_a_busy_process_beside_the_job_marks_its_rounds(tmp_path: Path) -> None:
    """The process takes at least its fair share of a core, however many others run."""
    sizes = args("--layer-num 4 --head-num 8 --size-per-head 64 --input-len 256 --output-len 32")
    rounds = args("--streaming none,mpi --ubatch-size 4 --rounds 2 --warmup 0")
    program = f"import time\nwhile time.monotonic() < {time.monotonic() + PATIENCE}: pass"
    with subprocess.Popen([sys.executable, "-c", program]) as busy_process:
        job = run(tmp_path, 2, "run", *QUICK, *sizes, *rounds)
        busy_process.kill()
    rows = flat_rows(job.run)
    assert {row["disturbed_rounds"] for row in rows} == {2}
    assert all(row["other_cores"] > MOST_OTHER_CORES for row in rows)
    (text,) = [text for text in texts_of_kind(job.folder, "disturbed") if "other processes" in text]
    assert "in 2 of 2 rounds" in text
