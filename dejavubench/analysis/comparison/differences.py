"""Differences between the runs of A and B: in settings, machine and versions.

Each option of ``run`` is in one of four groups. An option of :data:`COMPARABLE_OPTIONS` may be the
very thing that is compared; one of :data:`HARMLESS_OPTIONS` changes no time; those of
:data:`CELL_OPTIONS` show in the points and arms, which :mod:`.matching` pairs; those of
:data:`FIXED_OPTIONS` must be equal. Settings that a sweep may vary show in points, and may be
compared as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dejavubench.analysis.comparison.comparable import NotComparableError, format_value, refuse
from dejavubench.records import POINT_SETTINGS, PointInfo, RunEnvironment, RunHeader

COMPARABLE_OPTIONS = (
    "flush_interval",
    "weights_data_type",
    "tcp_checksums",
    "nccl_receives_ahead",
    "stream_dir",
    "link",
    "resident",
    "chunk_times",
    "nvtx",
    "sample_extents",
)
"""Options that may be the very thing that is compared; reports name the difference."""

HARMLESS_OPTIONS = (
    "name",
    "figure",
    "note",
    "log_dir",
    "ckpt_path",
    "seed",
    "peer",
    "keep",
    "drain_timeout",
    "rank_timeout",
    "rounds",
    "warmup",
    "precision",
    "max_time",
    "target_overhead",
    "verify",
    "ceilings",
)
"""Options that change no time of an arm."""

CELL_OPTIONS = (
    "model",
    "inference_data_type",
    "kv_layout",
    "ubatch_size",
    "input_len",
    "output_len",
    "tensor_para_size",
    "pipeline_para_size",
    "sink_tensor_para_size",
    "sink_pipeline_para_size",
    "sink_ubatch_size",
    "handoff",
    "handoff_tokens",
    "swap",
    "streaming",
    "level",
    "durability",
    "compare",
    "threads",
    "staging_mib",
    "staging_slots",
    "confine",
)
"""Options that show in points and arms, so that only equal ones are paired."""

FIXED_OPTIONS = (
    "device",
    "layer_num",
    "head_num",
    "size_per_head",
    "vocab_size",
    "max_seq_len",
    "prompts",
    "resume",
    "temperature",
    "top_k",
    "top_p",
    "nccl_loopback",
)
"""Options that must be equal, or the runs are refused."""

ABSENT_OPTION = "not an option yet"
"""Value of an option in the run of a program that did not have it."""

LABEL_OPTIONS = ("name", "log_dir", "note", "figure")
"""Options that tell runs apart and say nothing of them."""

ROUNDS_OPTION = "rounds"
"""Option that later sessions of a run change: its rounds are counted, not read from the header."""

MACHINE_DIGEST = "machine"
"""Name of the difference that A and B ran on machines of different digests."""

ENVIRONMENT: Mapping[str, Callable[[RunEnvironment], object]] = {
    "source revision": lambda environment: environment.source_revision,
    "MPI library": lambda environment: environment.mpi_library or None,
    "MPI thread level": lambda environment: environment.mpi_thread_level,
    "GPU-aware MPI": lambda environment: environment.cuda_aware_mpi,
    "kernel": lambda environment: environment.kernel,
    "vector instructions": lambda environment: environment.cpu_capability or None,
    "bf16 by the CPU": lambda environment: environment.native_bf16,
    "logical processors": lambda environment: environment.cpus,
    "ranks": lambda environment: environment.ranks or None,
    "hosts": lambda environment: environment.hostnames,
    MACHINE_DIGEST: lambda environment: environment.machine or None,
    "GPU driver": lambda environment: environment.gpu.driver or None,
    "CUDA": lambda environment: environment.gpu.cuda,
    "NCCL": lambda environment: environment.gpu.nccl or None,
    "MPS": lambda environment: environment.gpu.mps,
}
"""Facts of the environment that are listed where they differ, by their names in the list."""


@dataclass(frozen=True)
class RunDifference:
    """One difference between A and B.

    Attributes:
        kind: ``setting``, ``machine``, ``version`` or ``arm``.
        name: of an option, or of the fact.
        a, b: its values in A and in B, as text.
    """

    kind: str
    name: str
    a: str
    b: str

    def __str__(self) -> str:
        return f"{self.name}: {self.a} → {self.b}"


def find_setting_differences(a: RunHeader, b: RunHeader) -> list[RunDifference]:
    """Return the options in which two runs differ, apart from those of points and arms."""
    names = [
        name
        for name in dict.fromkeys((*a.experiment, *b.experiment))
        if name not in (*CELL_OPTIONS, *LABEL_OPTIONS, ROUNDS_OPTION)
    ]
    named_values = [(name, *values_of(name, a, b)) for name in names]
    return [
        RunDifference("setting", name, format_value(value_a), format_value(value_b))
        for name, value_a, value_b in named_values
        if value_a != value_b
    ]


def values_of(name: str, a: RunHeader, b: RunHeader) -> tuple[Any, Any]:
    """Return an option's two values. Where an older program lacked it, it had its default there."""
    value_a, value_b = a.experiment.get(name), b.experiment.get(name)
    if name in a.experiment and name in b.experiment:
        return value_a, value_b
    newer_header = b if name in b.experiment else a
    flags = (f"--{name.replace('_', '-')}", f"--no-{name.replace('_', '-')}")
    is_set = any(setting.split(" ")[0] in flags for setting in newer_header.settings or ())
    if not is_set:  # the newer run has the default, too
        return None, None
    return (ABSENT_OPTION, value_b) if newer_header is b else (value_a, ABSENT_OPTION)


