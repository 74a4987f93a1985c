"""``tcp``: chunks over a plain socket to a sink that is no part of the MPI job."""

from dejavubench.dejavulib.destinations.tcp.sink import TCPSink
from dejavubench.dejavulib.destinations.tcp.source import TCPDestination

__all__ = ["TCPDestination", "TCPSink"]
