"""Gradient sums over two TPU slices, as libtpu compiles them: each crosses the network between slices once."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

# In a process of its own, since the plugin is chosen when JAX starts.
PROGRAM = """
import re, jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from redimnet_jax import sharding

devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2", num_slices=2).devices
jax.devices = lambda: devices
mesh = sharding.mesh()
gradient = jax.grad(lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2))
shapes = jax.ShapeDtypeStruct((512, 512), jnp.float32), jax.ShapeDtypeStruct((1024, 512), jnp.float32)
whole, rows = sharding.replicated(mesh), sharding.by_rows(mesh)
jitted = jax.jit(gradient, in_shardings=(whole, rows), out_shardings=whole)
print(jitted.trace(*shapes).lower(lowering_platforms=("tpu",)).compile().as_text())
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_gradient_crosses_between_slices_once():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, timeout=300, check=True
    )
    kinds = "reduce-scatter|all-reduce|all-gather|send"
    operations = re.findall(rf"= \(?(\w+\[[\d,]*\])[^=]*? ({kinds})\((.*)", ran.stdout)
    by_kind = {kind: (shape, rest) for shape, kind, rest in operations}
    assert len(operations) == 3 and by_kind.keys() == {"reduce-scatter", "send", "all-gather"}
    # Within a slice of four chips ...
    assert by_kind["reduce-scatter"][0] == "f32[128,512]"
    assert by_kind["all-gather"][0] == "f32[512,512]"
    for kind in ("reduce-scatter", "all-gather"):
        assert "replica_groups={{0,1,2,3}}" in by_kind[kind][1]
    # ... and a quarter of the gradient from every chip to the one that has the same quarter in the other slice.
    shape, rest = by_kind["send"]
    sides = [int(side) for side in re.findall(r"\d+", shape.partition("[")[2])]
    assert sides[0] * sides[1] * sides[2] == 512 * 512 // 4
    assert '_xla_megascale_transfer_type="ALL_REDUCE"' in rest and '_xla_megascale_target="{1,2}x{0:3}"' in rest
