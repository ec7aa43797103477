"""Losses over the crops of a batch against loops in float64, and batches that cannot be compared."""

import functools
from itertools import product

import cpu_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusal

from redimnet_jax.losses.pairs import GE2E, AngularPrototypical, SupervisedContrastive, Triplet

DIM = 5
LABELS = np.array([7, 2, 2, 0, 7, 5, 0, 5, 2, 7, 0, 5, 5])  # no order, and not as many of each
LOSSES = (
    Triplet(margin=0.5),
    Triplet(margin=0.5, mining="hard"),
    Triplet(margin=0.5, mining="all"),
    SupervisedContrastive(temperature=0.2),
    GE2E(),
    GE2E(form="contrast", scale=3.0, bias=-1.0),
    AngularPrototypical(),
)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def triplet(loss, x, labels, parameters):
    d, n = np.sum((unit(x)[:, None] - unit(x)[None]) ** 2, axis=2), len(x)
    others = {a: [k for k in range(n) if labels[k] != labels[a]] for a in range(n)}
    pairs = [(a, p) for a, p in product(range(n), repeat=2) if a != p and labels[a] == labels[p]]
    if loss.mining == "hard":
        far = {a: max(d[a, p] for b, p in pairs if b == a) for a in range(n)}
        hinges = [max(0, loss.margin + far[a] - min(d[a, k] for k in others[a])) for a in range(n)]
    elif loss.mining == "all":
        hinges = [max(0, loss.margin + d[a, p] - d[a, k]) for a, p in pairs for k in others[a]]
        hinges = [hinge for hinge in hinges if hinge > 0]
    else:
        hinges = []
        for a, p in pairs:
            farther = [d[a, k] for k in others[a] if d[a, k] > d[a, p]]
            chosen = min(farther) if farther else max(d[a, k] for k in others[a])
            hinges.append(max(0, loss.margin + d[a, p] - chosen))
    return np.mean(hinges)


def supervised_contrastive(loss, x, labels, parameters):
    rows = []
    for i, e in enumerate(unit(x)):
        similar = {k: e @ unit(x)[k] / loss.temperature for k in range(len(x)) if k != i}
        total = np.log(sum(np.exp(value) for value in similar.values()))
        rows.append(np.mean([total - value for k, value in similar.items() if labels[k] == labels[i]]))
    return np.mean(rows)


def ge2e(loss, x, labels, parameters):
    w, b, rows = float(parameters["scale"]), float(parameters.get("bias", 0.0)), []
    for i, e in enumerate(unit(x)):
        similar = {}
        for speaker in set(labels):
            members = [k for k in range(len(x)) if labels[k] == speaker and k != i]
            similar[speaker] = w * (e @ unit(np.mean(unit(x)[members], axis=0))) + b
        own = similar.pop(labels[i])
        if loss.form == "softmax":
            rows.append(np.log(np.exp(own) + sum(np.exp(value) for value in similar.values())) - own)
        else:
            rows.append(1 - 1 / (1 + np.exp(-own)) + max(1 / (1 + np.exp(-value)) for value in similar.values()))
    return np.mean(rows)


def angular_prototypical(loss, x, labels, parameters):
    w, speakers = float(parameters["scale"]), list(dict.fromkeys(labels))
    members = {speaker: [k for k in range(len(x)) if labels[k] == speaker] for speaker in speakers}
    prototypes = unit(np.array([np.mean(x[members[speaker][1:]], axis=0) for speaker in speakers]))
    rows = []
    for index, speaker in enumerate(speakers):
        logits = w * prototypes @ unit(x[members[speaker][0]])
        rows.append(np.log(np.sum(np.exp(logits))) - logits[index])
    return np.mean(rows)


INDEPENDENT = {
    Triplet: triplet,
    SupervisedContrastive: supervised_contrastive,
    GE2E: ge2e,
    AngularPrototypical: angular_prototypical,
}


