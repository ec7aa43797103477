"""A request to stop: SIGTERM, which a machine that is about to be taken away sends."""

import contextlib
import signal
from collections.abc import Iterator

import jax
import numpy as np


class StopRequest:
    """`made` is whether this process was asked to stop."""

    def __init__(self) -> None:
        self.made = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """SIGTERM makes the request; the second one ends the process at once."""

        def request(number, frame):
            self.made = True
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

        try:
            before = signal.signal(signal.SIGTERM, request)
        except ValueError:  # Only the main thread may; elsewhere the caller decides.
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def made_anywhere(self) -> bool:
        """Whether any process was asked; all processes must call this together."""
        if jax.process_count() == 1:
            return self.made
        from jax.experimental import multihost_utils

        return bool(multihost_utils.process_allgather(np.array(self.made)).any())
