"""Any model by its path."""

import os
from pathlib import Path

import jax.numpy as jnp

from redimnet_jax import checkpoint, torch_weights
from redimnet_jax.model import SpeakerModel


def open_model(path: str | Path, *, dtype: jnp.dtype = jnp.float32) -> SpeakerModel:
    """Opens a folder as a native checkpoint or as the workdir of a run (its best model), and a file as PyTorch's."""
    # Where there is nothing, the suffix tells which of the two was meant.
    if os.path.isfile(path) or Path(path).suffix.lower() in (".pt", ".pth"):
        return torch_weights.from_torch(path, dtype=dtype)
    return checkpoint.load(path, dtype=dtype)
