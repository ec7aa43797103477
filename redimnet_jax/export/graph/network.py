"""The whole network as a graph: waveforms and their lengths to embeddings."""

import numpy as np

from redimnet_jax.export.graph import layers
from redimnet_jax.export.graph.backbone import write_backbone
from redimnet_jax.export.graph.builder import Graph
from redimnet_jax.export.graph.frontend import before_each, write_frontend
from redimnet_jax.export.graph.layers import END, FLOAT, array, mask_of
from redimnet_jax.export.graph.pooling import write_pooling
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.numerics import UNIT_EPS

WAVEFORMS, LENGTHS, EMBEDDING = "waveforms", "lengths", "embedding"


def write_network(g: Graph, network: SpeakerNetwork, dim: int, normalize: bool) -> None:
    """Write `network` up to the prefix of `dim`, from `WAVEFORMS` (batch, samples) and `LENGTHS` (batch,) int64.

    `EMBEDDING` (batch, dim) is NaN where a length is below the shortest signal that has one, or beyond the samples.
    """
    config = network.config
    size = g("Shape", WAVEFORMS, start=1, end=2)
    inside = g("Cast", before_each(g, g("Squeeze", size, (0,)), LENGTHS), to=FLOAT)
    x, lengths = g("Mul", WAVEFORMS, inside), LENGTHS
    if config.pad_right_samples:
        x = g("Pad", x, (0, 0, 0, config.pad_right_samples))
        lengths = g("Add", lengths, config.pad_right_samples)
    with g.scope("frontend"):
        features, mask = write_frontend(network.frontend, g, x, lengths)
    with g.scope("backbone"):
        x, mask = write_backbone(network.backbone, g, features, mask)
    with g.scope("pool"):
        if config.before_pool_offset:
            x = g.cut(x, 2, config.before_pool_offset, END)
            mask = mask_of(g, g.cut(mask.inside, 2, config.before_pool_offset, END))
        pooled = g("Squeeze", write_pooling(network.pool, g, x, mask), (2,))
    with g.scope("linear"):
        raw = _embed(g, pooled, network, dim)
        embedding = g("Div", raw, g("Max", g("ReduceL2", raw, axes=[1], keepdims=1), UNIT_EPS)) if normalize else raw
    usable = g("And", g("GreaterOrEqual", LENGTHS, network.min_samples), g("LessOrEqual", LENGTHS, size))
    g.output(EMBEDDING, "Where", g("Unsqueeze", usable, (1,)), embedding, np.nan)


def _embed(g: Graph, pooled: str, network: SpeakerNetwork, dim: int) -> str:
    """Write the embedding layers: one dense layer, with the batch norms before it and after it."""
    kernel, bias = array(network.linear.kernel), array(network.linear.bias)
    if network.bn is not None:
        before = layers.affine(network.bn)
        kernel, bias = before.gain[:, None] * kernel, bias + before.offset @ kernel
    if network.bn2 is not None:
        after = layers.affine(network.bn2)
        kernel, bias = kernel * after.gain, bias * after.gain + after.offset
    # No Gemm: quantisation would give it another name, by which it is not kept.
    return g("Add", g("MatMul", pooled, kernel[:, :dim]), bias[:dim])
