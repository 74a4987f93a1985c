"""The link figure: predictions that can be worked out by hand, and runs that go together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dejavubench.analysis import prediction
from dejavubench.analysis.figures.drawings import make_drawings
from dejavubench.analysis.prediction import (
    StreamedRequest,
    count_in_interval,
    find_fastest_above,
    split_nbytes,
)
from dejavubench.records import (
    RUN_FILE,
    Ceiling,
    End,
    Iteration,
    Microbatch,
    name_rank_file,
    read_run,
    to_line,
)
from helpers.figure_calls import call_figures, draw_figures, refusal_of
from helpers.synthetic_runs import AGAIN, ENVIRONMENT, NONE, arm_of, point_of, write_run

# A prompt of 2 layers in 100 ms and 3 steps of 10 ms: 130 ms. 4000 bytes a prompt, 100 a step.
REQUEST = StreamedRequest(
    layer_count=2,
    step_count=3,
    prompt_ms=100.0,
    token_ms=10.0,
    prompt_nbytes=4000.0,
    step_nbytes=100.0,
    message_count=50,
    message_ms=0.2,
)
ARMS = [
    NONE,
    AGAIN,
    *(
        arm_of(mode, level)
        for mode in ("mpi", "tcp")
        for level in ("0", "0-batched", "1", "2", "3")
    ),
]


@pytest.mark.parametrize(
    ("level", "rate", "expected"),
    [
        # 20 bytes a millisecond: the prompt's bytes take 200 ms, a step's 5.
        ("0", 20.0, 100 + 200 + 3 * (10 + 5) + 50 * 0.2),
        ("1", 20.0, 100 + 200 + 3 * (10 + 5)),
        # The first layer is ready at 50; from then on the link is busy.
        ("2", 20.0, (50 + 200) + 3 * (10 + 5)),
        ("3", 20.0, 50 + 200 + 3 * 5),  # and it is busy to the end
        # 100 bytes a millisecond: a layer takes 20 ms, a step 1.
        ("0", 100.0, 100 + 40 + 3 * (10 + 1) + 10),
        ("1", 100.0, 100 + 40 + 3 * (10 + 1)),
        # The first layer has arrived at 70, the second at 120.
        ("2", 100.0, (100 + 20) + 3 * (10 + 1)),
        ("3", 100.0, 130 + 1),  # 120, 121, 122 and, as the last step ends only at 130, 131
        # 35: a layer takes 57.1 ms, from 50 on.
        # The first step is ready at 110, the link is idle only at 164.3.
        ("3", 35.0, 50 + 4300 / 35),
    ],
)
def test_totals_are_those_worked_out_by_hand(level: str, rate: float, expected: float) -> None:
    assert REQUEST.predict_ms(level, rate) == pytest.approx(expected)
    assert REQUEST.predict_overhead_pct(level, rate) == pytest.approx(100 * (expected / 130 - 1))


def test_levels_are_in_their_order_and_a_faster_link_is_never_slower() -> None:
    rates = [2.0**power for power in range(20)]
    for rate in rates:
        totals = [REQUEST.predict_ms(level, rate) for level in prediction.PREDICTED_LEVELS]
        assert totals == sorted(totals, reverse=True)
        assert totals[-1] > REQUEST.total_ms
    for level in prediction.PREDICTED_LEVELS:
        totals = [REQUEST.predict_ms(level, rate) for rate in rates]
        assert totals == sorted(totals, reverse=True)


def test_each_level_leaves_zero_at_its_own_speed() -> None:
    """At level 3, the second layer and the steps must be through by 136.5 ms (5 %), from 100 on."""
    assert REQUEST.find_slowest_rate_near_zero("3") == pytest.approx(
        (2000 + 300) / (136.5 - 100), rel=1e-3
    )
    assert REQUEST.find_slowest_rate_near_zero("2") == pytest.approx((2000 + 300) / 6.5, rel=1e-3)
    assert REQUEST.find_slowest_rate_near_zero("1") == pytest.approx(4300 / 6.5, rel=1e-3)
    assert REQUEST.find_slowest_rate_near_zero("0") is None  # its messages alone take 10 ms


def test_the_prediction_for_one_token_has_no_steps() -> None:
    assert StreamedRequest(
        layer_count=2,
        step_count=0,
        prompt_ms=100.0,
        token_ms=0.0,
        prompt_nbytes=4000.0,
        step_nbytes=100.0,
    ).predict_ms("3", 100.0) == pytest.approx(120)


def test_bytes_are_split_into_prompt_and_steps() -> None:
    assert split_nbytes(point_of(input_len=90, output_len=11, streamed_nbytes=100_000)) == (
        90_000,
        1000,
        10,
    )
    handed_over = point_of(input_len=90, output_len=11, handed_over=3, streamed_nbytes=92_000)
    assert split_nbytes(handed_over) == (90_000, 1000, 2)


def test_a_link_is_too_slow_as_long_as_the_whole_interval_says_so() -> None:
    assert find_fastest_above([1, 100, 10], [105, 4.9, 9]) == 10
    assert find_fastest_above([1, 10], [5, -3]) is None


def test_a_prediction_is_held_against_each_interval() -> None:
    rows = [
        {"overhead_low_pct": 1, "overhead_high_pct": 3, "predicted_overhead_pct": predicted_pct}
        for predicted_pct in (0.9, 1, 2, 3, 3.1)
    ]
    assert count_in_interval(rows) == 3


# ---- from records ----


SIZES: dict[str, Any] = {
    **{"layer_num": 2, "head_num": 1, "size_per_head": 1, "ubatch_size": 25},
    **{"input_len": 40, "output_len": 4},
}
"""Twice the bytes of the request above: 8600."""


def write_session(
    folder: Path, rate: str, speed: float, levels: dict[str, float] | None = None, **changes: Any
) -> Path:
    """A run whose link has ``speed`` (GB/s) and whose requests take 130 ms, times ``levels``."""
    experiment = {"target_overhead": None, "link": rate}
    changes = {"figure": "link", "experiment": experiment, "points": [point_of(**SIZES)]} | changes
    write_run(folder, ARMS, rounds=6, factors=levels, sealed=False, **changes)
    file = folder / name_rank_file(0)
    lines = []
    for line in file.read_text().splitlines():
        kind = json.loads(line)["kind"]
        if kind == "microbatch":
            lines.append(
                to_line(_as_worked_out(Microbatch.model_validate_json(line), levels or {}))
            )
        elif kind == "iteration":
            iteration = Iteration.model_validate_json(line)
            lines.append(
                to_line(
                    iteration.model_copy(
                        update={"total_ms": 130.0 * (levels or {}).get(iteration.arm, 1.0)}
                    )
                )
            )
        elif kind not in ("ceiling", "end"):
            lines.append(line + "\n")
    for name, unit, value in (
        ("windowed", "GB/s", speed),
        ("raw", "GB/s", 2 * speed),
        ("message", "us", 200.0),
    ):
        for mode in ("mpi", "tcp"):
            if name != ("raw" if mode == "mpi" else "windowed"):
                samples = [value, 0.9 * value, 1.2 * value]
                probe_name = f"{mode}-{name}"
                best = min(samples) if unit == "us" else max(samples)
                lines.append(
                    to_line(
                        Ceiling(name=probe_name, unit=unit, value=best, samples=samples, shape="")
                    )
                )
    file.write_text("".join([*lines, to_line(End())]))
    return folder


def _as_worked_out(microbatch: Microbatch, levels: dict[str, float]) -> Microbatch:
    factor = levels.get(microbatch.arm, 1.0)
    messages = microbatch.prompt.model_copy(update={"copies": 20})
    changes = {
        "prompt_ms": 100.0 * factor,
        "token_ms": [10.0 * factor] * 3,
        "all_token_ms": 30.0 * factor,
        "drain_ms": 0.0,
    }
    changes |= {
        "total_ms": 130.0 * factor,
        "prompt": messages,
        "tokens": microbatch.tokens.model_copy(update={"copies": 30}),
    }
    return microbatch.model_copy(update=changes)


def test_the_figure_has_all_runs_and_what_is_predicted_of_each(tmp_path: Path) -> None:
    slow = {"mpi@1": 2.5, "mpi@3": 2.0}
    write_session(tmp_path / "logs" / "a", "160kbit/s", 40e-6, slow)
    write_session(tmp_path / "logs" / "b", "800kbit/s", 200e-6)
    write_session(tmp_path / "logs" / "c", "unlimited", 1.0)
    assert draw_figures(tmp_path / "logs", tmp_path / "out") == ["link-gpt2"]
    table = pd.read_csv(tmp_path / "out" / "link-gpt2.csv", dtype={"level": str}).set_index(
        ["link", "arm"]
    )
    assert len(table) == 3 * 10
    slow_link_row: Any = table.loc[("160kbit/s", "mpi@3")]
    # The median of its samples, not the best.
    assert slow_link_row["link_mb_per_s"] == pytest.approx(0.04)
    # 8600 bytes at 40 bytes per ms, from the first layer on; level 0 adds 50 messages.
    assert slow_link_row["predicted_ms"] == pytest.approx(50 + 8600 / 40)
    assert slow_link_row["overhead_pct"] == pytest.approx(100)
    assert table.loc[("160kbit/s", "mpi@0"), "predicted_ms"] == pytest.approx(
        130 + 8600 / 40 + 50 * 0.2
    )
    assert table.loc[("160kbit/s", "tcp@1"), "predicted_ms"] == pytest.approx(130 + 8600 / 80)
    assert table.loc[("800kbit/s", "mpi@3"), "predicted_overhead_pct"] == pytest.approx(100 / 130)
    assert table["predicted_ms"].isna().sum() == 3 * 2  # of 0-batched


def test_the_caption_tells_links_and_where_zero_is_left(tmp_path: Path) -> None:
    runs = [
        write_session(tmp_path / "a", "160kbit/s", 40e-6, {"mpi@3": 2.0}),
        write_session(tmp_path / "b", "unlimited", 1.0),
    ]
    (drawing,), _ = make_drawings([read_run(run) for run in runs])
    assert (
        "Link limited to 160kbit/s, unlimited; its speed is the median of mpi-windowed and tcp-raw"
        in drawing.description
    )
    assert "mpi level 3 126 kB/s / " in drawing.description
    assert "mpi level 0 none / none" in drawing.description
    assert "intervals hold their session's prediction." in drawing.caption


TWO_HOSTS = ENVIRONMENT | {"hostnames": ["node-a", "node-b"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"environment": ENVIRONMENT | {"cpu_model": "Xeon"}},
            "cpu_model: AMD EPYC 9V74 80-Core Processor (a), Xeon",
        ),
        ({"points": [point_of(**(SIZES | {"input_len": 41}))]}, "input_len: 40 (a), 41 (b)"),
        ({"experiment": {"link": "1Mbit/s"}}, "a, b hold the same point and arm"),
        (
            {"infos": ({}, {"environment": {}}), "environment": TWO_HOSTS},
            "mpi connects two hosts on one machine (a), same host (b)",
        ),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    machine_info = {"environment": {"machine": "m"}}
    between: dict[str, Any] = {
        "infos": (machine_info, {**machine_info, "host": "node-b"}),
        "environment": TWO_HOSTS,
    }
    write_session(
        tmp_path / "logs" / "a", "1Mbit/s", 1e-4, **(between if "infos" in changes else {})
    )
    write_session(tmp_path / "logs" / "b", "2Mbit/s", 2e-4, **changes)
    assert message in refusal_of(call_figures(tmp_path / "logs", "-o", tmp_path / "out"))


def test_a_session_that_did_not_measure_its_link_is_left_out(tmp_path: Path) -> None:
    folder = write_session(tmp_path / "a", "1Mbit/s", 1e-4)
    file = folder / name_rank_file(0)
    file.write_text(
        "".join(line + "\n" for line in file.read_text().splitlines() if '"ceiling"' not in line)
    )
    assert "a: without the ceiling mpi-windowed, the speed of the link is unknown" in refusal_of(
        call_figures(folder, "-o", tmp_path / "out")
    )
    write_session(tmp_path / "c", "2Mbit/s", 2e-4)
    (drawing,), complaints = make_drawings([read_run(folder), read_run(tmp_path / "c")])
    assert set(drawing.frame["link"]) == {"2Mbit/s"}
    assert len(complaints) == 1
    several = write_session(
        tmp_path / "b", "1Mbit/s", 1e-4, points=[point_of(output_len=4, pipeline_para_size=2)]
    )
    _, complaints = make_drawings([read_run(several)])
    assert "the traffic of one source, not several" in complaints[0]


def test_older_records_have_no_link(tmp_path: Path) -> None:
    folder = write_session(tmp_path / "a", "1Mbit/s", 1e-4)
    header = json.loads((folder / RUN_FILE).read_text())
    del header["experiment"]["link"]
    (folder / RUN_FILE).write_text(json.dumps(header))
    (drawing,), _ = make_drawings([read_run(folder)])
    assert set(drawing.frame["link"]) == {"not recorded"}
