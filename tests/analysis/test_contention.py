"""How much longer the model works beside streaming, as a median over arms, on CPU and GPU."""

from __future__ import annotations

import pytest

from dejavubench.analysis.breakdown.least_work import compute_least_work
from dejavubench.analysis.numbers.stats import Estimate
from dejavubench.analysis.prediction.chunk_rounds import ChunkRounds, PhaseShape
from dejavubench.analysis.prediction.contention import (
    estimate_prompt_rest_ms,
    estimate_step_rest_ms,
    find_busy_arms,
)
from dejavubench.analysis.prediction.inputs import (
    ArmInputs,
    LinkInputs,
    PointInputs,
    RunInputs,
    StagingInputs,
)
from dejavubench.analysis.prediction.join_runs import DifferentMachinesError, join_runs
from dejavubench.analysis.prediction.target import Target
from helpers.synthetic_runs import point_of

STEPS = 5
NO_OVERHEAD = Estimate(median=0.0, low=0.0, high=0.0, iqr=0.0, sample_count=3)


def make_point(length: int, prompt_ms: float) -> PointInputs:
    info = point_of(input_len=length, id=f"p{length}")
    rounds = dict.fromkeys(range(3), prompt_ms)
    return PointInputs(
        info, compute_least_work(info, 2), rounds, dict.fromkeys(range(3), 50.0), None
    )


def make_arm(
    length: int,
    prompt_added_ms: float,
    level: str = "3",
    prompt_ms: float = 10.0,
    tokens_added_ms: float = 0.0,
    steps_ms: float = 0.0,
    rate: float = 1e9,
) -> ArmInputs:
    """Return an arm of ``mpi`` whose prompt and steps took longer by known times in 3 rounds."""
    shape = PhaseShape(nbytes=1000, extent_count=1)
    chunks = ChunkRounds(shape, shape, from_device=True)
    for by_round, ms in (
        (chunks.tail_ms, 0.0),
        (chunks.prompt_stall_ms, 2.0),
        (chunks.steps_ms, steps_ms),
        (chunks.alone_ms, 0.1),
    ):
        by_round.update(dict.fromkeys(range(3), ms))
    return ArmInputs(
        name=f"mpi@{level}",
        mode="mpi",
        level=level,
        point=make_point(length, prompt_ms),
        chunks=chunks,
        link=LinkInputs(rate, "--link"),
        staging=StagingInputs(slot_count=4, slot_nbytes=2**24, flush_interval=1),
        prompt_added_ms=dict.fromkeys(range(3), prompt_added_ms),
        tokens_added_ms=dict.fromkeys(range(3), tokens_added_ms),
        overhead=NO_OVERHEAD,
    )


def make_run(*arms: ArmInputs, on_gpu: bool = False, machine: str = "m") -> RunInputs:
    points = {arm.point.info.id: arm.point for arm in arms}
    return RunInputs("run", machine, on_gpu, tuple(points.values()), arms)


def prompt_rest(run: RunInputs, length: int, level: str = "3", prompt_ms: float = 10.0) -> float:
    target = Target(point_of(input_len=length))
    return float(estimate_prompt_rest_ms(run, "mpi", level, target, prompt_ms)[0])


def test_on_a_cpu_the_prompt_s_contention_is_a_median_in_proportion_to_bytes() -> None:
    """Level 2 stalls for 2 ms, so the rests are 1 and 2 for 128 tokens and 5 for 256."""
    run = make_run(make_arm(128, 1.0), make_arm(128, 4.0, level="2"), make_arm(256, 5.0))
    assert prompt_rest(run, 128) == pytest.approx(2)  # of 1, 2 and 5 / 2
    assert prompt_rest(run, 512) == pytest.approx(8)  # of 4, 8 and 10


def test_one_disturbed_arm_does_not_change_the_contention_of_the_others() -> None:
    run = make_run(*(make_arm(length, length / 128) for length in (128, 256, 384)))
    disturbed_run = make_run(*run.arms, make_arm(512, 50.0), make_arm(640, 5.0))
    assert prompt_rest(run, 128) == prompt_rest(disturbed_run, 128) == pytest.approx(1.0)


def test_levels_that_stream_after_the_prompt_say_nothing_of_one_that_streams_beside_it() -> None:
    run = make_run(make_arm(128, 8.0), make_arm(128, 3.0, level="1"))
    assert prompt_rest(run, 128, level="2") == pytest.approx(8.0)
    assert prompt_rest(run, 128, level="1") == pytest.approx(1.0)


