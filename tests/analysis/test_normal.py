"""Is it normal: an arm beside measured machines of its path and class. Pure: made-up tables, and
the committed records; no device, no thread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dejavubench.analysis.answers.judgement import Noise
from dejavubench.analysis.find_runs import GIVE_A_RUN, find
from dejavubench.analysis.normal.machine_table import (
    SHIPPED_TABLE,
    MachineTable,
    MeasuredArm,
    format_arms,
    read_shipped_table,
    read_table,
)
from dejavubench.analysis.normal.verdicts import (
    RangePlace,
    RunNoise,
    describe_arm,
    describe_arms,
    judge_normality,
)
from dejavubench.analysis.tables.host_columns import HostConditions
from dejavubench.analysis.tables.normal_part import describe_others
from dejavubench.analysis.tables.normal_tables import arms_of, load_named_table
from dejavubench.analysis.tables.run_rows import run_rows
from dejavubench.records import RecordError
from helpers.cli_calls import call, usage_error
from helpers.paths import ROOT
from helpers.synthetic_runs import AGAIN, ENVIRONMENT, NONE, arm_of, write_run

RESULTS = ROOT / "results"
XEON = next((RESULTS / "xeon-2core" / "records").glob("fig25-*"))


def make_arm(machine: str, share: float | None, **changes: Any) -> MeasuredArm:
    fields: dict[str, Any] = {
        "machine": machine,
        "processor": "a CPU",
        "date": "2026-11-25",
        "run": "r",
        "run_id": f"id of {machine}",
        "arm": "mpi@3",
        "model": "gpt2",
        "on_gpu": False,
        "mode": "mpi",
        "hosts": "same host",
        "chunk_bytes": 786e3,
        "ceiling": "mpi-windowed",
        "share_pct": share,
        "overhead_pct": 5.0,
    }
    return MeasuredArm(**(fields | changes))


OWN_ARM = make_arm("mine", 23.0)


def place_among(*arms: MeasuredArm) -> RangePlace:
    return judge_normality(OWN_ARM, MachineTable("made up", arms)).place


def test_three_machines_make_a_range_and_fewer_no_verdict() -> None:
    arm_of_a, arm_of_b, arm_of_c = make_arm("a", 31), make_arm("b", 34), make_arm("c", 38)
    assert place_among(arm_of_a, arm_of_b, arm_of_c) is RangePlace.LOW
    assert place_among(make_arm("a", 20), arm_of_b, arm_of_c) is RangePlace.WITHIN
    assert place_among(*(make_arm(name, 20) for name in "abc")) is RangePlace.HIGH
    assert place_among(arm_of_a, arm_of_b) is RangePlace.NO_VERDICT
    assert place_among() is RangePlace.NO_VERDICT
    assert judge_normality(
        make_arm("x", None), MachineTable("t", [arm_of_a, arm_of_b, arm_of_c])
    ).place is (RangePlace.NO_VERDICT)


@pytest.mark.parametrize(
    "changes",
    [
        {"run_id": "id of mine"},
        {"machine": "mine"},
        {"hosts": "different hosts"},
        {"on_gpu": True},
        {"mode": "tcp"},
        {"durability": "direct"},
        {"ceiling": "another"},
        {"chunk_bytes": 786e3 * 5},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_class_the_own_run_and_other_chunks_are_left_out(changes: dict[str, Any]) -> None:
    other_arms = [make_arm(name, 35.0).model_copy(update=changes) for name in "abc"]
    assert judge_normality(OWN_ARM, MachineTable("t", other_arms)).other_machines == []


def test_a_machine_counts_once_with_all_of_its_runs() -> None:
    later = make_arm("a", 40.0, date="2026-11-30", run_id="another")
    normality = judge_normality(OWN_ARM, MachineTable("t", [make_arm("a", 31.0), later]))
    assert describe_arm(normality) == (
        "mpi@3, same host: 23 % of mpi-windowed in chunks of 786.0 kB; one machine measured "
        "31–40 % on a (2026-11-25 to 2026-11-30): no verdict: needs 3 other machines, has 1."
    )


def test_machines_with_too_different_chunks_are_counted_not_denied() -> None:
    def verdict_text(*arms: MeasuredArm) -> str:
        return describe_arm(judge_normality(OWN_ARM, MachineTable("t", arms))).partition("; ")[2]

    assert verdict_text() == "no other machine of this class was measured."
    arm_of_small_chunks, arm_of_large_chunks = (
        make_arm("a", 30.0, chunk_bytes=size) for size in (100e3, 4e6)
    )
    assert verdict_text(arm_of_small_chunks) == (
        "1 machine was measured, with chunks of 100.0 kB: too different from 786.0 kB to compare."
    )
    assert verdict_text(
        arm_of_small_chunks, arm_of_large_chunks.model_copy(update={"machine": "b"})
    ) == (
        "2 machines were measured, with chunks of 100.0 kB to 4.0 MB: too different from 786.0 kB "
        "to compare."
    )
    assert verdict_text(arm_of_small_chunks, make_arm("a", 31.0)).startswith(
        "one machine measured 31 % on a"
    )


def test_a_verdict_names_machines_and_dates() -> None:
    table = MachineTable("t", [make_arm("a", 38), make_arm("b", 31), make_arm("c", 34)])
    assert describe_arm(judge_normality(OWN_ARM, table)) == (
        "mpi@3, same host: 23 % of mpi-windowed in chunks of 786.0 kB; on 3 machines 31–38 %: low "
        "(31 % on b (2026-11-25), 34 % on c (2026-11-25), 38 % on a (2026-11-25)). The table "
        '"where a chunk\'s time goes" of the long report shows what takes it.'
    )


def test_the_lowest_of_several_points_speaks_and_the_paper_stands_last() -> None:
    table = MachineTable("t", [])
    normalities = [judge_normality(make_arm("m", share), table) for share in (30.0, 25.0, 28.0)]
    unknown = judge_normality(make_arm("m", None, arm="host@3"), table)
    lowest_sentence, unknown_sentence, paper_sentence = describe_arms([*normalities, unknown])
    assert lowest_sentence.startswith("mpi@3, same host: 25 % of")
    assert unknown_sentence.startswith("host@3: nothing is compared")
    assert "no-ceilings" not in unknown_sentence
    assert "2 × A100-80GB" in paper_sentence
    assert "second-hand" in paper_sentence
    assert paper_sentence.endswith(
        "Here, gpt2 on a CPU: mpi@3 +5.00 % (noise unknown), host@3 +5.00 % (noise unknown)."
    )


def test_the_own_machine_is_known_by_its_digest_with_all_of_its_runs() -> None:
    """The digest of a machine differs from boot to boot, and a folder's name is made up."""
    own_arm = make_arm("vm, a CPU", 23.0, machine_digest="a33")
    own_texts = [
        make_arm("a", 31.0, machine_digest="a33"),
        make_arm("a", 33.0, machine_digest="0be"),
    ]
    unknown = [make_arm("b", 34.0), make_arm("c", 35.0, machine_digest="da1")]
    normality = judge_normality(own_arm, MachineTable("t", [*own_texts, *unknown]))
    assert [other.machine for other in normality.other_machines] == ["b", "c"]
    # Two digests that nobody recorded are not equal.
    assert len(judge_normality(OWN_ARM, MachineTable("t", unknown)).other_machines) == 2


