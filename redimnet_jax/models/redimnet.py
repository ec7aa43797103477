"""ReDimNet (Yakovlev et al., Interspeech 2024, arXiv 2407.18223): log-mel features -> frame features.

Every stage sees a weighted sum of all earlier 1-D maps, reshapes it to 2-D, halves (or thirds) its frequencies
while widening its channels, and hands back a 1-D map of the same volume.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from redimnet_jax.models.blocks import Aggregate, Execution, block_2d, in_turn, time_context
from redimnet_jax.models.config import ReDimNetConfig
from redimnet_jax.nn.activation import gelu
from redimnet_jax.nn.convolution import materialised
from redimnet_jax.nn.layers import Conv2d, Dense, PatchConv2d, dropout
from redimnet_jax.nn.normalization import BatchNorm, LayerNorm
from redimnet_jax.nn.squeeze import squeeze

Array = jax.Array


class Stem(nnx.Module):
    """3x3 convolution of the features (batch, time, mels), layer norm over channels, flattened to 1-D."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = Conv2d(1, channels, rngs=rngs)
        self.norm = LayerNorm(channels)

    def __call__(self, features: Array, mask: Array | None) -> Array:
        x = self.norm(self.conv(features[..., None], mask))
        return x.reshape(*x.shape[:2], -1)


class Squeeze(nnx.Module):
    """Back to the channels that keep the volume, after blocks that were wider or narrower by `conv_exp`."""

    def __init__(self, features_in: int, channels: int, group_divisor: int | None, *, rngs: nnx.Rngs):
        groups = 1 if group_divisor is None else channels // group_divisor
        self.conv = Conv2d(features_in, channels, groups=groups, rngs=rngs)
        self.norm = BatchNorm(channels, eps=1e-6)
        self.pointwise = Dense(channels, channels, rngs=rngs)

    def __call__(self, x: Array, mask: Array | None, *, train: bool) -> Array:
        if x.dtype == jnp.bfloat16 and not (train and not self.norm.frozen):
            norm = self.norm.running()
            assert self.conv.bias is not None
            norm = norm._replace(mean=norm.mean - self.conv.bias[...])
            return squeeze(x, mask, self.conv.kernel[...], norm, self.pointwise.weights())
        return self.pointwise(gelu(self.norm(self.conv(x, mask), mask, train=train)))


class Stage(nnx.Module):
    """One stage; `c` channels and `f` frequencies are those of its input seen as 2-D."""

    def __init__(self, config: ReDimNetConfig, index: int, c: int, f: int, *, rngs: nnx.Rngs):
        setup = config.stages_setup[index]
        self.c, self.f = c, f
        self.aggregate = Aggregate(index + 1, config.channels if index else 1)
        stride, wide = setup.freq_stride, int(setup.freq_stride * c * setup.conv_exp)
        self.patch = PatchConv2d(c, wide, (stride, 1), rngs=rngs)
        c, f = stride * c, f // stride
        self.blocks = nnx.List(
            block_2d(config.block_2d_type, wide, f, config.group_divisor, rngs=rngs) for _ in range(setup.blocks)
        )
        self.squeeze = None if setup.conv_exp == 1 else Squeeze(wide, c, config.group_divisor, rngs=rngs)
        self.context = time_context(config.block_1d_type, config.channels, setup.att_block_red, rngs=rngs)

    def __call__(self, maps: Sequence[Array], mask: Array | None, *, train: bool, execution: Execution) -> Array:
        x = self.aggregate(maps)
        x = self.patch(x.reshape(*x.shape[:2], self.f, self.c))
        x = in_turn(self.blocks, x, mask, train=train, execution=execution)
        x = x if self.squeeze is None else self.squeeze(x, mask, train=train)
        x = x.reshape(*x.shape[:2], -1)
        return x if self.context is None else in_turn([self.context], x, mask, train=train, execution=execution)


class FrameProjection(nnx.Module):
    """The optional last layer of the backbone, to `out_channels`."""

    def __init__(self, channels: int, features: int, *, rngs: nnx.Rngs):
        self.conv = Dense(channels, features, rngs=rngs)
        self.norm = BatchNorm(features)

    def __call__(self, x: Array, mask: Array | None, *, train: bool) -> Array:
        return self.norm(self.conv(x), mask, train=train)


class ReDimNet(nnx.Module):
    """(batch, frames, mels) -> (batch, frames, channels), in the dtype of its input."""

    def __init__(self, config: ReDimNetConfig, *, rngs: nnx.Rngs):
        self.feat_agg_dropout = config.feat_agg_dropout
        self.stem = Stem(config.C, rngs=rngs)
        stages, c, f = [], config.C, config.F
        for index, setup in enumerate(config.stages_setup):
            stages.append(Stage(config, index, c, f, rngs=rngs))
            c, f = c * setup.freq_stride, f // setup.freq_stride
        self.stages = nnx.List(stages)
        self.execution = Execution()
        self.aggregate = Aggregate(len(stages) + 1, config.channels)
        out = config.out_channels
        self.mfa = None if out is None else FrameProjection(config.channels, out, rngs=rngs)

    def output_frames(self, frames):
        """Frames that come out when `frames` go in."""
        return frames

    def feature_maps(
        self, features: Array, mask: Array | None, *, train: bool = False, key: Array | None = None
    ) -> list[Array]:
        """Return the 1-D maps (batch, frames, F * C) of the stem and of every stage."""
        maps = [self.stem(features, mask)]
        for index, stage in enumerate(self.stages):
            x = stage(maps, mask, train=train, execution=self.execution)
            stage_key = None if key is None else jax.random.fold_in(key, index)
            # Computed once: all later stages read it, and XLA would take its last sum anew for each.
            maps.append(materialised(dropout(x, self.feat_agg_dropout, train=train, key=stage_key)))
        return maps

    def combine(self, maps: Sequence[Array], mask: Array | None, *, train: bool = False) -> Array:
        """Return the backbone's output from its feature maps."""
        x = self.aggregate(maps)
        return x if self.mfa is None else self.mfa(x, mask, train=train)
