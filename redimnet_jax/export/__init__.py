"""Models in the formats of other runtimes and toolkits: one file each, with its metadata inside, and its model card.

A format is a function (model, path, options): it writes `model` to the new file `path`, whole or not at all, as
`ExportOptions` say, and raises UserError for what it cannot express. It imports packages of the extra `export` only
when it runs, after `optional.require`. `metadata.describe(model, options)` gives what a file holds about itself.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from redimnet_jax import addresses, buckets, files
from redimnet_jax.errors import UserError, shown
from redimnet_jax.export import card, onnx_file, safetensors, stablehlo, torch_file, wespeaker
from redimnet_jax.export.options import ExportOptions
from redimnet_jax.models.speaker_model import SpeakerModel

Format = Callable[[SpeakerModel, Path, ExportOptions], None]

FORMATS: dict[str, Format] = {
    "onnx": onnx_file.write,
    "stablehlo": stablehlo.write,
    "safetensors": safetensors.write,
    "torch": torch_file.write,
    "wespeaker": wespeaker.write,
}
# Formats of weights alone, whose own code gives embeddings as the network does.
WEIGHTS = frozenset({"torch", "wespeaker", "safetensors"})


def export(
    model: SpeakerModel,
    path: str | Path,
    format: str = "onnx",
    *,
    dim: int | None = None,
    normalize: bool = True,
    precision: str = "float32",
    calibration_audio: str | Path | None = None,
    calibration: str | Path | None = None,
) -> None:
    """Write `model` to a file or an address in one of the `FORMATS`, and its model card beside it, with `.md` added.

    The other arguments are those of `ExportOptions`; not every format has them all. Raise UserError when a file is
    there already, for a format that does not exist or cannot express the model, for a `calibration` that does not
    suit the model, and when a package is missing.
    """
    if format not in FORMATS:
        raise UserError(f"There is no format {shown(format)}; choose one of {', '.join(FORMATS)}.")
    audio = None if calibration_audio is None else buckets.staged(calibration_audio)
    options = ExportOptions(dim, normalize and format not in WEIGHTS, precision, audio, calibration)
    options.width(model)
    with _local(path) as local:
        text = card.text(model, options, format, local.name)
        FORMATS[format](model, local, options)
        files.write(_beside(local), text)


@contextlib.contextmanager
def _local(path: str | Path) -> Iterator[Path]:
    """Give the path to write to, which is new: for an address a local one, which is uploaded at the block's end."""
    address = addresses.of(path)
    if address is None:
        if not Path(path).name:
            raise UserError(f"The output {str(path)!r} has no file name; give the path of a new file.")
        for each in (Path(path), _beside(Path(path))):
            files.check_new(each)
        yield Path(path)
        return
    folder, _, name = address.rpartition("/")
    for each in (address, f"{address}.md"):
        buckets.check_new(each)
    with tempfile.TemporaryDirectory() as local:
        yield Path(local) / name
        for file in sorted(each for each in Path(local).rglob("*") if each.is_file()):
            addresses.upload(file, f"{folder}/{file.relative_to(local)}")


def _beside(path: Path) -> Path:
    """Return where the model card of an export is."""
    return path.with_name(f"{path.name}.md")
