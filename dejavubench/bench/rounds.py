"""The rounds of one point: reference, warm-up, then every arm once per round."""

from __future__ import annotations

import time

import torch

from dejavubench.bench.ceiling_rounds import CeilingRounds
from dejavubench.bench.earlier_tokens import refuse_other_tokens
from dejavubench.bench.engine.batch_maker import tokens_of
from dejavubench.bench.extent_iteration import make_sampling
from dejavubench.bench.iteration import Iterations
from dejavubench.bench.orders import shuffle_orders
from dejavubench.bench.point.connect import connect_worker
from dejavubench.bench.recording.progress_bar import ProgressBar
from dejavubench.bench.scenarios import registry
from dejavubench.bench.scenarios.registry import Scenarios
from dejavubench.bench.startup.context import RunContext
from dejavubench.bench.startup.hooks import MeasureHalfWidth
from dejavubench.config.points import Point
from dejavubench.models.gpt import GPT
from dejavubench.parallel.collectives import sleeping_barrier, sleeping_bcast


class Rounds:
    """One rank's part in measuring one point. Making one is collective, as is every method.

    Args:
        model: this worker's part of the model, loaded; None on a sink that only receives.
        ceiling_round_count: number of rounds that are followed by ceilings and destinations
            without compute.
    """

    def __init__(
        self,
        context: RunContext,
        point: Point,
        model: GPT | None,
        progress_bar: ProgressBar,
        ceiling_round_count: int,
    ) -> None:
        self._context = context
        self._point_id = point.id
        self._start = context.plan.starts[point.id]
        # Each session has orders of its own, so that none repeats those of the session before.
        self._seed = context.experiment.seed + 2 * (context.workspace.session - 1)
        self._progress_bar = progress_bar
        worker = connect_worker(context, point, model)
        self._worker = worker
        self._scenarios = Scenarios(lambda kind: kind.make_part(worker))
        self._iterations = Iterations(context, point, self._scenarios, progress_bar)
        self._ceiling_rounds = CeilingRounds(
            worker.rank_at_point,
            worker,
            make_sampling(worker),
            self._iterations,
            progress_bar,
            ceiling_round_count,
        )

    @property
    def failed_arm_names(self) -> set[str]:
        """The names of the arms that have failed."""
        return self._iterations.failures.failed_names

    def measure(self, measure_half_width: MeasureHalfWidth | None) -> None:
        """Measure the point.

        Args:
            measure_half_width: called on rank 0 after each round; None: rounds are counted.

        Raises:
            VerificationError: on every rank, as soon as an iteration's bytes or tokens are wrong.
        """
        arms = self._context.arms
        if registry.is_single_pass(arms):
            self._run_reference()
            for place_in_round, arm in enumerate(arms):
                self._iterations.run(arm, None, place_in_round)
            return
        # Probes are made after warm-up, when the model has taken its memory, and before the first
        # round, whose end they follow.
        with self._context.conditions.measuring():
            self._run_reference()
            self._warm_up()
            self._ceiling_rounds.prepare()
            self._measure_rounds(measure_half_width)
            self._ceiling_rounds.record()

    def _warm_up(self) -> None:
        experiment, arms = self._context.experiment, self._context.arms
        arm_orders = shuffle_orders(len(arms), self._seed)
        for _ in range(experiment.warmup):
            for place_in_round, arm_index in enumerate(next(arm_orders)):
                self._iterations.run(arms[arm_index], None, place_in_round)

    def _measure_rounds(self, measure_half_width: MeasureHalfWidth | None) -> None:
        """Run rounds until :meth:`_agree_on_end`; ceilings follow the first ones."""
        # A failed arm keeps its place in the orders: every rank skips it.
        arms = self._context.arms
        time_left = self._progress_bar.time_left
        # Another seed than the warm-up's, so that the first rounds do not repeat its orders.
        arm_orders = shuffle_orders(len(arms), self._seed + 1)
        began_s = time.monotonic()
        measured_round_count = 0
        time_left.begin_rounds()
        while not self._agree_on_end(
            measured_round_count, time.monotonic() - began_s, measure_half_width
        ):
            for place_in_round, arm_index in enumerate(next(arm_orders)):
                self._iterations.run(
                    arms[arm_index], self._start.round + measured_round_count, place_in_round
                )
            time_left.end_round()
            self._ceiling_rounds.measure_after(measured_round_count)
            time_left.end_ceilings()
            measured_round_count += 1

    def _agree_on_end(
        self,
        measured_round_count: int,
        elapsed_s: float,
        measure_half_width: MeasureHalfWidth | None,
    ) -> bool:
        """Return whether no further round is needed. Collective, where precision is asked for."""
        experiment, arms = self._context.experiment, self._context.arms
        if not self._iterations.failures.list_working_arms(arms):
            return True
        if measure_half_width is None or experiment.precision is None:
            return measured_round_count >= self._start.rounds
        width = None
        if measured_round_count and self._context.rank == 0:
            width = measure_half_width(self._iterations.completed, self.failed_arm_names)
            self._progress_bar.time_left.reach(width)
        if measured_round_count < self._start.rounds:
            return False
        # Each rank has its own clock, so rank 0 decides and tells the others.
        is_over = elapsed_s > experiment.max_time or (
            width is not None and width <= experiment.precision
        )
        return sleeping_bcast(self._context.world, is_over)

    def _run_reference(self) -> None:
        """Run the requests undisturbed, where verification compares every arm's tokens."""
        if not self._context.experiment.verify:
            return
        self._progress_bar.announce("reference: the requests once without streaming, to compare")
        undisturbed_clocks = self._worker.run_undisturbed(
            lambda phase: self._iterations.mark(f"reference {phase}")
        )
        tokens = torch.empty(0) if undisturbed_clocks is None else tokens_of(undisturbed_clocks)
        # Where the last stage finds its logits wrong, no rank may go on.
        sleeping_barrier(self._context.world, "reference")
        self._worker.write_tokens(tokens)
        refuse_other_tokens(self._context, self._point_id, tokens)
        for scenario in self._scenarios.list_parts(self._context.arms):
            scenario.expect(undisturbed_clocks, tokens)

    def close(self) -> None:
        """Close the scenarios first, then the worker and probes whose memory they use."""
        self._scenarios.close()
        self._worker.close()
        self._ceiling_rounds.close()
