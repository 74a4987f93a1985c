"""Conditions of a host while its ranks measure: one file per host, beside the ranks' own.

The first rank of each host writes ``conditions-<rank>.jsonl``: a :class:`HostInfo`, then a
:class:`Window` for each iteration. The files are apart so that older programs can read the ranks'
records. Older runs have none.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from dejavubench.records.field_types import LONGEST_MS, Count, Line, Model, RecordError, Seconds
from dejavubench.records.line_file import number_lines, parse_record
from dejavubench.records.names import session_of_conditions_file

Real = Annotated[float, Field(ge=0, le=LONGEST_MS)]


class CarriedBytes(Model):
    """Traffic of a network interface, an InfiniBand port or all NVLinks in a window.

    Attributes:
        out_nbytes, out_packets: sent from the host, or from its GPUs.
        in_nbytes, in_packets: received.
    """

    out_nbytes: Count = 0
    out_packets: Count = 0
    in_nbytes: Count = 0
    in_packets: Count = 0


class GpuWindow(Model):
    """One GPU in a window. What cannot be read is None.

    Attributes:
        clock_mhz, temperature_c: read right after the iteration.
        power_w: energy of the window over its length.
        limited_s: seconds in which each limit held the clock down.
        reasons: reasons for a lower clock that held right after the iteration.
    """

    clock_mhz: Real | None = None
    temperature_c: Real | None = None
    power_w: Real | None = None
    limited_s: dict[str, Seconds] | None = None
    reasons: list[str] | None = None


class HostInfo(Line):
    """First line of a host's file.

    Attributes:
        host: name of the host.
        session: number of the session that has written the file.
        ranks: the ranks of this host.
        cpus: processors that any rank of the machine may run on; CPU times are of these.
        unreadable: the reason for each condition that could not be read at the start.
    """

    kind: Literal["conditions"] = "conditions"
    run_id: str
    session: Annotated[int, Field(ge=1)] = 1
    host: str
    ranks: list[Count]
    cpus: list[Count]
    unreadable: dict[str, str] = Field(default={})


class Window(Line):
    """The time from before an iteration's barrier until all ranks have ended it, on one host.

    Attributes:
        gpus: each GPU of the job on this host, by its identifier.
        arm: None for a window in which the job does nothing.
        round: None in warm-up.
        wall_s: length of the window.
        cost_s: time that reading the counters took, outside the window's iteration.
        load: load average of the last minute, at the end.
        own_cpu_s: CPU time of the machine's ranks and of what they have started.
        other_cpu_s: CPU time of all else but interrupts, on the granted processors.
        interrupt_s, steal_s: time of interrupts, and of a hypervisor's other work.
        cpu_wait_s, io_wait_s: time in which some thread of the machine waited for it (PSI).
        cpu_mhz: mean clock rate of the granted processors, at the end.
        carried: traffic by interface; those without any are left out.
        unreadable: reasons that have come up since the start.
    """

    kind: Literal["window"] = "window"
    point: str
    arm: str | None = None
    iteration: Count | None = None
    round: Count | None = None
    wall_s: Real
    cost_s: Real
    load: Real | None = None
    own_cpu_s: Real | None = None
    other_cpu_s: Real | None = None
    interrupt_s: Real | None = None
    steal_s: Real | None = None
    cpu_wait_s: Real | None = None
    io_wait_s: Real | None = None
    cpu_mhz: Real | None = None
    gpus: dict[str, GpuWindow] = Field(default={})
    carried: dict[str, CarriedBytes] | None = None
    unreadable: dict[str, str] = Field(default={})


@dataclass
class HostLog:
    """One host's file, read. ``is_torn``: a crash cut off the last line."""

    path: Path
    host: HostInfo
    windows: list[Window] = field(default_factory=list)
    is_torn: bool = False


CONDITION: TypeAdapter[HostInfo | Window] = TypeAdapter(
    Annotated[HostInfo | Window, Field(discriminator="kind")]
)
"""Reads and checks a line, whose ``kind`` says which record it is."""


def format_condition_line(record: HostInfo | Window) -> str:
    """Return a line of a host's file; what cannot be read is left out."""
    return record.model_dump_json(exclude_none=True) + "\n"


def read_conditions(
    folder: Path, session: int = 1, left_out: Collection[str] = ()
) -> list[HostLog]:
    """Read the files that all hosts have written in one session; none for older runs.

    Args:
        left_out: names of files to leave out, because they are damaged.

    Raises:
        RecordError: a line other than a torn last one cannot be read, or a file has no host.
    """
    paths = (path for path in list_condition_files(folder, session) if path.name not in left_out)
    return [log for path in paths if (log := read_host(path)) is not None]


def list_condition_files(folder: Path, session: int = 1) -> list[Path]:
    """Return the files that the hosts have written in one session."""
    paths = sorted(folder.glob("conditions-*.jsonl"))
    return [path for path in paths if session_of_conditions_file(path.name) == session]


def read_host(path: Path) -> HostLog | None:
    """Read one host's file, as :func:`read_conditions`; None if it holds no whole line."""
    log: HostLog | None = None
    for line_number, line in number_lines(path):
        if not line.strip():
            continue
        record = parse_record(path, line_number, line, CONDITION)
        if record is None:
            # Cut off by a crash. Without a host's line before it, nothing of the file is known.
            if log is not None:
                log.is_torn = True
            continue
        # True for a second host line, and for a window before the first one.
        if isinstance(record, HostInfo) is (log is not None):
            raise RecordError(
                f"{path}:{line_number}: the first line, and no other, must be a host's"
            )
        if isinstance(record, HostInfo):
            log = HostLog(path, record)
        elif log is not None:
            log.windows.append(record)
    return log
