"""The Matryoshka heads: their prototypes, the weighted loss, the accuracy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from refusals import refusal

from redimnet_jax.losses.classification import AAMSoftmax, SphereFace2, SubcenterAAM
from redimnet_jax.losses.doubt import Doubt
from redimnet_jax.losses.heads import Heads, inconsistency
from redimnet_jax.losses.pairs import GE2E, Triplet

DIMS, CLASSES = (2, 4, 6), 7
OPTIONS = {"margin": 0.2}


def heads(shared: bool = False, criterion=None) -> Heads:
    return Heads(CLASSES, DIMS, criterion, shared=shared, rngs=nnx.Rngs(0))


@functools.partial(jax.jit, static_argnums=0, static_argnames=("consistency", "gradient_factors", "doubt"))
def _loss(graph, state, embedding, labels, weights, **options):
    return nnx.merge(graph, state).loss(embedding, labels, weights=weights, **options)


def loss_of(heads: Heads, embedding, labels, *, weights, **options):
    graph, state = nnx.split(heads)
    return _loss(graph, state, embedding, labels, weights, **options)


def prototypes(heads: Heads, index: int):
    return heads.of(index)["prototypes"]


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((16, 6)), jnp.float32), jnp.asarray(rng.integers(0, CLASSES, 16))


def test_prototypes_are_of_each_dimension_or_one_matrix_sliced():
    own, shared = heads(), heads(shared=True)
    assert [p["prototypes"].shape for p in own.parameters] == [(7, 2), (7, 4), (7, 6)]
    assert [p["prototypes"].shape for p in shared.parameters] == [(7, 6)]
    for index, dim in enumerate(DIMS):
        assert prototypes(own, index).shape == prototypes(shared, index).shape == (CLASSES, dim)
        assert np.array_equal(prototypes(shared, index), shared.parameters[0]["prototypes"][...][:, :dim])
    # Heads of their own are drawn each for itself.
    assert not np.array_equal(prototypes(own, 2)[:, :2], prototypes(own, 0))


@pytest.mark.slow
@pytest.mark.parametrize("easy_margin", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_loss_is_the_weighted_mean_over_the_prefixes(batch, shared, easy_margin):
    criterion, options = AAMSoftmax(easy_margin=easy_margin), OPTIONS
    of, (embedding, labels) = heads(shared, criterion), batch
    jitted = jax.jit(criterion)
    loss, figures = loss_of(of, embedding, labels, weights=(1.0, 2.0, 5.0), **options)
    each = [jitted(embedding[:, :dim], labels, of.of(i), **options) for i, dim in enumerate(DIMS)]
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
    full = prototypes(of, 2)[labels]  # each on its prototype
    _, figures = loss_of(of, full, labels, weights=(1, 1, 1), margin=1.4)
    assert figures["accuracy"].dtype == jnp.float32
    assert float(figures["accuracy"][2]) == 1.0
    wrong = full.at[:4].set(prototypes(of, 2)[(labels[:4] + 1) % CLASSES])
    _, figures = loss_of(of, wrong, labels, weights=(1, 1, 1), **OPTIONS)
    assert float(figures["accuracy"][2]) == 0.75
    unit = [p / np.linalg.norm(p, axis=1, keepdims=True) for p in (np.asarray(prototypes(of, i)) for i in range(3))]
    nearest = [np.mean((np.asarray(wrong)[:, :d] @ p.T).argmax(1) == labels) for d, p in zip(DIMS, unit, strict=True)]
    np.testing.assert_allclose(figures["accuracy"], nearest)


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_heads_start_at_the_means_of_unit_prefixes(shared):
    heads = Heads(4, (2, 3), shared=shared, rngs=nnx.Rngs(0))
    before = [np.asarray(prototypes(heads, index)) for index in range(2)]
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
            np.testing.assert_allclose(
                prototypes(heads, index)[label], units[labels == label].mean(0)[:dim], atol=1e-6
            )
        np.testing.assert_array_equal(prototypes(heads, index)[1], before[index][1])


def test_one_of_several_sub_centers_starts_at_the_mean():
    heads = Heads(3, (2,), SubcenterAAM(centers=2), rngs=nnx.Rngs(0))
    before = np.asarray(prototypes(heads, 0))
    assert heads.start_at_means(np.array([[3.0, 4.0], [0.0, 2.0]]), np.array([2, 2])) == 1
    after = np.asarray(prototypes(heads, 0))
    np.testing.assert_allclose(after[2, 0], [0.3, 0.9], rtol=1e-6)
    np.testing.assert_array_equal(after[2, 1], before[2, 1])
    np.testing.assert_array_equal(after[:2], before[:2])


def test_parameters_are_those_of_the_loss():
    assert [set(p) for p in heads(criterion=SphereFace2()).parameters] == [{"prototypes", "bias"}] * 3
    shared = heads(shared=True, criterion=SphereFace2())
    assert shared.of(0)["prototypes"].shape == (7, 2) and shared.of(0)["bias"].shape == ()
    assert shared.have_prototypes
    assert [set(p) for p in heads(criterion=GE2E()).parameters] == [{"scale"}] * 3
    without = heads(criterion=Triplet())
    assert not without.have_prototypes and jax.tree.leaves(nnx.state(without)) == []


@pytest.mark.slow
def test_a_loss_without_parameters(batch):
    """The state of such heads is empty; the loss is that of each prefix."""
    embedding, labels = batch[0], jnp.arange(16) // 2
    of = Heads(8, DIMS, Triplet(), rngs=nnx.Rngs(0))
    loss, figures = loss_of(of, embedding, labels, weights=(1, 1, 1))
    jitted = jax.jit(Triplet())
    np.testing.assert_allclose(figures["loss"], [jitted(embedding[:, :dim], labels, {}) for dim in DIMS], rtol=1e-5)
    assert float(loss) == pytest.approx(float(figures["loss"].mean()), rel=1e-6)


def test_consistency_teaches_the_shorter_prefixes_alone(batch):
    of, (embedding, labels) = heads(), batch
    x = np.asarray(embedding, np.float64)

    def scores(dim):
        units = x[:, :dim] / np.linalg.norm(x[:, :dim], axis=1, keepdims=True)
        return (units @ units.T)[~np.eye(16, dtype=bool)]

    wanted = np.mean([np.mean((scores(dim) - scores(6)) ** 2) for dim in (2, 4)])
    assert float(jax.jit(inconsistency, static_argnums=1)(embedding, DIMS)) == pytest.approx(wanted, rel=1e-5)
    total, figures = loss_of(of, embedding, labels, weights=(1, 1, 1), consistency=3.0)
    assert float(total - figures["loss"].mean()) == pytest.approx(3 * wanted, rel=1e-4)
    gradient = np.asarray(jax.jit(jax.grad(inconsistency), static_argnums=1)(embedding, DIMS))
    assert (gradient[:, 4:] == 0).all() and (gradient[:, :4] != 0).all()


def test_labels_that_the_heads_do_not_have(batch):
    for criterion in (AAMSoftmax(), Triplet()):
        told = refusal(heads(criterion=criterion).loss, batch[0], batch[1].at[0].set(7), weights=(1, 1, 1))
        assert "7" in told and "0 to 6" in told


def test_without_options_the_loss_is_the_plain_one_to_the_bit(batch):
    """The loss and gradients of the plain formula, written out, as the heads had them before they had options."""
    of, (embedding, labels) = heads(), batch
    graph, state = nnx.split(of)

    def plain(embedding, state):
        own = nnx.merge(graph, state, copy=True)
        pairs = [own.criterion.with_accuracy(embedding[:, :d], labels, own.of(i), 0.2) for i, d in enumerate(DIMS)]
        share = jnp.asarray((1.0, 2.0, 3.0), jnp.float32)
        return jnp.sum(jnp.stack([loss for loss, _ in pairs]) * share) / jnp.sum(share)

    def ours(embedding, state):
        return nnx.merge(graph, state, copy=True).loss(embedding, labels, weights=(1.0, 2.0, 3.0), margin=0.2)[0]

    results = [jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(embedding, state) for f in (plain, ours)]
    one, other = ([np.asarray(x).tobytes() for x in jax.tree.leaves(result)] for result in results)
    assert one == other


@pytest.mark.slow
@pytest.mark.parametrize("criterion", [AAMSoftmax(), SubcenterAAM(top_k=2, penalty=0.1), Triplet()], ids=str)
def test_every_prefix_has_its_margin(batch, criterion):
    embedding, labels = batch[0], jnp.arange(16) // 3
    margins = (0.1, 0.2, 0.4)
    of = Heads(CLASSES, DIMS, criterion, margins=margins, rngs=nnx.Rngs(0))
    plain = Heads(CLASSES, DIMS, criterion, rngs=nnx.Rngs(0))
    figures = loss_of(of, embedding, labels, weights=(1, 1, 1))[1]["loss"]
    for index, margin in enumerate(margins):
        alone = Heads(CLASSES, DIMS, type(criterion)(margin=margin), rngs=nnx.Rngs(0))
        if isinstance(criterion, SubcenterAAM):
            alone = Heads(CLASSES, DIMS, SubcenterAAM(margin, top_k=2, penalty=0.1), rngs=nnx.Rngs(0))
        expected = loss_of(alone, embedding, labels, weights=(1, 1, 1))[1]["loss"][index]
        assert float(figures[index]) == pytest.approx(float(expected), rel=1e-6)
    assert figures[2] > loss_of(plain, embedding, labels, weights=(1, 1, 1))[1]["loss"][2]
    # A schedule gives one for each too.
    ramped = loss_of(of, embedding, labels, weights=(1, 1, 1), margin=(0.1, 0.2, 0.4))[1]["loss"]
    np.testing.assert_allclose(ramped, figures, rtol=1e-6)


def test_gradients_of_late_elements_are_scaled(batch):
    of, (embedding, labels) = heads(), batch

    def gradient(factors):
        value, slope = jax.value_and_grad(
            lambda e: loss_of(of, e, labels, weights=(1, 1, 1), gradient_factors=factors)[0]
        )(embedding)
        return float(value), np.asarray(slope)

    (loss, plain), (same, scaled) = gradient(None), gradient((0.5, 1.0, 3.0))
    assert loss == same
    np.testing.assert_allclose(scaled, plain * np.repeat((0.5, 1.0, 3.0), 2), rtol=1e-5)


def test_examples_in_doubt_train_nothing(batch):
    """The loss is that of the batch without the two examples whose labels are wrong."""
    of, (_, labels) = heads(), batch
    embedding = prototypes(of, 2)[labels]
    wrong = labels.at[:2].set((labels[:2] + 1) % CLASSES)
    options = {"weights": (1, 1, 1), "margin": 0.2}
    loss, figures = loss_of(of, embedding, wrong, doubt=Doubt(trim=2 / 16), **options)
    clean, expected = loss_of(of, embedding[2:], labels[2:], **options)
    assert float(loss) == pytest.approx(float(clean), rel=1e-5)
    np.testing.assert_allclose(figures["loss"], expected["loss"], rtol=1e-5)
    slope = jax.grad(lambda e: loss_of(of, e, wrong, doubt=Doubt(trim=2 / 16), **options)[0])(embedding)
    assert (np.asarray(slope)[:2] == 0).all() and (np.asarray(slope)[2:] != 0).any(axis=1).all()


def test_examples_of_minor_sub_centers_weigh_less(batch):
    of = Heads(CLASSES, DIMS, SubcenterAAM(centers=2, top_k=0), rngs=nnx.Rngs(0))
    labels = batch[1]
    embedding = prototypes(of, 2)[labels, 0].at[:3].set(prototypes(of, 2)[labels[:3], 1])
    options = {"weights": (1, 1, 1)}
    without, _ = loss_of(of, embedding, labels, doubt=Doubt(minor_weight=0.0), **options)
    expected, _ = loss_of(of, embedding[3:], labels[3:], **options)
    assert float(without) == pytest.approx(float(expected), rel=1e-5)
    # A batch of nothing else has no loss, and no NaN.
    nothing, _ = loss_of(of, embedding[:3], labels[:3], doubt=Doubt(minor_weight=0.0), **options)
    assert float(nothing) == 0
