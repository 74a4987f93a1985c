"""Threads and cores of this process, which a sweep may change from point to point."""

from __future__ import annotations

import os
from contextlib import suppress

import torch

from dejavubench.bench.startup.ranks import Ranks
from dejavubench.config.points import PointSettings


class ProcessSettings:
    """The settings of points that are the process's own: its threads and its cores.

    Make it before any thread that takes part in a measurement. Threads that are there already, such
    as those of MPI and of the heartbeat, keep their cores.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._bystanders = _list_threads() - {os.getpid()}
        self._applied: PointSettings | None = None
        self._confined = False
        self._cores_before: dict[int, set[int]] = {}

    def apply(self, settings: PointSettings) -> None:
        """Take over the settings of a point. No arm may be under way."""
        if settings == self._applied:
            return
        # Kernels of our own and torch's operators ask for this number at each call. Threads of the
        # pool that are too many sleep.
        torch.set_num_threads(settings.threads)
        if self._ranks.is_source and settings.confine != self._confined:
            self._move(settings.confine)
        self._applied = settings

    def _move(self, confine: bool) -> None:
        """Move the threads that measure to the rank's one core, or back to those they had."""
        # A new thread has the cores of the one that starts it. Those of torch's pool live on from
        # point to point, so they are moved one by one.
        for thread in _list_threads() - self._bystanders:
            with suppress(ProcessLookupError):  # it has ended meanwhile
                if confine:
                    self._cores_before[thread] = os.sched_getaffinity(thread)
                    os.sched_setaffinity(thread, {self._ranks.own_core})
                else:
                    cores_before = self._cores_before.pop(thread, self._ranks.cores)
                    os.sched_setaffinity(thread, cores_before)
        self._confined = confine


def _list_threads() -> set[int]:
    """Return the numbers of this process's threads; the first one has that of the process."""
    return set(map(int, os.listdir("/proc/self/task")))
