"""A rank that is killed or fails on a GPU: the job ends, and the rank and its phase are named.

Both ranks share one GPU.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from helpers.faults import STRIKES, has_struck, phase_of, require_failure, start_faulty
from helpers.gpu_marks import needs_gpus
from helpers.jobs import GONE_WITHIN, args, process_folder
from helpers.nixl_mark import needs_nixl

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.mpi,
    pytest.mark.drill,
    needs_gpus(1),
]

# In this layout the chunks of tokens are packed. So a source that looks after none of them has
# chunks left in the drain, as it has more of them than slots.
ON_GPU = args(
    "--device cuda --inference-data-type fp16 --size-per-head 32 --nccl-loopback --kv-layout ft "
    "--staging-slots 2"
)
MODES = ("cuda-ipc", "nccl", pytest.param("nixl", marks=needs_nixl))
IN_SINK = {"load": None, "prompt": "receive", "tokens": "receive", "drain": "receive"}
"""The phase of the sink by that in which the source lingers."""


def place_in_run(phase: str, mode: str) -> str:
    """Return the words of a report for the phase that a rank was in last."""
    if phase == "load":
        return "in phase load, point p000"
    return f"in phase {phase}, point p000, arm {mode}-loopback@3, iteration {STRIKES}"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("victim", ["source", "sink"])
@pytest.mark.parametrize("phase", list(IN_SINK))
def test_a_rank_that_is_killed_on_a_gpu_is_named_with_its_phase(
    phase: str, victim: str, mode: str, tmp_path: Path
) -> None:
    with start_faulty(tmp_path, f"linger:{phase}", *ON_GPU, streaming=mode) as job:
        job.until(lambda: has_struck(job), "the phase")
        sink_phase = IN_SINK[phase]
        if sink_phase:
            job.until(lambda: phase_of(job, 1) == sink_phase, "the sink's waiting")
        rank = ("source", "sink").index(victim)
        os.kill(job.pid(rank), signal.SIGKILL)
        assert job.wait(GONE_WITHIN) not in (0, None)
        job.all_gone()
        own_phase = phase if victim == "source" else sink_phase
        place = place_in_run(own_phase, mode) if own_phase else "before its first phase"
        table = process_folder(job.folder)
        assert re.search(
            rf"INCOMPLETE: rank {rank} \({victim} on .*\) was the first to stop, {place}, without",
            table,
        ), table


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("role", "phase"),
    [
        *(("source", phase) for phase in ("prompt", "tokens", "drain", "verify")),
        *(("sink", phase) for phase in ("receive", "verify")),
    ],
)
def test_a_rank_that_fails_on_a_gpu_is_named_with_its_phase(
    role: str, phase: str, mode: str, tmp_path: Path
) -> None:
    with start_faulty(tmp_path, f"throw:{role}:{phase}", *ON_GPU, streaming=mode) as job:
        error = "RuntimeError: injected"
        if phase == "drain":  # thrown in the helper thread, raised by the model's
            error = f"StreamingError: {error}"
        require_failure(job, ("source", "sink").index(role), phase, error)


@pytest.mark.parametrize("mode", MODES)
def test_a_sink_that_fails_as_it_takes_over_on_a_gpu_is_named_with_its_phase(
    mode: str, tmp_path: Path
) -> None:
    flags = (*ON_GPU, "--handoff")
    with start_faulty(tmp_path, "throw:sink:take over", *flags, streaming=mode) as job:
        require_failure(job, 1, "take over", "RuntimeError: injected")
