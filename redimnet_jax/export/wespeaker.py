"""WeSpeaker's files: a bare state dict, such as `avg_model.pt`, and `config.yaml` beside it."""

from collections import OrderedDict
from pathlib import Path

import yaml

from redimnet_jax import files
from redimnet_jax.checkpoints import torch_save, wespeaker
from redimnet_jax.checkpoints.torch_weights import state_dict
from redimnet_jax.export.options import ExportOptions
from redimnet_jax.models import matryoshka
from redimnet_jax.models.speaker_model import SpeakerModel


def write(model: SpeakerModel, path: Path, options: ExportOptions) -> None:
    """Write `model`, or its first `options.dim` dimensions without prefixes, and its config.yaml; see `FORMATS`."""
    options.refuse("wespeaker", "precision", "calibration_audio")
    if options.dim is not None:
        model = matryoshka.prefix(model, options.dim)
    document = wespeaker.document(model.network.config)
    config_path = path.with_name(wespeaker.CONFIG)
    files.check_new(config_path)
    tensors = state_dict(model.network, f"wespeaker_{model.arch}")
    files.write(path, torch_save.dumps(OrderedDict(tensors)))
    files.write(config_path, yaml.safe_dump(document, sort_keys=False, default_flow_style=None))
