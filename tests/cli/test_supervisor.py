"""The process above one of several: exit codes, signals, and the sentence for a child that a signal ended."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "redimnet_jax" / "cli" / "supervisor.py"
# The module alone, since importing the package takes seconds.
PROGRAM = f"""
import importlib.util, os, signal, sys, time
spec = importlib.util.spec_from_file_location("supervisor", {str(SOURCE)!r})
supervisor = importlib.util.module_from_spec(spec)
spec.loader.exec_module(supervisor)
supervisor.split(sys.argv[2:])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print(os.getpid(), flush=True)
exec(sys.argv[1])
"""


def start(body: str, *flags: str) -> tuple[subprocess.Popen, int]:
    """The command, and the process that runs its body."""
    command = [sys.executable, "-c", PROGRAM, body, *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


def end(process: subprocess.Popen) -> tuple[int, str]:
    _, errors = process.communicate(timeout=20)
    return process.returncode, errors


@pytest.mark.parametrize("flag", ["--distributed", "--coordinator=localhost:1"])
def test_exit_codes_pass(flag):
    process, child = start("sys.exit(3)", flag)
    assert child != process.pid
    assert end(process) == (3, "")


def test_a_single_process_stays_alone():
    process, child = start("sys.exit(3)", "--workdir=runs/--distributed")
    assert child == process.pid
    assert end(process) == (3, "")


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGKILL, signal.SIGSEGV])
def test_a_signal_that_ends_the_child_is_a_sentence(number):
    process, child = start(f"os.kill(os.getpid(), {int(number)})", "--distributed")
    code, errors = end(process)
    assert code == 1
    assert errors.startswith(f"error: {number.name} ended this process: ")
    assert errors.endswith(" start the same command on all hosts again.\n") and errors.count("\n") == 1


def test_signals_are_passed_on():
    process, child = start("time.sleep(30)", "--distributed")
    process.send_signal(signal.SIGTERM)
    assert end(process) == (7, "")
    process, child = start("signal.signal(signal.SIGINT, lambda *_: sys.exit(9)); time.sleep(30)", "--distributed")
    time.sleep(0.2)  # Until the handler is there.
    process.send_signal(signal.SIGINT)
    assert end(process) == (9, "")


def test_the_child_ends_with_the_process_above_it():
    process, child = start("time.sleep(30)", "--distributed")
    process.kill()
    process.wait()
    limit = time.monotonic() + 10
    while time.monotonic() < limit:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        # A zombie, where nobody waits for orphans.
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    raise AssertionError("the child goes on")


def test_the_sentence_names_the_cause():
    spec = importlib.util.spec_from_file_location("supervisor", SOURCE)
    supervisor = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(supervisor)
    assert "another process of the run" in supervisor.sentence(signal.SIGABRT)
    assert "memory of the host ran out" in supervisor.sentence(signal.SIGKILL)
