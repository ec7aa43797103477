"""Importing the library is quick and brings along nothing that only some users need."""

import json
import subprocess
import sys

import pytest

CODE = """
import json, sys, time
start = time.process_time()
import jax, flax.nnx
third = time.process_time()
before = set(sys.modules)
import redimnet_jax
own = time.process_time()
print(json.dumps([third - start, own - third, sorted(before), sorted(sys.modules)]))
"""
UNWANTED = {"torch", "tensorflow", "librosa", "orbax.checkpoint", "grain", "matplotlib", "scipy", "sklearn"}


@pytest.mark.slow
def test_import_is_quick_and_light():
    ended = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    third, own, before, after = json.loads(ended.stdout)
    assert not UNWANTED & set(after)
    # Of other packages than JAX, it takes along what JAX and Flax do.
    new = {name.partition(".")[0] for name in set(after) - set(before)}
    assert new - sys.stdlib_module_names <= {"jax", "redimnet_jax", "tqdm"}
    # Against their processor time, not in seconds: machines differ, and other tests may wait for the same cores.
    assert own < third / 2
