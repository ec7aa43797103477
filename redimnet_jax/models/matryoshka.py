"""From a pretrained model to a Matryoshka model: the same backbone, a projection whose prefixes stand alone.

The projection is batch norm and one linear layer on the pooled features, as in every published checkpoint. By default
it starts without loss: its first directions are the pretrained embedding under an orthogonal rotation, which keeps
every cosine at the pretrained width and brings the useful directions to the front; wider dimensions take the next
useful directions of the pooled features.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from redimnet_jax.errors import UserError
from redimnet_jax.models import config as model_config
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.numerics import unit

INITS = ("lossless", "keep", "random")
ORDERS = ("class", "energy")


def adapt(
    model: SpeakerModel,
    dims: Sequence[int],
    pooled: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    *,
    init: str = "lossless",
    order: str = "class",
    seed: int = 0,
) -> SpeakerModel:
    """Return a model with the backbone of `model` (the same variables) and a new projection to `dims[-1]` dimensions.

    With `init` 'lossless', `pooled` (utterances, pool.features) and `labels` (utterances,) are pooled features of
    training utterances and their speakers. The projection keeps the pretrained batch norm; its first rows are the
    pretrained ones (a batch norm after the linear layer folded in) under a rotation that orders the directions by the
    energy of the speakers' means (`order` 'class') or of all embeddings ('energy'). With 'random' the batch norm is
    fresh and the linear layer PyTorch's default, as in redimnet-mrl, and no features are needed. With 'keep' the
    projection is the pretrained one as it is, which must be `dims[-1]` wide at least, without a rotation.

    Raises UserError when `dims` are not increasing, or are beyond the number of pooled features.
    """
    config = check_dims(model, dims)
    network = SpeakerNetwork(config, dtype=model.network.dtype, rngs=nnx.Rngs(seed))
    for part in ("frontend", "backbone", "pool"):
        setattr(network, part, getattr(model.network, part))
    if init != "random":
        if init == "keep":
            check_kept(model, dims)
            kernel, bias = (of[..., : dims[-1]] for of in pretrained_tail(model.network))
        else:
            kernel, bias = lossless(model.network, dims[-1], np.asarray(pooled), np.asarray(labels), order)
        if network.bn is not None:
            for name in ("scale", "bias", "mean", "var"):
                getattr(network.bn, name).set_value(getattr(model.network.bn, name)[...])
        network.linear.kernel.set_value(jnp.asarray(kernel, jnp.float32))
        network.linear.bias.set_value(jnp.asarray(bias, jnp.float32))
    return SpeakerModel(network, _entries(model, dims), dataclasses.replace(model.source, layout="redimnet_jax"))


def prefix(model: SpeakerModel, dim: int) -> SpeakerModel:
    """Return the plain model, without prefixes or a classification head, of the first `dim` dimensions of `model`."""
    kept = adapt(model, (dim,), init="keep")
    entries = {name: value for name, value in kept.model_config.items() if name != "mrl_dims"}
    kept.network.config = model_config.parse(model.arch, entries)
    return SpeakerModel(kept.network, entries, model.source)


def check_dims(model: SpeakerModel, dims: Sequence[int]) -> model_config.ModelConfig:
    """Return the configuration of `model` with a projection to `dims`, or raise UserError."""
    if not dims or list(dims) != sorted(set(dims)) or dims[0] < 1:
        raise UserError(f"projection.mrl_dims is {tuple(dims)} but must be increasing positive integers; correct it.")
    width = model.network.pool.features
    if dims[-1] > width:
        raise UserError(
            f"projection.mrl_dims ends at {dims[-1]}, beyond the {width} pooled features of this backbone; lower it."
        )
    return model_config.parse(model.arch, _entries(model, dims))


def _entries(model: SpeakerModel, dims: Sequence[int]) -> dict:
    changes = {"embed_dim": dims[-1], "mrl_dims": list(dims), "emb_bn": False, "num_classes": None}
    return model.model_config | changes


def check_kept(model: SpeakerModel, dims: Sequence[int]) -> None:
    """Raise UserError when the projection of `model` is too narrow to be kept for `dims`."""
    if dims[-1] > model.embed_dim:
        raise UserError(
            f"projection.init 'keep' has {model.embed_dim} pretrained dimensions but projection.mrl_dims ends at "
            f"{dims[-1]}; lower it, or set projection.init to 'lossless'."
        )


LOSSLESS = 1e-5


def check_lossless(pretrained: SpeakerModel, adapted: SpeakerModel, pooled: np.ndarray) -> float:
    """Return the largest difference that `adapt` makes to a cosine of two rows of `pooled` at the pretrained width.

    Raises UserError above `LOSSLESS`. An adapted model narrower than the pretrained one has nothing to compare.
    """
    width = pretrained.embed_dim
    before, after = (np.asarray(unit(m.network.embed(jnp.asarray(pooled))[:, :width])) for m in (pretrained, adapted))
    difference = float(np.max(np.abs(before @ before.T - after @ after.T)))
    if not difference <= LOSSLESS:
        raise UserError(
            f"The rotated projection changes cosines at {width} dimensions by {difference:.1e}, above {LOSSLESS}; "
            "the pretrained projection may be degenerate; set projection.init to 'random'."
        )
    return difference


def lossless(
    network: SpeakerNetwork, width: int, pooled: np.ndarray, labels: np.ndarray, order: str
) -> tuple[np.ndarray, np.ndarray]:
    """(kernel (pool.features, width), bias (width,)), float64, of the lossless projection; see `adapt`."""
    if len(pooled) <= width:
        raise UserError(
            f"A lossless projection to {width} dimensions needs more than {width} training crops but got "
            f"{len(pooled)}; raise projection.crops, or set projection.init to 'random'."
        )
    weight, offset = pretrained_tail(network)
    inputs = normalised(network, pooled)
    embeddings = inputs @ weight + offset
    rotation = _ordered_directions(embeddings, labels, order)[:, :width]
    kernel, bias = weight @ rotation, offset @ rotation
    extra = width - kernel.shape[1]
    if extra > 0:
        # What the embedding cannot predict of the inputs, which is linear in the inputs too.
        centred = embeddings - embeddings.mean(axis=0)
        known, *_ = np.linalg.lstsq(centred, inputs - inputs.mean(axis=0), rcond=1e-6)
        directions = _ordered_directions(inputs - embeddings @ known, labels, order)[:, :extra]
        more = directions - weight @ (known @ directions)
        # No louder than the quietest pretrained direction, so that at first they refine a score and do not set it.
        spread = np.std(inputs @ more, axis=0)
        more *= np.std(embeddings @ rotation, axis=0).min() / np.maximum(spread, 0.01 * spread.max())
        kernel = np.concatenate([kernel, more], axis=1)
        bias = np.concatenate([bias, -inputs.mean(axis=0) @ more])
    return kernel, bias


def pretrained_tail(network: SpeakerNetwork) -> tuple[np.ndarray, np.ndarray]:
    """Return (weight (pool.features, embed_dim), offset (embed_dim,)), float64.

    They map normalised pooled features to the embedding in eval mode, with a batch norm after the linear layer folded
    in.
    """
    weight = np.asarray(network.linear.kernel[...], np.float64)
    offset = np.asarray(network.linear.bias[...], np.float64)
    if network.bn2 is None:
        return weight, offset
    mean, gain, bias = _batch_norm(network.bn2)
    return weight * gain, (offset - mean) * gain + bias


def normalised(network: SpeakerNetwork, pooled: np.ndarray) -> np.ndarray:
    """`pooled` (utterances, pool.features) after the first batch norm, if any, in eval mode, float64."""
    if network.bn is None:
        return np.asarray(pooled, np.float64)
    mean, gain, bias = _batch_norm(network.bn)
    return (np.asarray(pooled, np.float64) - mean) * gain + bias


def _batch_norm(norm) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean, var, scale, bias = (np.asarray(v[...], np.float64) for v in (norm.mean, norm.var, norm.scale, norm.bias))
    return mean, scale / np.sqrt(var + norm.eps), bias


def _ordered_directions(x: np.ndarray, labels: np.ndarray, order: str) -> np.ndarray:
    """Orthonormal columns (features, features), the direction of the most energy first.

    Energy is the variance of the rows of `x` (utterances, features), or with 'class' that of the speakers' means
    (plus a little of the former, which orders what few speakers leave open).
    """
    scatter = np.cov(x.T, bias=True)
    if order == "class":
        scatter = np.cov(_class_means(x, labels).T, bias=True) + 1e-3 * scatter
    _, vectors = np.linalg.eigh(scatter)
    return vectors[:, ::-1]


def _class_means(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    _, index = np.unique(labels, return_inverse=True)
    sums = np.zeros((index.max() + 1, x.shape[1]))
    np.add.at(sums, index, x)
    return sums / np.bincount(index)[:, None]
