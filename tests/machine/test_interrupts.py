"""Ctrl-C is kept back while code runs that it would break."""

from __future__ import annotations

import signal
import threading

import pytest

from dejavubench.machine.interrupts import hold_interrupts


def interrupt_this_process() -> None:
    """Send SIGINT to this thread; Python has run its handler when the call returns."""
    signal.raise_signal(signal.SIGINT)


pytestmark = pytest.mark.usefixtures("pythons_own_handler")


def test_an_interrupt_acts_when_the_block_is_over() -> None:
    events = []

    def hold() -> None:
        with hold_interrupts():
            interrupt_this_process()
            interrupt_this_process()
            events.append("the block")

    with pytest.raises(KeyboardInterrupt):
        hold()
    assert events == ["the block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_an_interrupt_nothing_is_raised() -> None:
    with hold_interrupts():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_of_the_block_is_not_lost() -> None:
    with pytest.raises(ValueError, match="of the block"), hold_interrupts():
        raise ValueError("of the block")


def test_a_block_of_another_thread_leaves_the_handler_alone() -> None:
    handlers = []

    def work() -> None:
        with hold_interrupts():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]
