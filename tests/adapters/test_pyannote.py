"""The embedding of a pyannote.audio pipeline."""

import functools

import numpy as np
import pytest
import tiny
from refusals import refusal

from redimnet_jax.adapters.pyannote import PyannoteEmbedding

SAMPLES = 4800


@functools.cache
def model():
    return tiny.model()


def waveforms(rows: int = 3) -> np.ndarray:
    return tiny.batch(rows, SAMPLES)["waveform"][:, None]


def test_it_gives_the_embeddings_of_the_model():
    adapter = PyannoteEmbedding(model(), dim=4)
    found = adapter(waveforms())
    assert found.dtype == np.float32 and found.shape == (3, adapter.dimension) == (3, 4)
    np.testing.assert_allclose(found, model().embed(waveforms()[:, 0], dim=4), atol=1e-6)
    assert (adapter.metric, adapter.sample_rate, adapter.min_num_samples) == ("cosine", 16000, model().min_samples)
    assert adapter.to("cuda") is adapter


def test_masks_choose_samples_and_too_little_speech_gives_nan():
    adapter = PyannoteEmbedding(model())
    masks = np.zeros((3, 30), np.float32)
    masks[0, 5:25] = 1.0
    masks[1, :] = 0.5
    masks[2, ::2] = 0.9
    found = adapter(waveforms(), masks)
    assert np.isnan(found[1]).all()
    width = SAMPLES // 30
    expected = [waveforms()[0, 0, 5 * width : 25 * width], waveforms()[2, 0].reshape(30, width)[::2].ravel()]
    np.testing.assert_allclose(found[[0, 2]], model().embed(expected), atol=1e-6)
    assert np.isnan(adapter(waveforms(), np.zeros((3, 30)))).all()
    assert adapter(waveforms()[:0]).shape == (0, 8)


def test_frames_are_those_of_torch():
    torch = pytest.importorskip("torch")
    masks = torch.rand(2, 37)
    theirs = torch.nn.functional.interpolate(masks[:, None], size=SAMPLES, mode="nearest")[:, 0] > 0.5
    adapter = PyannoteEmbedding(model())
    expected = [signal[0][mask.numpy()] for signal, mask in zip(waveforms(2), theirs, strict=True)]
    found = adapter(torch.from_numpy(waveforms(2)).requires_grad_(), masks)
    np.testing.assert_allclose(found, model().embed(expected), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((np.zeros((3, SAMPLES)),), "waveforms has the shape (3, 4800)"),
        ((np.zeros((3, 2, SAMPLES)),), "waveforms has the shape (3, 2, 4800)"),
        ((waveforms(), np.zeros((2, 30))), "masks has the shape (2, 30)"),
        ((waveforms(), np.zeros((3, 0))), "masks has the shape (3, 0)"),
    ],
)
def test_other_shapes_are_refused(arguments, named):
    assert named in refusal(PyannoteEmbedding(model()), *arguments)


def test_a_prefix_that_does_not_exist_is_refused():
    assert "dim is 9" in refusal(PyannoteEmbedding, model(), 9)