def batch(loss):
    x = jnp.asarray(np.random.default_rng(3).standard_normal((len(LABELS), DIM)), jnp.float32)
    return x, jnp.asarray(LABELS), loss.parameters(8, DIM, jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def evaluated(loss, embeddings, labels, parameters):
    return jax.value_and_grad(loss, argnums=(0, 2))(embeddings, labels, parameters)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_values_and_gradients(loss):
    """Gradients along random directions, against differences of the independent formula."""
    embeddings, labels, parameters = batch(loss)
    value, (gradient, slopes) = evaluated(loss, embeddings, labels, parameters)
    formula = functools.partial(INDEPENDENT[type(loss)], loss, labels=LABELS.tolist())
    x = {"x": np.asarray(embeddings, np.float64)} | {key: np.float64(array) for key, array in parameters.items()}

    def of(x) -> float:
        return formula(x["x"], parameters=x)

    assert value.dtype == jnp.float32 and float(value) == pytest.approx(of(x), rel=1e-5)
    assert float(value) > 0.01
    rng = np.random.default_rng(1)
    for key, slope in {"x": gradient, **slopes}.items():
        direction, step = rng.standard_normal(slope.shape), 1e-6
        ahead, behind = (of(x | {key: x[key] + sign * step * direction}) for sign in (1, -1))
        ours = float(np.sum(np.asarray(slope, np.float64) * direction))
        assert abs(ours) > 1e-5
        assert ours == pytest.approx((ahead - behind) / (2 * step), rel=1e-3, abs=1e-6), key


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_gradients_are_finite_where_embeddings_coincide(loss):
    """All crops alike, then speakers apart and alike within, then all of length zero."""
    labels, parameters = batch(loss)[1:]
    for embeddings in (jnp.ones((13, DIM)), jax.nn.one_hot(labels % DIM, DIM), jnp.zeros((13, DIM))):
        assert all(
            np.isfinite(leaf).all() for leaf in jax.tree.leaves(evaluated(loss, embeddings, labels, parameters))
        )


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES[:3], ids=str)
def test_triplets_at_the_edge_of_the_margin(loss):
    """Speakers whose squared distance is the margin or more cost nothing, nearer ones the difference."""
    parameters, labels = {}, jnp.asarray(np.arange(13) % 2)

    def apart(squared):
        angle = np.arccos(1 - squared / 2)
        corners = jnp.array([[1.0, 0.0], [np.cos(angle), np.sin(angle)]])
        return float(evaluated(loss, corners[labels], labels, parameters)[0])

    assert apart(0.51) == 0.0
    assert apart(0.4) == pytest.approx(0.1, abs=1e-5)
    assert apart(1e-9) == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_batches_that_cannot_be_compared(loss):
    embeddings, labels, parameters = batch(loss)
    told = refusal(loss, embeddings, jnp.zeros(13, jnp.int32), parameters)
    assert "1 speaker" in told
    told = refusal(loss, embeddings, labels.at[1].set(4), parameters)
    assert "1 of the 5 speakers" in told and "label 4" in told
    # In a program that does not know the labels: no silent number where nothing can be compared.
    assert np.isnan(evaluated(loss, embeddings, jnp.arange(13), parameters)[0])
    if not isinstance(loss, SupervisedContrastive | AngularPrototypical):
        assert np.isnan(evaluated(loss, embeddings, jnp.zeros(13, jnp.int32), parameters)[0])


def test_a_speaker_with_one_crop_only_is_left_out_of_a_compiled_mean():
    loss = SupervisedContrastive()
    embeddings, labels, _ = batch(loss)
    labels = labels.at[1].set(4)
    rows = [i for i in range(13) if i != 1]
    units, labels = unit(np.asarray(embeddings, np.float64)), np.asarray(labels)
    wanted = []
    for i in rows:
        similar = np.delete(units @ units[i] / loss.temperature, i)
        same = np.delete(labels == labels[i], i)
        wanted.append(np.mean(np.log(np.sum(np.exp(similar))) - similar[same]))
    assert float(evaluated(loss, embeddings, jnp.asarray(labels), {})[0]) == pytest.approx(np.mean(wanted), rel=1e-5)


@pytest.mark.slow
def test_accuracy_is_of_the_nearest_other_crop():
    x = jnp.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [0.95, 0.06]])
    assert float(Triplet().with_accuracy(x, jnp.array([0, 0, 1, 1, 1]), {})[1]) == pytest.approx(2 / 5)
    assert float(Triplet().with_accuracy(x, jnp.array([0, 0, 1, 1, 0]), {})[1]) == 1.0


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: Triplet(mining="easy"), "mining"),
        (lambda: Triplet(margin=4.0), "margin"),
        (lambda: SupervisedContrastive(temperature=0.0), "temperature"),
        (lambda: GE2E(form="sigmoid"), "form"),
        (lambda: AngularPrototypical(scale=-1.0), "scale"),
    ],
)
def test_impossible_options(make, option):
    assert f"option {option}" in refusal(make)


@pytest.mark.slow
def test_comparisons_reach_over_devices():
    """In a process of its own, since the number of devices is fixed when JAX starts."""
    cpu_devices.run(__file__, devices=4)


if __name__ == "__main__":
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    embeddings = np.random.default_rng(0).standard_normal((8, DIM)).astype(np.float32)
    # Every device holds one crop of two speakers.
    labels = np.array([0, 1, 2, 3, 0, 1, 2, 3])
    for loss in (Triplet(mining="hard"), GE2E()):
        one = evaluated(loss, embeddings, labels, loss.parameters(8, DIM, jax.random.key(0)))
        many = evaluated(
            loss, *(jax.device_put(x, rows) for x in (embeddings, labels)), loss.parameters(8, DIM, jax.random.key(0))
        )
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
