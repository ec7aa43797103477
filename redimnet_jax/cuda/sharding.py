"""Kernels on several devices: each does its share of the batch, where XLA would have every device do the whole."""

from collections.abc import Callable

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

Array = jax.Array


def by_batch(function: Callable[..., Array], *operands: Array | None, batched: int) -> Array:
    """`function(*operands)`, whose first `batched` operands, and whose result, have the batch as their first axis."""
    leaves = [i < batched for i, operand in enumerate(operands) if operand is not None]

    def partition(mesh, arguments, result):
        axis = jax.tree.leaves(arguments)[0].sharding.spec[:1]
        shardings = [NamedSharding(mesh, P(*axis) if of_batch else P()) for of_batch in leaves]
        return (
            mesh,
            function,
            NamedSharding(mesh, P(*axis)),
            jax.tree.unflatten(jax.tree.structure(arguments), shardings),
        )

    result = jax.eval_shape(function, *operands)
    ranks = [operand.ndim for operand in operands if operand is not None]
    letters = iter(f"i{i}" for i in range(sum(ranks) + result.ndim))
    whole = []

    def axes(rank: int, of_batch: bool) -> str:
        names = [next(letters) for _ in range(rank - of_batch)]
        whole.extend(names)
        return " ".join([*(["b"] if of_batch else []), *names])

    terms = ", ".join(axes(rank, of_batch) for rank, of_batch in zip(ranks, leaves, strict=True))
    rule = f"{terms} -> {axes(result.ndim, True)}"
    partitioned = custom_partitioning(function)
    partitioned.def_partition(partition=partition, sharding_rule=rule, need_replication_factors=tuple(whole))
    return partitioned(*operands)
