"""Options of the measurement: how often, how long, and what is checked."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator

from dejavubench import units, values
from dejavubench.config.options.field import OPTIONS_CONFIG, option
from dejavubench.config.options.option_types import MOST_ROUNDS, RoundsOption, allow_none, as_path

_option = partial(option, "Measurement")

_FRACTION_OR_NONE = BeforeValidator(allow_none(units.parse_fraction))


class MeasurementOptions(BaseModel):
    """Rounds, precision, verification and ceilings."""

    model_config = OPTIONS_CONFIG

    rounds: RoundsOption = _option(
        5,
        "N",
        "Rounds per point; each runs every arm once. With --precision: the fewest.",
        value_on_restart=1,
        fixed_on_restart=True,
        stated=True,
    )
    warmup: Annotated[
        int, BeforeValidator(partial(values.parse_count, least=0, most=MOST_ROUNDS))
    ] = _option(
        2,
        "N",
        "Warm-up iterations of each arm, recorded and marked as such.",
        value_on_restart=0,
        fixed_on_restart=True,
    )
    precision: Annotated[float | None, _FRACTION_OR_NONE] = _option(
        None,
        "P%",
        "Add rounds until the 95 % interval of every overhead is within ± P. none switches it off.",
        reset_on_restart=True,
        fixed_on_restart=True,
    )
    max_time: Annotated[float, BeforeValidator(units.parse_seconds)] = _option(
        600.0, "TIME", "Longest time for the rounds of one point with --precision, e.g. 10m."
    )
    target_overhead: Annotated[float | None, _FRACTION_OR_NONE] = _option(
        None, "P%", "Overhead to judge each arm by: met, missed or unresolved."
    )
    verify: bool = _option(True, "", "Compare every byte that arrived, outside the clock.")
    ceilings: bool = _option(
        True,
        "",
        "Measure the limits of memory, MPI, sockets, disk and matmul.",
        value_on_restart=False,
        fixed_on_restart=True,
    )
    chunk_times: bool = _option(
        True,
        "",
        "Record when each chunk was ready, gathered, posted and complete.",
        measured=False,
    )
    sample_extents: bool = _option(
        False,
        "",
        "After the rounds, time single extents of each arm at level 0 and 0-batched, in an "
        "iteration of its own that no statistics use.",
        measured=False,
        reset_on_restart=True,
    )
    nvtx: bool = _option(
        False,
        "",
        "Push NVTX ranges for phases, steps, layers, chunks and waits, named like the lanes of "
        "'dejavubench trace', for a profiler such as Nsight Systems. Needs a GPU.",
        measured=False,
        reset_on_restart=True,
    )
    log_dir: Annotated[Path, BeforeValidator(as_path)] = _option(
        Path("logs"),
        "DIR",
        "Folder in which the run's own folder is made.",
        measured=False,
        is_text=True,
        stated=True,
    )
