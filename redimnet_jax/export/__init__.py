"""Models in the formats of other runtimes and toolkits: one file each, with its metadata inside, and its model card.

A format is a function (model, path, options): it writes `model` to the new file `path`, whole or not at all, as
`ExportOptions` say, and raises UserError for what it cannot express. It imports packages of the extra `export` only
when it runs, after `optional.require`. `metadata.describe(model, options)` gives what a file holds about itself.
"""

from collections.abc import Callable
from pathlib import Path

from redimnet_jax import files
from redimnet_jax.errors import UserError, shown
from redimnet_jax.export import card, onnx_file, stablehlo
from redimnet_jax.export.options import ExportOptions
from redimnet_jax.models.speaker_model import SpeakerModel

Format = Callable[[SpeakerModel, Path, ExportOptions], None]

FORMATS: dict[str, Format] = {"onnx": onnx_file.write, "stablehlo": stablehlo.write}


def export(
    model: SpeakerModel,
    path: str | Path,
    format: str = "onnx",
    *,
    dim: int | None = None,
    normalize: bool = True,
    precision: str = "float32",
    calibration_audio: str | Path | None = None,
) -> None:
    """Write `model` to the file `path` in one of the `FORMATS`, and its model card to `path` with `.md` added.

    The other arguments are those of `ExportOptions`; not every format has them all. Raise UserError when a file is
    there already, for a format that does not exist or cannot express the model, and when a package is missing.
    """
    path = Path(path)
    if format not in FORMATS:
        raise UserError(f"There is no format {shown(format)}; choose one of {', '.join(FORMATS)}.")
    audio = None if calibration_audio is None else Path(calibration_audio)
    options = ExportOptions(dim, normalize, precision, audio)
    options.width(model)
    card_path = path.with_name(f"{path.name}.md")
    for each in (path, card_path):
        files.check_new(each)
    text = card.text(model, options, format, path.name)
    FORMATS[format](model, path, options)
    files.write(card_path, text)
