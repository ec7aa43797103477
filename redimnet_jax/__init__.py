"""Speaker verification with ReDimNet and Matryoshka embeddings, in JAX/Flax."""

from redimnet_jax import metrics, scoring, trials
from redimnet_jax.checkpoints.native import load
from redimnet_jax.checkpoints.torch_weights import from_torch
from redimnet_jax.errors import UserError
from redimnet_jax.models.speaker_model import SpeakerModel

__version__ = "0.2.0"

__all__ = ["SpeakerModel", "UserError", "__version__", "from_torch", "load", "metrics", "scoring", "trials"]
