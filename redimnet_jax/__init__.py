"""Speaker verification with ReDimNet and Matryoshka embeddings, in JAX/Flax."""

from redimnet_jax import metrics, scoring, trials
from redimnet_jax.checkpoint import load
from redimnet_jax.errors import UserError
from redimnet_jax.model import SpeakerModel
from redimnet_jax.torch_weights import from_torch

__all__ = ["SpeakerModel", "UserError", "from_torch", "load", "metrics", "scoring", "trials"]
