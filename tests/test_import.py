"""Importing the library is quick and brings along nothing that only some users need."""

import subprocess
import sys

CODE = """
import sys, time
start = time.perf_counter()
import redimnet_jax
print(time.perf_counter() - start, *(name in sys.modules for name in {names}))
"""
UNWANTED = ("torch", "tensorflow", "librosa", "orbax.checkpoint")


def test_import_is_quick_and_light():
    times = []
    for _ in range(3):
        command = [sys.executable, "-c", CODE.format(names=UNWANTED)]
        seconds, *found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert found == ["False"] * len(UNWANTED)
        times.append(float(seconds))
        if times[-1] < 2:
            break
    assert min(times) < 2
