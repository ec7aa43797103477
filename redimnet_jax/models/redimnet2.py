"""ReDimNet2 (Interspeech 2026 submission, github.com/PalabraAI/redimnet2): ReDimNet with strides in time as well.

A stage pools the full-rate 1-D maps in frequency and time, works at its own frame rate, and repeats its frames
back to the full rate before its map joins the others.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from redimnet_jax.models.blocks import Aggregate, Execution, block_2d, in_turn, time_context
from redimnet_jax.models.config import ReDimNet2Config
from redimnet_jax.models.redimnet import Stem
from redimnet_jax.nn.convolution import materialised
from redimnet_jax.nn.layers import Dense, PatchConv2d
from redimnet_jax.nn.normalization import BatchNorm, GroupNorm

Array = jax.Array


class Squeeze(nnx.Module):
    """Back to the channels that keep the volume: a pointwise layer and batch norm."""

    def __init__(self, features_in: int, channels: int, *, rngs: nnx.Rngs):
        self.conv = Dense(features_in, channels, rngs=rngs)
        self.norm = BatchNorm(channels, eps=1e-6)

    def __call__(self, x: Array, mask: Array | None, *, train: bool) -> Array:
        return self.norm(self.conv(x), mask, train=train)


class Stage(nnx.Module):
    """One stage; `c`, `f` and `time_stride` (total, this stage's included) are those of its patches.

    With `dual_agg` a stage that has a 1-D block gives two maps: before that block and after it.
    """

    def __init__(
        self, config: ReDimNet2Config, index: int, maps: int, c: int, f: int, time_stride: int, *, rngs: nnx.Rngs
    ):
        setup = config.stages_setup[index]
        self.c, self.f, self.time_stride = c, f, time_stride
        self.aggregate = Aggregate(maps, config.channels)
        embed_frequencies = config.use_freq_pos_enc
        self.freq_embedding = nnx.Param(jax.random.normal(rngs.params(), (f, c))) if embed_frequencies else None
        stride, wide = setup.freq_stride, int(setup.freq_stride * c * setup.conv_exp)
        groups = math.gcd(c, wide) if config.compress_tconvs else 1
        self.patch = PatchConv2d(c, wide, (stride, time_stride), groups=groups, rngs=rngs)
        c, f = stride * c, f // stride
        self.blocks = nnx.List(
            block_2d(config.block_2d_type, wide, f, config.group_divisor, setup.kernel_sizes, rngs=rngs)
            for _ in range(setup.blocks)
        )
        self.squeeze = None if setup.conv_exp == 1 else Squeeze(wide, c, rngs=rngs)
        self.context = time_context(config.block_1d_type, config.channels, setup.att_block_red, rngs=rngs)
        self.dual = config.dual_agg and self.context is not None
        norms = [GroupNorm(config.C, config.channels) for _ in range(self.outputs)]
        self.norms = nnx.List(norms) if config.agg_gnorm else None

    @property
    def outputs(self) -> int:
        return 1 + self.dual

    def __call__(
        self, maps: Sequence[Array], mask: Array | None, *, train: bool, execution: Execution
    ) -> list[Array]:
        x = self.aggregate(maps)
        x = x.reshape(*x.shape[:2], self.f, self.c)
        if self.freq_embedding is not None:
            x = x + self.freq_embedding[...].astype(x.dtype)
        x = self.patch(x)
        # An utterance's frames are a multiple of the stride, so a pooled frame is wholly inside it or outside.
        pooled = None if mask is None else mask[:, :: self.time_stride]
        x = in_turn(self.blocks, x, pooled, train=train, execution=execution)
        x = x if self.squeeze is None else self.squeeze(x, pooled, train=train)
        x = x.reshape(*x.shape[:2], -1)
        outputs = [x] if self.context is None or self.dual else []
        if self.context is not None:
            outputs.append(in_turn([self.context], x, pooled, train=train, execution=execution))
        outputs = [jnp.repeat(x, self.time_stride, axis=1) for x in outputs]
        if self.norms is None:
            return outputs
        return [norm(x, mask) for norm, x in zip(self.norms, outputs, strict=True)]


class ReDimNet2(nnx.Module):
    """(batch, frames, mels) -> (batch, frames, channels), in the dtype of its input.

    Frames beyond a multiple of the total time stride are cut off, as published.
    """

    def __init__(self, config: ReDimNet2Config, *, rngs: nnx.Rngs):
        self.time_stride = config.time_stride
        self.stem = Stem(config.C, rngs=rngs)
        self.stem_norm = GroupNorm(config.C, config.channels) if config.agg_gnorm else None
        stages, c, f, stride, maps = [], config.C, config.F, 1, 1
        for index, setup in enumerate(config.stages_setup):
            stride *= setup.time_stride
            stages.append(Stage(config, index, maps, c, f, stride, rngs=rngs))
            maps += stages[-1].outputs
            c, f = c * setup.freq_stride, f // setup.freq_stride
        self.stages = nnx.List(stages)
        self.execution = Execution()
        self.aggregate = Aggregate(maps, config.channels)
        self.output_2d = (f, c) if config.return_2d_output else None
        features, out = c if config.return_2d_output else config.channels, config.out_channels
        self.head = None if out is None else Dense(features, out, rngs=rngs)

    def output_frames(self, frames):
        """Frames that come out when `frames` go in."""
        return frames // self.time_stride * self.time_stride

    def feature_maps(
        self, features: Array, mask: Array | None, *, train: bool = False, key: Array | None = None
    ) -> list[Array]:
        """Return the 1-D maps (batch, frames, F * C) of the stem and of every stage."""
        frames = self.output_frames(features.shape[1])
        x = self.stem(features[:, :frames], mask)
        maps = [x if self.stem_norm is None else self.stem_norm(x, mask)]
        for stage in self.stages:
            # Computed once: all later stages read it, and XLA would take its last sum anew for each.
            maps.extend(map(materialised, stage(maps, mask, train=train, execution=self.execution)))
        return maps

    def combine(self, maps: Sequence[Array], mask: Array | None, *, train: bool = False) -> Array:
        """Return the backbone's output from its feature maps."""
        x = self.aggregate(maps)
        if self.output_2d is None:
            return x if self.head is None else self.head(x)
        x = x.reshape(*x.shape[:2], *self.output_2d)
        x = x if self.head is None else self.head(x)
        # The published pooling sees this map with channels before frequencies.
        return x.swapaxes(2, 3).reshape(*x.shape[:2], -1)
