"""What a user holds: a network with its weights, ready to turn waveforms into speaker embeddings."""

import dataclasses
import functools
import operator
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from redimnet_jax.compilation import LEAST_EFFORT, jit
from redimnet_jax.errors import UserError, shown
from redimnet_jax.models import buckets
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.names import one_line
from redimnet_jax.numerics import unit

if TYPE_CHECKING:
    from redimnet_jax.data import decoding

Array = jax.Array

MAX_SECONDS = 60.0  # of a recording that are used; more takes memory and changes little


@dataclasses.dataclass(frozen=True)
class Source:
    """Where weights come from."""

    file: str
    sha256: str
    layout: str
    licence: str | None = None


@functools.cache
def _forward(graph: nnx.GraphDef, state: Any) -> Callable[..., Array]:
    """Return what `SpeakerNetwork.__call__` gives, of (leaves of the state, waveform, lengths, whether to classify).

    Compiled once a shape, for all models of the graph. The graph is no argument: to hash it, and to take apart the
    state, takes longer in every call than a GPU needs for an utterance.
    """

    def forward(leaves: list[Array], waveform: Array, lengths: Array | None, classify: bool) -> Array:
        return nnx.merge(graph, jax.tree.unflatten(state, leaves))(waveform, lengths, classify=classify)

    return jit(forward, tpu_effort=LEAST_EFFORT, static_argnums=3)


class _Program:
    """A network taken apart once, since that takes longer than a GPU needs for an utterance.

    The arrays are read anew for every call; `fits` tells whether the network still has the parts of that time.
    """

    def __init__(self, network: SpeakerNetwork):
        self._network = network
        graph, state = nnx.split(network)
        leaves, structure = jax.tree.flatten(state)
        self.forward = _forward(graph, structure)
        nodes = dict(nnx.iter_graph(network))
        self._variables = [nodes[path] for path, _ in nnx.to_flat_state(state)]
        if any(now is not leaf for now, leaf in zip(self.leaves(), leaves, strict=True)):
            raise RuntimeError("The variables of the network are not in the order of its state.")
        parts = [node for node in nodes.values() if isinstance(node, nnx.Pytree)]
        self._parts = [(vars(node), list(vars(node).values())) for node in parts]

    def fits(self, network: SpeakerNetwork) -> bool:
        """Return whether every module of `network` has the very attributes that it had."""
        return network is self._network and all(
            len(now) == len(then) and all(map(operator.is_, now.values(), then)) for now, then in self._parts
        )

    def leaves(self) -> list[Array]:
        """Return the arrays of the network as they are now."""
        return [variable.get_raw_value() for variable in self._variables]


