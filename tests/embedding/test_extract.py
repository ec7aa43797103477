"""Embeddings of many recordings: the same whatever the batches, the windows asked for, and clear errors."""

import functools

import numpy as np
import pytest
import tiny
from refusals import refusal

from redimnet_jax.embedding import extract
from redimnet_jax.embedding.segments import CropPolicy


class Signals:
    """Signals in memory as recordings."""

    def __init__(self, signals):
        self.signals = signals
        self.samples = np.array([len(signal) for signal in signals])

    def __len__(self):
        return len(self.signals)

    def name(self, index):
        return f"speaker/{index}.wav"

    def read(self, index, start=0, samples=None):
        return self.signals[index][start : None if samples is None else start + samples]


@functools.cache
def model():
    return tiny.model()


@functools.cache
def signals():
    rng = np.random.default_rng(0)
    return tuple(rng.normal(0, 0.1, size).astype(np.float32) for size in (9000, 4100, 8000, 16000))


def embedded(batch_seconds=240.0, **windows):
    pooled = extract.pool_recordings(
        model(), Signals(signals()), crop_policy=CropPolicy(**windows), batch_seconds=batch_seconds
    )
    return extract.embed_pooled(model(), pooled)


@pytest.mark.slow
def test_embeddings_are_those_of_each_signal_alone():
    alone = np.stack([np.asarray(model().embed(signal, normalize=False)) for signal in signals()])
    for batch_seconds in (240.0, 0.1):
        np.testing.assert_allclose(embedded(batch_seconds)[:, 0], alone, rtol=0, atol=2e-5 * np.abs(alone).max())


def test_long_recordings_are_cut():
    cut = np.asarray(model().embed(signals()[3][:8000], normalize=False))
    np.testing.assert_allclose(embedded(max_seconds=0.5)[3, 0], cut, rtol=0, atol=2e-5 * np.abs(cut).max())


def test_crops_lie_at_even_distances():
    crops = embedded(crop_seconds=0.5, crops=3)
    assert crops.shape == (len(signals()), 3, model().embed_dim)
    for crop, start in enumerate((0, 4000, 8000)):
        alone = np.asarray(model().embed(signals()[3][start : start + 8000], normalize=False))
        np.testing.assert_allclose(crops[3, crop], alone, rtol=0, atol=2e-5 * np.abs(alone).max())
    # Shorter than the crop: three times the whole.
    np.testing.assert_array_equal(crops[1, 0], crops[1, 2])


def test_one_crop_is_the_middle():
    starts, lengths = CropPolicy(crop_seconds=1.0).segments(np.array([16000, 48000, 8000]), 16000)
    assert starts.tolist() == [[0], [16000], [0]] and lengths.tolist() == [[16000], [16000], [8000]]


@pytest.mark.parametrize("bad", ["short", "nan"])
def test_a_recording_that_cannot_be_embedded_is_named(bad):
    broken = signals()[0][:50] if bad == "short" else np.full(8000, np.nan, np.float32)
    recordings = Signals([*signals()[:2], broken])
    assert "speaker/2.wav" in refusal(extract.pool_recordings, model(), recordings)


def test_check_can_stop_it():
    def stop():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        extract.pool_recordings(model(), Signals(signals()), check=stop)
