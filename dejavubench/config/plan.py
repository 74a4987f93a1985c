"""A plan: one run, resolved. Nothing that is handed a plan asks a driver, folder or file for it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING

from dejavubench import units
from dejavubench.config.arms import Arm, make_arms
from dejavubench.config.experiment import OPTIONS, Experiment
from dejavubench.config.options.machine import THREADS_PER_CORE
from dejavubench.config.options.model import GivenType
from dejavubench.config.options.workload import CACHE_STEP
from dejavubench.config.points import SETTINGS, DataType, Point, PointSettings, SetupSizes
from dejavubench.errors import UsageError
from dejavubench.models.hub import specs
from dejavubench.models.hub.model_spec import ModelSpec
from dejavubench.models.sampling_options import SamplingOptions
from dejavubench.records import PointStart
from dejavubench.transports.base import Unavailable

if TYPE_CHECKING:
    from dejavubench.config.continued_run import ContinuedRun
    from dejavubench.config.prompt_file import Ids
    from dejavubench.config.restart_request import RestartRequest
    from dejavubench.models.hub.checkpoint import Checkpoint


@dataclass(frozen=True)
class Plan:
    """All decisions about a run. Rank 0 makes the plan and broadcasts it to the other ranks.

    Attributes:
        experiment: the options, with ``auto`` settled.
        checkpoint: the content of the folder ``ckpt_path`` on rank 0; None without that option.
        prompts: token ids of each given prompt; empty if prompts are random.
        restart_request: the request of a killed run that this run restarts.
        continued_run: the run that this session goes on with.
        only_points: ids of the points that are measured; None: all of them.
        unavailable: maps a destination that cannot run here to the reason.
        has_native_bf16: whether rank 0's CPU computes in bf16.
    """

    experiment: Experiment
    checkpoint: Checkpoint | None = None
    prompts: tuple[Ids, ...] = ()
    restart_request: RestartRequest | None = None
    continued_run: ContinuedRun | None = None
    only_points: tuple[str, ...] | None = None
    unavailable: dict[str, Unavailable] = field(default_factory=dict)
    has_native_bf16: bool = False

    # ---- points and arms, made once ----

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """Every combination of the lists, in a stable order: model outermost, settings innermost.

        So points that differ in a setting alone follow each other, and drift is least between them.
        """
        experiment = self.experiment
        types = map(_require_settled, experiment.inference_data_type)
        models = product(map(self.spec, experiment.model), types, experiment.kv_layout)
        lengths = product(experiment.ubatch_size, self.prompt_lens, experiment.output_len)
        return tuple(
            Point(
                id=f"p{point_index:03d}",
                spec=spec,
                data_type=data_type,
                kv_layout=kv_layout,
                ubatch_size=ubatch_size,
                input_len=input_len,
                output_len=output_len,
                positions=self._count_positions(spec.context, input_len, output_len),
                tensor_para_size=experiment.tensor_para_size,
                pipeline_para_size=experiment.pipeline_para_size,
                sinks=self._choose_sink_sizes(ubatch_size),
                handed_over=experiment.handoff_tokens if experiment.handoff else None,
                flush_interval=experiment.flush_interval,
                settings=settings,
            )
            for point_index, (
                (spec, data_type, kv_layout),
                (ubatch_size, input_len, output_len),
                settings,
            ) in enumerate(product(models, lengths, self._settings))
        )

    @property
    def _settings(self) -> Iterator[PointSettings]:
        combinations = product(*(getattr(self.experiment, name) for name in SETTINGS))
        return (PointSettings(*combination) for combination in combinations)

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """The arms of every round, in order."""
        return tuple(make_arms(self.experiment, self.unavailable))

    @cached_property
    def unskipped_arms(self) -> tuple[Arm, ...]:
        """The arms that are not skipped."""
        return tuple(arm for arm in self.arms if not arm.skipped)

    @cached_property
    def starts(self) -> dict[str, PointStart]:
        """The points that this session measures, each with the numbers that it begins with."""
        if self.continued_run is not None:
            return {start.point: start for start in self.continued_run.starts}
        rounds = self.experiment.rounds
        return {
            point.id: PointStart(point=point.id, iteration=0, round=0, rounds=rounds)
            for point in self.points
            if self.only_points is None or point.id in self.only_points
        }

    @property
    def most_thread_count(self) -> int:
        """Threads per rank; the most of any point."""
        return max(self.experiment.threads)

    @property
    def prompt_lens(self) -> tuple[int, ...]:
        """Positions that prompts take, padding included."""
        if self.prompts:
            return (max(map(len, self.prompts)),)
        return self.experiment.input_len

    def spec(self, name: str) -> ModelSpec:
        """Return the sizes of one of the experiment's models."""
        if self.checkpoint is not None:
            return self.checkpoint.spec
        if name != specs.CUSTOM:
            return specs.find_spec(name)
        experiment = self.experiment
        # A custom model has no context of its own: its longest request must fit.
        context = self._count_positions(None, max(self.prompt_lens), max(experiment.output_len))
        return specs.make_custom_spec(
            experiment.layer_num,
            experiment.head_num,
            experiment.size_per_head,
            experiment.vocab_size,
            context,
        )

    def _count_positions(self, context: int | None, input_len: int, output_len: int) -> int:
        if self.experiment.max_seq_len:
            return self.experiment.max_seq_len
        rounded_count = math.ceil((input_len + output_len) / CACHE_STEP) * CACHE_STEP
        return rounded_count if context is None else min(rounded_count, context)

    def _choose_sink_sizes(self, ubatch_size: int) -> SetupSizes | None:
        """Return the sizes of the sinks' setup; None if it is that of the sources."""
        experiment = self.experiment
        sizes = SetupSizes(experiment.tensor_para_size, experiment.pipeline_para_size, ubatch_size)
        requested_sizes = (
            experiment.sink_tensor_para_size,
            experiment.sink_pipeline_para_size,
            experiment.sink_ubatch_size,
        )
        # A size that is not given is that of the sources.
        sink_sizes = SetupSizes(
            *(size or own_size for size, own_size in zip(requested_sizes, sizes, strict=True))
        )
        return None if sink_sizes == sizes else sink_sizes

    @property
    def sampling(self) -> SamplingOptions | None:
        """How tokens are drawn; None if each is the most likely one."""
        experiment = self.experiment
        if not experiment.temperature:
            return None
        return SamplingOptions(
            experiment.temperature, experiment.top_k, experiment.top_p, experiment.seed
        )

    @property
    def weights_data_type(self) -> DataType | None:
        """The type that weights are rounded through first."""
        requested_type = self.experiment.weights_data_type
        return None if requested_type is None else _require_settled(requested_type)

    # ---- ranks ----

    @property
    def source_count(self) -> int:
        """Number of ranks that run the model."""
        return self.experiment.sources

    @property
    def sink_count(self) -> int:
        """Number of ranks that receive; 0 if no arm needs them."""
        return self.experiment.sinks if self.needs_sinks else 0

    @property
    def needs_sinks(self) -> bool:
        """Whether some arm streams to other ranks."""
        return any(arm.is_remote for arm in self.unskipped_arms)

    @property
    def rank_counts(self) -> tuple[int, ...]:
        """The numbers of ranks that it runs under. Sinks may be left out if no arm needs them."""
        all_count = self.source_count + self.experiment.sinks
        return (all_count,) if self.needs_sinks else (self.source_count, all_count)

    @property
    def sinks_text(self) -> str:
        """The number of sinks in words, for messages."""
        count = self.experiment.sinks
        sink_text = units.format_count_of(count, "sink")
        return "as many sinks" if count == self.source_count else sink_text

    def check_ranks(self, size: int, command: str = "dejavubench run …") -> None:
        """Check the number of ranks.

        Args:
            command: the command line that started the ranks, for the message.

        Raises:
            UsageError: the run needs another number than ``size``.
        """
        if size in self.rank_counts:
            return
        experiment = self.experiment
        remote_mode = next((arm.mode for arm in self.unskipped_arms if arm.is_remote), None)
        source_text = units.format_count_of(self.source_count, "source")
        sink_text = units.format_count_of(experiment.sinks, "sink")
        if self.source_count > 1:
            source_text += (
                f" by --tensor-para-size {experiment.tensor_para_size} × --pipeline-para-size "
                f"{experiment.pipeline_para_size}"
            )
        fewest, rank_text = self.rank_counts[0], units.format_count_of(self.rank_counts[-1], "rank")
        if remote_mode:
            needs = f"{remote_mode} needs {rank_text} here ({source_text}, and {sink_text})"
        else:
            sources_and_sinks = f"{source_text}, with or without {sink_text}"
            needs = f"this run needs {fewest} or {rank_text} ({sources_and_sinks})"
        raise UsageError(
            f"{needs}, but {size} {'was' if size == 1 else 'were'} started. "
            f"Start it with: mpirun -n {fewest} {command}"
        )

    def check_threads(self, core_count: int) -> None:
        """Refuse threads that would only wait for each other.

        Args:
            core_count: cores of the rank that may use the fewest.

        Raises:
            UsageError: there are too many.
        """
        if (thread_count := self.most_thread_count) > THREADS_PER_CORE * core_count:
            core_text = units.format_count_of(core_count, "core")
            raise UsageError(
                f"--threads {thread_count} is more than {THREADS_PER_CORE} per core: a rank may "
                f"use {core_text} here. Use --threads {core_count} or fewer"
            )

    # ---- identity ----

    def hash(self) -> str:
        """Return 16 hex digits that are equal for equal measurements.

        Names and places of files do not count; the content of prompts and checkpoint does.
        """
        # A default that came with a later option must not change the hash of an older experiment.
        left_out = {
            key
            for key, info in OPTIONS.items()
            if not info.measured or (info.added and not self.experiment.is_given(key))
        }
        content = self.experiment.model_dump(mode="json", exclude=left_out)
        if self.prompts:
            content["prompts"] = self.prompts
        if self.checkpoint is not None:
            content["checkpoint"] = self.checkpoint.identity
        # Sorted, so that the place of an option in its group changes no hash.
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _require_settled(requested_type: GivenType) -> DataType:
    assert requested_type != "auto", "an experiment is settled before it is planned"
    return requested_type
