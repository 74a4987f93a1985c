"""This rank's part in each destination of the run: loaded, met, and asked what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import torch

from dejavubench.bench.assignment.runnable import RunnablePlan
from dejavubench.bench.assignment.worker import make_worker_view
from dejavubench.bench.startup.ranks import Ranks, agree, agree_on_reasons
from dejavubench.config.experiment import Experiment
from dejavubench.config.points import Point
from dejavubench.models.dtypes import dtype_of
from dejavubench.transports.connector import Connector
from dejavubench.transports.contexts import PointContext, RankContext

Connectors = Mapping[str, Connector]
"""This rank's part in each destination, by the destination's name."""


def load_destinations(runnable: RunnablePlan, ranks: Ranks, device: torch.device) -> Connectors:
    """Load each destination's libraries, before any other library that streams. Collective.

    Raises:
        UsageError: on every rank, if one of them cannot be used.
    """
    rank_context = RankContext(
        world=ranks.world,
        host=ranks.host,
        is_source=ranks.is_source,
        worker=ranks.topology.worker_index,
        device=device,
        options=runnable.experiment,
    )

    def load() -> Connectors:
        connectors = {
            name: transport.connector(rank_context)
            for name, transport in runnable.transports.items()
        }
        for connector in connectors.values():
            connector.load()
        return connectors

    return agree(ranks.world, load)


def find_all_peers(connectors: Connectors, ranks: Ranks) -> None:
    """Find the other side of each destination. Collective.

    Raises:
        UsageError: on every rank, if one of them is not there.
    """
    for connector in connectors.values():  # one by one: a meeting may be collective itself
        agree(ranks.world, connector.find_peers)


def find_refused_points(
    runnable: RunnablePlan, ranks: Ranks, connectors: Connectors
) -> dict[str, str]:
    """Announce every point to the other sides; return why points are refused. Collective."""
    if all(type(connector).refusal is Connector.refusal for connector in connectors.values()):
        return {}  # nobody is asked, so that ranks need not wait for each other at every point
    refusal_reasons: dict[str, str] = {}
    for point in runnable.points:
        context = make_point_context(runnable.experiment, point, ranks)
        # All sources hold the other sides' room at the same time, as they do in the measurement.
        with ExitStack() as open_connectors:
            refusal_checks = [
                partial(connector.refusal, context, open_connectors)
                for connector in connectors.values()
            ]
            refusal_reasons |= agree_on_reasons(
                ranks.world, partial(_ask_for_refusals, point, refusal_checks)
            )
        ranks.world.Barrier()  # all have given it back before the next point is announced
    return refusal_reasons


def _ask_for_refusals(
    point: Point, refusal_checks: Sequence[Callable[[], str | None]]
) -> dict[str, str]:
    # All are asked: each may be collective.
    answers = [check_refusal() for check_refusal in refusal_checks]
    refusal_reason = next((answer for answer in answers if answer is not None), None)
    return {} if refusal_reason is None else {point.id: refusal_reason}


def make_point_context(experiment: Experiment, point: Point, ranks: Ranks) -> PointContext:
    """Describe a point to a destination."""
    # The same list on every rank, in the same order: connecting may be collective.
    topology = ranks.topology
    pairs = [
        (rank, sink)
        for rank in topology.sources
        for sink in make_worker_view(point, topology, rank).peers()
    ]
    streams_of_microbatches = (
        make_worker_view(point, topology).local_streams() if ranks.is_source else []
    )
    return PointContext(
        pairs=pairs,
        streams=[stream for microbatch in streams_of_microbatches for stream in microbatch],
        dtype=dtype_of(point.data_type),
        probes=experiment.ceilings and ranks.rank == 0,
    )
