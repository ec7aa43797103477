"""Duplicates: the same audio at any level, shift and polarity, and nothing else."""

import numpy as np
import pytest

from redimnet_jax.audit import duplicates
from redimnet_jax.data.synthetic import voices
from redimnet_jax.errors import UserError


@pytest.fixture(scope="module")
def spoken():
    return [voices.synthesize(speaker, 0, 0, 2.0) for speaker in range(3)]


def test_correlation_finds_the_shift(spoken):
    whole = spoken[0]
    assert duplicates.correlation(whole, whole) == pytest.approx(1)
    for copy in (0.01 * whole, -whole, whole[5000:], whole[:-9000], whole[3000:-3000]):
        assert duplicates.correlation(whole, copy) > 0.99
        assert duplicates.correlation(copy, whole) > 0.99
    noise = np.random.default_rng(0).normal(size=len(whole)) * whole.std() / 3
    assert duplicates.correlation(whole, whole + noise) > 0.9


def test_other_audio_does_not_correlate(spoken):
    assert duplicates.correlation(spoken[0], spoken[1]) < 0.5
    assert duplicates.correlation(spoken[0], voices.synthesize(0, 0, 1, 2.0)) < 0.5
    noise = np.random.default_rng(0).normal(size=(2, 16000))
    assert duplicates.correlation(noise[0], noise[1]) < 0.1


def test_a_short_overlap_does_not_count(spoken):
    ramp = np.zeros(16000)
    ramp[-100:] = 1
    assert duplicates.correlation(ramp, ramp[::-1].copy()) == 0


@pytest.mark.parametrize("other", [np.zeros(0), np.zeros(100), np.full(100, 0.3)])
def test_nothing_correlates_with_silence(spoken, other):
    assert duplicates.correlation(spoken[0], other) == 0
    assert duplicates.correlation(other, other) == 0


def test_find_compares_candidates_and_counts_what_cannot_be_read(spoken):
    waveforms = [spoken[0], 0.3 * spoken[0][1000:], spoken[1], spoken[2], None, None]
    vectors = np.eye(6, 4)[[0, 0, 1, 1, 2, 2]]

    def read(index, start, samples):
        if waveforms[index] is None:
            raise UserError("It is torn; restore it.")
        return waveforms[index][start:samples]

    found = duplicates.find(vectors, read, workers=1, progress=False)
    assert found.pairs.tolist() == [[0, 1]] and found.correlations[0] > 0.99
    assert (found.compared, found.unread) == (3, 1)
