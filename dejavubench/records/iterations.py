"""Records of iterations: times, bytes, hand-overs, swaps, restarts and verification."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dejavubench.records.field_types import Count, Line, Model, Ms, PositiveMs, Seconds


class PhaseStreaming(Model):
    """Streaming in one phase (prompt, tokens or drain) of one microbatch on one source.

    Attributes:
        nbytes: bytes handed to the destination.
        copies: copies or messages handed to the destination.
        stall_ms: time that the model waited for streaming.
        lag_nbytes: most bytes that were in place in the cache and not yet complete.
        stalls_ns: begin and end of the waits in ``stall_ms``, in nanoseconds after the
            microbatch's ``began_ns``; empty in older records. A wait before ``began_ns`` for the
            microbatch before is left out.
    """

    nbytes: Count = 0
    copies: Count = 0
    stall_ms: Ms = 0.0
    lag_nbytes: Count = 0
    stalls_ns: list[tuple[Count, Count]] = Field(default=[])


class IterationRecord(Line):
    """Base of the records of one iteration of one arm."""

    kind: str  # first, so that each line of a file begins with its kind
    point: str
    arm: str
    iteration: Count


class RoundRecord(IterationRecord):
    """Base of the records of one iteration that also name its round."""

    round: Count | None


class Microbatch(RoundRecord):
    """Times of one microbatch on one source.

    Attributes:
        prompt_ms: time from submission until the first new token was known.
        all_token_ms: time from then until the last new token was known.
        drain_ms: wait for the last byte.
        prompt, tokens, drain: streaming in that phase.
        cpu_model_s, cpu_helper_s: CPU time of the threads that compute, and of those that stream.
        iteration: counts from 0 within (point, arm), warm-ups included.
        round: None in warm-up.
        token_ms: T − 1 decode steps.
        total_ms: ``prompt_ms`` + ``all_token_ms`` + ``drain_ms``.
        prompt_event_ms: the prompt between CUDA events on the model's stream; None on a CPU.
        token_event_ms: the steps between CUDA events; empty on a CPU.
        began_ns: when it was submitted, by the rank's own ``perf_counter_ns``; None in older
            records.
        steps_began_ns: nanoseconds from there until the clock of the prompt and of each step
            started; empty in older records.
        drain_began_ns: nanoseconds from there until the drain began; None in older records.
    """

    kind: Literal["microbatch"] = "microbatch"
    ubatch: Count
    prompt_ms: PositiveMs
    token_ms: list[PositiveMs]
    all_token_ms: Ms
    drain_ms: Ms
    total_ms: PositiveMs
    prompt_event_ms: Ms | None = None
    token_event_ms: list[Ms] = Field(default=[])
    # Frozen models, so one default object can serve all records.
    prompt: PhaseStreaming = PhaseStreaming()
    tokens: PhaseStreaming = PhaseStreaming()
    drain: PhaseStreaming = PhaseStreaming()
    cpu_model_s: Seconds = 0.0
    cpu_helper_s: Seconds = 0.0
    began_ns: Count | None = None
    steps_began_ns: list[Count] = Field(default=[])
    drain_began_ns: Count | None = None


class Iteration(RoundRecord):
    """One iteration (pipeline-depth microbatches) of one arm, written by rank 0.

    Attributes:
        order: the arm's place within its round.
        total_ms: the time that overheads are made of, maximum over sources. With one microbatch
            in flight it is TOTAL; with several, the makespan from the barrier to the last drain.
    """

    kind: Literal["iteration"] = "iteration"
    order: Count
    total_ms: PositiveMs


class SinkActivity(RoundRecord):
    """Bytes, messages and CPU time of one sink in one iteration of one arm.

    Attributes:
        nbytes: bytes received.
        messages: messages received.
        cpu_s: CPU time of the process.
    """

    kind: Literal["sink"] = "sink"
    nbytes: Count
    messages: Count
    cpu_s: Seconds


class Handover(RoundRecord):
    """Hand-over of one iteration, on the source that sends the sinks the tokens so far.

    Attributes:
        ms: time from the end of the source's last computation until the report of a sink's first
            token arrived there.
    """

    kind: Literal["handover"] = "handover"
    ms: Ms


class HandoverAtSink(RoundRecord):
    """Hand-over of one iteration, on one sink.

    Attributes:
        waited_ms: time from the start until the sink had its whole cache and the tokens so far.
        first_ms: time from then until the sink's first new token of every microbatch.
        token_ms: time of each later step, over all microbatches.
    """

    kind: Literal["takeover"] = "takeover"
    waited_ms: Ms
    first_ms: Ms
    token_ms: list[Ms]


class Swapping(RoundRecord):
    """Cost of swapping on one source in one iteration.

    Attributes:
        resident: number of caches that were in place.
        nbytes: keys and values brought back.
        bring_ms: time of bringing them back, which may overlap with the model's.
        wait_ms: time that the model waited for caches; part of its stall.
    """

    kind: Literal["swapping"] = "swapping"
    resident: Count
    nbytes: Count
    bring_ms: Ms
    wait_ms: Ms


class Restart(Line):
    """Restored cache of a killed run on one source, and the rest of that run's iteration.

    Attributes:
        run_id: identifier of the killed run.
        drain_ms: wait for the last byte at the end of the request.
        of: folder of the killed run; ``run_id`` is that run's.
        watermark: fewest steps that were complete in one of the killed run's files.
        first: first new token that was computed here, counted from 0.
        nbytes: keys and values that were read, checked and put back.
        restore_ms: time of putting them back.
        again_ms: time of handing them to this run's stream.
        step_ms: each step from ``first`` on, of the slowest microbatch.
        anew_ms: time of computing the earlier steps again without streaming; None where nothing
            is verified.
        wrong: steps whose checksums do not agree.
    """

    kind: Literal["restart"] = "restart"
    point: str
    arm: str
    of: str
    run_id: str
    watermark: Count
    first: Count
    nbytes: Count
    restore_ms: Ms
    again_ms: Ms
    step_ms: list[PositiveMs]
    drain_ms: Ms
    anew_ms: Ms | None
    wrong: list[str] = Field(default=[])


class Verification(IterationRecord):
    """Comparison of both sides after one iteration, outside the clock.

    Attributes:
        ok: whether both sides were equal.
        nbytes: bytes that were compared.
        tokens_equal: whether the tokens were those of the reference; None if none were compared.
        where: place of the first difference; None if there is none.
    """

    kind: Literal["verification"] = "verification"
    ok: bool
    nbytes: Count
    tokens_equal: bool | None = None
    where: str | None = None
