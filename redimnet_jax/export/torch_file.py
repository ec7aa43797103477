"""The layouts of the published PyTorch code: a `.pt` file that it opens with `strict=True`, made without torch.

A plain model gets the layout of the releases of its architecture. A ReDimNet with prefixes gets that of the
Matryoshka wrapper; a ReDimNet2 with prefixes has no published layout.
"""

from collections import OrderedDict
from pathlib import Path

from redimnet_jax import files
from redimnet_jax.checkpoints import torch_save
from redimnet_jax.checkpoints.torch_weights import state_dict
from redimnet_jax.errors import UserError, shown
from redimnet_jax.export.options import ExportOptions
from redimnet_jax.models import matryoshka
from redimnet_jax.models.config import OWN_FEATURE_TYPE
from redimnet_jax.models.speaker_model import SpeakerModel


def write(model: SpeakerModel, path: Path, options: ExportOptions) -> None:
    """Write `model`, or its first `options.dim` dimensions without prefixes; see `FORMATS`."""
    options.refuse("torch", "precision", "calibration_audio")
    if options.dim is not None:
        model = matryoshka.prefix(model, options.dim)
    layout = _layout(model)
    tensors = OrderedDict(state_dict(model.network, layout))
    entries = model.model_config
    key = "state_dict"
    if layout == "redimnet_mrl":
        key = "model_state_dict"
        # The wrapper's default is another.
        entries = {"embed_dim": model.embed_dim} | entries
    files.write(path, torch_save.dumps({"model_config": entries, key: tensors}))


def _layout(model: SpeakerModel) -> str:
    """Return the published layout of `model`, or raise UserError, which names what none has."""
    config = model.network.config
    if config.feat_type == OWN_FEATURE_TYPE:
        raise _without(f"feat_type {shown(config.feat_type)}", "take the format wespeaker or safetensors")
    if not config.pool_bn:
        raise _without("pool_bn false", "take the format wespeaker or safetensors")
    if config.mrl_dims is None:
        return config.arch
    prefixes = f"mrl_dims {list(config.mrl_dims)}"
    advice = "give the dim of one prefix, or take the format safetensors"
    if config.arch == "redimnet2":
        raise _without(f"{prefixes} of a ReDimNet2", advice)
    for name in ("emb_bn", "num_classes"):
        if getattr(config, name):
            raise _without(f"{prefixes} together with {name}", advice)
    return "redimnet_mrl"


def _without(entry: str, advice: str) -> UserError:
    return UserError(f"The published PyTorch layouts have no {entry} of model_config; {advice}.")
