"""The whole speaker network: front end, backbone, pooling and embedding layers, from a ModelConfig."""

import bisect
import types
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from redimnet_jax.models.config import ModelConfig, ReDimNetConfig
from redimnet_jax.models.frontend import FRONT_ENDS, frame_mask
from redimnet_jax.models.pooling import POOLINGS
from redimnet_jax.models.redimnet import ReDimNet
from redimnet_jax.models.redimnet2 import ReDimNet2
from redimnet_jax.nn.activation import gelu
from redimnet_jax.nn.layers import Dense, dropout
from redimnet_jax.nn.normalization import BatchNorm

Array = jax.Array

ACTIVATIONS = {
    None: lambda x: x,
    "Identity": lambda x: x,
    "ReLU": jax.nn.relu,
    "Tanh": jnp.tanh,
    "Sigmoid": jax.nn.sigmoid,
    "GELU": gelu,
}


class SpeakerNetwork(nnx.Module):
    """Waveform -> embedding, a pure function of its variables.

    `dtype` is that of the backbone's arithmetic; parameters, statistics, front end, pooling and embedding layers
    are float32 whatever it is. Random numbers (SpecAugment, dropout) come from `key` alone, in train mode alone.
    """

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.config, self.dtype = config, jnp.dtype(dtype)
        self.frontend = FRONT_ENDS[config.feat_type](config.F, config.hop_length, config.spec_params)
        self.backbone = (
            ReDimNet(config, rngs=rngs) if isinstance(config, ReDimNetConfig) else ReDimNet2(config, rngs=rngs)
        )
        pooling = POOLINGS[config.pooling_func]
        self.pool = pooling(config.pooled_channels, config.global_context_att, rngs=rngs)
        self.bn = BatchNorm(self.pool.features) if config.pool_bn else None
        self.linear = Dense(self.pool.features, config.embed_dim, rngs=rngs)
        self.bn2 = BatchNorm(config.embed_dim) if config.emb_bn else None
        classes = config.num_classes
        self.classifier = None if classes is None else Dense(config.embed_dim, classes, rngs=rngs)

    @property
    def min_samples(self) -> int:
        """The shortest signal that gives two pooled frames, which every standard deviation over time needs."""
        least = max(1, self.frontend.min_samples - self.config.pad_right_samples)
        most = least
        while self._pooled_frames(most) < 2:
            most *= 2
        return least + bisect.bisect_left(range(least, most), 2, key=self._pooled_frames)

    def _pooled_frames(self, samples):
        frames = self.backbone.output_frames(self.frontend.frames(samples + self.config.pad_right_samples))
        return frames - self.config.before_pool_offset

    def __call__(
        self,
        waveform: Array,
        lengths: Array | None = None,
        *,
        train: bool = False,
        key: Array | None = None,
        classify: bool = False,
    ) -> Array:
        """float32 `waveform` (batch, samples), `lengths` (batch,) in samples or None -> (batch, embed_dim).

        With `classify` the output of the classification head, (batch, num_classes).
        """
        keys = (None, None) if key is None else jax.random.split(key)
        features, frames = self.features(waveform, lengths, train=train, key=keys[0])
        pooled = self.pooled(features, frames, train=train, key=keys[0])
        embedding = self.embed(pooled, train=train)
        return self.classify(embedding, train=train, key=keys[1]) if classify else embedding

    def features(
        self, waveform: Array, lengths: Array | None = None, *, train: bool = False, key: Array | None = None
    ) -> tuple[Array, Array | None]:
        """Log-mel features (batch, frames, mels), float32, and each utterance's frames (or None)."""
        pad = self.config.pad_right_samples
        if lengths is not None:
            inside = frame_mask(waveform.shape[1], lengths)
            assert inside is not None
            waveform = jnp.where(inside, waveform, 0.0)
            lengths = lengths + pad
        waveform = jnp.pad(waveform, ((0, 0), (0, pad)))
        key = None if key is None else jax.random.fold_in(key, 0)
        return self.frontend(waveform, lengths, train=train, key=key)

    def feature_maps(
        self,
        features: Array,
        frames: Array | None = None,
        *,
        train: bool = False,
        key: Array | None = None,
    ) -> tuple[list[Array], Array | None]:
        """Return the backbone's 1-D maps, each (batch, frames, F * C), and their mask (batch, frames)."""
        mask = None
        if frames is not None:
            count = self.backbone.output_frames(features.shape[1])
            mask = frame_mask(count, self.backbone.output_frames(frames))
        key = None if key is None else jax.random.fold_in(key, 1)
        return self.backbone.feature_maps(features.astype(self.dtype), mask, train=train, key=key), mask

    def pooled(
        self,
        features: Array,
        frames: Array | None = None,
        *,
        train: bool = False,
        key: Array | None = None,
    ) -> Array:
        """Pooled features (batch, pool.features), float32: what the embedding layers, and no others, work on."""
        maps, mask = self.feature_maps(features, frames, train=train, key=key)
        x = self.backbone.combine(maps, mask, train=train)
        offset = self.config.before_pool_offset
        return self.pool(x[:, offset:], None if mask is None else mask[:, offset:])

    def embed(self, pooled: Array, *, train: bool = False) -> Array:
        """Embedding (batch, embed_dim), float32, of pooled features."""
        embedding = self.linear(pooled if self.bn is None else self.bn(pooled, train=train))
        return embedding if self.bn2 is None else self.bn2(embedding, train=train)

    def classify(self, embedding: Array, *, train: bool = False, key: Array | None = None) -> Array:
        """Output (batch, num_classes) of the classification head that some checkpoints carry."""
        x = dropout(jax.nn.relu(embedding), self.config.class_dropout, train=train, key=key)
        assert self.classifier is not None
        return ACTIVATIONS[self.config.head_activation](self.classifier(x))


def without_values(config: ModelConfig, dtype: Any = jnp.float32) -> SpeakerNetwork:
    """Return a network whose variables have shapes and dtypes and no values, for a checkpoint to give."""
    # The key is always the same: streams of keys, whose counters would be traced, take far longer than the network.
    rngs: Any = types.SimpleNamespace(params=lambda: jax.random.key(0))
    return nnx.eval_shape(lambda: SpeakerNetwork(config, dtype=dtype, rngs=rngs))
