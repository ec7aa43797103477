"""Embed single recordings: what verification, enrolment and identification hold of an audio file."""

import dataclasses
import time

import numpy as np

from redimnet_jax.data import audio
from redimnet_jax.data.decoding import Source
from redimnet_jax.data.signal_quality import SignalQuality, signal_quality
from redimnet_jax.models.speaker_model import MAX_SECONDS, SpeakerModel


@dataclasses.dataclass(frozen=True)
class EmbeddedRecording:
    """The embedding of a recording, and what is known about its signal.

    name: the recording in messages. vector: the raw embedding, float32 (embed_dim,), which is not normalised, because
    prefixes are cut first and because its length is a quality measure. quality: that of the signal that was embedded.
    decode_seconds, embed_seconds: how long the work took.
    """

    name: str
    vector: np.ndarray
    quality: SignalQuality
    decode_seconds: float = 0.0
    embed_seconds: float = 0.0


def embed_recording(
    model: SpeakerModel, source: Source, *, name: str | None = None, max_seconds: float = MAX_SECONDS
) -> EmbeddedRecording:
    """Embed the first `max_seconds` of `source`, the path or address of an audio file, or its bytes.

    A recording has the same vector, to the bit, whatever else is embedded; `model.embed_file` gives this vector too.
    Messages call the recording `name` (default: its path). Errors are those of `model.read` and `model.embed`.
    """
    started = time.perf_counter()
    signal = model.read(source, max_seconds=max_seconds, name=name)
    quality = signal_quality(signal)
    decoded = time.perf_counter()
    vector = np.asarray(model.embed(signal, normalize=False, sample_rate=model.sample_rate))
    embedded = time.perf_counter()
    return EmbeddedRecording(name or audio.name_of(source), vector, quality, decoded - started, embedded - decoded)
