"""Any model by its path."""

from pathlib import Path

import jax.numpy as jnp

from redimnet_jax import addresses
from redimnet_jax.checkpoints import download, native, torch_weights
from redimnet_jax.errors import UserError
from redimnet_jax.models.speaker_model import SpeakerModel


def open_model(path: str | Path, *, dtype: jnp.dtype = jnp.float32) -> SpeakerModel:
    """Open a folder as a native checkpoint or as the workdir of a run (its best model), and a file as PyTorch's."""
    address = addresses.of(path)
    if address is not None:
        return (torch_weights.from_torch if addresses.is_file(address) else native.load)(path, dtype=dtype)
    if not Path(path).exists():
        raise UserError(
            f"There is no checkpoint {path}; check the path, or convert published weights with "
            f"`{download.conversion_command(path)}`."
        )
    if Path(path).is_file():
        return torch_weights.from_torch(path, dtype=dtype)
    return native.load(path, dtype=dtype)
