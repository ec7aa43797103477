"""Writes what the page needs of a model: `model.onnx`, its metadata as `model.json`, and its model card.

    python export_model.py [--checkpoint=MODEL] [--calibration=FILE] [--output=dist/model]

Without `--checkpoint` this is the small model of the package, with `calibration-cosine.json`, which was fitted on it.
A calibration of another model is taken from beside its checkpoint, or from `--calibration`.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import onnx

import redimnet_jax as rj
from redimnet_jax.checkpoints import pretrained
from redimnet_jax.checkpoints.open import open_model
from redimnet_jax.errors import UserError

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, help="checkpoint, workdir or .pt (default: the package's small one)"
    )
    parser.add_argument("--calibration", type=Path, help="calibration of the cosine (default: the model's own)")
    parser.add_argument(
        "--output", type=Path, default=HERE / "dist" / "model", help="folder, whose older export is replaced"
    )
    given = parser.parse_args()
    checkpoint, calibration = given.checkpoint, given.calibration
    if checkpoint is None:
        checkpoint = pretrained.SMALL
        calibration = calibration or HERE / "calibration-cosine.json"
    try:
        write(checkpoint, calibration, given.output)
    except UserError as error:
        sys.exit(f"error: {error}")


def write(checkpoint: Path, calibration: Path | None, output: Path) -> None:
    """Export `checkpoint` to the folder `output`, whose older export it replaces."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as folder:
        path = Path(folder) / "model.onnx"
        rj.export(open_model(checkpoint), path, calibration=calibration)
        # onnxruntime-web does not give the metadata of a file, so the page reads them beside it.
        props = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
        path.with_suffix(".json").write_text(json.dumps(json.loads(props["redimnet_jax"]), indent=2))
        for each in sorted(Path(folder).iterdir()):
            each.replace(output / each.name)


if __name__ == "__main__":
    main()
