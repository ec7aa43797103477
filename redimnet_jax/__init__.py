"""Speaker verification with ReDimNet and Matryoshka embeddings, in JAX/Flax."""

import importlib
from typing import TYPE_CHECKING, Any

from redimnet_jax import metrics, scoring, trials
from redimnet_jax.checkpoints.open import load
from redimnet_jax.checkpoints.torch_weights import from_torch
from redimnet_jax.errors import UserError
from redimnet_jax.export import export  # The function takes the place of the package of its name.
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.version import VERSION

if TYPE_CHECKING:
    from redimnet_jax.gallery.gallery import Gallery
    from redimnet_jax.gallery.identification import identify
    from redimnet_jax.verification.operating_point import OperatingPoint
    from redimnet_jax.verification.verify import verify

__version__ = VERSION

__all__ = [
    "Gallery",
    "OperatingPoint",
    "SpeakerModel",
    "UserError",
    "__version__",
    "export",
    "from_torch",
    "identify",
    "load",
    "metrics",
    "scoring",
    "trials",
    "verify",
]
_LAZY = {
    "Gallery": "gallery.gallery",
    "OperatingPoint": "verification.operating_point",
    "identify": "gallery.identification",
    "verify": "verification.verify",
}


def __getattr__(name: str) -> Any:
    """Import what reads audio only when it is asked for, so that the package is imported quickly."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