def test_a_gpu_s_prompt_lasts_as_long_as_its_launches_beside_streaming() -> None:
    """10 and 14 ms of compute end after 18 ms of launches; 30 ms hide them but for 0.5."""
    run = make_run(
        make_arm(128, 8.0, prompt_ms=10.0),
        make_arm(256, 4.0, prompt_ms=14.0),
        make_arm(1024, 0.5, prompt_ms=30.0),
        on_gpu=True,
    )
    assert prompt_rest(run, 128, prompt_ms=10.0) == pytest.approx(8.0)
    assert prompt_rest(run, 192, prompt_ms=12.0) == pytest.approx(6.0)
    assert prompt_rest(run, 512, prompt_ms=22.0) == pytest.approx(0.5)


def test_a_gpu_s_prompt_has_the_launches_of_its_own_level_if_they_were_measured() -> None:
    run = make_run(make_arm(128, 8.0), make_arm(128, 5.0, level="2"), on_gpu=True)
    assert prompt_rest(run, 128, level="3") == pytest.approx(8.0)
    assert prompt_rest(run, 128, level="2") == pytest.approx(3.0)


@pytest.mark.parametrize(("on_gpu", "expected_ms"), [(False, 2 * 1.5), (True, 1.5)])
def test_a_step_s_contention_is_a_median_over_lengths(on_gpu: bool, expected_ms: float) -> None:
    """The rests of 5 steps are 5 and 10 ms; twice the requests move twice the bytes."""
    arms = (make_arm(128, 0.0, tokens_added_ms=5.0), make_arm(256, 0.0, tokens_added_ms=10.0))
    target = Target(point_of(input_len=512, ubatch_size=8))
    rest_ms = estimate_step_rest_ms(make_run(*arms, on_gpu=on_gpu), "mpi", "3", target)
    assert float(rest_ms[0]) == pytest.approx(expected_ms)


def test_contention_of_a_destination_without_arms_is_unknown() -> None:
    run = make_run(make_arm(128, 8.0))
    target = Target(point_of(input_len=128))
    assert estimate_prompt_rest_ms(run, "tcp", "3", target, 10.0) == 0.0
    assert estimate_step_rest_ms(run, "tcp", "3", target) == 0.0


def test_arms_with_a_busy_link_are_named() -> None:
    """A step takes 10 ms. In the second arm a step's chunk waits for 20."""
    idle_arm, busy_arm = make_arm(128, 0.0), make_arm(256, 0.0, steps_ms=100.0)
    target = Target(point_of(input_len=128))
    assert find_busy_arms(make_run(idle_arm, busy_arm), "mpi", "3", target) == [busy_arm]


# ---- several runs ----


def test_joined_runs_have_the_rounds_and_the_arms_of_all() -> None:
    fast_run = make_run(make_arm(128, 4.0, prompt_ms=10.0, rate=2e9))
    slow_run = make_run(make_arm(128, 8.0, prompt_ms=14.0, rate=1e9), make_arm(256, 8.0))
    joined_run = join_runs([fast_run, slow_run])
    assert joined_run.name == "run, run"
    assert [point.info.input_len for point in joined_run.points] == [128, 256]
    assert sorted(joined_run.points[0].prompt_ms.values()) == [10.0] * 3 + [14.0] * 3
    assert [arm.link.rate for arm in joined_run.arms] == [2e9, 1e9, 1e9]
    assert joined_run.arms[0].point is joined_run.arms[1].point is joined_run.points[0]
    assert prompt_rest(joined_run, 128) == pytest.approx(4)  # of 4, 8 and 8 / 2


def test_one_run_joined_keeps_its_numbers() -> None:
    run = make_run(make_arm(128, 4.0), make_arm(256, 8.0))
    joined_run = join_runs([run])
    assert joined_run.name == run.name
    assert [arm.point.prompt_ms for arm in joined_run.arms] == [
        arm.point.prompt_ms for arm in run.arms
    ]


@pytest.mark.parametrize("changes", [{"machine": "another"}, {"on_gpu": True}])
def test_runs_of_different_machines_are_not_joined(changes: dict[str, object]) -> None:
    arm = make_arm(128, 4.0)
    with pytest.raises(DifferentMachinesError, match="run and run are of different machines"):
        join_runs([make_run(arm), make_run(arm, **changes)])  # type: ignore[arg-type]
