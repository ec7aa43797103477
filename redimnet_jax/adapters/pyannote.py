"""A model as the speaker embedding of a pyannote.audio pipeline.

Source of the interface: `PretrainedSpeakerEmbedding` in `pyannote/audio/pipelines/speaker_verification.py`, whose
classes are called with tensors and give numpy arrays. Neither pyannote.audio nor PyTorch is imported here.
"""

from typing import Any

import numpy as np

from redimnet_jax.errors import ArgumentError
from redimnet_jax.models.speaker_model import SpeakerModel


class PyannoteEmbedding:
    """Embeds batches of waveforms, each under a mask of one speaker, as a diarization pipeline asks for it.

    dim: the prefix of the embedding to give, by default all of it. Embeddings have length one.
    """

    metric = "cosine"

    def __init__(self, model: SpeakerModel, dim: int | None = None):
        if dim is not None and not 1 <= dim <= model.embed_dim:
            raise ArgumentError(f"`dim` is {dim} but must lie between 1 and {model.embed_dim}.")
        self.model = model
        self.dimension = dim or model.embed_dim

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.model.sample_rate

    @property
    def min_num_samples(self) -> int:
        """The fewest samples, under the mask, that have an embedding."""
        return self.model.min_samples

    def to(self, device: Any) -> "PyannoteEmbedding":
        """Return itself: JAX chooses the device, whatever the pipeline's `device` is."""
        return self

    def __call__(self, waveforms: Any, masks: Any = None) -> np.ndarray:
        """Return embeddings (batch, dimension), float32, with NaN where fewer than `min_num_samples` are left.

        `waveforms` (batch, 1, samples) are float in [-1, 1]; `masks` (batch, frames), of any number of frames, are
        above 0.5 where the speaker speaks, alone. Both are tensors or arrays. Raises UserError for other shapes.
        """
        signals = _array(waveforms)
        if signals.ndim != 3 or signals.shape[1] != 1:
            raise ArgumentError(f"`waveforms` has the shape {signals.shape} but must be (batch, 1, samples).")
        speech = [signal[0] for signal in signals]
        if masks is not None:
            chosen = _array(masks)
            if chosen.ndim != 2 or len(chosen) != len(signals) or not chosen.shape[1]:
                raise ArgumentError(f"`masks` has the shape {chosen.shape} but must be ({len(signals)}, frames).")
            samples = signals.shape[2]
            frames = np.arange(samples) * chosen.shape[1] // samples if samples else np.arange(0)
            speech = [signal[mask[frames] > 0.5] for signal, mask in zip(speech, chosen, strict=True)]
        embeddings = np.full((len(speech), self.dimension), np.nan, np.float32)
        usable = [index for index, signal in enumerate(speech) if len(signal) >= self.min_num_samples]
        if usable:
            embeddings[usable] = self.model.embed(
                [speech[index] for index in usable], dim=self.dimension, sample_rate=self.sample_rate
            )
        return embeddings


def _array(value: Any) -> np.ndarray:
    # A tensor may lie on a GPU, or have a gradient.
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
