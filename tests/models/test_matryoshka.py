"""From a pretrained projection to a Matryoshka one: nothing lost at the start, and prefixes that work."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from refusals import refusal

from redimnet_jax.models import matryoshka
from redimnet_jax.numerics import unit

WIDTH, FEATURES, SPEAKERS = 8, 24, 40


@pytest.fixture(scope="module")
def training():
    """(pooled features (utterances, FEATURES), labels) of speakers that differ most in a few directions."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(SPEAKERS), 10)
    mixing = rng.standard_normal((FEATURES, FEATURES)) * np.geomspace(3.0, 0.1, FEATURES)
    between = rng.standard_normal((SPEAKERS, FEATURES))[labels]
    within = rng.standard_normal((len(labels), FEATURES)) * np.geomspace(0.1, 30.0, FEATURES)
    return ((between + within) @ mixing.T + 5.0).astype(np.float32), labels


def embed(model, pooled) -> np.ndarray:
    return np.asarray(model.network.embed(jnp.asarray(pooled)), np.float64)


def cosines(embeddings) -> np.ndarray:
    x = np.asarray(unit(jnp.asarray(embeddings, jnp.float32)))
    return x @ x.T


def between_energy(embeddings, labels) -> np.ndarray:
    """The variance of the speakers' means along every dimension."""
    return np.var([embeddings[labels == label].mean(axis=0) for label in np.unique(labels)], axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("emb_bn", [False, True])
@pytest.mark.parametrize("dims", [(4, 8), (4, 12), (3, 24)])
def test_lossless_at_the_pretrained_width(training, dims, emb_bn):
    pooled, labels = training
    pretrained = tiny.model(emb_bn=emb_bn)
    assert (pretrained.network.bn2 is not None) == emb_bn
    adapted = matryoshka.adapt(pretrained, dims, pooled, labels)
    assert (adapted.embed_dim, adapted.mrl_dims, adapted.network.bn2) == (dims[-1], dims, None)
    unseen = pooled[:60] + np.random.default_rng(1).standard_normal((60, FEATURES)).astype(np.float32)
    before, after = embed(pretrained, unseen), embed(adapted, unseen)
    np.testing.assert_allclose(cosines(before), cosines(after[:, :WIDTH]), rtol=0, atol=1e-5)
    assert matryoshka.check_lossless(pretrained, adapted, unseen) <= 1e-5
    # A rotation, so lengths stay too; and it is one that moves something.
    np.testing.assert_allclose(np.linalg.norm(before, axis=1), np.linalg.norm(after[:, :WIDTH], axis=1), rtol=1e-4)
    assert np.abs(cosines(before[:, :4]) - cosines(after[:, :4])).max() > 0.01


def test_the_backbone_is_the_same_and_the_pretrained_projection_untouched(training):
    pretrained = tiny.model()
    kernel = np.asarray(pretrained.network.linear.kernel[...])
    adapted = matryoshka.adapt(pretrained, tiny.DIMS, *training)
    assert adapted.network.backbone is pretrained.network.backbone
    assert adapted.network.bn is not pretrained.network.bn
    assert np.array_equal(pretrained.network.linear.kernel[...], kernel) and pretrained.embed_dim == WIDTH


@pytest.mark.parametrize("order", matryoshka.ORDERS)
def test_the_direction_of_most_energy_comes_first(training, order):
    pooled, labels = training
    adapted = matryoshka.adapt(tiny.model(), (4, WIDTH), pooled, labels, order=order)
    embeddings = embed(adapted, pooled)
    energy = between_energy(embeddings, labels) if order == "class" else np.var(embeddings, axis=0)
    assert (np.diff(energy) <= 1e-3 * energy[0]).all()
    # No 4 directions of the pretrained embedding hold more of it.
    before = embed(tiny.model(), pooled)
    means = np.array([before[labels == label].mean(axis=0) for label in np.unique(labels)])
    best = np.linalg.eigvalsh(np.cov((means if order == "class" else before).T, bias=True))[::-1]
    assert energy[:4].sum() == pytest.approx(best[:4].sum(), rel=1e-2)


def test_orders_differ(training):
    by_class, by_energy = (
        matryoshka.adapt(tiny.model(), (4,), *training, order=order) for order in ("class", "energy")
    )
    pooled, labels = training
    assert (
        between_energy(embed(by_class, pooled), labels).sum()
        > 1.01 * between_energy(embed(by_energy, pooled), labels).sum()
    )


def test_wider_dimensions_are_new_and_quiet(training):
    pooled, labels = training
    embeddings = embed(matryoshka.adapt(tiny.model(), (WIDTH, 20), pooled, labels), pooled)
    old, new = embeddings[:, :WIDTH], embeddings[:, WIDTH:]
    correlation = np.corrcoef(np.concatenate([old, new], axis=1).T)[:WIDTH, WIDTH:]
    assert np.abs(correlation).max() < 1e-3
    assert 0 < new.std(axis=0).max() <= old.std(axis=0).min() * (1 + 1e-4)
    np.testing.assert_allclose(new.mean(axis=0), 0, atol=1e-3)


def test_narrower_than_pretrained(training):
    pooled, labels = training
    narrow = embed(matryoshka.adapt(tiny.model(), (2, 5), pooled, labels), pooled)
    whole = embed(matryoshka.adapt(tiny.model(), (2, WIDTH), pooled, labels), pooled)
    np.testing.assert_allclose(narrow, whole[:, :5], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("emb_bn", [False, True])
def test_a_projection_that_is_kept(emb_bn, training):
    pretrained, (pooled, _) = tiny.model(emb_bn=emb_bn), training
    kept = matryoshka.adapt(pretrained, (3, 6), init="keep")
    np.testing.assert_allclose(embed(kept, pooled), embed(pretrained, pooled)[:, :6], rtol=1e-4, atol=1e-4)
    assert "8 pretrained dimensions" in refusal(matryoshka.adapt, pretrained, (4, 9), init="keep")


def test_random_needs_no_features_and_keeps_nothing_of_the_projection():
    pretrained = tiny.model()
    one, same, other = (matryoshka.adapt(pretrained, (4, 12), init="random", seed=seed).network for seed in (0, 0, 1))
    assert np.array_equal(one.linear.kernel[...], same.linear.kernel[...])
    assert not np.array_equal(one.linear.kernel[...], other.linear.kernel[...])
    assert np.abs(one.linear.kernel[...]).max() <= FEATURES**-0.5  # PyTorch's default
    assert (one.bn.mean[...] == 0).all() and (one.bn.var[...] == 1).all()


@pytest.mark.parametrize("dims", [(), (8, 8), (8, 4), (0, 4), (-1, 4)])
def test_dims_that_do_not_increase(training, dims):
    assert "projection.mrl_dims" in refusal(matryoshka.adapt, tiny.model(), dims, *training)


def test_dims_beyond_the_features(training):
    told = refusal(matryoshka.adapt, tiny.model(), (8, 25), *training)
    assert "25" in told and "24" in told


def test_too_few_crops(training):
    pooled, labels = training
    assert "projection.crops" in refusal(matryoshka.adapt, tiny.model(), (4, 12), pooled[:12], labels[:12])
    matryoshka.adapt(tiny.model(), (4, 12), pooled[:13], labels[:13])


def test_a_start_that_loses_something_is_refused(training):
    pooled, labels = training
    random = matryoshka.adapt(tiny.model(), (4, 12), init="random")
    assert "'random'" in refusal(matryoshka.check_lossless, tiny.model(), random, pooled[:50])
