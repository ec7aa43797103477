"""Waveform -> log-mel features (batch, frames, mels), in float32 on the device, differentiable in the waveform.

The two published front ends: `pt` is torchaudio's `MelSpectrogram` (centred frames, reflection at both ends) and
`tf` a port of TensorFlow's (zero padding of half a hop, DFT and mel as products with stored matrices). `kaldi` is the
filter bank of Kaldi, with which WeSpeaker trains ReDimNets (whole frames only, no padding). Spectra are
matrix products in float32: exact, exportable, and fast on matrix units. Every step that looks along time is told
each utterance's own length, so a zero-padded utterance gives what it gives alone.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import core, lax

from redimnet_jax import sharding
from redimnet_jax.models.config_spec import SpecParams
from redimnet_jax.nn.dispatch import by_platform
from redimnet_jax.nn.layers import Constant
from redimnet_jax.nn.normalization import BatchNorm, masked, masked_mean, masked_variance

Array = jax.Array

PREEMPHASIS = 0.97
# Below as many utterances a TPU divides their samples into hops in two steps. Of more, it has them side by side.
TPU_FEW_ROWS = 64
KALDI_SCALE = 2.0**15  # from [-1, 1] to the integers of 16 bits
KALDI_FLOOR = float(np.finfo(np.float32).eps)  # of the energies


def hz_to_mel(hz):
    """HTK's mel scale."""
    return 2595.0 * np.log10(1.0 + np.asarray(hz, np.float64) / 700.0)


def mel_to_hz(mel):
    """Return the frequencies in Hz of `mel` on HTK's scale, float64."""
    return 700.0 * (10.0 ** (np.asarray(mel, np.float64) / 2595.0) - 1.0)


