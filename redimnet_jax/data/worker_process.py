"""Worker processes of the input pipeline live as long as their parent needs them, and no longer."""

import multiprocessing
import os
import signal
import threading
from multiprocessing import connection


def begin(index: int = 0, count: int = 1) -> None:
    """Prepare this worker, number `index` of `count`: it outlives signals to all processes, but not its parent.

    A Ctrl-C in a terminal, or the SIGTERM of a job scheduler, reaches every process. The parent then still needs the
    workers, and ends them itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), name="end with parent", daemon=True).start()


def _end_with(sentinel: int) -> None:
    """End this process when the parent's end closes `sentinel`; without cleaning up, since nobody reads any more.

    Shared memory is removed by the resource tracker of multiprocessing once all processes that used it have ended.
    """
    connection.wait([sentinel])
    os._exit(0)
