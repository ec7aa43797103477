"""Exports opened by the public PyTorch code: the relative error of its embeddings to ours.

    python benchmarks/torch_layouts.py --redimnet=CHECKOUT --redimnet2=CHECKOUT --wespeaker=CHECKOUT [--only=b2]

The checkouts are clones of github.com/IDRnD/ReDimNet, github.com/PalabraAI/redimnet2 (or entn-at/redimnet2) and
github.com/wenet-e2e/wespeaker; PyTorch and torchaudio must be installed. Each variant gets random weights and random
running statistics, is exported, opened with `torch.load(weights_only=True)` and `load_state_dict(strict=True)`, and
embeds two signals of 3 s on both sides in float32. For WeSpeaker a variant gets the front end that WeSpeaker has.
"""

import argparse
import importlib
import pathlib
import sys
import tempfile
import types

import numpy as np
import torch
import yaml
from random_model import random_model

from redimnet_jax import export
from redimnet_jax.cli import signals
from redimnet_jax.models.variants import VARIANTS

SECONDS = 3.0
KALDI = {"feat_type": "kaldi", "pool_bn": False, "hop_length": 160, "spec_params": {"f_max": 8000}}


def published(path: pathlib.Path, arch: str) -> torch.nn.Module:
    """The model of the authors' code in an export to `torch`."""
    content = torch.load(path, weights_only=True)
    module, name = ("redimnet2", "ReDimNet2Wrap") if arch == "redimnet2" else ("redimnet.model", "ReDimNetWrap")
    model = getattr(importlib.import_module(module), name)(**content["model_config"])
    model.load_state_dict(content["state_dict"], strict=True)
    return model.eval()


def embed_with_wespeaker(path: pathlib.Path, audio: np.ndarray) -> np.ndarray:
    """The embeddings of WeSpeaker's code for an export to `wespeaker`, made as its `bin/extract.py` makes them."""
    config = yaml.safe_load((path.parent / "config.yaml").read_text())
    family = "redimnet2" if config["model"].startswith("ReDimNet2") else "redimnet"
    models = importlib.import_module(f"wespeaker.models.{family}")
    model = getattr(models, config["model"])(**config["model_args"])
    dataset = config["dataset_args"]
    if dataset.get("frontend", "fbank") == "tfmel":
        frontend = importlib.import_module("wespeaker.frontend.tfmel").TFMelFrontend
        model.add_module("frontend", frontend(**dataset["tfmel_args"], sample_rate=dataset["resample_rate"]))
    model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    model.eval()
    waveforms = torch.from_numpy(audio)
    if hasattr(model, "frontend"):
        features, _ = model.frontend(waveforms)
    else:
        from torchaudio.compliance import kaldi

        options = dataset["fbank_args"] | {"dither": 0.0}
        features = [
            kaldi.fbank(
                row[None] * (1 << 15),
                **options,
                sample_frequency=dataset["resample_rate"],
                window_type="hamming",
                use_energy=False,
            )
            for row in waveforms
        ]
        features = torch.stack(features)
    if dataset.get("cmvn", True):
        features = features - features.mean(dim=1, keepdim=True)
    output = model(features)
    return (output[-1] if isinstance(output, tuple) else output).numpy()


def for_wespeaker(arch: str, entries: dict) -> dict:
    """The entries of a variant with a front end that WeSpeaker has."""
    return entries if arch == "redimnet2" else entries | KALDI


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def main() -> None:
    """Print a line a variant and format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("redimnet", "redimnet2", "wespeaker"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--only", action="append", choices=VARIANTS, help="one variant; may be repeated")
    args = parser.parse_args()
    sys.path[:0] = [str(args.redimnet), str(args.redimnet2)]
    # WeSpeaker's packages import much that its models do not need.
    for name in ("wespeaker", "wespeaker.models", "wespeaker.frontend"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(args.wespeaker.joinpath(*name.split(".")))]
    torch.set_grad_enabled(False)
    audio = np.stack([signals.reference(SECONDS, 16000), np.roll(signals.reference(SECONDS, 16000), 9000) * 0.3])
    for name in args.only or VARIANTS:
        arch, entries = VARIANTS[name]
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "model.pt")
            model = random_model(arch, entries)
            export(model, path, "torch")
            theirs = published(path, arch)(torch.from_numpy(audio)).numpy()
            ours = np.asarray(model.embed(audio, normalize=False))
            print(f"{name:18} torch      {relative(ours, theirs):.1e}", flush=True)
            path = pathlib.Path(folder, "wespeaker", "avg_model.pt")
            model = random_model(arch, for_wespeaker(arch, entries))
            export(model, path, "wespeaker")
            ours = np.asarray(model.embed(audio, normalize=False))
            print(f"{name:18} wespeaker  {relative(ours, embed_with_wespeaker(path, audio)):.1e}", flush=True)


if __name__ == "__main__":
    main()