def mel_filter_bank(bins: int, mels: int, params: SpecParams) -> np.ndarray:
    """torchaudio's triangles, (bins, mels) float32: linear in Hz between mel-spaced corners, not normalised."""
    frequencies = np.linspace(0.0, params.sample_rate // 2, bins)
    corners = mel_to_hz(np.linspace(hz_to_mel(params.f_min), hz_to_mel(params.f_max), mels + 2))
    rising = (frequencies[:, None] - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequencies[:, None]) / (corners[2:] - corners[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def tf_mel_filter_bank(bins: int, mels: int, params: SpecParams) -> np.ndarray:
    """TensorFlow's triangles, (bins, mels) float32: linear in mel, and nothing from the first bin."""
    frequencies = np.linspace(0.0, params.sample_rate // 2, bins)[1:]
    return np.concatenate([np.zeros((1, mels), np.float32), _mel_triangles(frequencies, mels, params)])


def kaldi_filter_bank(mels: int, params: SpecParams) -> np.ndarray:
    """Kaldi's triangles, (n_fft // 2 + 1, mels) float32: linear in mel, and nothing from the last bin."""
    frequencies = np.arange(params.n_fft // 2) * (params.sample_rate / params.n_fft)
    # Kaldi's mel is HTK's but for a factor, which triangles do not see.
    return np.concatenate([_mel_triangles(frequencies, mels, params), np.zeros((1, mels), np.float32)])


def _mel_triangles(frequencies: np.ndarray, mels: int, params: SpecParams) -> np.ndarray:
    frequencies = hz_to_mel(frequencies)
    corners = np.linspace(hz_to_mel(params.f_min), hz_to_mel(params.f_max), mels + 2)
    rising = (frequencies[:, None] - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequencies[:, None]) / (corners[2:] - corners[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def hamming(length: int, periodic: bool) -> np.ndarray:
    """Return the Hamming window (float32); periodic as PyTorch's default, symmetric as SciPy's."""
    n = np.arange(length) / (length if periodic else length - 1)
    return (0.54 - 0.46 * np.cos(2.0 * np.pi * n)).astype(np.float32)


def dft(length: int, n_fft: int, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine kernels (length, bins), float32, of the first `bins` frequencies of an `n_fft`-point DFT."""
    angle = 2.0 * np.pi * np.outer(np.arange(length), np.arange(bins)) / n_fft
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def frame(x: Array, size: int, hop: int, count: int) -> Array:
    """(batch, samples) -> (batch, count, size), frame i starting at sample i * hop; zeros past the end.

    Frames are built from whole hops, which every backend slices and differentiates faster than a gather.
    """
    hops = -(-size // hop)
    rows = count + hops - 1
    # In an export sizes may be symbols.
    few = all(isinstance(size, int) for size in x.shape) and x.shape[0] < TPU_FEW_ROWS

    def divided(x: Array) -> Array:
        return _hops(x, hop, rows)

    def divided_twice(x: Array) -> Array:
        # Eight hops have whole registers. At once a TPU's compiler would write out the move of every sample.
        eights = lax.optimization_barrier(_hops(x, 8 * hop, -(-rows // 8)))
        parts = lax.optimization_barrier(jnp.stack(jnp.split(eights, 8, axis=2), axis=2))
        return parts.reshape(len(x), -1, hop)[:, :rows]

    x = by_platform(x, plain=divided, tpu=divided_twice if few else None)
    return jnp.concatenate([x[:, i : i + count] for i in range(hops)], axis=-1)[..., :size]


def _hops(x: Array, hop: int, rows: int) -> Array:
    """Return `x` (batch, samples) as (batch, rows, hop); zeros past the end."""
    needed = rows * hop
    # `max_dim` is `max` where sizes are numbers; where they are symbols, as in an export, `max` cannot decide.
    missing = core.max_dim(0, needed - x.shape[1])
    return jnp.pad(x, ((0, 0), (0, missing)))[:, :needed].reshape(x.shape[0], rows, hop)


def reflect(x: Array, pad: int, lengths: Array | None) -> Array:
    """Reflects `pad` samples at the start and at each utterance's own end (its last sample is not repeated)."""
    if lengths is None:
        return jnp.pad(x, ((0, 0), (pad, pad)), mode="reflect")

    def gathered(x: Array, lengths: Array) -> Array:
        last = lengths[:, None] - 1
        position = jnp.abs(jnp.arange(-pad, x.shape[1] + pad))[None]
        position = jnp.where(position > last, 2 * last - position, position)
        return jnp.take_along_axis(x, jnp.clip(position, 0, x.shape[1] - 1), axis=1)

    def spliced(x: Array, lengths: Array) -> Array:
        # A TPU gathers one sample at a time, which takes longer than the network does.
        tail = jax.vmap(lambda row, length: lax.dynamic_slice(row, (length - 1 - pad,), (pad,)))(x, lengths)
        around = jnp.concatenate([x[:, pad:0:-1], x, jnp.zeros((x.shape[0], pad), x.dtype)], axis=1)
        return jax.vmap(lambda row, end, length: lax.dynamic_update_slice(row, end, (length + pad,)))(
            around, tail[:, ::-1], lengths
        )

    return by_platform(x, lengths, plain=gathered, tpu=spliced)


def preemphasis(x: Array) -> Array:
    """x[t] - 0.97 x[t-1], where the sample before the first is the second (reflection)."""
    before = jnp.concatenate([x[:, 1:2], x[:, :-1]], axis=1)
    return x - PREEMPHASIS * before


def spec_augment(x: Array, lengths: Array | None, params: SpecParams, key: Array) -> Array:
    """Zeroes one random band of frames and one of mels in each utterance of (batch, frames, mels)."""

    def band(size, limit, width, key):
        length_key, start_key = jax.random.split(key)

        def ends(rows: int) -> Array:
            length = jax.random.randint(length_key, (rows, 1), *width)
            latest = jnp.maximum(1, limit - length.max())
            start = jax.random.randint(start_key, (rows, 1), params.freq_start_bin, latest)
            return jnp.concatenate([start, start + length], axis=1)

        start, end = jnp.split(sharding.own_rows(ends, x.shape[0]), 2, axis=1)
        position = jnp.arange(size)[None]
        return (position >= start) & (position < end)

    time_key, freq_key = jax.random.split(key)
    frames = x.shape[1] if lengths is None else sharding.gather_from_devices(lengths).reshape(-1, 1)
    time = band(x.shape[1], frames, params.time_mask_width, time_key)
    freq = band(x.shape[2], x.shape[2], params.freq_mask_width, freq_key)
    return jnp.where(time[:, :, None] | freq[:, None, :], 0.0, x)


def frame_mask(frames: int, lengths: Array | None) -> Array | None:
    """(batch, frames) bool, True for the first `lengths` frames; None without lengths."""
    return None if lengths is None else jnp.arange(frames)[None] < lengths[:, None]


class FrontEnd(nnx.Module):
    """What both front ends share; a subclass gives the mel energies and their framing.

    Called with float32 `waveform` (batch, samples) and `lengths` (batch,) in samples or None; returns
    (log-mel (batch, frames, mels), frames of each utterance (batch,) or None).
    """

    def __init__(self, mels: int, hop_length: int, params: SpecParams, audio_eps: float):
        self.mels, self.hop, self.params, self.audio_eps = mels, hop_length, params, audio_eps

    def __call__(
        self, waveform: Array, lengths: Array | None = None, *, train: bool = False, key: Array | None = None
    ) -> tuple[Array, Array | None]:
        params = self.params
        x = waveform.astype(jnp.float32)
        samples = frame_mask(x.shape[1], lengths)
        if params.norm_signal:
            mean = masked_mean(x, samples, (1,), keepdims=True)
            x = (x - mean) / (jnp.sqrt(masked_variance(x, samples, (1,), mean)) + self.audio_eps)
        if params.do_preemph:
            x = preemphasis(x)
        # After the two steps above the padding is no longer zero.
        x = masked(x, samples)
        frames = None if lengths is None else self.frames(lengths)
        mask = frame_mask(self.frames(x.shape[1]), frames)
        x = self.normalise(self.log_mel(x, lengths), mask, train)
        if train and params.do_spec_aug:
            if key is None:
                raise ValueError("SpecAugment draws random numbers: pass key=jax.random.key(...) in train mode.")
            for i in range(params.num_apply_spec_aug):
                x = spec_augment(x, frames, params, jax.random.fold_in(key, i))
        return masked(x, mask), frames

    def frames(self, samples: Any) -> Any:
        """Return the number of frames that `samples`, a number or an array of numbers, give."""
        raise NotImplementedError

    def log_mel(self, x: Array, lengths: Array | None) -> Array:
        """Return log-mel energies (batch, frames, mels) of a waveform (batch, samples)."""
        raise NotImplementedError

    def normalise(self, x: Array, mask: Array | None, train: bool) -> Array:
        """Return features `x` (batch, frames, mels) less their mean over time."""
        return x - masked_mean(x, mask, (1,), keepdims=True)


class TorchMel(FrontEnd):
    """`feat_type` pt and pt_mel."""

    def __init__(self, mels: int, hop_length: int, params: SpecParams):
        super().__init__(mels, hop_length, params, audio_eps=1e-6)
        self.window = Constant(jnp.asarray(hamming(params.win_length, periodic=True)))
        self.filter_bank = Constant(jnp.asarray(mel_filter_bank(params.n_fft // 2 + 1, mels, params)))
        self.spec_norm = BatchNorm(mels) if params.spec_norm == "bn" else None
        if self.spec_norm is not None:
            # The published code computes features without gradients, so this gain and bias never train.
            self.spec_norm.scale = Constant(self.spec_norm.scale[...])
            self.spec_norm.bias = Constant(self.spec_norm.bias[...])

    def frames(self, samples):
        return (samples - self.params.n_fft % 2) // self.hop + 1

    @property
    def min_samples(self) -> int:
        """Reflection needs more than half a spectrum of samples."""
        return self.params.n_fft // 2 + 1

    def log_mel(self, x: Array, lengths: Array | None) -> Array:
        p = self.params
        count = self.frames(x.shape[1])
        x = reflect(x, p.n_fft // 2, lengths)[:, (p.n_fft - p.win_length) // 2 :]
        x = frame(x, p.win_length, self.hop, count) * self.window[...]
        return jnp.log(matmul(power_spectrum(x, p.n_fft), self.filter_bank[...]) + 1e-6)

    def normalise(self, x: Array, mask: Array | None, train: bool) -> Array:
        if self.spec_norm is not None:
            return self.spec_norm(x, mask, train=train)
        mean = masked_mean(x, mask, (1,), keepdims=True)
        if self.params.spec_norm == "mvn":
            return (x - mean) / (jnp.sqrt(masked_variance(x, mask, (1,), mean, ddof=1)) + 1e-8)
        return x - mean


class TensorFlowMel(FrontEnd):
    """`feat_type` tf and tf_mel."""

    def __init__(self, mels: int, hop_length: int, params: SpecParams):
        super().__init__(mels, hop_length, params, audio_eps=params.eps)
        bins = params.n_fft // 2
        window = hamming(params.win_length, periodic=False)[:, None]
        self.real_kernel, self.imag_kernel = (
            Constant(jnp.asarray(kernel * window)) for kernel in dft(params.win_length, params.n_fft, bins)
        )
        self.filter_bank = Constant(jnp.asarray(tf_mel_filter_bank(bins, mels, params)))

    def frames(self, samples):
        return (samples + 2 * (self.hop // 2) - self.params.win_length) // self.hop + 1

    @property
    def min_samples(self) -> int:
        """One whole window, of which half a hop at each end is padding, and two samples for the pre-emphasis."""
        return max(2, self.params.win_length - 2 * (self.hop // 2))

    def log_mel(self, x: Array, lengths: Array | None) -> Array:
        eps = self.params.eps
        count = self.frames(x.shape[1])
        x = jnp.pad(x, ((0, 0), (self.hop // 2, self.hop // 2)))
        x = frame(x, self.params.win_length, self.hop, count)
        energies = jnp.clip(power(x, self.real_kernel[...], self.imag_kernel[...]), eps, 1.0 / eps)
        return jnp.log(jnp.clip(matmul(energies, self.filter_bank[...]), eps, 1.0 / eps) + eps)


class KaldiFbank(FrontEnd):
    """`feat_type` kaldi: `compute-fbank-feats` with a Hamming window, without dither, of samples in 16 bits.

    Every frame is less its mean and pre-emphasised by itself. Source: torchaudio's `compliance.kaldi.fbank`, as
    WeSpeaker calls it.
    """

    def __init__(self, mels: int, hop_length: int, params: SpecParams):
        # No pre-emphasis of the waveform: it is one of the frames.
        super().__init__(mels, hop_length, dataclasses.replace(params, do_preemph=False), audio_eps=0.0)

    def frames(self, samples):
        return (samples - self.params.win_length) // self.hop + 1

    @property
    def min_samples(self) -> int:
        """One whole frame."""
        return self.params.win_length

    def log_mel(self, x: Array, lengths: Array | None) -> Array:
        p = self.params
        x = frame(KALDI_SCALE * x, p.win_length, self.hop, self.frames(x.shape[1]))
        x = x - x.mean(axis=2, keepdims=True)
        x = x - PREEMPHASIS * jnp.concatenate([x[..., :1], x[..., :-1]], axis=2)
        energies = power_spectrum(x * hamming(p.win_length, periodic=False), p.n_fft)
        return jnp.log(jnp.maximum(matmul(energies, kaldi_filter_bank(self.mels, p)), KALDI_FLOOR))


def matmul(x: Array, y: np.ndarray | Array) -> Array:
    """float32 product in full precision on every backend."""
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def power(x: Array, cosine: Array, sine: Array) -> Array:
    """Return the power spectrum (batch, frames, bins) of windowed frames (batch, frames, samples)."""
    return by_platform(x, cosine, sine, plain=_power, tpu=_power_by_one_product)


def _power(x: Array, cosine: np.ndarray | Array, sine: np.ndarray | Array) -> Array:
    return jnp.square(matmul(x, cosine)) + jnp.square(matmul(x, sine))


def _power_by_one_product(x: Array, cosine: Array, sine: Array) -> Array:
    # XLA for TPU takes several times as long to compile two products, or one that it may fuse with the framing.
    parts = matmul(jax.lax.optimization_barrier(x), jnp.concatenate([cosine, sine], axis=1))
    real, imaginary = jnp.split(parts, 2, axis=-1)
    return jnp.square(real) + jnp.square(imaginary)


def power_spectrum(x: Array, n_fft: int) -> Array:
    """Power (batch, frames, n_fft // 2 + 1) of windowed frames (batch, frames, samples), of at most n_fft samples.

    On a GPU an FFT: float32 products, which no matrix unit takes whole, need 3.5 times as long there.
    """
    # The power does not depend on where in the FFT's window the frame stands.
    cosine, sine = dft(x.shape[-1], n_fft, n_fft // 2 + 1)
    return by_platform(
        x,
        plain=lambda x: _power(x, cosine, sine),
        cuda=lambda x: jnp.square(jnp.abs(jnp.fft.rfft(x, n_fft))),
        tpu=lambda x: _power_by_one_product(x, jnp.asarray(cosine), jnp.asarray(sine)),
    )


FRONT_ENDS = {
    "pt": TorchMel,
    "pt_mel": TorchMel,
    "tf": TensorFlowMel,
    "tf_mel": TensorFlowMel,
    "kaldi": KaldiFbank,
}
