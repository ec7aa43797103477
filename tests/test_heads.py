"""The Matryoshka heads: their prototypes, the weighted loss, the accuracy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from redimnet_jax.heads import Heads
from redimnet_jax.losses import aam_softmax

DIMS, CLASSES = (2, 4, 6), 7
OPTIONS = {"margin": 0.2, "scale": 30.0}


def heads(shared: bool = False) -> Heads:
    return Heads(CLASSES, DIMS, shared=shared, rngs=nnx.Rngs(0))


@functools.partial(jax.jit, static_argnums=0, static_argnames="easy_margin")
def _loss(graph, state, embedding, labels, weights, **options):
    return nnx.merge(graph, state).loss(embedding, labels, weights=weights, **options)


def loss_of(heads: Heads, embedding, labels, *, weights, **options):
    graph, state = nnx.split(heads)
    return _loss(graph, state, embedding, labels, weights, **options)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((16, 6)), jnp.float32), jnp.asarray(rng.integers(0, CLASSES, 16))


def test_prototypes_are_of_each_dimension_or_one_matrix_sliced():
    own, shared = heads(), heads(shared=True)
    assert [p.shape for p in own.prototypes] == [(7, 2), (7, 4), (7, 6)]
    assert [p.shape for p in shared.prototypes] == [(7, 6)]
    for index, dim in enumerate(DIMS):
        assert own.of(index).shape == shared.of(index).shape == (CLASSES, dim)
        assert np.array_equal(shared.of(index), shared.prototypes[0][...][:, :dim])
    # Heads of their own are drawn each for itself.
    assert not np.array_equal(own.of(2)[:, :2], own.of(0))


@pytest.mark.parametrize("easy_margin", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_loss_is_the_weighted_mean_over_the_prefixes(batch, shared, easy_margin):
    of, (embedding, labels) = heads(shared), batch
    options = OPTIONS | {"easy_margin": easy_margin}
    jitted = jax.jit(aam_softmax, static_argnames="easy_margin")
    loss, figures = loss_of(of, embedding, labels, weights=(1.0, 2.0, 5.0), **options)
    each = [jitted(embedding[:, :dim], of.of(i), labels, **options) for i, dim in enumerate(DIMS)]
    np.testing.assert_allclose(figures["loss"], each, rtol=1e-6)
    assert float(loss) == pytest.approx(float(each[0] + 2 * each[1] + 5 * each[2]) / 8, rel=1e-6)
    # Weights count by their ratios, and a weight of zero leaves a prefix out.
    assert float(loss_of(of, embedding, labels, weights=(2, 4, 10), **options)[0]) == pytest.approx(
        float(loss), rel=1e-6
    )
    assert float(loss_of(of, embedding, labels, weights=(0, 1, 0), **options)[0]) == pytest.approx(float(each[1]))


def test_prefixes_are_cut_before_they_are_normalised(batch):
    of, (embedding, labels) = heads(), batch
    louder = embedding.at[:, 4:].multiply(100.0)
    loss, again = (loss_of(of, e, labels, weights=(1, 1, 1), **OPTIONS)[1]["loss"] for e in (embedding, louder))
    assert np.array_equal(loss[:2], again[:2]) and loss[2] != again[2]
    scaled = loss_of(of, 7.0 * embedding, labels, weights=(1, 1, 1), **OPTIONS)[1]["loss"]
    np.testing.assert_allclose(scaled, loss, rtol=1e-5)


def test_accuracy_is_of_the_nearest_prototype_without_margin(batch):
    of, (_, labels) = heads(), batch
    full = of.of(2)[labels]  # each on its prototype
    _, figures = loss_of(of, full, labels, weights=(1, 1, 1), margin=1.4, scale=30.0)
    assert figures["accuracy"].dtype == jnp.float32
    assert float(figures["accuracy"][2]) == 1.0
    wrong = full.at[:4].set(of.of(2)[(labels[:4] + 1) % CLASSES])
    _, figures = loss_of(of, wrong, labels, weights=(1, 1, 1), **OPTIONS)
    assert float(figures["accuracy"][2]) == 0.75
    unit = [p / np.linalg.norm(p, axis=1, keepdims=True) for p in (np.asarray(of.of(i)) for i in range(3))]
    nearest = [np.mean((np.asarray(wrong)[:, :d] @ p.T).argmax(1) == labels) for d, p in zip(DIMS, unit, strict=True)]
    np.testing.assert_allclose(figures["accuracy"], nearest)


@pytest.mark.parametrize("shared", [False, True])
def test_the_gradient_reaches_every_prototype(batch, shared):
    embedding, labels = batch
    graph, state = nnx.split(heads(shared))

    @jax.jit
    @jax.grad
    def gradient(state):
        return nnx.merge(graph, state).loss(embedding, labels, weights=(1, 1, 1), **OPTIONS)[0]

    leaves = jax.tree.leaves(gradient(state))
    assert len(leaves) == (1 if shared else 3)
    for leaf in leaves:
        assert np.isfinite(leaf).all() and (np.abs(leaf) > 0).any(axis=1).all()


@pytest.mark.parametrize("shared", [False, True])
def test_heads_start_at_the_means_of_unit_prefixes(shared):
    heads = Heads(4, (2, 3), shared=shared, rngs=nnx.Rngs(0))
    before = [np.asarray(heads.of(index)) for index in range(2)]
    embeddings, labels = (
        np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32),
        np.array([0, 0, 2, 2, 2, 3, 0]),
    )
    assert heads.start_at_means(embeddings, labels) == 3
    for index, dim in enumerate((2, 3)):
        # A shared matrix holds the means of the widest prefix.
        width = 3 if shared else dim
        units = embeddings[:, :width] / np.linalg.norm(embeddings[:, :width], axis=1, keepdims=True)
        for label in (0, 2, 3):
            np.testing.assert_allclose(heads.of(index)[label], units[labels == label].mean(0)[:dim], atol=1e-6)
        np.testing.assert_array_equal(heads.of(index)[1], before[index][1])
