"""Losses over classes against independent formulas in float64, and at the edges of their margins."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusal

from redimnet_jax.losses.classification import (
    AAMSoftmax,
    AMSoftmax,
    SphereFace2,
    SubcenterAAM,
    farther,
    is_nearest,
    nearer,
)
from redimnet_jax.numerics import unit

CLASSES, DIM = 7, 8
LOSSES = (
    AAMSoftmax(),
    AAMSoftmax(margin=0.5, easy_margin=True),
    AMSoftmax(margin=0.3, scale=20.0),
    SubcenterAAM(),
    SubcenterAAM(margin=0.3, centers=1, top_k=2, penalty=0.2),
    SubcenterAAM(margin=0.0, top_k=100),
    SphereFace2(),
    SphereFace2(margin_type="A"),
    SphereFace2(margin=0.4, margin_type="A", balance=0.4, power=2.0),
)


def name(loss) -> str:
    changed = [f"{f.name}={getattr(loss, f.name)}" for f in dataclasses.fields(loss)]
    return f"{type(loss).__name__}({','.join(changed)})"


def independent(loss, embeddings, labels, parameters, margin) -> float:
    """The mean loss in float64 from angles, an utterance and a class at a time."""
    prototypes = np.asarray(parameters["prototypes"], np.float64).reshape(CLASSES, -1, DIM)
    total = 0.0
    for e, label in zip(embeddings, labels, strict=True):
        units = prototypes / np.linalg.norm(prototypes, axis=2, keepdims=True)
        angle = np.arccos(np.clip((units @ e / np.linalg.norm(e)).max(axis=1), -1, 1))
        if isinstance(loss, SphereFace2):
            total += binary(loss, angle, label, float(parameters["bias"]), margin)
            continue
        logits = np.cos(angle)
        if isinstance(loss, SubcenterAAM):
            others = sorted((a, k) for k, a in enumerate(angle) if k != label)
            for _, k in others[: loss.top_k]:
                penalty = loss.penalty * (margin / loss.margin if loss.margin else 1)
                turned = angle[k] < penalty
                logits[k] = logits[k] + 1 - np.cos(penalty) if turned else np.cos(angle[k] - penalty)
        if isinstance(loss, AMSoftmax):
            logits[label] -= margin
        elif loss.easy_margin:
            logits[label] = np.cos(angle[label] + margin) if angle[label] < np.pi / 2 else np.cos(angle[label])
        elif angle[label] < np.pi - margin:
            logits[label] = np.cos(angle[label] + margin)
        else:
            logits[label] = np.cos(angle[label]) - margin * np.sin(margin)
        logits *= loss.scale
        total += np.log(np.sum(np.exp(logits - max(logits)))) + max(logits) - logits[label]
    return total / len(labels)


def binary(loss, angle, label, bias, margin) -> float:
    def g(z):
        half = (z + 1) / 2
        return 2 * np.sign(half) * abs(half) ** loss.power - 1

    total = 0.0
    for k, a in enumerate(angle):
        sign = 1 if k == label else -1
        if loss.margin_type == "C":
            value = g(np.cos(a)) - sign * margin
        else:
            within = 0 <= a + sign * margin <= np.pi
            value = g(np.cos(a + sign * margin) if within else np.cos(a) - sign * (1 - np.cos(margin)))
        part = np.log1p(np.exp(-sign * (loss.scale * value + bias)))
        total += part * (loss.balance if k == label else 1 - loss.balance)
    return total


@functools.partial(jax.jit, static_argnums=0)
def evaluated(loss, embeddings, labels, parameters, margin=None):
    """(value, gradients of embeddings and parameters)."""
    return jax.value_and_grad(loss, argnums=(0, 2))(embeddings, labels, parameters, margin)


def batch(loss):
    rng = np.random.default_rng(0)
    parameters = loss.parameters(CLASSES, DIM, jax.random.key(0))
    if "bias" in parameters:
        parameters["bias"] = jnp.asarray(1.5)
    embeddings, labels = rng.standard_normal((40, DIM)), rng.integers(0, CLASSES, 40)
    first = np.asarray(parameters["prototypes"]).reshape(CLASSES, -1, DIM)[:, 0]
    first = first / np.linalg.norm(first, axis=1, keepdims=True)
    # Some lie almost opposite to their class, where the margin passes pi, and some almost on another.
    embeddings[:5] = -first[labels[:5]] + 0.01 * rng.standard_normal((5, DIM))
    embeddings[5:10] = first[(labels[5:10] + 1) % CLASSES] + 0.01 * rng.standard_normal((5, DIM))
    return jnp.asarray(embeddings, jnp.float32), jnp.asarray(labels), parameters


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES, ids=name)
def test_values_and_gradients(loss):
    """Gradients along random directions, against differences of the independent formula."""
    embeddings, labels, parameters = batch(loss)
    value, gradients = evaluated(loss, embeddings, labels, parameters)
    assert value.shape == () and value.dtype == jnp.float32
    x = {"embeddings": np.asarray(embeddings, np.float64)} | {
        key: np.asarray(array, np.float64) for key, array in parameters.items()
    }
    slopes = {"embeddings": gradients[0]} | gradients[1]

    def of(x) -> float:
        return independent(loss, x["embeddings"], np.asarray(labels), x, loss.margin)

    assert float(value) == pytest.approx(of(x), rel=2e-5)
    rng = np.random.default_rng(1)
    for key, array in x.items():
        direction = rng.standard_normal(array.shape)
        step = 1e-6
        ahead, behind = (of(x | {key: array + sign * step * direction}) for sign in (1, -1))
        ours = float(np.sum(np.asarray(slopes[key], np.float64) * direction))
        assert ours == pytest.approx((ahead - behind) / (2 * step), rel=2e-3, abs=2e-4), key


@pytest.mark.parametrize("loss", LOSSES, ids=name)
def test_gradients_are_finite_at_the_ends(loss):
    """Embeddings on their prototype, opposite to it, on another's, and of length zero."""
    _, _, parameters = batch(loss)
    shape = parameters["prototypes"].shape
    corners = jnp.eye(CLASSES, DIM)
    parameters["prototypes"] = jnp.broadcast_to(corners.reshape(CLASSES, *(1,) * (len(shape) - 2), DIM), shape)
    embeddings = jnp.concatenate([corners, -corners, corners[::-1], jnp.zeros((40 - 3 * CLASSES, DIM))])
    value, gradients = evaluated(loss, embeddings, jnp.arange(40) % CLASSES, parameters)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradients)))


