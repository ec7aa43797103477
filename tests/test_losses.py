"""AAM-Softmax against an independent formula, and at the edges of its margin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redimnet_jax.losses import aam_softmax, unit


def independent(embeddings, prototypes, labels, margin, scale, easy_margin):
    """The same loss in float64 from angles, an utterance and a class at a time."""
    total = 0.0
    for e, label in zip(embeddings, labels, strict=True):
        logits = []
        for index, p in enumerate(prototypes):
            cosine = np.dot(e, p) / np.linalg.norm(e) / np.linalg.norm(p)
            if index == label:
                angle = np.arccos(np.clip(cosine, -1, 1))
                if easy_margin:
                    cosine = np.cos(angle + margin) if cosine > 0 else cosine
                else:
                    cosine = np.cos(angle + margin) if angle < np.pi - margin else cosine - margin * np.sin(margin)
            logits.append(scale * cosine)
        total += np.log(np.sum(np.exp(np.array(logits) - max(logits)))) + max(logits) - logits[label]
    return total / len(labels)


@pytest.mark.parametrize("easy_margin", [False, True])
@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5])
def test_aam_softmax(margin, easy_margin):
    rng = np.random.default_rng(0)
    embeddings, prototypes = rng.standard_normal((40, 8)), rng.standard_normal((7, 8))
    labels = rng.integers(0, 7, 40)
    # Some targets lie almost opposite, where the angle plus the margin passes pi.
    embeddings[:5] = -prototypes[labels[:5]] + 0.01 * rng.standard_normal((5, 8))
    ours = aam_softmax(
        jnp.asarray(embeddings),
        jnp.asarray(prototypes),
        jnp.asarray(labels),
        margin=margin,
        scale=30.0,
        easy_margin=easy_margin,
    )
    assert float(ours) == pytest.approx(
        independent(embeddings, prototypes, labels, margin, 30.0, easy_margin), rel=1e-5
    )


def test_gradients_are_finite_at_the_ends():
    """An embedding on its prototype, one opposite to it, and one of length zero."""
    prototypes = jnp.eye(3)
    embeddings = jnp.stack([prototypes[0], -prototypes[1], jnp.zeros(3)])
    gradient = jax.grad(aam_softmax)(embeddings, prototypes, jnp.array([0, 1, 2]))
    assert np.isfinite(gradient).all()


def test_unit_length():
    x = unit(jnp.array([[3.0, 4.0], [0.0, 0.0], [1e-3, 0.0]]))
    np.testing.assert_allclose(x, [[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]], rtol=1e-6)
