"""Measuring one point of a sweep on one rank: warm-up, rounds of arms, and what is measured beside them."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dejavubench import records
from dejavubench.bench.armfailures import ArmFailures, Attempt
from dejavubench.bench.batchmaker import Clocked, Streamed
from dejavubench.bench.ends import destination_of
from dejavubench.bench.handover import TakenOver
from dejavubench.bench.identity import identity
from dejavubench.bench.job import Job
from dejavubench.bench.probes.ceilings import Ceilings
from dejavubench.bench.probes.choose import ceilings_of
from dejavubench.bench.progress import Progress
from dejavubench.bench.restart import PutBack, Resumed
from dejavubench.bench.rounds import orders
from dejavubench.bench.sink import Sink
from dejavubench.bench.source import Place, Source, tokens
from dejavubench.bench.verify import VerificationError
from dejavubench.config.points import Arm, Point
from dejavubench.dejavulib import pulse
from dejavubench.dejavulib.destinations.disk.savedstream import SavedStream
from dejavubench.dejavulib.levels import DEFAULT_LEVEL
from dejavubench.dejavulib.streamer import Streaming
from dejavubench.models.dtypes import dtype_of
from dejavubench.models.gpt import GPT
from dejavubench.models.hub.shard import Shard
from dejavubench.models.loading import load_checkpoint
from dejavubench.models.weights import random_weights
from dejavubench.parallel.collectives import polite_barrier, polite_bcast, polite_gather

Enough = Callable[[list[records.Iteration], set[str]], bool]
TextLines = tuple[list[records.Microbatch], float]
"""What the text logs say of an iteration: its microbatches and TOTAL in ms."""


@dataclass(frozen=True)
class Ran:
    """One iteration on one source; CPU seconds of the model and of the helper are a microbatch's."""

    clocks: list[Clocked]
    makespan: float
    cpu: float
    helper: float
    handed_over: float | None


BESIDE = 5
"""Rounds after which ceilings, and each destination alone, are measured: the first ones of the first point."""

BESIDE_LATER = 1
"""The same at each later point of a sweep, which has the first one's ceilings to be held against as well."""

BESIDE_S = 20.0
"""Seconds of a point after which no further round is followed by them: with large caches the filling takes long."""


