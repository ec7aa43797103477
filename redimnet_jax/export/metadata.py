"""What an exported file says about itself."""

import dataclasses
from typing import Any

from redimnet_jax.checkpoints import native
from redimnet_jax.export.options import ExportOptions
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.version import VERSION


def describe(model: SpeakerModel, options: ExportOptions) -> dict[str, Any]:
    """Return the facts about an export as values that JSON has; an entry that nobody knows is left out.

    `weights_sha256` is the checksum of the model's own arrays, whatever the precision of the export. `calibration` is
    the calibration of cosines stored beside the model: {"scale", "offset", "threshold"} of the exported width, with
    `measured_on`. A calibration that needs quality measures, or is of another system, is left out.
    """
    facts: dict[str, Any] = {
        "tool": f"redimnet_jax {VERSION}",
        "arch": model.arch,
        "sample_rate": model.sample_rate,
        "min_samples": model.min_samples,
        "dim": options.width(model),
        "normalized": options.normalize,
        "precision": options.precision,
        "prefixes": [dim for dim in model.mrl_dims or (model.embed_dim,) if dim <= options.width(model)],
        "source": {key: value for key, value in dataclasses.asdict(model.source).items() if value},
        "licence": model.source.licence,
        "weights_sha256": native.checksum(native.flat(model.network)),
        "config_sha256": native.config_checksum(model.arch, model.model_config),
        "model_config": model.model_config,
        "calibration": calibration(model, options),
    }
    return {name: value for name, value in facts.items() if value is not None}


def calibration(model: SpeakerModel, options: ExportOptions) -> dict[str, Any] | None:
    """Return the calibration of cosines that is stored beside `model`; see `describe`."""
    from redimnet_jax.verification.verify import find_calibration

    dim = options.width(model)
    known, _ = find_calibration(model, dim)
    if known is None or known.prefixes[dim].calibration.weights:
        return None
    prefix = known.prefixes[dim]
    return {
        "scale": prefix.calibration.scale,
        "offset": prefix.calibration.offset,
        "threshold": prefix.threshold,
        "fitted_on": known.trials["from"],
    }