class SpeakerModel:
    """A speaker network in eval mode. Made by `load` and `from_torch`.

    `network` may be changed: `embed` and `classify` use it as it is when they are called. `folder` is the native
    checkpoint that the model was loaded from, if it was.
    """

    def __init__(
        self, network: SpeakerNetwork, model_config: dict[str, Any], source: Source, folder: Path | None = None
    ):
        self.network, self.model_config, self.source = network, model_config, source
        self.folder = folder
        self._program = _Program(network)

    def __repr__(self) -> str:
        parameters = sum(variable.size for _, variable in nnx.to_flat_state(nnx.state(self.network, nnx.Param)))
        prefixes = f" (prefixes {', '.join(map(str, self.mrl_dims))})" if self.mrl_dims else ""
        head = f", {self.network.config.num_classes:,} classes" if self.network.classifier is not None else ""
        source = f"{one_line(self.source.file)}, SHA-256 {self.source.sha256[:16] or 'unknown'}"
        return (
            f"SpeakerModel({self.arch}, {parameters:,} parameters, {self.embed_dim} dimensions{prefixes}{head}, "
            f"{self.network.dtype})\n"
            f"weights: {source}, licence: {one_line(self.source.licence or 'unknown')}"
        )

    @property
    def arch(self) -> str:
        """'redimnet' or 'redimnet2'."""
        return self.network.config.arch

    @property
    def embed_dim(self) -> int:
        """Width of the whole embedding."""
        return self.network.config.embed_dim

    @property
    def mrl_dims(self) -> tuple[int, ...] | None:
        """The prefix widths that were trained to stand alone, or None for a plain model."""
        return self.network.config.mrl_dims

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.network.config.spec_params.sample_rate

    @functools.cached_property
    def min_samples(self) -> int:
        """The shortest signal that has an embedding."""
        return self.network.min_samples

    def embed(
        self,
        waveforms: np.ndarray | Array | Sequence[np.ndarray],
        lengths: Sequence[int] | np.ndarray | None = None,
        dim: int | None = None,
        normalize: bool = True,
        *,
        sample_rate: int = 16000,
        batch_size: int = 32,
        head: None = None,
    ) -> Array:
        """Return embeddings (batch, dim), float32; of one signal (samples,), (dim,).

        `waveforms`: a batch (batch, samples) with `lengths` (batch,) in samples where it is zero-padded, or one
        signal, or a list of signals of any lengths, which run `batch_size` at a time. int16, or float in [-1, 1].
        `dim` takes the prefix; `normalize` scales it to length one (cut first, then normalised; arXiv 2205.13147).

        Shapes are padded up to a few sizes (see `buckets`), so that calls of any shape compile a bounded number of
        programs; the padding does not change the embedding. Raises UserError on a wrong rate, a signal that is
        too short, NaN or Inf, a `dim` beyond the embedding, and on `head`, which `classify` replaces.
        """
        if head is not None:
            raise UserError(
                "embed has no argument head, since it always gives embeddings; call classify for the head's output."
            )
        if dim is not None and (not isinstance(dim, int | np.integer) or not 1 <= dim <= self.embed_dim):
            raise UserError(
                f"dim is {dim} but must be an integer between 1 and {self.embed_dim}, the width of this model's "
                "embedding."
            )
        prefix = self._run(waveforms, lengths, sample_rate, batch_size, head=False)[..., :dim]
        return unit(prefix) if normalize else prefix

    def embed_file(
        self,
        source: "decoding.Source",
        dim: int | None = None,
        normalize: bool = True,
        *,
        max_seconds: float = MAX_SECONDS,
    ) -> Array:
        """Return the embedding (dim,), float32, of the first `max_seconds` of a recording.

        `source` is the path or address of an audio file, or its bytes; see `read`. `dim` and `normalize` are those of
        `embed`, whose errors are raised too.
        """
        signal = self.read(source, max_seconds=max_seconds)
        return self.embed(signal, dim=dim, normalize=normalize, sample_rate=self.sample_rate)

    def read(
        self, source: "decoding.Source", *, max_seconds: float = MAX_SECONDS, name: str | None = None
    ) -> np.ndarray:
        """Return the first `max_seconds` of a recording in any format and at any rate: float32 (samples,).

        Raise UserError, which calls the recording `name` (default: its path), when it cannot be decoded, is not
        finite or is too short for an embedding.
        """
        from redimnet_jax.data import audio

        name = name or audio.name_of(source)
        samples = round(max_seconds * self.sample_rate)
        signal = audio.read(source, 0, samples, sample_rate=self.sample_rate, name=name)
        if len(signal) < self.min_samples:
            raise UserError(
                f"{name} has {len(signal)} samples, too short for an embedding (at least {self.min_samples}, "
                f"{self.min_samples / self.sample_rate:.3f} s); give a longer recording."
            )
        return signal

    def classify(
        self,
        waveforms: np.ndarray | Array | Sequence[np.ndarray],
        lengths: Sequence[int] | np.ndarray | None = None,
        *,
        sample_rate: int = 16000,
        batch_size: int = 32,
    ) -> Array:
        """Return the classification head's output (batch, num_classes), float32; of one signal, (num_classes,).

        The arguments are those of `embed`. Raises UserError as `embed` does, and when the model has no such head.
        """
        if self.network.classifier is None:
            raise UserError("This model has no classification head; call embed for embeddings.")
        return self._run(waveforms, lengths, sample_rate, batch_size, head=True)

    def _run(self, waveforms, lengths, sample_rate: int, batch_size: int, head: bool) -> Array:
        if sample_rate != self.sample_rate:
            raise UserError(
                f"The signal has {sample_rate} Hz but the model was trained at {self.sample_rate} Hz; "
                "resample it first."
            )
        if not self._program.fits(self.network):
            self._program = _Program(self.network)
        if isinstance(waveforms, list | tuple):
            return self._embed_list(waveforms, lengths, batch_size, head)
        return self._embed_batch(_as_float(waveforms), lengths, head)

    def _embed_list(self, signals: Sequence, lengths, batch_size: int, head: bool) -> Array:
        if lengths is not None:
            raise UserError("lengths belongs to a zero-padded batch; with a list of signals leave it out.")
        if not signals:
            raise UserError("The list of signals is empty; give at least one.")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size} but must be at least 1.")
        signals = [np.asarray(_as_float(signal)) for signal in signals]
        for index, signal in enumerate(signals):
            if signal.ndim != 1:
                raise UserError(
                    f"Signal {index} of the list has shape {signal.shape} but must be one channel (samples,)."
                )
            self._check_length(len(signal), index)
            _check_finite(np.isfinite(signal[None]), index)
        rows: list[Any] = [None] * len(signals)
        for size, indices in buckets.batches([len(s) for s in signals], batch_size):
            batch = np.zeros((len(indices), size), np.float32)
            for row, index in enumerate(indices):
                batch[row, : len(signals[index])] = signals[index]
            embedded = self._embed_batch(batch, [len(signals[i]) for i in indices], head)
            for row, index in enumerate(indices):
                rows[index] = embedded[row]
        return jnp.stack(rows)

    def _embed_batch(self, waveforms: np.ndarray | Array, lengths, head: bool) -> Array:
        if waveforms.ndim == 1:
            if lengths is not None:
                raise UserError("lengths belongs to a zero-padded batch; with one signal leave it out.")
            return self._embed_batch(waveforms[None], None, head)[0]
        if waveforms.ndim != 2 or waveforms.shape[0] == 0:
            raise UserError(f"waveforms has shape {waveforms.shape} but must be (batch, samples) or (samples,).")
        count, samples = waveforms.shape
        lengths = np.full(count, samples) if lengths is None else self._checked_lengths(lengths, count, samples)
        for index, length in enumerate(lengths):
            self._check_length(int(length), index)
        _check_finite(jnp.isfinite(waveforms) if isinstance(waveforms, Array) else np.isfinite(waveforms))
        rows, size = buckets.round_up(count), buckets.samples(samples)
        exact = (rows, size) == (count, samples) and (lengths == samples).all()
        # Extra rows repeat the first signal: silence would only make NaN that nobody reads.
        xp = jnp if isinstance(waveforms, Array) else np
        padded = xp.pad(waveforms, ((0, 0), (0, size - samples)))
        padded = xp.concatenate([padded, xp.repeat(padded[:1], rows - count, axis=0)])
        lengths = np.concatenate([lengths, np.repeat(lengths[:1], rows - count)]).astype(np.int32)
        program = self._program
        return program.forward(program.leaves(), padded, None if exact else lengths, head)[:count]

    def _checked_lengths(self, lengths, count: int, samples: int) -> np.ndarray:
        try:
            lengths = np.asarray(lengths)
        except ValueError as error:
            raise UserError(f"lengths is ragged but must be {count} integers, one a signal.") from error
        if lengths.shape != (count,) or lengths.dtype.kind not in "iu":
            raise UserError(
                f"lengths has shape {lengths.shape} and dtype {lengths.dtype} but must be {count} integers, "
                "one a signal."
            )
        if lengths.max() > samples:
            raise UserError(f"lengths goes up to {lengths.max()} but the batch has {samples} samples; correct it.")
        return lengths

    def _check_length(self, length: int, index: int) -> None:
        if length < self.min_samples:
            what = "is empty" if length <= 0 else f"has {length} samples, too short for an embedding"
            raise UserError(
                f"Signal {index} {what}; give at least {self.min_samples} samples "
                f"({self.min_samples / self.sample_rate:.3f} s)."
            )


def _check_finite(finite: np.ndarray | Array, first: int = 0) -> None:
    """Names the first row of `finite` (batch, samples) that is not, counting from `first`."""
    if not finite.all():
        index = first + int(np.argmin(np.asarray(finite.all(axis=1))))
        raise UserError(f"Signal {index} has NaN or Inf; repair the recording or leave it out.")


def _as_float(waveforms: Any) -> np.ndarray | Array:
    """float32 samples; 16-bit integers are scaled to [-1, 1)."""
    if isinstance(waveforms, str | bytes | os.PathLike):
        raise UserError(
            f"embed and classify take samples but got {shown(waveforms)}; call embed_file for a "
            "file, or read it with redimnet_jax.data.audio.read."
        )
    waveforms = waveforms if isinstance(waveforms, Array) else np.asarray(waveforms)
    if waveforms.dtype == np.int16:
        return waveforms.astype(np.float32) / 32768.0
    if not jnp.issubdtype(waveforms.dtype, jnp.floating):
        raise UserError(f"Samples are {waveforms.dtype} but must be int16 or float in [-1, 1]; convert them.")
    return waveforms.astype(np.float32)
