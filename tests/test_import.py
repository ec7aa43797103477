"""Importing the library is quick and brings along nothing that only some users need."""

import subprocess
import sys

CODE = """
import sys, time
import redimnet_jax
print(time.process_time(), *(name in sys.modules for name in {names}))
"""
UNWANTED = ("torch", "tensorflow", "librosa", "orbax.checkpoint", "grain", "matplotlib", "scipy", "sklearn")


def test_import_is_quick_and_light():
    command = [sys.executable, "-c", CODE.format(names=UNWANTED)]
    seconds, *found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert found == ["False"] * len(UNWANTED)
    # Processor time, the interpreter's start included: other tests may be waiting for the same cores.
    assert float(seconds) < 2
