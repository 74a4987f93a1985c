"""The union of all records, as lines of a rank's file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, TypeAdapter

from dejavubench.records.ceilings import Ceiling, CopyWays, SourceAlone, StreamAlone
from dejavubench.records.iterations import (
    Handover,
    HandoverAtSink,
    Iteration,
    Microbatch,
    Restart,
    SinkActivity,
    Swapping,
    Verification,
)
from dejavubench.records.ranks import (
    ArmFailure,
    End,
    FirstExit,
    PhaseMark,
    RankFailure,
    RankInfo,
    Skipped,
)

Record = (
    RankInfo
    | PhaseMark
    | Microbatch
    | Iteration
    | SinkActivity
    | Handover
    | HandoverAtSink
    | Swapping
    | Restart
    | Verification
    | Ceiling
    | StreamAlone
    | SourceAlone
    | CopyWays
    | Skipped
    | RankFailure
    | ArmFailure
    | FirstExit
    | End
)
"""One line of a rank's file."""

# By kind, not by trying each class: faster, and an error names the key of the right class.
RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])
"""Reads a line as the record that its ``kind`` names."""


def to_line(record: Record) -> str:
    """Return a record as one line of JSON, line end included."""
    return record.model_dump_json() + "\n"