def test_a_run_that_streams_nothing_is_not_asked_whether_it_is_normal(tmp_path: Path) -> None:
    for arms, is_asked in (([NONE, arm_of("mpi")], True), ([NONE], False)):
        folder = write_run(tmp_path / str(len(arms)), arms)
        text = call("process", folder, "--against", SHIPPED_TABLE).stdout
        assert ("IS IT NORMAL?" in text) == is_asked


def test_a_run_that_left_ceilings_out_gets_the_command_that_measures_them() -> None:
    command = "mpirun -n 2 dejavubench run --continue logs/r --ceilings"
    noise = RunNoise(ceilings_command=command)
    unknown_arms = [make_arm("m", None, arm=arm_name) for arm_name in ("host@3", "mpi@3")]
    text, _ = describe_arms(
        [judge_normality(arm, MachineTable("t", []), noise) for arm in unknown_arms]
    )
    assert text == (
        "host@3, mpi@3: nothing is compared, because no share of a ceiling was measured. The run "
        f"had --no-ceilings. One more round with ceilings: {command}"
    )


def test_a_run_of_a_shipped_machine_under_another_name_gets_no_verdict() -> None:
    records = RESULTS / "epyc-bf16-2core" / "records"
    for arm in arms_of(find([next(records.glob("fig25-*155429Z"))]).runs):
        renamed_arm = arm.model_copy(update={"machine": "vm, AMD EPYC", "run_id": "another"})
        normality = judge_normality(renamed_arm, read_shipped_table())
        assert {other.machine for other in normality.other_machines} == {"epyc-2core", "xeon-2core"}
        assert normality.place is RangePlace.NO_VERDICT


