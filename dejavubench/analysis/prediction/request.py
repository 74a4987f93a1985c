"""The model of time: one source's request over a link, level by level.

The model's compute is that of ``none``, and what contention adds to it. A chunk passes three
stations in order: the helper thread, the link and the sink. Each serves one chunk at a time. A
layer's keys and values are ready when its share of the prompt is over, a step's when the step is.
docs/method/prediction.md derives the prediction and names what it leaves out.

Times may be arrays with one element for each resample of the rounds; all results are then arrays.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

PREDICTED_LEVELS = ("0", "1", "2", "3")
"""Levels with a prediction. 0-batched has none: the cost of issuing a message is not measured."""

NEAR_ZERO_PCT = 5.0
"""Overhead up to which it counts as near zero."""

SOCKET_NBYTES = 1e6
"""Bytes that the sink's kernel receives while its thread puts a chunk in its place. Linux lets a
socket's buffer grow to some MB; predictions are the same from 0.25 to 2 MB.
"""

SLOWEST_RATE = 1e-3
FASTEST_RATE = 1e12
"""Bytes per millisecond between which a link is looked for."""

TimesMs = Any
"""Milliseconds: a float, or an array of one per resample."""


@dataclass(frozen=True)
class ChunkCosts:
    """Time that a chunk takes beside that of its bytes on the link. The default is none.

    Attributes:
        helper_ms, helper_ms_per_byte: of the helper thread: to pack a chunk and to post it.
        sink_ms, sink_ms_per_byte: of the sink: to put a chunk in its place.
        latency_ms: wake-ups and messages of one chunk. Chunks wait for theirs at the same time.
        slot_nbytes, slot_count: size and number of the staging slots. A chunk is as large as a
            slot at most, and begins when one is free.
        least_piece_count: chunks that carry what is ready at once, if there are several sinks.
    """

    helper_ms: TimesMs = 0.0
    helper_ms_per_byte: TimesMs = 0.0
    sink_ms: TimesMs = 0.0
    sink_ms_per_byte: TimesMs = 0.0
    latency_ms: TimesMs = 0.0
    slot_nbytes: float = math.inf
    slot_count: int | None = None
    least_piece_count: int = 1

    def count_pieces(self, nbytes: float) -> int:
        """Return how many chunks carry ``nbytes`` that are ready at once."""
        return max(self.least_piece_count, math.ceil(nbytes / self.slot_nbytes))


class _Stations:
    """The stations on the way of one stream; times are those at which each is free again."""

    def __init__(self, costs: ChunkCosts, rate_per_ms: float, burst_nbytes: float) -> None:
        self.costs = costs
        self.rate_per_ms = rate_per_ms
        # A rested link is as far ahead as its burst takes.
        self.ahead_ms = burst_nbytes / rate_per_ms
        self.helper_free_ms: TimesMs = 0.0
        self.link_free_ms: TimesMs = -self.ahead_ms
        self.sink_free_ms: TimesMs = 0.0
        # When the chunks that hold the staging slots are complete, oldest first.
        self.complete_ms: deque[TimesMs] = deque(maxlen=costs.slot_count)

    def carry(self, ready_ms: TimesMs, nbytes: float) -> TimesMs:
        """Carry what is ready at once, in as many chunks as it needs; return when it is there."""
        piece_count = self.costs.count_pieces(nbytes)
        for _ in range(piece_count):
            arrived_ms = self._carry_chunk(ready_ms, nbytes / piece_count)
        return arrived_ms

    def _carry_chunk(self, ready_ms: TimesMs, nbytes: float) -> TimesMs:
        """Carry one chunk through the stations; return when it is complete."""
        costs = self.costs
        begin_ms = np.maximum(self.helper_free_ms, ready_ms)
        if costs.slot_count is not None and len(self.complete_ms) == costs.slot_count:
            begin_ms = np.maximum(begin_ms, self.complete_ms[0])
        self.helper_free_ms = begin_ms + costs.helper_ms + nbytes * costs.helper_ms_per_byte
        # While the sink's one thread puts a chunk in its place, its kernel receives the next bytes.
        sent_ms = np.maximum(
            self.helper_free_ms, self.sink_free_ms - SOCKET_NBYTES / self.rate_per_ms
        )
        # A token bucket (a virtual clock): without a burst, the time at which the link is free.
        self.link_free_ms = (
            np.maximum(self.link_free_ms, sent_ms - self.ahead_ms) + nbytes / self.rate_per_ms
        )
        here_ms = np.maximum(self.link_free_ms, sent_ms)
        self.sink_free_ms = (
            np.maximum(here_ms, self.sink_free_ms) + costs.sink_ms + nbytes * costs.sink_ms_per_byte
        )
        arrived_ms = self.sink_free_ms + costs.latency_ms
        self.complete_ms.append(arrived_ms)
        return arrived_ms


class _Compute(NamedTuple):
    """Times of the model's own work beside streaming."""

    prompt_ms: TimesMs
    token_ms: TimesMs


