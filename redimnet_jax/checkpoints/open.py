"""Any model by its path."""

from pathlib import Path

import jax.numpy as jnp

from redimnet_jax import addresses
from redimnet_jax.checkpoints import download, native, safetensors_file, torch_weights
from redimnet_jax.errors import UserError
from redimnet_jax.models.speaker_model import SpeakerModel


def load(path: str | Path, dtype: jnp.dtype = jnp.float32) -> SpeakerModel:
    """Return the model in a native checkpoint, the best model of the run in a workdir, or that in a safetensors file.

    `path` may be an address. The backbone computes in `dtype`. Raises UserError when there is no such thing, and when
    it is damaged or was written by a newer version.
    """
    if str(path).endswith(safetensors_file.SUFFIX):
        return torch_weights.from_torch(path, dtype=dtype)
    return native.load(path, dtype)


def open_model(path: str | Path, *, dtype: jnp.dtype = jnp.float32) -> SpeakerModel:
    """Open a folder as a native checkpoint or a run's workdir (its best model), and a file by what is in it."""
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
