"""Front ends: waveforms (batch, samples) to log-mel features (batch, mels, frames).

The windowed DFT is a convolution whose stride is the hop, so no runtime needs an operator for spectra.
"""

import functools

import numpy as np

from redimnet_jax.errors import UserError
from redimnet_jax.export.graph import layers
from redimnet_jax.export.graph.builder import Graph
from redimnet_jax.export.graph.layers import FLOAT, Mask, array, mask_of
from redimnet_jax.models import frontend


def before_each(g: Graph, count: str, lengths: str) -> str:
    """Return (batch, count) bool, True for the first `lengths` (batch,) of `count` () positions."""
    return g("Less", g("Range", 0, count, 1), g("Unsqueeze", lengths, (1,)))


def write_frontend(module: frontend.FrontEnd, g: Graph, x: str, lengths: str) -> tuple[str, Mask]:
    """Write `module` and return the features with the mask of their frames.

    `x` (batch, samples) is zero outside the `lengths` (batch,).
    """
    params = module.params
    size = g("Shape", x, start=1, end=2)
    inside = g("Cast", before_each(g, g("Squeeze", size, (0,)), lengths), to=FLOAT)
    if params.norm_signal:
        count = g("Unsqueeze", g("Cast", lengths, to=FLOAT), (1,))
        centred = g("Sub", x, g("Div", g.total(x, (1,)), count))
        squares = g("Mul", g("Mul", centred, centred), inside)
        deviation = g("Sqrt", g("Div", g.total(squares, (1,)), count))
        x = g("Div", centred, g("Add", deviation, module.audio_eps))
    if params.do_preemph:
        before = g("Concat", g.cut(x, 1, 1, 2), g.cut(x, 1, 0, -1), axis=1)
        x = g("Sub", x, g("Mul", before, frontend.PREEMPHASIS))
    x = g("Mul", x, inside)
    mask = mask_of(g, g("Unsqueeze", before_each(g, *_frames(g, module, size, lengths)), (1,)))
    x = _normalised(g, log_mel(module, g, x, lengths), module, mask)
    return mask.apply(g, x), mask


def _frames(g: Graph, module: frontend.FrontEnd, size: str, lengths: str) -> tuple[str, str]:
    """Return the frames () of the batch and (batch,) of each utterance, from their samples (1,) and (batch,)."""
    # `frames` is (samples + offset) // hop + 1 in every front end.
    offset = -_first_sample_of_second_frame(module) + module.hop
    both = [g("Add", g("Div", g("Add", each, offset), module.hop), 1) for each in (size, lengths)]
    return g("Squeeze", both[0], (0,)), both[1]


def _first_sample_of_second_frame(module: frontend.FrontEnd) -> int:
    """Return the least number of samples that gives a second frame."""
    samples = 1
    while module.frames(samples) < 2:
        samples += 1
    return samples


@functools.singledispatch
def log_mel(module, g: Graph, x: str, lengths: str) -> str:
    """Write the log-mel energies (batch, mels, frames) of `x`; raise UserError for an unknown front end."""
    raise UserError(f"The format onnx has no form of the front end {type(module).__name__}; choose another format.")


