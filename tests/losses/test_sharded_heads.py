"""Losses, accuracies and gradients of prototypes that four devices share: those of one device, in three exchanges."""

import re

import cpu_devices
import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from redimnet_jax import sharding
from redimnet_jax.losses.classification import AAMSoftmax, AMSoftmax, SphereFace2, SubcenterAAM
from redimnet_jax.losses.doubt import Doubt
from redimnet_jax.losses.heads import Heads

# The last of four devices has fewer classes than the others.
DEVICES, CLASSES, BATCH, DIMS = 4, 21, 8, (4, 6)
CRITERIA = (
    AAMSoftmax(easy_margin=True),
    AMSoftmax(),
    SubcenterAAM(centers=2, top_k=3),
    SphereFace2(),
    SphereFace2(margin_type="A"),
)


def results(criterion, devices: int, *batches: np.ndarray, margins=None, **options):
    """[(loss, figures and gradients)] of each batch of labels on `devices`, and the text of the program."""
    heads = Heads(CLASSES, DIMS, criterion, margins=margins, rngs=nnx.Rngs(0))
    options = {"weights": (1.0, 2.0), "margin": margins or 0.2} | options
    graph, parameters = nnx.split(heads)
    # Some prototypes are equal, so that the first of the nearest counts.
    embedding = np.random.default_rng(0).standard_normal((BATCH, DIMS[-1]), np.float32)
    parameters = jax.tree.map(lambda x: x.at[7].set(x[3]) if x.ndim else x + 0.5, parameters)
    embedding[0] = parameters["parameters"][1]["prototypes"][...].reshape(CLASSES, -1, DIMS[-1])[3, 0]

    def loss(embedding, parameters, labels):
        return nnx.merge(graph, parameters, copy=True).loss(embedding, labels, **options)

    mesh = Mesh(np.array(jax.devices()[:devices]), (sharding.AXIS,))
    rows = sharding.by_rows(mesh)
    with jax.set_mesh(mesh):
        program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), in_shardings=(rows, None, rows))
        compiled = program.lower(embedding, parameters, batches[0]).compile()
        found = [jax.device_get(compiled(embedding, parameters, labels)) for labels in batches]
        return found, compiled.as_text() or ""


def devices_agree() -> None:
    sharding.MIN_SHARDED_CLASSES = 2
    labels = np.array([3, 7, 20, 0, 5, 6, 15, 3], np.int32)
    for criterion in CRITERIA:
        (one,), _ = results(criterion, 1, labels)
        (many, broken), text = results(criterion, DEVICES, labels, np.where(labels == 20, CLASSES, labels))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), one, many)
        exchanged = re.findall(r" (all-reduce|all-gather|reduce-scatter)(?:-start)?\(", text)
        if type(criterion) in (AAMSoftmax, AMSoftmax):
            # With the gradients of the prototypes, which here every device gets whole.
            assert sorted(set(exchanged)) == ["all-gather", "all-reduce", "reduce-scatter"], exchanged
            assert exchanged.count("reduce-scatter") == 1
        assert one[0][1]["accuracy"].max() > 0
        assert np.isnan(broken[0][0])
    options = {"margins": (0.1, 0.3), "gradient_factors": (0.5, 2.0), "weights": (0.0, 2.0)}
    for criterion, minor_weight in ((SubcenterAAM(centers=2, top_k=3), 0.25), (SphereFace2(), 1.0)):
        doubt = Doubt(trim=0.25, minor_weight=minor_weight)
        (one,), _ = results(criterion, 1, labels, doubt=doubt, **options)
        (many,), _ = results(criterion, DEVICES, labels, doubt=doubt, **options)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), one, many)
        assert (one[1][0] == 0).all(axis=1).sum() == 2


@pytest.mark.slow
def test_four_devices_agree_with_one():
    cpu_devices.call(__file__, "devices_agree", DEVICES)


if __name__ == "__main__":
    devices_agree()