class PointSession:
    """One rank's part in measuring one point. Making one is collective, and so is every public method.

    Args:
        model: this worker's part of the model, loaded; None on a sink that only receives.
        beside: rounds after which ceilings, and each destination alone, are measured.
    """

    def __init__(
        self, job: Job, point: Point, model: GPT | None, progress: Progress, beside: int
    ) -> None:
        self.job = job
        self.point = point
        self.experiment = job.experiment
        self.arms = [arm for arm in self.experiment.arms() if not arm.skipped]
        self.progress = progress
        self._beside_rounds = beside
        self.iterations: list[records.Iteration] = []
        self._count = dict.fromkeys((arm.name for arm in self.arms), 0)
        dtype = dtype_of(point.data_type)
        place = Place(
            job.verification,
            job.handover,
            job.sessions,
            job.stream_dir,
            identity(self.experiment, point, job.compute_device, job.run_id, job.rank),
        )
        job.connect(point)
        side = job.side(point)
        self.source: Source | None = None
        self.sink: Sink | None = None
        if job.is_source:
            assert job.workers is not None
            assert model is not None
            self.source = Source(side, self.experiment, model, job.workers, place)
        else:
            self.sink = Sink(side, dtype, place, job.device)
            if job.workers is not None and model is not None:
                self.sink.take_over(self.experiment, model, job.workers)
        self._dtype = dtype
        self._ceilings: Ceilings | None = None
        self._expected = self._generated = torch.empty(0)
        self._undisturbed: list[Clocked] = []
        self.failures = ArmFailures(job.world, self._note_failure)

    def measure(self, enough: Enough | None) -> None:
        """Reference, warm-up, rounds.

        Args:
            enough: told rank 0's iterations after each round beyond the wanted ones, and the names of arms that have
                failed; None: rounds are counted.

        Raises:
            VerificationError: on every rank, as soon as an iteration's bytes or tokens are wrong.
        """
        if self.experiment.verify:
            self._find_expected()
        order = orders(len(self.arms), self.experiment.seed)
        for _ in range(self.experiment.warmup):
            for place, number in enumerate(next(order)):
                self._iteration(self.arms[number], None, place)
        if self.experiment.ceilings:  # now that the model has taken what memory it needs
            self._ceilings = self._make_ceilings(self._dtype)
        began, number, beside_s = time.monotonic(), 0, 0.0
        order = orders(len(self.arms), self.experiment.seed + 1)
        while not self._finished(number, time.monotonic() - began, enough):
            for place, arm in enumerate(next(order)):
                self._iteration(self.arms[arm], number, place)
            if number < self._beside_rounds and polite_bcast(self.job.world, beside_s < BESIDE_S):
                began_beside = time.monotonic()
                self._beside()
                beside_s += time.monotonic() - began_beside
            number += 1
        if self._ceilings is not None:
            for ceiling in self._ceilings.records(self.point.id):
                self.job.recorder.write(ceiling)
        if self.source is not None and self.source.ways:
            self.job.recorder.write(records.CopyWays(point=self.point.id, ways=self.source.ways))

    def close(self) -> None:
        if self.source is not None:
            self.source.close()
        if self.sink is not None:
            self.sink.close()
        if self._ceilings is not None:
            self._ceilings.close()

    def _finished(self, rounds: int, elapsed: float, enough: Enough | None) -> bool:
        if not self.failures.left(self.arms):
            return True
        if rounds < self.experiment.rounds:
            return False
        if enough is None:
            return True
        late = elapsed > self.experiment.max_time
        done = late or (self.job.rank == 0 and enough(self.iterations, self.failures.names))
        if not polite_bcast(self.job.world, done):
            self.progress.more(len(self.arms))
            return False
        return True

    def _find_expected(self) -> None:
        """What all requests generate undisturbed: known where the sources' tokens are, and on sinks that take over."""
        if self.source is not None:
            self._undisturbed = self.source.reference(
                lambda phase: self._mark(f"reference {phase}")
            )
            self._expected = tokens(self._undisturbed)
        polite_barrier(self.job.world, "reference")  # the last stage has looked at its logits
        if self.source is not None:
            self._write_tokens(self.source, self._expected)
        if self.point.handed_over:
            known = polite_bcast(self.job.world, self._expected)
            self._expected = self._expected if self.source is not None else known.flatten(0, 1)

    def _write_tokens(self, source: Source, generated: torch.Tensor) -> None:
        if self.job.rank == 0:
            self.job.recorder.generated(
                self.point.id, [each.unpadded() for each in source.prompts], generated
            )

    # ---- after a restart ----

    def resume(self, saved: list[SavedStream]) -> None:
        """Go on with the iteration that an earlier run was killed in, and record what that took.

        Args:
            saved: this source's files of it, one a microbatch; none on a sink.

        Raises:
            VerificationError: on every rank, if bytes or tokens are wrong.
        """
        (arm,) = self.arms
        if self.experiment.verify:
            self._find_expected()
        self._mark("prepare", arm)
        if not self._prepared(arm):
            return
        self._mark("restore", arm)
        polite_barrier(self.job.world, "start")
        back = None if self.source is None else self.source.put_back(saved)
        polite_barrier(self.job.world, "restore")
        everywhere = self.job.world.allgather(None if back is None else back.steps)
        first = max(
            min(steps for steps in everywhere if steps is not None) - 1, 0
        )  # the last one's token is not known
        resumed = None
        if self.source is not None and back is not None:
            resumed = self.source.resume(arm, back, first, lambda phase: self._mark(phase, arm))
        if self._has_failed(arm):
            return
        if self.source is not None and back is not None and resumed is not None:
            self._generated = tokens(resumed.clocks)
            self._record_restart(arm, saved, back, first, resumed)
            if not self.experiment.verify:  # else the reference is, and these are compared with it
                self._write_tokens(self.source, self._generated)
        if self.experiment.verify and not self._verified(arm):
            return
        self._count[arm.name] += 1
        self.progress.step(
            f"{self.point.id} {self.point.spec.name} {arm.name} resumed at new token {first}"
        )

    def _record_restart(
        self, arm: Arm, saved: list[SavedStream], back: PutBack, first: int, resumed: Resumed
    ) -> None:
        interrupted = self.experiment.interrupted
        assert interrupted is not None
        self.job.recorder.write(
            records.Restart(
                point=self.point.id,
                arm=arm.name,
                of=interrupted.folder.name,
                run_id=interrupted.run_id,
                watermark=min(file.watermark for file in saved),
                first=first,
                nbytes=back.nbytes,
                restore_ms=back.ms,
                again_ms=resumed.again_ms,
                step_ms=np.max([clock.step_ms for clock in resumed.clocks], axis=0).tolist(),
                drain_ms=max(clock.drain_ms for clock in resumed.clocks),
                anew_ms=max(
                    (sum(clock.step_ms[:first]) for clock in self._undisturbed), default=None
                ),
                wrong=back.wrong,
            )
        )

    # ---- one iteration ----

    def _mark(self, phase: str, arm: Arm | None = None) -> None:
        where: dict[str, str | int] = (
            {} if arm is None else {"arm": arm.name, "iteration": self._count[arm.name]}
        )
        self.job.recorder.phase(phase, point=self.point.id, **where)

    def _during(self, arm: Arm, round: int | None) -> dict[str, Any]:
        """What all records of one iteration begin with."""
        return {
            "point": self.point.id,
            "arm": arm.name,
            "iteration": self._count[arm.name],
            "round": round,
        }

    def _iteration(self, arm: Arm, round: int | None, order: int) -> None:
        if arm.name in self.failures.names:
            return
        self._mark("prepare", arm)
        if not self._prepared(arm):
            return
        total, lines, ran, received = None, None, None, None
        with nothing_collected():
            polite_barrier(self.job.world, "start")
            if self.source is not None:
                ran = self._run_source(self.source, arm)
            if self.sink is not None:
                self._mark("receive" if arm.remote else "idle", arm)
                received = self.sink.run(arm, lambda phase: self._mark(phase, arm))
        if self._has_failed(arm):
            return
        if self.source is not None and ran is not None:
            total, lines = self._record_source(self.source, ran, arm, round)
        if received is not None:
            self.job.recorder.write(
                records.SinkActivity(
                    **self._during(arm, round),
                    nbytes=received.nbytes,
                    messages=received.messages,
                    cpu_s=received.cpu_s,
                )
            )
            if received.taken is not None:
                self._record_taken(received.taken, arm, round)
        totals = polite_gather(self.job.world, total)
        if totals is not None:
            iteration = records.Iteration(
                **self._during(arm, round),
                order=order,
                total_ms=max(ms for ms in totals if ms is not None),
            )
            self.iterations.append(iteration)
            self.job.recorder.write(iteration)
        if self.experiment.verify and not self._verified(arm):
            return
        if lines is not None and self.job.rank == 0:  # times of wrong bytes are not reported
            self.job.recorder.text(*lines)
        self._count[arm.name] += 1
        what = "warm-up" if round is None else f"round {round + 1}"
        self.progress.step(f"{self.point.id} {self.point.spec.name} {what} {arm.name}")

    def _prepared(self, arm: Arm, level: str | None = None) -> bool:
        """Prepare for an iteration; False: the arm fails, here or on another rank."""
        with Attempt(arm) as attempt:
            self._prepare(arm, level)
        return not self.failures.fails(arm, attempt.problem)

    def _has_failed(self, arm: Arm) -> bool:
        """Return whether the arm's streaming failed in this iteration, here or on another rank."""
        return self.failures.fails(arm, None if self.source is None else self.source.failure(arm))

    def _note_failure(self, arm: Arm, rank: int, why: str) -> None:
        """The arm is out from now on; what was measured of the others stays."""
        if self.source is not None:
            self.source.give_up(arm)
        if self.job.rank == 0:
            phase, iteration = self.job.recorder.phase_name, self._count[arm.name]
            failure = records.ArmFailure(
                point=self.point.id,
                arm=arm.name,
                iteration=iteration,
                phase=phase,
                rank=rank,
                error=why,
            )
            self.job.recorder.write(failure)
        self.progress.say(f"dejavubench: {self.point.id} {arm.name} FAILED on rank {rank}: {why}")

    def _prepare(self, arm: Arm, level: str | None = None) -> None:
        """Fill everything with the arm's pattern and empty the disk's queue, outside the clock."""
        # From 0x11 to 0x3e: as a number of any type it is small and finite, so that it cannot poison a sum.
        pattern = 0x11 + (5 * self.arms.index(arm) + 3 * self._count[arm.name]) % 0x2E
        part = self.source or self.sink
        assert part is not None
        part.prepare(arm, pattern, level)
        if any(each.on_disk for each in self.arms):
            with pulse.during(
                pulse.PATIENT
            ):  # it waits for all that anybody has written on this host
                os.sync()
        gc.collect()

    def _run_source(self, source: Source, arm: Arm) -> Ran:
        cpu, helper = time.process_time(), source.helper_cpu_s(arm)
        clocks, makespan = source.run(arm, lambda phase: self._mark(phase, arm))
        helper = source.helper_cpu_s(arm) - helper
        cpu = time.process_time() - cpu - helper
        self._generated = tokens(clocks)
        handed_over = None
        if self.point.handed_over:
            self._mark("hand-over", arm)
            handed_over = source.handed_over(clocks)
        return Ran(clocks, makespan, cpu / len(clocks), helper / len(clocks), handed_over)

    def _record_source(
        self, source: Source, ran: Ran, arm: Arm, round: int | None
    ) -> tuple[float, TextLines]:
        if ran.handed_over is not None:
            self.job.recorder.write(
                records.HandOver(**self._during(arm, round), ms=ran.handed_over)
            )
        total = ran.clocks[0].total_ms if len(ran.clocks) == 1 else ran.makespan
        ubatches = [
            self._microbatch(arm, round, number, clock, stream, ran.cpu, ran.helper)
            for number, (clock, stream) in enumerate(
                zip(ran.clocks, source.streams(arm), strict=True)
            )
        ]
        for ubatch in ubatches:
            self.job.recorder.write(ubatch)
        if arm.swaps:
            cost = source.swapping(arm)
            self.job.recorder.write(
                records.Swapping(
                    **self._during(arm, round),
                    resident=self.experiment.resident,
                    nbytes=cost.nbytes,
                    bring_ms=cost.bring_s * 1e3,
                    wait_ms=cost.wait_s * 1e3,
                )
            )
        return total, (ubatches, total)

    def _record_taken(self, taken: TakenOver, arm: Arm, round: int | None) -> None:
        self._generated = taken.tokens
        self.job.recorder.write(
            records.TakeOver(
                **self._during(arm, round),
                waited_ms=taken.waited_ms,
                first_ms=taken.first_ms,
                token_ms=taken.rest_ms,
            )
        )

    def _microbatch(
        self,
        arm: Arm,
        round: int | None,
        number: int,
        clock: Clocked,
        stream: Streamed,
        cpu: float,
        helper: float,
    ) -> records.Microbatch:
        return records.Microbatch(
            **self._during(arm, round),
            ubatch=number,
            prompt_ms=clock.step_ms[0],
            token_ms=clock.step_ms[1:],
            prompt_event_ms=clock.event_ms[0] if clock.event_ms else None,
            token_event_ms=clock.event_ms[1:],
            all_token_ms=clock.all_token_ms,
            drain_ms=clock.drain_ms,
            total_ms=clock.total_ms,
            prompt=_phase(stream.prompt),
            tokens=_phase(stream.tokens),
            drain=_phase(stream.draining),
            cpu_model_s=cpu,
            cpu_helper_s=helper,
        )

    # ---- verification ----

    def _verified(self, arm: Arm) -> bool:
        """Compare bytes and tokens; False: the arm fails, because what it streamed cannot be read.

        Raises:
            VerificationError: on every rank, if they differ.
        """
        self._mark("verify", arm)
        part = self.source or self.sink
        assert part is not None
        difference, equal = None, None
        with Attempt(arm) as attempt:
            difference = part.verify(arm)
        if self._generated.numel() and self._expected.numel():
            new = self._generated.shape[-1]
            hands_over = self.source is not None and self.point.handed_over
            expected = self._expected[..., :new] if hands_over else self._expected[..., -new:]
            equal = torch.equal(self._generated, expected)
            if not equal:
                difference = difference or _first_token(self._generated, expected)
        polite_barrier(self.job.world, "verification")  # whoever compares may take long
        findings = self.job.world.allgather((difference, equal, attempt.problem))
        if self.failures.settle(arm, [problem for *_, problem in findings]):
            return False
        differences = [
            f"rank {rank}: {found}" for rank, (found, *_) in enumerate(findings) if found
        ]
        if self.job.rank == 0:
            known = [same for _, same, _ in findings if same is not None]
            self.job.recorder.write(
                records.Verification(
                    point=self.point.id,
                    arm=arm.name,
                    iteration=self._count[arm.name],
                    ok=not differences,
                    nbytes=0
                    if arm.mode == "none"
                    else self.point.streamed_nbytes * self.point.pipeline_para_size,
                    tokens_equal=all(known) if known else None,
                    where=differences[0] if differences else None,
                )
            )
        if differences:
            raise VerificationError(
                f"{self.point.id} {arm.name}, iteration {self._count[arm.name]}: {differences[0]}"
            )
        return True

    # ---- beside the rounds ----

    def _make_ceilings(self, dtype: torch.dtype) -> Ceilings:
        job, point = self.job, self.point
        durabilities: dict[str, dict[str, None]] = {}
        for arm in self.arms:
            if arm.durability is not None:
                durabilities.setdefault(destination_of(arm), {})[arm.durability] = None
        return ceilings_of(
            sessions=job.sessions,
            durabilities=durabilities,
            topology=job.topology,
            comm=job.verification,
            device=job.device,
            dtype=dtype,
            multiplied=job.compute_dtype(dtype),
            geometry=job.side(point).geometry,
            input_len=point.input_len,
            slot_nbytes=self.experiment.staging_mib << 20,
            folder=job.stream_dir,
            file_name=f"{job.run_id}-{point.id}",
            say=self.progress.say,
        )

    def _beside(self) -> None:
        """Each destination alone, then what the machine can do."""
        left = self.failures.left(self.arms)
        streaming = {
            (arm.mode, arm.durability): arm for arm in left if arm.mode != "none" and not arm.swaps
        }
        for arm in streaming.values():
            self._mark("alone", arm)
            if not self._prepared(arm, DEFAULT_LEVEL):
                continue
            with nothing_collected():
                polite_barrier(self.job.world, "start")
                took = self.source.alone(arm) if self.source is not None else None
                if self.sink is not None:
                    self.sink.alone(arm)
            if self._has_failed(arm):
                continue
            times = polite_gather(self.job.world, took)
            if times is not None:
                self._write_alone(arm, max(ms for ms in times if ms is not None))
        if self._ceilings is not None:
            self._mark("ceilings")
            for problem in self._ceilings.run():
                self.progress.say(f"dejavubench: no {problem}")
            polite_barrier(self.job.world, "ceilings")

    def _write_alone(self, measured: Arm, ms: float) -> None:
        nbytes = self.point.streamed_nbytes * self.point.pipeline_para_size
        for arm in self.arms:
            if (arm.mode, arm.durability) == (measured.mode, measured.durability):
                self.job.recorder.write(
                    records.Alone(point=self.point.id, arm=arm.name, ms=ms, nbytes=nbytes)
                )


