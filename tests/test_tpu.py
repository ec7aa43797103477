"""What the compiler for TPUs makes of programs of a small network, where it is installed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed: pip install '.[tpu]'"
    ),
]
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPT = """
import json, sys
import tiny, tpu
tpu.VARIANTS["small"] = ("redimnet", tiny.CONFIG | {"block_2d_type": "convnext_like", "group_divisor": 2})
tpu.DIMS = (16,)
program = sys.argv[1]
options = tpu.compiler_options(program, effort=-1.0)
print(json.dumps(tpu.compile_case(tpu.Case(program, "small", "v5e", 4, 8, 0.5, False, options), None)))
"""


CHIPS = """
import json
from jax.experimental import topologies
from redimnet_jax.nn import tpu_chip
found = {}
for name in ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"):
    kind = topologies.get_topology_desc(platform="tpu", topology_name=name).devices[0].device_kind
    with tpu_chip.compiled_for(kind):
        found[name.split(":")[0]] = tpu_chip.chip()
print(json.dumps(found))
"""


def printed(script: str, *arguments: str):
    """What `script` prints last, as JSON."""
    paths = [BENCHMARKS, Path(__file__).parent / "helpers", BENCHMARKS.parent]
    environment = {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def collectives_of(program: str) -> dict:
    return printed(SCRIPT, program)["collectives"]


def test_chips_are_known_by_their_kind():
    earlier = [False, 128]
    assert printed(CHIPS) == {"v4": earlier, "v5e": earlier, "v5p": earlier, "v6e": [True, 256]}


def test_extraction_passes_on_nothing():
    assert collectives_of("extraction") == {}


def test_a_step_passes_on_embeddings_labels_and_small_sums():
    collectives = collectives_of("step")
    assert set(collectives) == {"all-reduce", "all-gather"}
    # Of 32 crops the embeddings, 16 wide, in float32, and the labels.
    assert collectives["all-gather"]["mb"] <= 32 * (16 + 1) * 4 / 1e6
    # The network has 5,000 parameters; a dense kernel of the gradient would be larger than all of them.
    assert collectives["all-reduce"]["mb"] < 0.05
