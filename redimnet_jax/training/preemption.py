"""Requests to stop: SIGTERM, which a machine that is about to be taken away sends, and Ctrl-C."""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# How long the main thread may take to handle a signal until the process ends without it.
GRACE_SECONDS = 1.0


class _Handled:
    """The time.monotonic() at which this process last handled a signal, and how many requests are watched for."""

    last = 0.0
    watching = 0


class Preempted(Exception):
    """The run was asked to stop, and what it had done is saved."""


class StopRequest:
    """A request to stop; `requested` says whether this process received one."""

    def __init__(self) -> None:
        self.requested = False

    def request(self, reason: str) -> None:
        """Ask this process, from any thread, to stop for a `reason`, which is logged."""
        logger.warning(f"{reason}; the run saves and stops.")
        self.requested = True

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Take SIGTERM as the request during the block; a second one ends the process at once.

        The same holds for Ctrl-C within `leaving_at_once`; elsewhere it stays a KeyboardInterrupt.
        """
        in_command = signal.getsignal(signal.SIGINT) not in (signal.default_int_handler, signal.SIG_IGN)
        before: dict[int, Any] = {}

        def request(number, frame):
            _Handled.last = time.monotonic()
            self.requested = True
            for other, handler in before.items():
                signal.signal(other, handler)

        try:
            for number in SIGNALS[: 1 + in_command]:
                before[number] = signal.signal(number, request)
        except ValueError:  # Only the main thread may handle signals; elsewhere the caller decides.
            yield
            return
        _Handled.watching += 1
        try:
            yield
        finally:
            _Handled.watching -= 1
            for number, handler in before.items():
                signal.signal(number, handler)

    def requested_anywhere(self) -> bool:
        """Return whether any process was asked to stop; all processes must call this together."""
        if jax.process_count() == 1:
            return self.requested
        from jax.experimental import multihost_utils

        return bool(multihost_utils.process_allgather(np.array(self.requested)).any())


@contextlib.contextmanager
def leaving_at_once(leave: Callable[[int], Any]) -> Iterator[None]:
    """Call `leave(number)`, which must end the process, on SIGTERM and Ctrl-C during the block.

    Where a request is watched for, this begins with the second signal. A main thread that does not return to
    Python, since it compiles or waits for another process, is not waited for. Ignored signals, such as Ctrl-C
    in a background job, stay ignored. Does nothing outside the main thread.
    """

    def handle(number, frame):
        _Handled.last = time.monotonic()
        leave(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heeded}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=(reader, leave), name="signals", daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)
        listener.join(2 * GRACE_SECONDS)
        os.close(reader)


def reinstall_handlers() -> None:
    """Install Python's handlers again, after native code (`jax.distributed`) has replaced them."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.getsignal(number))


def _listen(reader: int, leave: Callable[[int], Any]) -> None:
    """Call `leave` for signals that the main thread does not handle in time, until the other end is closed."""
    unhandled = 0
    while data := os.read(reader, 1):
        received = time.monotonic()
        if data[0] not in SIGNALS:
            continue
        while (waited := time.monotonic() - received) < GRACE_SECONDS and _Handled.last < received - 0.1:
            time.sleep(GRACE_SECONDS - waited if waited > GRACE_SECONDS / 2 else 0.05)
        if _Handled.last >= received - 0.1:
            unhandled = 0
            continue
        unhandled += 1
        if unhandled > 1 or not _Handled.watching:
            leave(data[0])