@dataclass(frozen=True)
class StreamedRequest:
    """One microbatch's request, as one source computes it without streaming.

    Attributes:
        step_count: number of decode steps.
        prompt_ms, token_ms: time of the prompt, and of each decode step.
        prompt_nbytes, step_nbytes: keys and values of all layers, of the prompt and of one step.
        message_count: number of messages of the whole request at level 0, except those that
            ``prompt_message_count`` has.
        message_ms: time of each of them beside that of its bytes.
        prompt_message_count, prompt_message_ms: the same of the prompt, if its messages take
            another time.
        message_nbytes: bytes that each message's packets take on the link beside its own.
        burst_nbytes: bytes that the link passes at once after a pause. 0, unless it is a token
            bucket.
        flush_interval: steps whose keys and values move as one, when the last of them is over.
        costs: what each chunk takes beside its bytes.
        prompt_rest_ms, token_rest_ms: how much longer the model's own work takes in the prompt and
            in each step, because streaming goes on beside it. The same on any link.
        layer_lead_share: how long before the end of its share of the prompt a layer is ready, as a
            part of that share. Its attention and MLP follow.
    """

    layer_count: int
    step_count: int
    prompt_ms: TimesMs
    token_ms: TimesMs
    prompt_nbytes: float
    step_nbytes: float
    message_count: float = 0.0
    message_ms: TimesMs = 0.0
    prompt_message_count: float = 0.0
    prompt_message_ms: TimesMs = 0.0
    message_nbytes: float = 0.0
    burst_nbytes: float = 0.0
    flush_interval: int = 1
    costs: ChunkCosts = field(default_factory=ChunkCosts)
    prompt_rest_ms: TimesMs = 0.0
    token_rest_ms: TimesMs = 0.0
    layer_lead_share: TimesMs = 0.0

    @property
    def total_ms(self) -> TimesMs:
        """TOTAL without streaming."""
        return self.prompt_ms + self.step_count * self.token_ms

    def predict_ms(self, level_name: str, rate_per_ms: float) -> TimesMs:
        """Return TOTAL at one of :data:`PREDICTED_LEVELS`, over a link in bytes per ms."""
        compute = _Compute(self.prompt_ms + self.prompt_rest_ms, self.token_ms + self.token_rest_ms)
        # Level 3 overlaps prompt and steps with the link, level 2 only the prompt, levels 0 and 1
        # nothing.
        if level_name == "3":
            return self._compute_streamed_ms(rate_per_ms, self.step_count, compute)
        step_ms = compute.token_ms + self.step_nbytes / rate_per_ms
        if level_name == "2":
            prompt_end_ms = self._compute_streamed_ms(rate_per_ms, 0, compute)
            return (
                prompt_end_ms + self.step_count * step_ms + self._compute_step_costs_ms(rate_per_ms)
            )
        if level_name == "1":
            prompt_end_ms = self._compute_whole_prompt_ms(rate_per_ms, compute)
            return (
                prompt_end_ms + self.step_count * step_ms + self._compute_step_costs_ms(rate_per_ms)
            )
        # Level 0 moves the same bytes as level 1, and pays for each message beside.
        in_turn_ms = (
            compute.prompt_ms + self.prompt_nbytes / rate_per_ms + self.step_count * step_ms
        )
        prompt_ms = self._compute_messages_ms(
            rate_per_ms, self.prompt_message_count, self.prompt_message_ms, self.prompt_nbytes
        )
        steps_ms = self._compute_messages_ms(
            rate_per_ms, self.message_count, self.message_ms, self.step_count * self.step_nbytes
        )
        return in_turn_ms + prompt_ms + steps_ms

    def predict_overhead_pct(self, level_name: str, rate_per_ms: float) -> TimesMs:
        """Return the overhead of TOTAL over that without streaming."""
        # Over the compute alone, as measured overheads are over `none`.
        return 100 * (self.predict_ms(level_name, rate_per_ms) / self.total_ms - 1)

    def find_slowest_rate_near_zero(
        self, level_name: str, limit_pct: float = NEAR_ZERO_PCT
    ) -> float | None:
        """Return the slowest link, in bytes per millisecond, whose overhead is near zero.

        None if no link is fast enough. Times must be floats.
        """
        # Level 0 pays for messages on any link.
        if self.predict_overhead_pct(level_name, FASTEST_RATE) > limit_pct:
            return None
        # Overhead never rises with the rate, so halving finds the border. Rates span decades, so
        # the middle is geometric.
        slow_rate = SLOWEST_RATE
        fast_rate = FASTEST_RATE
        while fast_rate / slow_rate > 1.0001:
            middle_rate = math.sqrt(slow_rate * fast_rate)
            if self.predict_overhead_pct(level_name, middle_rate) > limit_pct:
                slow_rate = middle_rate
            else:
                fast_rate = middle_rate
        return fast_rate

    def _compute_step_costs_ms(self, rate_per_ms: float) -> TimesMs:
        """Return the time of all steps' chunks beside the link, where each is waited for."""
        # The last group may be shorter.
        full_group_count, leftover_step_count = divmod(self.step_count, self.flush_interval)
        return sum(
            group_count
            * self._compute_chunk_costs_ms(rate_per_ms, group_step_count * self.step_nbytes)
            for group_count, group_step_count in (
                (full_group_count, self.flush_interval),
                (1, leftover_step_count),
            )
            if group_count and group_step_count
        )

    def _compute_chunk_costs_ms(self, rate_per_ms: float, nbytes: float) -> TimesMs:
        """Return the time of what is ready at once beside that of its bytes on the link."""
        return self._make_stations(rate_per_ms).carry(0.0, nbytes) - nbytes / rate_per_ms

    def _compute_messages_ms(
        self, rate_per_ms: float, message_count: float, message_ms: TimesMs, nbytes: float
    ) -> TimesMs:
        """Return the time of messages beside that of their ``nbytes`` on the link."""
        packets_ms = message_count * self.message_nbytes / rate_per_ms
        if not self.burst_nbytes:
            return message_count * message_ms + packets_ms
        if not message_count:
            return 0.0
        # While a message is answered, the bucket fills for the next one.
        link_ms = nbytes / rate_per_ms
        return np.maximum(message_count * message_ms, link_ms + packets_ms) - link_ms

    def _compute_whole_prompt_ms(self, rate_per_ms: float, compute: _Compute) -> TimesMs:
        """Return when the prompt's bytes have arrived, all of which are ready at its end."""
        stations = self._make_stations(rate_per_ms)
        for nbytes in self._cut_prompt():
            arrived_ms = stations.carry(compute.prompt_ms, nbytes)
        return arrived_ms

    def _make_stations(self, rate_per_ms: float) -> _Stations:
        return _Stations(self.costs, rate_per_ms, self.burst_nbytes)

    def _cut_prompt(self) -> Iterator[float]:
        """Yield the bytes of each group of layers that fit a slot together; a layer at least."""
        layer_nbytes = self.prompt_nbytes / self.layer_count
        layers_per_slot = self.layer_count
        if layer_nbytes * self.layer_count > self.costs.slot_nbytes:
            layers_per_slot = max(1, int(self.costs.slot_nbytes // layer_nbytes))
        for first_layer in range(0, self.layer_count, layers_per_slot):
            group_layer_count = min(layers_per_slot, self.layer_count - first_layer)
            # The whole prompt exactly: layers × its share can differ in the last digit.
            yield (
                self.prompt_nbytes
                if group_layer_count == self.layer_count
                else group_layer_count * layer_nbytes
            )

    def _compute_streamed_ms(
        self, rate_per_ms: float, step_count: int, compute: _Compute
    ) -> TimesMs:
        """Return when prompt and steps have arrived, each sent as soon as it is ready."""
        stations = self._make_stations(rate_per_ms)
        for layer in range(1, self.layer_count + 1):
            ready_ms = compute.prompt_ms * (layer - self.layer_lead_share) / self.layer_count
            arrived_ms = stations.carry(ready_ms, self.prompt_nbytes / self.layer_count)
        # The last layer can be there before the compute that follows it is over.
        arrived_ms = np.maximum(arrived_ms, compute.prompt_ms)
        # Steps of a group leave together, when the last of them is over.
        for first_step in range(0, step_count, self.flush_interval):
            # The last group may be shorter.
            group_step_count = min(self.flush_interval, step_count - first_step)
            ready_ms = compute.prompt_ms + (first_step + group_step_count) * compute.token_ms
            arrived_ms = stations.carry(ready_ms, group_step_count * self.step_nbytes)
        return arrived_ms
