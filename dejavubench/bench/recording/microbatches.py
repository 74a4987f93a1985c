"""From clocks and counters to the record of a microbatch."""

from __future__ import annotations

from typing import TypedDict

from dejavubench.bench.engine.clock import MicrobatchClock
from dejavubench.bench.engine.microbatch_stream import MicrobatchStream
from dejavubench.dejavulib.transfers import StreamStats
from dejavubench.records import Microbatch, PhaseStreaming


class IterationId(TypedDict):
    """The iteration that a record is of; ``round`` is None in warm-up."""

    point: str
    arm: str
    iteration: int
    round: int | None


def make_microbatch_record(
    iteration_id: IterationId,
    microbatch_index: int,
    clock: MicrobatchClock,
    stream: MicrobatchStream,
    cpu_s: float,
    helper_cpu_s: float,
) -> Microbatch:
    """Return the record of one microbatch.

    Args:
        microbatch_index: the microbatch's place among those in flight, from 0.
        cpu_s: CPU seconds of the model.
        helper_cpu_s: CPU seconds of the helper threads.
    """
    # Other times are kept as differences from this one: small numbers, and the host's clock once.
    began_ns = round(clock.steps_began_s[0] * 1e9)
    return Microbatch(
        **iteration_id,
        ubatch=microbatch_index,
        prompt_ms=clock.step_ms[0],  # step 0 is the prompt
        token_ms=clock.step_ms[1:],
        prompt_event_ms=clock.event_ms[0] if clock.event_ms else None,
        token_event_ms=clock.event_ms[1:],
        all_token_ms=clock.all_token_ms,
        drain_ms=clock.drain_ms,
        total_ms=clock.total_ms,
        prompt=_make_phase_streaming(stream.prompt, began_ns),
        tokens=_make_phase_streaming(stream.tokens, began_ns),
        drain=_make_phase_streaming(stream.draining, began_ns),
        cpu_model_s=cpu_s,
        cpu_helper_s=helper_cpu_s,
        began_ns=began_ns,
        steps_began_ns=[
            round(step_began_s * 1e9) - began_ns for step_began_s in clock.steps_began_s
        ],
        drain_began_ns=round(clock.drain_began_s * 1e9) - began_ns,
    )


def _make_phase_streaming(stats: StreamStats, began_ns: int) -> PhaseStreaming:
    return PhaseStreaming(
        nbytes=stats.nbytes,
        copies=stats.copies,
        stall_ms=stats.stall_s * 1e3,
        lag_nbytes=stats.lag_nbytes,
        stalls_ns=[
            (stall_began_ns - began_ns, stall_ended_ns - began_ns)
            for stall_began_ns, stall_ended_ns in stats.stalls
        ],
    )
