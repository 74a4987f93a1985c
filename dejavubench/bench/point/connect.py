"""Making a rank's worker at a point: a source or a sink, connected with the other side."""

from __future__ import annotations

from dejavubench.bench.point.rank import RankAtPoint
from dejavubench.bench.point.sink import Sink
from dejavubench.bench.point.source import Source
from dejavubench.bench.startup.context import RunContext
from dejavubench.config.points import Point
from dejavubench.models.gpt import GPT


def connect_worker(context: RunContext, point: Point, model: GPT | None) -> Source | Sink:
    """Connect this rank for every destination, and make its worker. Collective.

    Args:
        model: this worker's part of the model, loaded; None on a sink that only receives.
    """
    rank_at_point = RankAtPoint.connect(context, point)
    if not context.ranks.is_source:
        return Sink(rank_at_point, model)
    assert model is not None
    return Source(rank_at_point, model)
