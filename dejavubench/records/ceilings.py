"""Records of what the machine and the streams reach alone, and names that belong together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dejavubench.records.field_types import Count, Line, Positive, PositiveMs


class Ceiling(Line):
    """A rate or time that the machine reaches, measured in this run.

    docs/METHOD.md lists the names.

    Attributes:
        name: name of the probe.
        unit: unit of ``value`` and ``samples``, such as GB/s.
        samples: values of all repetitions.
        value: best of ``samples``, in ``unit``.
        shape: which of the fixed list of shapes gave the best value.
        durability: durability option of the arms that it bounds; None unless it is the disk's.
    """

    kind: Literal["ceiling"] = "ceiling"
    name: str
    unit: str
    value: Positive
    # All repetitions, so that analysis can pair them with those of a raw loop.
    samples: Annotated[list[Positive], Field(min_length=1)]
    shape: str
    point: str | None = None
    durability: str | None = None


class StreamAlone(Line):
    """An arm's chunks at level 3 while nothing is computed, from the first chunk to the drain.

    Attributes:
        ms: time from the first chunk to the end of the drain.
        nbytes: bytes that all sources streamed.
    """

    kind: Literal["alone"] = "alone"
    point: str
    arm: str
    ms: PositiveMs
    nbytes: Count


class SourceAlone(Line):
    """One source's chunks at level 3 while nothing is computed, in a run of several sources.

    Attributes:
        isolated_ms: time while the other sources stream nothing.
        together_ms: time while all sources stream.
        nbytes: bytes that this source streamed, each time.
    """

    kind: Literal["source-alone"] = "source-alone"
    point: str
    arm: str
    isolated_ms: PositiveMs
    together_ms: PositiveMs
    nbytes: Count


class CopyWays(Line):
    """How chunks left a source's GPU at one point.

    Attributes:
        ways: maps a kind of chunk (prompt, token) to its way, ``kernel`` or ``strided DMA``, with
            the measured ratio that it was chosen by. The name of a destination that chooses for
            itself stands before the kind.
    """

    kind: Literal["copy-ways"] = "copy-ways"
    point: str
    ways: dict[str, str]


HELD_AGAINST = {"pcie-destination": "pcie-d2h", "gather": "gather-copy"}
"""Maps a probe of the library's own code on a GPU to the raw loop measured in turn with it.

Those of a destination stand in its :class:`~dejavubench.records.destination_info.DestinationInfo`.
"""

OVERHEAD_OF = {"run-copy-overhead": "run-copy"}
"""Maps a probe of pure loop overhead to the probe whose overhead share it gives.

Those of a destination stand there, too.
"""
