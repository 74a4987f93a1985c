"""The stream files of a killed run that this run goes on with."""

from __future__ import annotations

from dejavubench.bench.assignment.identity import identify_streams
from dejavubench.bench.assignment.worker import WorkerView
from dejavubench.config.plan import Plan
from dejavubench.config.restart_request import RestartRequest
from dejavubench.dejavulib.destinations.base import StreamingError
from dejavubench.dejavulib.destinations.disk import stream_file
from dejavubench.dejavulib.destinations.disk.saved_stream import SavedStream
from dejavubench.errors import UsageError


def open_saved_streams(
    plan: Plan, restart_request: RestartRequest, worker_view: WorkerView, device: str
) -> list[SavedStream]:
    """Open the files that this source has left, one per microbatch.

    Args:
        device: the type of device that the model runs on.

    Raises:
        UsageError: one of them cannot be restarted from, as :class:`SavedStream` says.
    """
    rank = worker_view.topology.rank
    # The killed run's id, not this one's: the identity is that of the files it has written.
    expected_identity = identify_streams(
        plan, worker_view.point, device, restart_request.run_id, rank
    )
    name = restart_request.stream_name(rank)
    try:
        return [
            SavedStream(
                restart_request.stream_dir / stream_file.make_file_name(name, stream.id),
                stream,
                expected_identity,
            )
            for (stream,) in worker_view.local_streams()
        ]
    except StreamingError as error:
        raise UsageError(f"--restart-request: {error}") from None
