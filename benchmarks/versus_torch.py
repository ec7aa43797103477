"""Forward and forward-with-backward of one variant against the public PyTorch code, in the same run, on this CPU.

    python benchmarks/versus_torch.py --torch_repo=CHECKOUT [--variant=b2] [--batch=4] [--seconds=3]

CHECKOUT is a clone of github.com/IDRnD/ReDimNet; PyTorch and torchaudio must be installed. Both sides run in float32
in eval mode; the backward pass is the gradient of the summed squares of the embeddings in every parameter. Prints a
Markdown table with the medians and their ratio.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from variants import VARIANTS

from redimnet_jax import model_config
from redimnet_jax.network import SpeakerNetwork


def median_ms(step: Callable[[], object], repeat: int) -> float:
    """Median wall time of `step` in milliseconds, after one call that warms up."""
    step()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def jax_steps(variant: str, audio: np.ndarray) -> dict[str, Callable[[], object]]:
    config = model_config.parse(*VARIANTS[variant])
    graph, parameters, rest = nnx.split(SpeakerNetwork(config, rngs=nnx.Rngs(0)), nnx.Param, ...)

    def embed(parameters, audio):
        return nnx.merge(graph, parameters, rest)(audio)

    forward = jax.jit(embed)
    gradient = jax.jit(jax.grad(lambda p, x: jnp.sum(jnp.square(embed(p, x)))))
    return {
        "forward": lambda: jax.block_until_ready(forward(parameters, audio)),
        "forward and backward": lambda: jax.block_until_ready(gradient(parameters, audio)),
    }


def torch_steps(repo: str, variant: str, audio: np.ndarray) -> dict[str, Callable[[], object]]:
    sys.path.insert(0, repo)
    import torch
    from redimnet.model import ReDimNetWrap

    model = ReDimNetWrap(**VARIANTS[variant][1]).eval()
    waveform = torch.from_numpy(audio)

    def forward():
        with torch.no_grad():
            return model(waveform)

    def backward():
        model.zero_grad()
        model(waveform).square().sum().backward()

    return {"forward": forward, "forward and backward": backward}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--torch_repo", required=True, help="clone of github.com/IDRnD/ReDimNet")
    parser.add_argument(
        "--variant", default="b2", choices=[n for n, (arch, _) in VARIANTS.items() if arch == "redimnet"]
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args()
    audio = 0.1 * np.random.default_rng(0).standard_normal((args.batch, int(16000 * args.seconds)))
    audio = audio.astype(np.float32)
    ours, theirs = jax_steps(args.variant, audio), torch_steps(args.torch_repo, args.variant, audio)
    print(f"{args.variant}, {args.batch} x {args.seconds:g} s, float32, {jax.default_backend()}\n")
    print("| | PyTorch ms | JAX ms | JAX / PyTorch |\n|---|---|---|---|")
    for name in ours:
        a, b = median_ms(theirs[name], args.repeat), median_ms(ours[name], args.repeat)
        print(f"| {name} | {a:.0f} | {b:.0f} | {b / a:.2f} |")


if __name__ == "__main__":
    main()
