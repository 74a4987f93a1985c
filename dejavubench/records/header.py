"""``run.json``: the validated options of a run, its points and arms, and its environment."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from dejavubench.records.destination_info import NO_STREAMING, SWAP_PREFIX, DestinationInfo
from dejavubench.records.environment import KeysOf, RunEnvironment, parse_environment
from dejavubench.records.field_types import Count, Model, RecordError, Size

SCHEMA = 1
"""Version of the schema. It rises only where an older reader would misread a record."""


POINT_SETTINGS = ("threads", "staging_mib", "staging_slots", "confine")
"""Keys of points that only a sweep of the setting writes. Else the experiment has the value."""


class ArmInfo(Model):
    """One (destination, level) of a run.

    Attributes:
        role: ``baseline`` (``none``), ``repeat`` (``none#2``) or ``streaming``.
        name: unique within the run: ``none``, ``none#2``, ``mpi@3``, ``disk@0-batched``.
        mode: the destination's name.
        level: None for ``none``.
        durability: when a chunk counts as written; None unless the arm writes to disk.
    """

    name: str
    mode: str
    level: str | None = None
    durability: str | None = None
    role: Literal["baseline", "repeat", "streaming"] = "streaming"

    @property
    def is_streaming(self) -> bool:
        """Whether the arm is no baseline."""
        return self.mode != NO_STREAMING

    @property
    def is_swapping(self) -> bool:
        """Whether the arm swaps caches; it is recorded with the level at which it streams."""
        return self.mode.startswith(SWAP_PREFIX)


class PointInfo(Model):
    """One combination of a sweep's lists.

    Attributes:
        model: name of the model.
        parameters: number of weights.
        layer_num, head_num, size_per_head: layers, attention heads per layer, and elements per
            head.
        vocab_size: rows of the embedding.
        data_type: type of the weights and of the cache.
        kv_layout: layout of the cache in memory.
        ubatch_size: requests per microbatch.
        input_len, output_len: tokens per prompt, and new tokens per request.
        positions: positions of each request that the cache can hold.
        tensor_para_size, pipeline_para_size: tensor-parallel degree and pipeline depth of the
            sources.
        streamed_nbytes: cache of one microbatch over all workers.
        id: ``p000`` …
        kv_head_num: None in older records, whose models had as many KV heads as heads.
        layer_weights: elements of the matrices of all layers. None in older records, whose models
            had an MLP of four times their width.
        head_weights: elements of the output head's matrix; None in older records.
        weight_nbytes: bytes that each of these elements takes in memory; None in older records.
        sinks: setup of the sinks, such as ``tp2-pp1-b4``; empty if it is that of the sources.
        handed_over: new tokens after which the sinks go on; 0 if they only receive.
        skipped: why the point cannot run here; None if it can.
        threads: threads per rank, of a sweep of them; else None, and not written.
        staging_mib: size of each staging slot in MiB, likewise.
        staging_slots: staging slots per source, likewise.
        confine: whether each source has one core, likewise.
    """

    id: str
    model: str
    parameters: Size
    layer_num: Size
    head_num: Size
    size_per_head: Size
    kv_head_num: Size | None = None
    layer_weights: Size | None = None
    head_weights: Size | None = None
    weight_nbytes: Size | None = None
    vocab_size: Size
    data_type: Literal["fp32", "bf16", "fp16"]
    kv_layout: str
    ubatch_size: Size
    input_len: Size
    output_len: Size
    positions: Size
    tensor_para_size: Size
    pipeline_para_size: Size
    sinks: str = ""
    handed_over: Count = 0
    streamed_nbytes: Size
    skipped: str | None = None
    threads: Size | None = None
    staging_mib: Size | None = None
    staging_slots: Size | None = None
    confine: bool | None = None

    @model_serializer(mode="wrap")
    def _without_single_values(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A run without such a sweep stays readable by older programs, which refuse unknown keys.
        content: dict[str, Any] = write(self)
        return {
            key: value
            for key, value in content.items()
            if value is not None or key not in POINT_SETTINGS
        }


class RunHeader(Model):
    """The content of ``run.json``.

    Attributes:
        schema_version: version of the schema that the run's files have.
        name: name of the run, with which its folder's name begins.
        run_id: identifier that all of the run's files name.
        started_utc: time of the start in UTC.
        command: words of the command line.
        experiment_hash: 16 hex digits that are equal for equal measurements.
        figure: figure that the run is made for.
        note: the user's words on the run.
        warmup: iterations of each arm before its first round.
        arms: arms of each round.
        points: combinations of the lists that the options sweep.
        experiment: all options, as validated.
        settings: as flags, the options that differ from their defaults and that neither sizes nor
            arms tell. None in older records.
        destinations: maps a mode to the facts that analysis needs of the destination. Empty in
            older records; :mod:`dejavubench.records.destination_info` has theirs.
        asked_points: points that ``--points`` asked the first session for; None: all of them.
        environment: facts about the host, as written; :attr:`facts` has the known keys, with
            their types.
    """

    schema_version: int = SCHEMA
    name: str
    run_id: str
    started_utc: str
    command: list[str]
    experiment: dict[str, Any]
    experiment_hash: str
    figure: str | None = None
    note: str | None = None
    warmup: Count
    arms: list[ArmInfo]
    points: list[PointInfo]
    destinations: dict[str, DestinationInfo] = Field(default={})
    settings: list[str] | None = None
    # A plain dict: keys of a newer program must not stop an older reader. `facts` checks types.
    environment: Annotated[dict[str, Any], KeysOf(RunEnvironment)]
    asked_points: list[str] | None = None

    def with_settings(self, point: PointInfo) -> PointInfo:
        """Return a point with its settings, whether a sweep varies them or not.

        A setting that the run does not tell stays None.
        """
        run_settings = {name: self.experiment.get(name) for name in POINT_SETTINGS}
        # A list is a sweep, whose points have their own values.
        missing_settings = {
            name: value
            for name, value in run_settings.items()
            if getattr(point, name) is None and isinstance(value, int)
        }
        return point.model_copy(update=missing_settings)

    @property
    def rounds(self) -> int:
        """Rounds of each point; with a precision the fewest.

        Raises:
            RecordError: the experiment has another value than a number.
        """
        rounds = self.experiment.get("rounds", 0)
        if not isinstance(rounds, int):
            raise RecordError(f"run.json: experiment rounds: {rounds!r} is no number")
        return rounds

    @property
    def facts(self) -> RunEnvironment:
        """Return the environment with named keys.

        Raises:
            RecordError: a key has a value of another type.
        """
        return parse_environment(RunEnvironment, self.environment, "run.json")
