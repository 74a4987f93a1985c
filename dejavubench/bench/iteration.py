"""One iteration of one arm on one rank: prepare, run, record, verify; all ranks agree after each.

Nothing here depends on what the requests go through: that is the scenario's part.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dejavubench import records
from dejavubench.bench.checks.cache_bits import VerificationError
from dejavubench.bench.checks.tokens import describe_wrong_token
from dejavubench.bench.failures.arm_failures import ArmFailures, Attempt
from dejavubench.bench.recording.microbatches import IterationId
from dejavubench.bench.recording.progress_bar import ProgressBar
from dejavubench.bench.scenarios.base import ScenarioPart
from dejavubench.bench.scenarios.registry import Scenarios
from dejavubench.bench.startup.context import RunContext
from dejavubench.config.arms import Arm
from dejavubench.config.points import Point
from dejavubench.machine import liveness
from dejavubench.parallel.collectives import sleeping_barrier, sleeping_gather

IDLE_S = 0.5
"""Length of the idle window of a run without an arm that streams nothing."""


class Iterations:
    """The iterations of one point on one rank. Every public method is collective.

    Attributes:
        completed: on rank 0, the record of each iteration, also of earlier sessions that count.
        failures: the arms that have failed.
    """

    def __init__(
        self, context: RunContext, point: Point, scenarios: Scenarios, progress_bar: ProgressBar
    ) -> None:
        start = context.plan.starts[point.id]
        continued_run = context.plan.continued_run
        earlier_iterations = (
            () if continued_run is None else continued_run.earlier_iterations[point.id]
        )
        self.completed: list[records.Iteration] = list(earlier_iterations)
        self.failures = ArmFailures(context.world, self._note_failure)
        self.failures.failed_names |= set(start.without)
        self._context = context
        self._world = context.world
        self._rank = context.rank
        self._recorder = context.recorder
        self._sampler = context.sampler
        self._point = point
        self._scenarios = scenarios
        self._progress_bar = progress_bar
        self._next_iterations = {arm.name: start.iteration for arm in context.arms}

    def run(self, arm: Arm, round_number: int | None, place_in_round: int) -> None:
        """Run one iteration, unless the arm has failed before.

        Args:
            round_number: from 0 on; None in warm-up.
            place_in_round: the place of the arm within its round.

        Raises:
            VerificationError: on every rank, if bytes or tokens are wrong.
        """
        if arm.name in self.failures.failed_names:
            return
        scenario = self._scenarios.find_part(arm)
        self.mark("prepare", arm)
        if not self.try_prepare(arm, lambda pattern: scenario.prepare(arm, pattern)):
            return
        # Counters are read ahead of the barrier, so that no rank reads them within the iteration.
        self._sampler.begin_window()
        with pause_collector():
            sleeping_barrier(self._world, "start")
            scenario.run(arm, lambda phase: self.mark(phase, arm))
        if self.agree_on_failure(arm):  # its times are those of a request that stopped streaming
            return
        iteration = self._next_iterations[arm.name]
        # From here on the clock has stopped: records, comparison and text cost the arm nothing.
        iteration_id = IterationId(
            point=self._point.id, arm=arm.name, iteration=iteration, round=round_number
        )
        recorded_iteration = scenario.record(arm, iteration_id)
        self._record_total(recorded_iteration.total_ms, iteration_id, place_in_round)
        self._sampler.end_window(iteration_id)  # all ranks have come to the end of the iteration
        # After the window is written, since comparing moves bytes, too.
        to_verify = self._context.experiment.verify and arm.has_cache_to_verify
        if to_verify and not self._verify(arm, scenario):
            return
        if recorded_iteration.microbatches and self._rank == 0:
            # Written only after verification: the times of wrong bytes are not reported.
            assert recorded_iteration.total_ms is not None
            self._recorder.write_text_lines(
                recorded_iteration.microbatches, recorded_iteration.total_ms
            )
        self._next_iterations[arm.name] += 1
        self._advance_progress_bar(arm, round_number, recorded_iteration.note)

    def mark(self, phase: str, arm: Arm | None = None) -> None:
        """Record that a phase begins."""
        details: dict[str, str | int] = {}
        if arm is not None:
            details = {"arm": arm.name, "iteration": self._next_iterations[arm.name]}
        self._recorder.mark_phase(phase, point=self._point.id, **details)

    def wait_for_ranks(self, phase: str) -> None:
        """Wait, asleep, until all ranks are here."""
        sleeping_barrier(self._world, phase)

    def record_idle(self) -> None:
        """Record a window in which the job does nothing, as where every arm streams."""
        self._sampler.record_idle(self._world, self._point.id, IDLE_S)

    def try_prepare(self, arm: Arm, prepare: Callable[[int], None]) -> bool:
        """Prepare with the arm's next pattern; False: the arm fails, here or on another rank."""
        with Attempt(arm) as attempt:
            prepare(self._choose_pattern(arm))
            if self._context.runnable.disk_arms:
                # Empties the disk's queue of all that anybody has written on this host.
                with liveness.show_state(liveness.PATIENT):
                    os.sync()
            gc.collect()  # now, as nothing is collected while the clock runs
        return not self.failures.agree_on_failure(arm, attempt.problem)

    def agree_on_failure(self, arm: Arm) -> bool:
        """Return whether the arm's streaming failed in this iteration, here or elsewhere."""
        return self.failures.agree_on_failure(arm, self._scenarios.find_part(arm).find_failure(arm))

    def _choose_pattern(self, arm: Arm) -> int:
        """Return a byte that no arm had in its last iterations."""
        arm_index = self._context.arms.index(arm)
        # From 0x11 to 0x3e: a number of any type made of it is small and finite, so that it cannot
        # poison a sum. Neither 5 nor 3 shares a factor with 46 (0x2E): an arm gets a byte again
        # after 46 iterations, and up to 19 arms have different bytes in one iteration and the next.
        # So a byte that another arm or iteration has left is not taken for this one's pattern.
        return 0x11 + (5 * arm_index + 3 * self._next_iterations[arm.name]) % 0x2E

    def _note_failure(self, arm: Arm, rank: int, reason: str) -> None:
        """Take the arm out from now on; what was measured of the others stays."""
        self._scenarios.find_part(arm).close_failed(arm)
        if self._rank == 0:
            self._recorder.write(
                records.ArmFailure(
                    point=self._point.id,
                    arm=arm.name,
                    iteration=self._next_iterations[arm.name],
                    phase=self._recorder.phase_name,
                    rank=rank,
                    error=reason,
                )
            )
        self._progress_bar.print_line(
            f"dejavubench: {self._point.id} {arm.name} FAILED on rank {rank}: {reason}"
        )

    def _advance_progress_bar(self, arm: Arm, round_number: int | None, note: str | None) -> None:
        """Count a measured iteration, and show what has just run."""
        if round_number is not None:
            self._progress_bar.measured_so_far.count_round(arm.name)
        round_text = "warm-up" if round_number is None else f"round {round_number + 1}"
        iteration_text = f"{arm.name} {note}" if note else f"{round_text} {arm.name}"
        self._progress_bar.advance(f"{self._point.id} {self._point.spec.name} {iteration_text}")

    def _record_total(
        self, own_ms: float | None, iteration_id: IterationId, place_in_round: int
    ) -> None:
        """Record on rank 0 the slowest source's TOTAL, if the scenario has one."""
        totals_ms = sleeping_gather(self._world, own_ms)
        # Each source has a TOTAL of its own clock; the slowest one is what the requests waited for.
        source_totals_ms = [total_ms for total_ms in totals_ms or [] if total_ms is not None]
        if source_totals_ms:
            iteration = records.Iteration(
                **iteration_id, order=place_in_round, total_ms=max(source_totals_ms)
            )
            self.completed.append(iteration)
            self._recorder.write(iteration)

    # ---- verification ----

    def _verify(self, arm: Arm, scenario: ScenarioPart) -> bool:
        """Compare bytes and tokens; False: the arm fails, as what it streamed cannot be read.

        Raises:
            VerificationError: on every rank, if they differ.
        """
        self.mark("verify", arm)
        difference: str | None = None
        tokens_equal: bool | None = None
        with Attempt(arm) as attempt:
            difference = scenario.verify(arm)
        if scenario.generated.numel() and scenario.expected.numel():
            wrong_token = describe_wrong_token(scenario.generated, scenario.expected_part())
            tokens_equal = wrong_token is None
            difference = difference or wrong_token
        sleeping_barrier(self._world, "verification")  # whoever compares may take long
        # Every rank learns every difference, so that all raise or none does.
        findings = self._world.allgather((difference, tokens_equal, attempt.problem))
        if self.failures.note_first_failure(arm, [problem for *_, problem in findings]):
            return False
        differences = [
            f"rank {rank}: {difference}"
            for rank, (difference, *_) in enumerate(findings)
            if difference
        ]
        if self._rank == 0:
            token_outcomes = [is_equal for _, is_equal, _ in findings if is_equal is not None]
            self._record_verification(
                arm, differences, all(token_outcomes) if token_outcomes else None
            )
        if differences:
            iteration = self._next_iterations[arm.name]
            raise VerificationError(
                f"{self._point.id} {arm.name}, iteration {iteration}: {differences[0]}"
            )
        return True

    def _record_verification(
        self, arm: Arm, differences: list[str], tokens_equal: bool | None
    ) -> None:
        """Write the outcome on rank 0; the first difference stands for all."""
        streamed_nbytes = self._point.streamed_nbytes * self._point.pipeline_para_size
        self._recorder.write(
            records.Verification(
                point=self._point.id,
                arm=arm.name,
                iteration=self._next_iterations[arm.name],
                ok=not differences,
                nbytes=0 if arm.level is None else streamed_nbytes,
                tokens_equal=tokens_equal,
                where=differences[0] if differences else None,
            )
        )


@contextmanager
def pause_collector() -> Iterator[None]:
    """Keep Python's cycle collector out: a naive level's many objects would make it stop a run."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
