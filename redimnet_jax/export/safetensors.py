"""A safetensors file: the tensors under the names of the published PyTorch code, and what a native checkpoint says.

`redimnet_jax.load` opens it. The metadata has the model_config for other readers, and the description of a native
checkpoint, as JSON.
"""

import json
from pathlib import Path

from redimnet_jax import files
from redimnet_jax.checkpoints import native, safetensors_file
from redimnet_jax.checkpoints.torch_weights import OWN_METADATA, state_dict
from redimnet_jax.export.options import ExportOptions
from redimnet_jax.models import matryoshka
from redimnet_jax.models.speaker_model import SpeakerModel


def write(model: SpeakerModel, path: Path, options: ExportOptions) -> None:
    """Write `model`, or its first `options.dim` dimensions without prefixes; see `FORMATS`."""
    options.refuse("safetensors", "precision", "calibration_audio")
    if options.dim is not None:
        model = matryoshka.prefix(model, options.dim)
    metadata = {
        "format": "pt",  # where the names and axes are from
        "model_config": json.dumps(model.model_config),
        OWN_METADATA: json.dumps(native.describe(model)),
    }
    files.write(path, safetensors_file.dumps(state_dict(model.network, model.arch), metadata))
