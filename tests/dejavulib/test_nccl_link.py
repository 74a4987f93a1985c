"""A link of nccl that fails because the other rank has: its report comes first."""

from __future__ import annotations

import time

import pytest

from dejavubench.dejavulib.destinations.base import WAIT_FOR_PEER_REPORT_S
from dejavubench.dejavulib.destinations.nccl.link import check_link
from dejavubench.parallel.nccl import NCCLError
from helpers.memory_link import MemoryLink


class BrokenLink(MemoryLink):
    """A link on which something that was issued has failed."""

    def check(self) -> None:
        raise NCCLError("remote process exited or there was a network error")


def test_a_failed_link_is_reported_after_its_other_rank_could_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sleeps_s: list[float] = []
    monkeypatch.setattr(time, "sleep", sleeps_s.append)
    with pytest.raises(NCCLError, match="remote process exited"):
        check_link(BrokenLink())
    assert sleeps_s == [WAIT_FOR_PEER_REPORT_S]


def test_a_sound_link_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps_s: list[float] = []
    monkeypatch.setattr(time, "sleep", sleeps_s.append)
    check_link(MemoryLink())
    assert sleeps_s == []