def test_a_busy_machine_gets_no_verdict_and_the_reason() -> None:
    table = MachineTable("t", [make_arm("a", 38), make_arm("b", 31), make_arm("c", 34)])
    busy = RunNoise("other programs took 1.3 of 2 cores, in 9 of 10 rounds")
    normality = judge_normality(OWN_ARM, table, busy)
    assert normality.place is RangePlace.NO_VERDICT
    assert (
        "; on 3 machines 31–38 %: no verdict: the machine was busy: other programs took 1.3 of "
        "2 cores, in 9 of 10 rounds (31 % on b "
    ) in describe_arm(normality)
    assert "long report" not in describe_arm(normality)


def test_of_too_few_machines_and_a_busy_one_both_reasons_are_named() -> None:
    busy = RunNoise("other programs took 1.3 of 2 cores, in 9 of 10 rounds")
    normality = judge_normality(OWN_ARM, MachineTable("t", [make_arm("a", 38)]), busy)
    assert describe_arm(normality).endswith(
        ": no verdict: needs 3 other machines, has 1; the machine was busy: other programs took "
        "1.3 of 2 cores, in 9 of 10 rounds."
    )


@pytest.mark.parametrize(
    ("rounds", "cores", "disturbed", "taken", "busy"),
    [
        (10, 2, 9, 1.3, "other programs took 1.3 of 2 cores, in 9 of 10 rounds"),
        (10, 2, 3, 1.3, None),
        (10, 64, 10, 0.3, None),  # small daemons of a large machine
        (10, 2, None, None, None),  # older records
    ],
)
def test_a_machine_is_busy_if_most_rounds_lost_a_part_of_it(
    rounds: int, cores: int, disturbed: int | None, taken: float | None, busy: str | None
) -> None:
    row = run_rows(find([XEON]).runs[0])[-1]
    row.times.samples = rounds
    row.conditions = HostConditions(
        disturbed_rounds=disturbed, granted_cores=cores, other_cores=taken
    )
    assert describe_others(row) == busy


def test_the_own_cost_beside_the_papers_says_whether_it_is_told_from_noise() -> None:
    noises = (
        RunNoise(None, Noise(low=-0.02, high=0.074), False),
        RunNoise(None, Noise(low=-0.0052, high=0.001), True),
        RunNoise(None, Noise(low=-0.0079, high=0.653), False),
    )
    texts = [
        describe_arms([judge_normality(OWN_ARM, MachineTable("t", []), noise)])[-1]
        for noise in noises
    ]
    assert texts[0].endswith(": mpi@3 +5.00 % (no cost shown, noise ±7.40 %).")
    assert texts[1].endswith(": mpi@3 +5.00 % (a cost, noise ±0.52 %).")
    # As ANSWER and the table have it.
    assert texts[2].endswith(": mpi@3 +5.00 % (no cost shown, noise −0.79 to +65.3 %, either way).")


# ---- the shipped table ----


def test_the_shipped_table_is_made_of_the_committed_results() -> None:
    """Runs of one point are computed anew; of the others, the identity is compared."""
    shipped = read_shipped_table().arms
    quick = sorted(
        folder for name in ("fig25*", "four-*") for folder in RESULTS.glob(f"*/records/{name}")
    )
    folder_names = {folder.name for folder in quick}
    arms_of_quick_runs = sorted(
        (arm for arm in shipped if arm.run in folder_names),
        key=lambda arm: [folder.name for folder in quick].index(arm.run),
    )
    assert arms_of(find(quick).runs) == arms_of_quick_runs
    for arm in shipped:
        header = json.loads((RESULTS / arm.machine / "records" / arm.run / "run.json").read_text())
        assert arm.run_id == header["run_id"]


