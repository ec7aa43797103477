"""Poolings over time: (batch, channels, frames) to (batch, features, 1), of the frames inside the mask."""

import functools

import numpy as np

from redimnet_jax.errors import UserError
from redimnet_jax.export.graph import layers
from redimnet_jax.export.graph.builder import Graph
from redimnet_jax.export.graph.layers import Mask, array
from redimnet_jax.models import pooling
from redimnet_jax.models.pooling import VARIANCE_FLOOR


@functools.singledispatch
def write_pooling(module, g: Graph, x: str, mask: Mask) -> str:
    """Write what `module` computes of `x`; raise UserError for a pooling that has no form here."""
    raise UserError(f"The format onnx has no form of the pooling {type(module).__name__}; choose another format.")


def _mean_and_std(g: Graph, x: str, mask: Mask) -> tuple[str, str]:
    mean = mask.mean(g, x)
    centred = g("Sub", x, mean)
    squares = g.total(mask.apply(g, g("Mul", centred, centred)), (2,))
    variance = g("Div", squares, g("Sub", mask.count, 1.0))
    return mean, g("Sqrt", g("Add", variance, VARIANCE_FLOOR))


def _attentive_statistics(g: Graph, x: str, logits: str, mask: Mask) -> str:
    weights = g("Softmax", g("Where", mask.inside, logits, -np.inf), axis=2)
    weighted = g("Mul", weights, mask.apply(g, x))
    mean = g.total(weighted, (2,))
    variance = g("Sub", g.total(g("Mul", weighted, x), (2,)), g("Mul", mean, mean))
    return g("Concat", mean, g("Sqrt", g("Max", variance, VARIANCE_FLOOR)), axis=1)


@write_pooling.register
def _(module: pooling.TAP, g: Graph, x: str, mask: Mask) -> str:
    return mask.mean(g, x)


@write_pooling.register
def _(module: pooling.TMAP, g: Graph, x: str, mask: Mask) -> str:
    largest = g("ReduceMax", g("Where", mask.inside, x, -np.inf), axes=[2], keepdims=1)
    return g("Add", mask.mean(g, x), largest)


@write_pooling.register
def _(module: pooling.TSDP, g: Graph, x: str, mask: Mask) -> str:
    return _mean_and_std(g, x, mask)[1]


@write_pooling.register
def _(module: pooling.TSTP, g: Graph, x: str, mask: Mask) -> str:
    return g("Concat", *_mean_and_std(g, x, mask), axis=1)


@write_pooling.register
def _(module: pooling.ASTP, g: Graph, x: str, mask: Mask) -> str:
    if module.global_context:
        kernel = array(module.linear1.kernel).T[:, :, None]
        local, context = np.split(kernel, [module.features // 2], axis=1)
        statistics = g("Concat", *_mean_and_std(g, x, mask), axis=1)
        shared = g("Conv", statistics, context, array(module.linear1.bias))
        hidden = g("Add", g("Conv", x, local), shared)
    else:
        hidden = layers.dense(g, x, module.linear1)
    return _attentive_statistics(g, x, layers.dense(g, g("Tanh", hidden), module.linear2), mask)


@write_pooling.register
def _(module: pooling.MHASTP, g: Graph, x: str, mask: Mask) -> str:
    parts = g.split(x, len(module.att_0))
    heads = []
    for part, first, second in zip(parts, module.att_0, module.att_1, strict=True):
        logits = layers.dense(g, g("Tanh", layers.dense(g, part, first)), second)
        heads.append(_attentive_statistics(g, part, logits, mask))
    return heads[0] if len(heads) == 1 else g("Concat", *heads, axis=1)


@write_pooling.register
def _(module: pooling.MQMHASTP, g: Graph, x: str, mask: Mask) -> str:
    return g("Concat", *(write_pooling(query, g, x, mask) for query in module.n_query), axis=1)
