"""Settings that a sweep may vary: threads, cores and staging memory, from flags to points."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dejavubench.analysis.tables.headings import SETTING_HEADINGS
from dejavubench.analysis.tables.process_columns import SETTING_COLUMNS
from dejavubench.bench.recording.infos import describe_point
from dejavubench.config.experiment import Experiment
from dejavubench.config.points import SETTINGS, PointSettings
from dejavubench.config.resolve import load
from dejavubench.errors import UsageError
from dejavubench.machine.memory import measure_available_nbytes
from dejavubench.planning.duration import Rates, estimate_compute_s
from dejavubench.planning.memory import estimate_memory
from dejavubench.records import POINT_SETTINGS, RUN_FILE, PointInfo
from dejavubench.units import MIB
from helpers.cli_calls import call
from helpers.killed_runs import write_killed_run

CPU = {"device": "cpu", "model": "gpt2", "streaming": "none,mpi"}


def test_config_records_and_tables_have_the_same_settings() -> None:
    assert SETTINGS == POINT_SETTINGS == SETTING_COLUMNS == tuple(SETTING_HEADINGS)
    defaults = PointSettings()
    for name in SETTINGS:
        assert Experiment.model_fields[name].default == (getattr(defaults, name),)


def test_one_value_is_written_as_it_always_was() -> None:
    plan = load(None, {**CPU, "threads": "2", "confine": True}, {})
    dumped = plan.experiment.model_dump(mode="json")
    assert [dumped[name] for name in SETTINGS] == [2, 16, 4, True]
    assert plan.experiment.settings() == ["--threads 2", "--confine"]
    (point,) = plan.points
    assert not set(SETTINGS) & set(describe_point(point).model_dump(mode="json"))


def test_an_experiment_of_single_values_keeps_its_hash() -> None:
    values = {"device": "cpu", "inference_data_type": "fp32", "threads": 2, "staging_mib": 8}
    assert load(None, values, {}).hash() == "4ec7358a0d32aa03"  # of the program before


SWEPT_FLAGS = {
    "threads": [1, 2],
    "staging_mib": "16,4",
    "confine": [False, True],
    "output_len": "3,4",
}


def test_several_values_are_points_whose_settings_vary_innermost() -> None:
    plan = load(None, {**CPU, **SWEPT_FLAGS}, {})
    assert [point.id for point in plan.points][-1] == "p015"
    of_first = [point.settings for point in plan.points if point.output_len == 3]
    assert [point.output_len for point in plan.points] == [3] * 8 + [4] * 8
    assert of_first[:3] == [
        PointSettings(threads=1, staging_mib=16, staging_slots=4, confine=False),
        PointSettings(threads=1, staging_mib=16, staging_slots=4, confine=True),
        PointSettings(threads=1, staging_mib=4, staging_slots=4, confine=False),
    ]
    assert len(set(of_first)) == 8


def test_an_experiment_keeps_the_values_that_are_swept() -> None:
    plan = load(None, {**CPU, **SWEPT_FLAGS}, {})
    dumped = plan.experiment.model_dump(mode="json")
    assert (dumped["threads"], dumped["confine"]) == ([1, 2], [False, True])
    assert plan.experiment.settings() == []
    assert plan.experiment.swept == ("threads", "staging_mib", "confine")


def test_the_record_of_a_point_has_its_values_of_swept_settings_alone() -> None:
    plan = load(None, {**CPU, **SWEPT_FLAGS}, {})
    swept = plan.experiment.swept
    record = describe_point(plan.points[1], swept_options=swept).model_dump(mode="json")
    assert {name: record[name] for name in swept} == {
        "threads": 1,
        "staging_mib": 16,
        "confine": True,
    }
    assert "staging_slots" not in record
    assert PointInfo.model_validate(record).staging_mib == 16


def test_a_sweep_written_to_a_record_is_read_as_it_was() -> None:
    experiment = load(None, {**CPU, "threads": "2,1", "confine": [True, False]}, {}).experiment
    assert Experiment.model_validate(json.loads(experiment.model_dump_json())) == experiment


@pytest.mark.parametrize(
    ("flags", "confined"),
    [
        ((), (False,)),
        (("--confine",), (True,)),
        (("--no-confine",), (False,)),
        (("--confine", "--confine"), (True,)),
        (("--no-confine", "--confine"), (False, True)),
    ],
)
def test_both_flags_of_a_switch_sweep(
    flags: tuple[str, ...], confined: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Any] = []
    monkeypatch.setattr("dejavubench.cli.dry_run.describe", plans.append)
    dry_run = call("run", "--dry-run", "--device", "cpu", *flags)
    assert dry_run.exit_code == 0, dry_run.stderr
    (plan,) = plans
    assert plan.experiment.confine == confined


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"threads": "0"}, "--threads: must be greater than 0, not '0'"),
        ({"threads": "1,1"}, "--threads: 1, 1: a value is given twice"),
        ({"threads": "1,01"}, "--threads: 1, 1: a value is given twice"),
        ({"threads": "2,"}, "--threads: the list has an empty value; give at least one value.*"),
        ({"threads": "1,4097"}, "--threads: must be at most 4096, not '4097'"),
        ({"threads": [1, True]}, "--threads: must be a whole number, not True"),
        ({"staging_mib": "4,x"}, "--staging-mib: must be a whole number, not 'x'"),
        ({"staging_mib": "4,0.5"}, "--staging-mib: must be a whole number, not '0.5'"),
        ({"staging_slots": []}, "--staging-slots: the list has an empty value.*"),
        ({"confine": [True, True]}, "--confine: True, True: a value is given twice"),
        ({"confine": [True, 7]}, "--confine: must be a valid boolean.*, not 7"),
        (
            {"staging_mib": "4,16", "streaming": "none"},
            "--staging-mib 4,16 needs a destination: --streaming none stages nothing",
        ),
        (
            {"threads": list(range(1, 102)), "staging_slots": list(range(1, 102))},
            "the lists combine to 10,201 points; one run takes at most 10,000.*",
        ),
    ],
)
def test_bad_values_are_refused_in_one_line(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as refused:
        load(None, {**CPU, **values}, {})
    assert re.fullmatch(expected, str(refused.value))


def test_the_most_threads_of_a_sweep_are_held_against_the_cores() -> None:
    plan = load(None, {**CPU, "threads": "1,9"}, {})
    plan.check_threads(3)
    with pytest.raises(UsageError, match="--threads 9 is more than 4 per core"):
        plan.check_threads(2)


def test_memory_is_that_of_each_points_own_staging() -> None:
    plan = load(None, {**CPU, "staging_mib": "4,64", "staging_slots": "2,8"}, {})
    needs = [estimate_memory(plan, point) for point in plan.points]
    assert [need.staging.host_nbytes // MIB for need in needs] == [8, 32, 128, 512]
    # A sink has two slots for its one stream.
    sinks = [need.sink.host_nbytes - needs[0].sink.host_nbytes for need in needs]
    assert [sink // MIB for sink in sinks] == [0, 0, 120, 120]


def test_threads_make_a_point_faster_unless_they_share_a_core() -> None:
    plan = load(None, {**CPU, "threads": "1,2", "confine": [False, True]}, {})
    rates = Rates(matmul=1e9, read=1e12)
    one_thread_s, one_confined_s, two_threads_s, two_confined_s = (
        estimate_compute_s(point, rates, point.settings.busy_core_count)[0] for point in plan.points
    )
    assert one_thread_s == one_confined_s == two_confined_s == pytest.approx(2 * two_threads_s)


def test_a_point_whose_staging_does_not_fit_is_skipped_alone() -> None:
    slots = 2 * measure_available_nbytes() // (64 * MIB)  # staging alone takes twice what there is
    flags = ["--model", "gpt2", "--streaming", "none,mpi", "--device", "cpu"]
    sweep = ["--staging-mib", "64", "--staging-slots", f"4,{slots}"]
    dry_run = call("run", "--dry-run", *flags, *sweep)
    assert dry_run.exit_code == 0, dry_run.stderr
    output = " ".join(dry_run.stdout.split())
    assert "p001 SKIPPED: gpt2 needs" in output
    assert "p000 SKIPPED" not in output


def test_a_dry_run_names_the_settings_of_each_point() -> None:
    flags = ["--model", "gpt2", "--streaming", "none,mpi", "--device", "cpu"]
    sweep = ["--threads", "1,400", "--no-confine", "--confine"]
    dry_run = call("run", "--dry-run", *flags, *sweep)
    assert dry_run.exit_code == 0, dry_run.stderr
    rows = [
        line.split() for line in dry_run.stdout.splitlines() if line.startswith(("p00", " p00"))
    ]
    assert [row[8:10] for row in rows] == [
        ["1", "no"],
        ["1", "yes"],
        ["400", "no"],
        ["400", "yes"],
    ]
    output = " ".join(dry_run.stdout.split())
    assert "With --threads 400 and all ranks on this host: 2 ranks have 401 busy threads" in output
    assert "Settings" not in output


def test_a_restarted_request_has_the_settings_of_its_point_alone(tmp_path: Path) -> None:
    folder = write_killed_run(
        tmp_path / "run", "tokens", "p001", "disk@3", threads=[1, 3], staging_mib=8
    )
    header = json.loads((folder / RUN_FILE).read_text())
    header["points"][1]["threads"] = 3
    (folder / RUN_FILE).write_text(json.dumps(header))
    plan = load(None, {"resume": str(folder), "device": "cpu"}, {})
    (point,) = plan.points
    assert point.settings == PointSettings(threads=3, staging_mib=8)
    with pytest.raises(UsageError, match="--restart-request continues one request that was"):
        load(None, {"resume": str(folder), "device": "cpu", "threads": "1,3"}, {})