def test_a_run_is_held_against_the_shipped_table() -> None:
    process_call = call("process", XEON, "--against", SHIPPED_TABLE, "--format", "json")
    (document,) = json.loads(process_call.stdout)
    rows = {row["arm"]: row for row in document["normal"]}
    assert list(rows) == ["host@3", "disk@3", "mpi@3"]
    mpi = rows["mpi@3"]
    assert mpi["ceiling_share_pct"] == pytest.approx(38.2, abs=0.1)
    assert (mpi["machines"], mpi["range_place"]) == (2, "no verdict")
    assert "on epyc-2core (2026-11-25 to 2026-11-26), " in mpi["sentence"]
    assert mpi["sentence"].endswith(
        "on epyc-bf16-2core (2026-11-30): no verdict: needs 3 other machines, has 2."
    )
    assert "xeon-2core" not in mpi["sentence"]  # its own machine


def test_a_run_on_another_cpu_gets_verdicts_of_the_shipped_table() -> None:
    """Three CPUs were measured with host, disk and mpi on one host; a fourth one is compared."""
    (run_of_xeon,) = find([XEON]).runs
    arms = [
        arm.model_copy(update={"machine": "another", "run_id": "another"})
        for arm in arms_of([run_of_xeon])
    ]
    places = {}
    for arm in arms:
        normality = judge_normality(arm, read_shipped_table())
        machines = {other.machine for other in normality.other_machines}
        assert machines == {"epyc-2core", "epyc-bf16-2core", "xeon-2core"}
        places[arm.arm] = normality.place
    assert places == {
        "host@3": RangePlace.WITHIN,
        "disk@3": RangePlace.WITHIN,
        "mpi@3": RangePlace.WITHIN,
    }
    slow = arms[0].model_copy(update={"share_pct": 20.0})
    text = describe_arm(judge_normality(slow, read_shipped_table()))
    assert "; on 3 machines 50–70 %: low (50 % on epyc-bf16-2core (2026-11-30), " in text
    assert text.endswith("of the long report shows what takes it.")


def test_without_against_nothing_is_compared() -> None:
    (document,) = json.loads(call("process", XEON, "--format", "json").stdout)
    assert document["normal"] == []


# ---- other tables ----


def test_a_folder_of_runs_and_a_file_are_tables(tmp_path: Path) -> None:
    arms = [NONE, AGAIN, arm_of("mpi")]
    for name in "abc":
        environment = ENVIRONMENT | {"cpu_model": name}
        write_run(tmp_path / "runs" / name, arms, environment=environment, run_id=f"{name:0>16}")
    table_of_runs = load_named_table(str(tmp_path / "runs"))
    assert [arm.machine for arm in table_of_runs.arms] == [f"node-a, {name}" for name in "abc"]
    file = tmp_path / "table.json"
    file.write_text(format_arms(table_of_runs.arms))
    assert read_table(file).arms == table_of_runs.arms
    assert load_named_table(str(file)).arms == table_of_runs.arms
    own_arm = table_of_runs.arms[0].model_copy(
        update={"share_pct": 1.0, "run_id": "x", "machine": "x"}
    )
    assert judge_normality(own_arm, table_of_runs).place is RangePlace.LOW


@pytest.mark.parametrize("text", ["{}", "[{}]", "no json", '[{"machine": 1}]'])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "table.json"
    file.write_text(text)
    with pytest.raises(RecordError, match="is no table of machines"):
        read_table(file)


def test_what_is_not_there_is_one_message(tmp_path: Path) -> None:
    process_call = call("process", XEON, "--against", tmp_path / "nowhere")
    assert (
        usage_error(process_call)
        == f"--against: {tmp_path / 'nowhere'} does not exist. {GIVE_A_RUN}"
    )


def test_the_shipped_table_can_be_read() -> None:
    assert {arm.machine for arm in read_shipped_table().arms} >= {
        "epyc-2core",
        "h200",
        "xeon-2core",
    }
