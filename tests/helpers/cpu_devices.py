"""Several CPU devices for another process, since the number of devices is fixed when JAX starts."""

import os
import subprocess
import sys
from pathlib import Path


def environment(devices: int, **variables: str) -> dict[str, str]:
    """Return the environment of a process with so many CPU devices, and other `variables`."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | variables


def run(file: str, *arguments: object, devices: int, **variables: str) -> None:
    """Run a test file as a program on so many devices; its output is shown when it fails."""
    command = [sys.executable, file, *map(str, arguments)]
    subprocess.run(command, env=environment(devices, **variables), cwd=Path(file).parent, check=True)


def call(file: str, function: str, devices: int) -> None:
    """Call a function of a test file on so many devices; raise AssertionError with its output when it fails."""
    module = Path(file).stem
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}; {module}.{function}()"],
        env=environment(devices),
        cwd=Path(file).parent,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr
