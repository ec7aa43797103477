"""The README's table of variants: parameters, multiply-accumulates, relative error to the public PyTorch code.

    python benchmarks/variants_table.py --redimnet=CHECKOUT --redimnet2=CHECKOUT [--only=b2]

The checkouts are clones of github.com/IDRnD/ReDimNet and github.com/PalabraAI/redimnet2; PyTorch and torchaudio must
be installed. Each variant gets PyTorch's random initial weights with random running statistics, is saved with
`torch.save`, converted, and embeds two signals of 3 s on both sides in float32. GMACs are those of
3 s, of convolutions, linear layers and attention products, counted from the shapes that flow through the network.
"""

import argparse
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from redimnet_jax.checkpoints import torch_weights
from redimnet_jax.cli import signals
from redimnet_jax.models import blocks
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.models.variants import VARIANTS
from redimnet_jax.nn import layers

SECONDS = 3.0


def gmacs(network: SpeakerNetwork) -> float:
    """10^9 multiply-accumulates of one signal of SECONDS, front end excluded."""
    total = 0

    def counted(kind, macs):
        plain = kind.__call__

        def call(self, x, *args, **kwargs):
            nonlocal total
            y = plain(self, x, *args, **kwargs)
            total += macs(self, x, y)
            return y

        return plain, call

    def by_kernel(self, x, y):
        return self.kernel.size // self.kernel.shape[-1] * y.size

    def by_channel(self, x, y):
        return self.kernel.shape[0] * y.size

    kinds = {
        layers.Dense: by_kernel,
        layers.Conv2d: by_kernel,
        layers.PatchConv2d: by_kernel,
        layers.DepthwiseConv1d: by_channel,
        blocks.Attention: lambda self, x, y: 2 * x.shape[1] * x.size,
    }
    plain = {}
    for kind, macs in kinds.items():
        plain[kind], kind.__call__ = counted(kind, macs)
    try:
        graph, state = nnx.split(network)
        audio = jax.ShapeDtypeStruct((1, int(SECONDS * 16000)), jnp.float32)
        jax.eval_shape(lambda state, audio: nnx.merge(graph, state)(audio), state, audio)
    finally:
        for kind, call in plain.items():
            kind.__call__ = call
    return total / 1e9


def torch_model(arch: str, config: dict):
    import torch

    if arch == "redimnet":
        from redimnet.model import ReDimNetWrap as Wrap
    else:
        from redimnet2.redimnet2 import ReDimNet2Wrap as Wrap
    torch.manual_seed(0)
    model = Wrap(**config).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--redimnet", required=True, help="clone of github.com/IDRnD/ReDimNet")
    parser.add_argument("--redimnet2", required=True, help="clone of github.com/PalabraAI/redimnet2")
    parser.add_argument("--only", choices=VARIANTS)
    args = parser.parse_args()
    sys.path[:0] = [args.redimnet, args.redimnet2]
    import torch

    reference = signals.reference(SECONDS)
    audio = np.stack([reference, reference[::-1]])
    print("| variant | parameters | GMACs (3 s) | relative L2 error to PyTorch |\n|---|---|---|---|", flush=True)
    for name in [args.only] if args.only else VARIANTS:
        arch, config = VARIANTS[name]
        theirs = torch_model(arch, config)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / f"{name}.pt"
            torch.save({"model_config": config, "state_dict": theirs.state_dict()}, path)
            model, report = torch_weights.convert(torch_weights.read_checkpoint(path))
        with torch.no_grad():
            expected = theirs(torch.from_numpy(audio)).numpy()
        has_head = model.network.classifier is not None
        output = model.classify(audio) if has_head else model.embed(audio, normalize=False)
        error = np.linalg.norm(output - expected) / np.linalg.norm(expected)
        count = gmacs(model.network)
        print(f"| {name} | {report.parameters:,} | {count:.2f} | {error:.1e} |", flush=True)


if __name__ == "__main__":
    main()
