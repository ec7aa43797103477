"""Any model by its path."""

import os
from pathlib import Path

import jax.numpy as jnp

from redimnet_jax import checkpoint, torch_weights
from redimnet_jax.model import SpeakerModel


def open_model(path: str | Path, *, dtype: jnp.dtype = jnp.float32) -> SpeakerModel:
    """Opens the native checkpoint or the workdir of a run (its best model) in a folder, or a PyTorch checkpoint file."""
    if os.path.isfile(path) or Path(path).suffix.lower() in (".pt", ".pth"):  # What is not there should be named right.
        return torch_weights.from_torch(path, dtype=dtype)
    return checkpoint.load(path, dtype=dtype)
