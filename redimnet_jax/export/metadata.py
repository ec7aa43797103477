"""What an exported file says about itself."""

import dataclasses
from typing import Any

from redimnet_jax.checkpoints import native
from redimnet_jax.errors import UserError
from redimnet_jax.export.options import ExportOptions
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.version import VERSION


def describe(model: SpeakerModel, options: ExportOptions) -> dict[str, Any]:
    """Return the facts about an export as values that JSON has; an entry that nobody knows is left out.

    `weights_sha256` is the checksum of the model's own arrays, whatever the precision of the export. `calibration` is
    the calibration of cosines stored beside the model, or that of the options; see `calibration`.
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
    """Return the calibration of cosines of the exported width: scale, offset, threshold, limits and fitted_on.

    It is the one of the options, which has to suit `model`, or else the one beside `model`, which is left out when it
    needs quality measures or is of another system. Raise UserError for one of the options that does not suit.
    """
    from redimnet_jax.verification.verify import HOW_TO_CALIBRATE, find_calibration

    dim = options.width(model)
    known, _ = find_calibration(model, dim, options.calibration)
    if known is None:
        return None
    prefix = known.prefixes[dim]
    if prefix.calibration.weights:
        if options.calibration is None:
            return None
        raise UserError(
            f"The calibration {options.calibration} needs {', '.join(prefix.calibration.weights)} besides the "
            f"cosine, which an export does not have; {HOW_TO_CALIBRATE} and without --calibrate_quality."
        )
    return {
        "scale": prefix.calibration.scale,
        "offset": prefix.calibration.offset,
        "threshold": prefix.threshold,
        "limits": {name: list(limits) for name, limits in prefix.limits.items()},
        "fitted_on": known.trials["from"],
    }
