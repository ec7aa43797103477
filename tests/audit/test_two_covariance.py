"""The two-covariance model: its evidence is that of the normal distributions, and a fit finds them."""

import numpy as np
import pytest
from gaussian_voices import gaussian_voices
from refusals import refusal
from scipy.stats import multivariate_normal

from redimnet_jax.audit import two_covariance
from redimnet_jax.audit.two_covariance import TwoCovariance


@pytest.mark.parametrize("sizes", [(1, 1), (3, 2), (5, 1)])
def test_evidence_is_the_ratio_of_normal_densities(sizes):
    """Of a set as one vector whose elements share a speaker, against independent speakers and offsets."""
    between = np.array([3.0, 0.5])
    model = TwoCovariance(np.zeros(2), np.eye(2), between)
    rng = np.random.default_rng(0)
    sets = [rng.normal(size=(size, 2)) for size in sizes]

    def log_density(points):
        n = len(points)
        covariances = [np.eye(n) + b for b in between]
        return sum(multivariate_normal(np.zeros(n), c).logpdf(points[:, d]) for d, c in enumerate(covariances))

    expected = log_density(np.concatenate(sets)) - sum(map(log_density, sets))
    sums = [points.sum(0) for points in sets]
    ratio = model.evidence(sums[0] + sums[1], sum(sizes)) - sum(map(model.evidence, sums, sizes))
    assert ratio == pytest.approx(expected, abs=1e-9)


def test_a_fit_finds_both_covariances():
    rng = np.random.default_rng(1)
    within, between = np.diag([0.5, 1.0, 2.0]), np.diag([4.0, 1.0, 0.1])
    labels = np.repeat(np.arange(4000), 5)
    vectors = (
        7 + (rng.normal(size=(4000, 3)) @ np.sqrt(between))[labels] + rng.normal(size=(20000, 3)) @ np.sqrt(within)
    )
    model = two_covariance.fit(vectors, labels, np.ones(len(labels), bool))
    np.testing.assert_allclose(np.sort(model.between), np.sort(np.diag(between) / np.diag(within)), rtol=0.1)
    coordinates = model.project(vectors)
    means = coordinates.reshape(4000, 5, 3).mean(1)
    residuals = coordinates - means[labels]
    np.testing.assert_allclose(residuals.T @ residuals / 16000, np.eye(3), atol=0.05)
    np.testing.assert_allclose(np.cov(means.T), np.diag(model.between + 1 / 5), atol=0.3)


def test_what_is_not_usable_does_not_count():
    vectors, labels = gaussian_voices(6, 5)
    usable = np.arange(len(labels)) % 5 > 0
    changed = np.where(usable[:, None], vectors, 99.0)
    expected = two_covariance.fit(vectors[usable], labels[usable], usable[usable])
    np.testing.assert_allclose(two_covariance.fit(changed, labels, usable).between, expected.between)


def test_too_little_is_refused():
    vectors, labels = gaussian_voices(5, 2)
    first = np.arange(10) % 2 == 0
    assert refusal(two_covariance.fit, vectors, labels, first).startswith("5 recordings of 5 speakers agree")
    assert "1 speakers" in refusal(two_covariance.fit, vectors, labels, labels == 0)
