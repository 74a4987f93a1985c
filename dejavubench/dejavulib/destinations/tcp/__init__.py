"""``tcp``: chunks over a plain socket to a sink that is no part of the MPI job.

A sink's owner may add frames of its own to the protocol: handlers that
:class:`.sink.TCPSinkServer` takes as ``services``, and that a source calls by
:meth:`.source.TCPDestination.request`.
"""

from .sink import TCPSinkServer
from .source import TCPDestination

__all__ = ["TCPDestination", "TCPSinkServer"]