@log_mel.register
def _(module: frontend.TorchMel, g: Graph, x: str, lengths: str) -> str:
    p = module.params
    reach = p.n_fft // 2 - (p.n_fft - p.win_length) // 2
    kernels = frontend.dft(p.win_length, p.n_fft, p.n_fft // 2 + 1)
    window = array(module.window)[:, None]
    # The window's share of n_fft begins before the first sample, and ends as far behind the last as fills n_fft.
    end = p.win_length - reach - p.n_fft % 2
    x = _reflected(g, x, lengths, reach, end)
    power = _power(g, x, kernels[0] * window, kernels[1] * window, module.hop)
    return g("Log", g("Add", _mel(g, power, array(module.filter_bank)), 1e-6))


@log_mel.register
def _(module: frontend.TensorFlowMel, g: Graph, x: str, lengths: str) -> str:
    eps = module.params.eps
    x = g("Pad", x, (0, module.hop // 2, 0, module.hop // 2))
    power = _power(g, x, array(module.real_kernel), array(module.imag_kernel), module.hop)
    mel = _mel(g, g("Clip", power, eps, 1.0 / eps), array(module.filter_bank))
    return g("Log", g("Add", g("Clip", mel, eps, 1.0 / eps), eps))


@log_mel.register
def _(module: frontend.KaldiFbank, g: Graph, x: str, lengths: str) -> str:
    p = module.params
    cosine, sine = (_of_raw_frames(kernel) for kernel in frontend.dft(p.win_length, p.n_fft, p.n_fft // 2 + 1))
    # No constant matters to frames less their mean, and without one the products lose less to rounding.
    x = g("Sub", x, g("Div", g.total(x, (1,)), g("Unsqueeze", g("Cast", lengths, to=FLOAT), (1,))))
    mel = _mel(g, _power(g, x, cosine, sine, module.hop), frontend.kaldi_filter_bank(module.mels, p))
    return g("Log", g("Max", mel, frontend.KALDI_FLOOR))


def _of_raw_frames(kernel: np.ndarray) -> np.ndarray:
    """Return DFT kernels (samples, bins), float64, with what Kaldi does to a frame before: all of it is linear.

    A frame is scaled to 16 bits, less its mean, pre-emphasised and windowed. The transposes of these go, the last one
    first, onto the kernel.
    """
    kernel = frontend.hamming(len(kernel), periodic=False)[:, None] * kernel.astype(np.float64)
    following = np.concatenate([kernel[1:], np.zeros_like(kernel[:1])])
    following[0] += kernel[0]  # The sample before the first is the first.
    kernel = kernel - frontend.PREEMPHASIS * following
    return frontend.KALDI_SCALE * (kernel - kernel.mean(axis=0))


def _reflected(g: Graph, x: str, lengths: str, before: int, after: int) -> str:
    """Return `x` with samples reflected at the start and at each utterance's own end, as many as given."""
    size = g("Shape", x, start=1, end=2)
    stop = g("Squeeze", g("Add", size, after), (0,))
    positions = g("Abs", g("Range", -before, stop, 1))
    last = g("Unsqueeze", g("Sub", lengths, 1), (1,))
    mirrored = g("Sub", g("Mul", last, 2), positions)
    positions = g("Where", g("Greater", positions, last), mirrored, positions)
    positions = g("Min", g("Max", positions, 0), g("Sub", size, 1))
    return g("GatherElements", x, positions, axis=1)


def _power(g: Graph, x: str, cosine: np.ndarray, sine: np.ndarray, hop: int) -> str:
    """Return the power spectrum (batch, bins, frames) by windowed kernels (samples, bins)."""
    kernel = np.concatenate([cosine, sine], axis=1).T[:, None]
    real, imaginary = g.split(g("Conv", g("Unsqueeze", x, (1,)), kernel, strides=[hop]), 2)
    return g("Add", g("Mul", real, real), g("Mul", imaginary, imaginary))


def _mel(g: Graph, power: str, bank: np.ndarray) -> str:
    return g("Conv", power, bank.T[:, :, None])


def _normalised(g: Graph, x: str, module: frontend.FrontEnd, mask: Mask) -> str:
    norm = getattr(module, "spec_norm", None)
    if norm is not None:
        return layers.scaled(g, x, layers.affine(norm), 3)
    centred = g("Sub", x, mask.mean(g, x))
    if module.params.spec_norm != "mvn":
        return centred
    squares = g.total(mask.apply(g, g("Mul", centred, centred)), (2,))
    deviation = g("Sqrt", g("Div", squares, g("Sub", mask.count, 1.0)))
    return g("Div", centred, g("Add", deviation, 1e-8))