def find_point_setting_differences(
    a: RunHeader,
    b: RunHeader,
    points_a: Sequence[PointInfo],
    points_b: Sequence[PointInfo],
) -> list[RunDifference]:
    """Return the settings of points that have one value in all of A's, and another one in B's.

    Args:
        points_a, points_b: points of A and of B, with their settings.
    """
    return [
        RunDifference("setting", name, format_value(value_a), format_value(value_b))
        for name in POINT_SETTINGS
        for value_a, value_b in _list_single_values(name, (a, points_a), (b, points_b))
        if value_a != value_b
    ]


def _list_single_values(
    name: str,
    a: tuple[RunHeader, Sequence[PointInfo]],
    b: tuple[RunHeader, Sequence[PointInfo]],
) -> Iterator[tuple[Any, Any]]:
    """Yield the value of a setting in A and in B, unless one of them sweeps it."""
    if any(name not in header.experiment for header, _ in (a, b)):
        yield values_of(name, a[0], b[0])  # an older program lacked the option
        return
    values_a, values_b = ({getattr(point, name) for point in points} for _, points in (a, b))
    if len(values_a) == 1 and len(values_b) == 1:
        yield values_a.pop(), values_b.pop()


def find_compared_settings(differences: Iterable[RunDifference]) -> list[RunDifference]:
    """Return the differences that a comparison may be about.

    Raises:
        NotComparableError: an option differs that must be equal.
    """
    settings = [difference for difference in differences if difference.kind == "setting"]
    # An option that this table does not know may change any time: it must be equal as well.
    refuse(
        [
            str(setting)
            for setting in settings
            if setting.name not in (*COMPARABLE_OPTIONS, *HARMLESS_OPTIONS)
        ]
    )
    return [setting for setting in settings if setting.name in COMPARABLE_OPTIONS]


def require_one(run_differences: Iterable[RunDifference]) -> RunDifference | None:
    """Return the one difference that is compared; None if there is none.

    Raises:
        NotComparableError: there are several, so that a change could not be told to be of one.
    """
    found_differences = list(run_differences)
    if len(found_differences) > 1:
        raise NotComparableError(
            f"A and B differ in {len(found_differences)} settings: "
            f"{'; '.join(map(str, found_differences))}. A change could be due to each of them. "
            "Compare runs that differ in one"
        )
    return found_differences[0] if found_differences else None


def find_environment_differences(a: RunHeader, b: RunHeader) -> list[RunDifference]:
    """Return in which facts of machine and software two runs differ."""
    environment_a, environment_b = a.facts, b.facts
    facts = [
        (name, read_fact(environment_a), read_fact(environment_b))
        for name, read_fact in ENVIRONMENT.items()
    ]
    versions = [
        (name, environment_a.versions.get(name), environment_b.versions.get(name))
        for name in dict.fromkeys((*environment_a.versions, *environment_b.versions))
    ]
    variables = [
        (f"${name}", environment_a.variables.get(name), environment_b.variables.get(name))
        for name in dict.fromkeys((*environment_a.variables, *environment_b.variables))
    ]
    return [
        RunDifference(kind, name, format_value(value_a), format_value(value_b))
        for kind, group in (("machine", [*facts, *variables]), ("version", versions))
        for name, value_a, value_b in group
        if value_a != value_b
    ]
