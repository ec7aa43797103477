"""Where arrays lie: on all devices of the mesh, whole or by rows, whichever process has them."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def mesh() -> Mesh:
    """All devices of all processes, along one axis."""
    return Mesh(np.array(jax.devices()), (AXIS,))


def whole(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The rows of an array dealt to the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """`tree`, which every process has, on the devices of all of them."""

    def place(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, whole(mesh), lambda index: x[index])

    # Not every process need round alike; what is replicated must be the same to the bit.
    return jax.tree.map(place, agreed(tree))


def agreed(tree: Any) -> Any:
    """`tree` as the first process has it; all processes must call this together."""
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(tree)


def deal_rows(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The global batch of which every process has its own rows."""
    rows = by_rows(mesh)
    return {name: jax.make_array_from_process_local_data(rows, array) for name, array in batch.items()}


def collected(tree: Any) -> Any:
    """`tree` with the arrays that are dealt to the devices whole, in the host's memory.

    All processes must call this together.
    """
    from jax.experimental import multihost_utils

    return jax.tree.map(
        lambda x: x if x.is_fully_replicated else multihost_utils.process_allgather(x, tiled=True), tree
    )


def local(tree: Any) -> Any:
    """The arrays of the mesh as arrays of this process; all processes must call this together."""
    return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, collected(tree))
