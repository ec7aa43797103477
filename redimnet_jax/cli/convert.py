"""The command `redimnet-jax convert`, also `python convert_torch_weights.py`: convert a PyTorch checkpoint."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from redimnet_jax import addresses, buckets, files
from redimnet_jax.checkpoints import download, native, torch_weights, wespeaker
from redimnet_jax.cli import signals
from redimnet_jax.cli.command import Parser, closes_quietly, run
from redimnet_jax.errors import UserError
from redimnet_jax.models.speaker_model import SpeakerModel

HELP = """Convert a PyTorch ReDimNet checkpoint into a native one: a released .pt, WeSpeaker's avg_model.pt with its
config.yaml beside it, or a .safetensors file. PyTorch is not needed, and nothing in the file is executed.

  python convert_torch_weights.py --checkpoint=b2-vox2-ft_lm.pt --output=weights/b2
  python convert_torch_weights.py --model=b2 --train_type=ft_lm --output=weights/b2
  python convert_torch_weights.py --model=b6 --train_type=lm --arch=redimnet2 --output=weights/r2b6
"""


def _parser() -> Parser:
    parser = Parser(
        "convert_torch_weights.py", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_argument_group("source: a file, or a published release to download")
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="file that torch.save wrote, with any suffix")
    source.add_argument("--model", metavar="NAME", help="published model: b0 to b6, S or M")
    source.add_argument("--train_type", metavar="TYPE", help="ptn, ft_lm or ft_mix; lm for ReDimNet2")
    source.add_argument(
        "--dataset", default="vox2", metavar="NAME", help="training data of the release (default: %(default)s)"
    )
    source.add_argument(
        "--download_dir",
        type=Path,
        default=Path.home() / ".cache" / "redimnet_jax",
        metavar="DIR",
        help="folder that keeps downloads (default: %(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder to write, which must not exist yet"
    )
    parser.add_argument(
        "--arch", choices=torch_weights.LAYOUTS, help="layout of the tensor names (default: detect it)"
    )
    parser.add_argument(
        "--model_config",
        type=Path,
        metavar="FILE",
        help="JSON file, or config.yaml of WeSpeaker, for a checkpoint without a model_config",
    )
    parser.add_argument("--sha256", metavar="HEX", help="refuse a checkpoint with another SHA-256")
    return parser


@closes_quietly
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with its `arguments`, by default those of the process; return the exit code."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if (args.checkpoint is None) == (args.model is None):
        parser.error("give either --checkpoint=FILE or --model=NAME with --train_type=TYPE")
    if args.model is not None and args.train_type is None:
        parser.error("--model needs --train_type=TYPE (ptn, ft_lm or ft_mix; lm for ReDimNet2)")
    return run(lambda: _convert(args), parser.flags())


def _convert(args: argparse.Namespace) -> None:
    buckets.check_new(args.output)
    config = None if args.model_config is None else _read_config(args.model_config)
    path = args.checkpoint
    if path is None:
        arch = "redimnet2" if args.arch == "redimnet2" else "redimnet"
        url = download.release_url(args.model, args.train_type, args.dataset, arch)
        print(f"Source: {url}")
        with buckets.writing(args.download_dir) as downloads:
            path = download.fetch(url, downloads.local, args.sha256)
    path = buckets.staged(path)
    source = torch_weights.read_checkpoint(path, arch=args.arch, model_config=config)
    download.verify(path, args.sha256, "use an intact copy, or correct the expected sum")
    model, report = torch_weights.convert(source)
    del source  # as large as the model
    with buckets.new_folder(args.output) as output:
        native.save(model, output)
    print_report(model, report, args.output)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if path.suffix in (".yaml", ".yml"):
            content = wespeaker.parse(wespeaker.read(path), str(path))
        else:
            content = files.parse_json(addresses.read(path))
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}; check --model_config.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); correct it.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not an object; write the model_config entries.")
    return content


def reference_norm(model: SpeakerModel) -> float:
    """Return the length of the raw embedding of one second of the reference signal."""
    graph, state = nnx.split(model.network)
    # A program that runs once is not worth optimising.
    embed = jax.jit(
        lambda state, signal: nnx.merge(graph, state)(signal),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return float(jnp.linalg.norm(embed(state, signals.reference(1.0, model.sample_rate)[None])))


def print_report(model: SpeakerModel, report: torch_weights.Report, output: Path) -> None:
    """Print the conversion report, one fact on each line."""
    facts = {
        "source file": model.source.file,
        "SHA-256": model.source.sha256
        + (
            " (a known release)"
            if model.source.sha256 in download.KNOWN_SHA256.values()
            else " (not a known release)"
        ),
        "licence note": model.source.licence or "none known; see the source's release page",
        "architecture": f"{model.arch} (layout {report.layout})",
        **{
            name.replace("_", " "): value if isinstance(value, str) else f"{value:,}"
            for name, value in dataclasses.asdict(report).items()
            if name != "layout"
        },
        "embedding": f"{model.embed_dim} dimensions"
        + (f", prefixes {', '.join(map(str, model.mrl_dims))}" if model.mrl_dims else ""),
        "array checksum": native.checksum(native.flat(model.network)),
        "embedding norm of the reference signal": f"{reference_norm(model):.6f}",
        "written to": addresses.repaired(str(output)),
    }
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
