"""Where arrays lie: on all devices of the mesh, whole or by rows, whichever process has them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from redimnet_jax.errors import UserError

AXIS = "data"
# Of an error that one process tells the others.
MESSAGE_BYTES = 2048


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


@contextlib.contextmanager
def raised_together() -> Iterator[None]:
    """Makes a UserError of the block in one process one in all of them; all processes must enter this together."""
    if jax.process_count() == 1:
        yield
        return
    from jax.experimental import multihost_utils

    said = b""
    try:
        yield
    except UserError as error:
        said = str(error).encode("utf-8", "surrogateescape")[:MESSAGE_BYTES]
    told = np.zeros(MESSAGE_BYTES, np.uint8)
    told[: len(said)] = np.frombuffer(said, np.uint8)
    for row in multihost_utils.process_allgather(told):
        if row.any():
            raise UserError(row.tobytes().rstrip(b"\0").decode("utf-8", "surrogateescape"))


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
