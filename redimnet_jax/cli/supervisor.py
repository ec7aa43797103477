"""A small process above one of several processes of a run, which says a sentence when that one is ended by a signal.

JAX's coordination service aborts a process, with a log of C++ and from a thread that no Python code can stop, when
the process that coordinates the run is gone. The kernel kills one that takes too much memory. Neither leaves a
sentence.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

# The flags of one of several processes.
SEVERAL = {"distributed", "coordinator"}
# What a supervisor passes on to the process that it watches.
FORWARDED = (signal.SIGTERM, signal.SIGINT)
WAITED = {*FORWARDED, signal.SIGCHLD}
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_SI_USER = 0  # <asm-generic/siginfo.h>: sent by kill(), not by a terminal to all of its foreground processes

REASONS = {
    signal.SIGABRT: "most likely another process of the run, or its host, is gone or never came; the lines above and "
    "the logs of the other processes say more",
    signal.SIGKILL: "somebody killed it, or the memory of the host ran out",
}


def split(arguments: Sequence[str]) -> None:
    """Go on in a child process, if the `arguments` of the command say that it is one of several processes.

    The process that called this waits for the child and exits with its code. Where a signal ends the child, the code
    is 1 and the last line says so. A child does not outlive the process above it. Call this before JAX starts its
    threads.
    """
    flags = {argument.lstrip("-").partition("=")[0] for argument in arguments if argument.startswith("-")}
    if flags.isdisjoint(SEVERAL):
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WAITED)
    above = os.getpid()
    child = os.fork()
    if child:
        # A new program, since a thread of NumPy here would take the signals that this process waits for.
        os.execv(sys.executable, [sys.executable, "-I", "-S", __file__, str(child)])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != above:  # It was killed before the line above.
        os._exit(1)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def watch(child: int) -> int:
    """Return the exit code of `child`, to which signals are passed on until it ends."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if not ended:
            received = signal.sigwaitinfo(WAITED)
            from_terminal = received.si_signo == signal.SIGINT and received.si_code != _SI_USER
            if received.si_signo in FORWARDED and not from_terminal:
                os.kill(child, received.si_signo)
        elif os.WIFSIGNALED(status):
            os.write(2, f"error: {sentence(os.WTERMSIG(status))}\n".encode())
            return 1
        else:
            return os.waitstatus_to_exitcode(status)


def sentence(number: int) -> str:
    """Return what to say of a process that a signal ended."""
    reason = REASONS.get(signal.Signals(number), "the lines above may say why")
    return (
        f"{signal.Signals(number).name} ended this process: {reason}. What was saved is kept; start the same command "
        "on all hosts again."
    )


if __name__ == "__main__":
    sys.exit(watch(int(sys.argv[1])))
