"""Options of the machine: device, threads, link, and how long a rank may be silent."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator

from dejavubench.config.options.field import OPTIONS_CONFIG, option
from dejavubench.config.options.option_types import (
    UNLIMITED,
    OneOrList,
    SwitchesOption,
    as_link,
    as_rank_timeout,
    as_swept_counts,
)

Device = Literal["auto", "cpu", "cuda"]
"""Values of ``--device``; ``auto`` takes CUDA where there is one."""

MOST_THREADS = 4096
"""Largest value of ``--threads``. A larger one is a slip of the keyboard on any machine."""

THREADS_PER_CORE = 4
"""Most threads per core of a rank. Those beyond one take turns; more than four are a mistake."""

RANK_TIMEOUT = 300.0
"""Default of ``--rank-timeout``, in seconds."""

_option = partial(option, "Machine")


class MachineOptions(BaseModel):
    """Device, threads, link and timeout of the ranks."""

    model_config = OPTIONS_CONFIG

    device: Device = _option(
        "auto",
        "DEVICE",
        "Device of the model: cpu or cuda. auto is cuda if there is a GPU.",
        stated=True,
    )
    threads: Annotated[
        tuple[int, ...],
        BeforeValidator(partial(as_swept_counts, largest_count=MOST_THREADS)),
        OneOrList,
    ] = _option(
        (1,),
        "N[,N…]",
        f"Threads per rank, the same for all arms; at most {THREADS_PER_CORE} per core that a rank "
        "may use.",
    )
    link: Annotated[str | None, BeforeValidator(as_link)] = _option(
        None,
        "RATE",
        f"Rate of the link between the hosts, e.g. 500Mbit/s, or {UNLIMITED}. Recorded for the "
        "reports, and for plan --from if the run measures no rate. Limits nothing.",
    )
    rank_timeout: Annotated[float, BeforeValidator(as_rank_timeout)] = _option(
        RANK_TIMEOUT,
        "TIME",
        "End the job if a rank hangs for this long. 0 switches it off.",
        measured=False,
    )
    confine: SwitchesOption = _option(
        (False,),
        "",
        "Confine each source, including its helper thread, to one core. Both flags sweep.",
    )
