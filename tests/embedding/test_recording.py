"""Single recordings: the same vector from every entry point, and errors that name the file."""

import functools

import audio_files
import numpy as np
import pytest
import soundfile
import tiny
from refusals import refusal

from redimnet_jax.data import audio
from redimnet_jax.embedding.recording import embed_recording


@functools.cache
def model():
    return tiny.model()


@pytest.mark.slow
def test_a_file_has_one_vector_in_every_entry_point(tmp_path):
    path = audio_files.write(tmp_path / "a.wav", audio_files.voice(12000, rate=8000), rate=8000)
    recording = embed_recording(model(), path)
    assert recording.name == str(path) and recording.quality.seconds == 1.5 and recording.vector.dtype == np.float32
    np.testing.assert_array_equal(model().embed_file(path, normalize=False), recording.vector)
    np.testing.assert_array_equal(embed_recording(model(), path.read_bytes(), name="a").vector, recording.vector)
    np.testing.assert_array_equal(model().embed(audio.read(path), normalize=False), recording.vector)
    cut = model().embed_file(path, dim=4)
    np.testing.assert_allclose(np.linalg.norm(cut), 1, rtol=1e-6)
    np.testing.assert_allclose(cut, recording.vector[:4] / np.linalg.norm(recording.vector[:4]), rtol=1e-5)


@pytest.mark.slow
def test_only_the_start_of_a_long_recording_is_used(tmp_path):
    voice = audio_files.voice(16000)
    path = audio_files.write(tmp_path / "a.wav", voice)
    recording = embed_recording(model(), path, max_seconds=0.5)
    start = audio_files.write(tmp_path / "start.wav", voice[:8000])
    assert recording.quality.seconds == 0.5
    np.testing.assert_array_equal(recording.vector, embed_recording(model(), start).vector)


@pytest.mark.parametrize("bad", ["missing", "text", "short", "nan"])
def test_what_cannot_be_embedded_is_named(tmp_path, bad):
    path = tmp_path / f"{bad}.wav"
    if bad == "text":
        path.write_text("no audio")
    elif bad != "missing":
        samples = np.full(8000, np.nan, np.float32) if bad == "nan" else np.full(50, 0.1, np.float32)
        soundfile.write(path, samples, 16000, subtype="FLOAT")
    for read in (embed_recording, type(model()).embed_file):
        message = refusal(read, model(), path)
        assert str(path) in message and (bad != "short" or "too short" in message)