@pytest.mark.slow
def test_angles_that_a_margin_turns():
    cosine = jnp.linspace(-1.0, 1.0, 2001)
    for angle in (0.1, 0.5, 1.4):
        for shifted, outside in ((farther(cosine, angle, 1 - np.cos(angle)), 1), (nearer(cosine, angle), -1)):
            # Rising, without a jump, and on the side where a margin belongs.
            assert (np.diff(shifted) > -1e-6).all() and np.abs(np.diff(shifted)).max() < 0.05
            assert (outside * (cosine - shifted) > -1e-6).all()
        assert float(nearer(jnp.ones(1), angle)[0]) == pytest.approx(2 - np.cos(angle), abs=1e-6)


def test_a_margin_in_place_of_the_full_one():
    """The penalty of the nearest other classes grows with it."""
    for full, half in (
        (SphereFace2(margin=0.4), SphereFace2(margin=0.2)),
        (SubcenterAAM(margin=0.4, penalty=0.1), SubcenterAAM(margin=0.2, penalty=0.05)),
    ):
        value = jax.jit(full)
        let_in = float(value(*batch(full), 0.2))
        assert let_in == pytest.approx(float(jax.jit(half)(*batch(full), 0.2)), rel=1e-6)
        assert let_in < float(value(*batch(full), 0.4))


def test_official_hyperparameters_of_sphereface2():
    assert SphereFace2() == SphereFace2(0.2, 32.0, "C", 0.7, 3.0)
    assert SphereFace2(margin_type="A").margin == 0.15


def test_accuracy_is_of_the_nearest_class_without_margin():
    loss = SubcenterAAM(margin=1.0, centers=2)
    parameters = {"prototypes": jnp.eye(6).reshape(3, 2, 6)}
    embeddings = jnp.eye(6)
    assert float(loss.with_accuracy(embeddings, jnp.array([0, 0, 1, 1, 2, 2]), parameters)[1]) == 1.0
    assert float(loss.with_accuracy(embeddings, jnp.array([0, 0, 1, 2, 2, 1]), parameters)[1]) == pytest.approx(4 / 6)


def test_the_first_of_several_nearest_classes_counts():
    cosine = jnp.array([[0.5, 0.5, 0.1], [0.5, 0.5, 0.1], [0.2, 0.7, 0.7], [0.3, 0.3, 0.3], [0.9, 0.1, jnp.nan]])
    for labels in ([0, 0, 1, 0, 0], [1, 1, 2, 2, 2], [2, 0, 1, 1, 1]):
        argmax = [False if np.isnan(row).any() else row.argmax() == k for row, k in zip(cosine, labels, strict=True)]
        np.testing.assert_array_equal(is_nearest(cosine, jnp.array(labels)), argmax)
    assert not is_nearest(cosine, jnp.array([-1, 3, -1, 3, -1])).any()


def test_a_label_out_of_range():
    for loss in (AAMSoftmax(), SphereFace2()):
        embeddings, labels, parameters = batch(loss)
        for wrong in (-1, CLASSES):
            told = refusal(loss, embeddings, labels.at[3].set(wrong), parameters)
            assert str(wrong) in told and f"0 to {CLASSES - 1}" in told
            assert np.isnan(evaluated(loss, embeddings, labels.at[3].set(wrong), parameters)[0])


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: AAMSoftmax(margin=-0.1), "margin"),
        (lambda: AAMSoftmax(margin=2.0), "margin"),
        (lambda: AMSoftmax(scale=0.0), "scale"),
        (lambda: SubcenterAAM(centers=0), "centers"),
        (lambda: SphereFace2(margin_type="B"), "margin_type"),
        (lambda: SphereFace2(balance=1.0), "balance"),
    ],
)
def test_impossible_options(make, option):
    assert f"option {option}" in refusal(make)


def test_one_class_alone_is_no_classification():
    assert "1 class" in refusal(AAMSoftmax().lowest, 1, 0.2, speakers=2, crops=2)


def test_unit_length():
    x = unit(jnp.array([[3.0, 4.0], [0.0, 0.0], [1e-3, 0.0]]))
    np.testing.assert_allclose(x, [[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]], rtol=1e-6)
