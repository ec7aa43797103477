"""`train.py` in processes of its own, which the tests look at from outside."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "projection_only.py"


def begin(*flags: str, cwd: Path = ROOT) -> subprocess.Popen:
    command = [sys.executable, "-u", str(ROOT / "train.py"), f"--config={CONFIG}", *flags]
    # A shell's job in the background ignores Ctrl-C, and so would its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


def begin_two(*flags: tuple[str, ...], cwd: tuple[Path, Path] = (ROOT, ROOT)) -> list[subprocess.Popen]:
    """Two processes of one run, with the flags of each."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    joined = [f"--coordinator=localhost:{port}", "--processes=2"]
    return [begin(*own, *joined, f"--process_id={index}", cwd=cwd[index]) for index, own in enumerate(flags)]


def end(process: subprocess.Popen, seconds: float = 60.0) -> tuple[int, str, str]:
    """(exit code, standard output, standard error); a process that takes longer is killed, and an error."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, err


def wait_until(condition: Callable[[], object], what: str, seconds: float = 120.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"{what} did not happen in {seconds:.0f} s"
        time.sleep(0.01)


def catches_sigterm(process: subprocess.Popen) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def exists(pid: int) -> bool:
    """Whether a process is there that is not just waiting for its parent to notice its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
            found += [int(entry)] * (int(parent) == pid)
    return found
