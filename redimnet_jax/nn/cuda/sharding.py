"""Kernels on several devices: each does its share of the batch, where XLA would have every device do the whole."""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def by_batch(function: Callable, *operands: Any, batched: int) -> Any:
    """Return `function(*operands)`; its first `batched` operands and all results have the batch as first axis.

    Operands are arrays, None, or tuples of them.
    """
    of_batch = [i < batched for i, operand in enumerate(operands) for _ in jax.tree.leaves(operand)]
    results = jax.eval_shape(function, *operands)

    def partition(mesh, arguments, _):
        batch = P(*jax.tree.leaves(arguments)[0].sharding.spec[:1])
        shardings = [NamedSharding(mesh, batch if first else P()) for first in of_batch]
        of_results = jax.tree.map(lambda _: NamedSharding(mesh, batch), results)
        return mesh, function, of_results, jax.tree.unflatten(jax.tree.structure(arguments), shardings)

    whole = []

    def axes(rank: int, first: bool) -> str:
        others = [f"i{len(whole) + i}" for i in range(rank - first)]
        whole.extend(others)
        return " ".join(["b"] * first + others)

    arrays = jax.tree.leaves(operands)
    before = ", ".join(axes(array.ndim, first) for array, first in zip(arrays, of_batch, strict=True))
    after = ", ".join(axes(result.ndim, True) for result in jax.tree.leaves(results))
    # Without keywords, which it takes for operands.
    partitioned = custom_partitioning(lambda *operands: function(*operands))
    partitioned.def_partition(
        partition=partition, sharding_rule=f"{before} -> {after}", need_replication_factors=tuple(whole)
    )
    return partitioned(*operands)
