"""For tests of answers: made-up differences, and the answers of a synthetic run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dejavubench.analysis.answers.judgement import Noise
from dejavubench.analysis.answers.run_answers import RunAnswers, find_answers
from dejavubench.analysis.answers.summary import write_summary
from dejavubench.analysis.facts.collect_samples import collect
from dejavubench.analysis.numbers.stats import Estimate
from dejavubench.records import ArmInfo, PointInfo, read_run
from helpers.synthetic_runs import write_run


def percent(median: float, low: float, high: float, samples: int = 20) -> Estimate:
    return Estimate(
        median=median / 100, low=low / 100, high=high / 100, iqr=0.0, sample_count=samples
    )


def noise(reach_pct: float) -> Noise:
    """The interval of two identical arms, as wide on both sides."""
    return Noise(-reach_pct / 100, reach_pct / 100)


def answer_run(
    folder: Path,
    arms: Sequence[ArmInfo],
    points: Sequence[PointInfo] | None = None,
    **options: object,
) -> RunAnswers:
    """Answer a synthetic run, which is made with these options of :func:`write_run`."""
    run = read_run(write_run(folder, arms, points, **options))  # type: ignore[arg-type]
    return find_answers(run, collect(run), [], [])


def sentences(answers: RunAnswers) -> list[str]:
    return write_summary(answers, {point_id: point_id for point_id in answers.point_ids})