def load_model(job: Job, point: Point) -> GPT:
    """This worker's part of the point's model, with weights of the checkpoint or from the experiment's seed."""
    assert job.workers is not None
    experiment, dtype = job.experiment, dtype_of(point.data_type)
    multiplied, seed = job.compute_dtype(dtype), experiment.seed
    model = GPT(
        point.spec, Shard(*job.topology.shard()), dtype, multiplied, job.workers, job.device
    )
    held_in = (
        None if experiment.weights_data_type is None else dtype_of(experiment.weights_data_type)
    )
    if experiment.checkpoint is not None:
        load_checkpoint(model, experiment.checkpoint, held_in)
    elif job.device.type == "cuda":
        model.load(random_weights(point.spec, seed, job.device, multiplied), held_in)
    else:
        model.load(random_weights(point.spec, seed), held_in)
    return model


@contextmanager
def nothing_collected() -> Iterator[None]:
    """Python's cycle collector, which would stop a naive level's thousands of objects for a while, stays outside."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _phase(streaming: Streaming) -> records.PhaseStreaming:
    return records.PhaseStreaming(
        nbytes=streaming.nbytes,
        copies=streaming.copies,
        stall_ms=streaming.stall_s * 1e3,
        lag_nbytes=streaming.lag_nbytes,
    )


def _first_token(generated: torch.Tensor, expected: torch.Tensor) -> str:
    *where, step = (int(i) for i in torch.nonzero(generated != expected)[0])
    request = f"request {where[-1]}" + (
        f" of microbatch {where[0]}" if len(where) > 1 else " after the hand-over"
    )
    return (
        f"new token {step} of {request} is {int(generated[*where, step])}, "
        f"without streaming it is {int(expected[*where, step])}"
    )
