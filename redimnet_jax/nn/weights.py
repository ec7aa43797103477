"""Arrays that the fused operations take together, all float32."""

from typing import NamedTuple

import jax

Array = jax.Array


class Affine(NamedTuple):
    """x gain + offset along the channels; both arrays are (channels,)."""

    gain: Array
    offset: Array


class Norm(NamedTuple):
    """(x - mean) gain + offset along the channels, a batch norm with given statistics; all arrays are (channels,)."""

    mean: Array
    gain: Array
    offset: Array

    def affine(self) -> Affine:
        """Return the same function without a mean."""
        return Affine(self.gain, self.offset - self.mean * self.gain)


class Pointwise(NamedTuple):
    """x kernel + bias: `kernel` (in, out) and `bias` (out,)."""

    kernel: Array
    bias: Array


class ConvNeXtWeights(NamedTuple):
    """A ConvNeXt-like block with given statistics.

    `taps` is the convolution's kernel, (kt, kf, channels/groups, channels) or (taps, channels), and `taps_bias`
    (channels,) its bias.
    """

    taps: Array
    taps_bias: Array
    norm: Norm
    pointwise: Pointwise


class ResidualHalf(NamedTuple):
    """One of the two convolutions of a residual block, and what follows it, with given statistics.

    `taps` is the kernel (kt, kf, channels/groups, channels) of a convolution without bias.
    """

    taps: Array
    pointwise: Pointwise
    norm: Norm
