"""Starts runs that die at a file operation: imports once, then forks for every line of its input.

A line is JSON: [workdir, settings, n]. The child trains in `workdir` and kills itself at its `n`-th file operation
there (0: never). The answer is a line of JSON: [return code, file operations of a child that was not killed].
"""

import json
import os
import signal
import sys
import threading

# What a run imports when it gets there is imported here, once for all children; none of these starts a thread.
import grain  # noqa: F401
import matplotlib.figure  # noqa: F401
import orbax.checkpoint  # noqa: F401
import tensorboardX  # noqa: F401
import training_runs

from redimnet_jax.evaluation import plots
from redimnet_jax.training import run as training_run

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.truncate", "os.chmod", "shutil.rmtree"}


def count_operations(workdir: str, last: int) -> list[int]:
    """Counts what changes files in `workdir`, in the list that is returned, and kills this process at the `last`."""
    done, lock = [0], threading.Lock()

    def changes(event: str, arguments: tuple) -> bool:
        if event == "open":
            return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) and within(arguments[0])
        # What `shutil.rmtree` removes has no path but a descriptor.
        return event in CHANGES and (
            within(arguments[0]) or (arguments[-1] != -1 and event in ("os.remove", "os.rmdir"))
        )

    def within(path) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(workdir)

    def operation() -> None:
        with lock:
            done[0] += 1
            if done[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple) -> None:
        if (event == "open" or event in CHANGES) and changes(event, arguments):
            operation()

    fsync = os.fsync

    def counted(descriptor: int) -> None:
        operation()
        fsync(descriptor)

    os.fsync = counted
    sys.addaudithook(hook)
    return done


def run(workdir: str, settings: dict, last: int) -> int:
    plots.save = lambda *_: None
    done = count_operations(workdir, last)
    training_run.train(training_runs.config(settings), workdir)
    return done[0]


def answer(line: str) -> list[int]:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.dup2(2, 1)
            os.write(writer, str(run(*json.loads(line))).encode())
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    os.close(writer)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(reader) as told:
        return [status, int(told.read() or 0)]


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(line)), flush=True)
