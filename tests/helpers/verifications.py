"""For tests that start jobs: count a job's verification records, and hold them to be right."""

from __future__ import annotations

from collections import Counter

from dejavubench.records import End, Verification
from helpers.jobs import Job


def count_verified(job: Job) -> Counter[tuple[str, str]]:
    """Count the checks of each arm of each point, all of which found every byte and token right."""
    run = job.run
    header = run.header
    points = {point.id: point for point in header.points}
    modes = {arm.name: arm.mode for arm in header.arms}
    counts: Counter[tuple[str, str]] = Counter()
    for rank, check in run.records_of(Verification):
        assert (rank, check.ok, check.tokens_equal, check.where) == (0, True, True, None)
        point = points[check.point]
        streamed = (
            0 if modes[check.arm] == "none" else point.streamed_nbytes * point.pipeline_para_size
        )
        assert check.nbytes == streamed
        counts[check.point, check.arm] += 1
    assert [end.status for _, end in run.records_of(End)] == ["ok"] * len(run.ranks)
    return counts
