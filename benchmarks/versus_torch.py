"""Forward and forward-with-backward of one variant against the public PyTorch code, in the same run, on this CPU.

    python benchmarks/versus_torch.py --torch_repo=CHECKOUT [--variant=b2] [--batch=4] [--seconds=3]

CHECKOUT is a clone of github.com/IDRnD/ReDimNet; PyTorch and torchaudio must be installed. Both sides run in float32
in eval mode and take turns; the backward pass is the gradient of the summed squares of the embeddings in every
parameter. Prints a Markdown table with the ratios of the medians of wall time and of the least processor times. On a
machine that does other work too, wall time says little; pin both to one core and read the processor time:

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/versus_torch.py --torch_repo=CHECKOUT
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from variants import VARIANTS

from redimnet_jax import model_config
from redimnet_jax.network import SpeakerNetwork


def times_ms(steps: Sequence[Callable[[], object]], repeat: int) -> list[tuple[float, float]]:
    """(median of wall time, least processor time) of every step in milliseconds, taking turns, after one warm-up."""
    for step in steps:
        step()
    wall, processor = [[] for _ in steps], [[] for _ in steps]
    for _ in range(repeat):
        for i, step in enumerate(steps):
            start = time.perf_counter(), time.process_time()
            step()
            wall[i].append(time.perf_counter() - start[0])
            processor[i].append(time.process_time() - start[1])
    return [(1e3 * statistics.median(w), 1e3 * min(p)) for w, p in zip(wall, processor, strict=True)]


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
    print("| | PyTorch ms | JAX ms | JAX / PyTorch | processor time, JAX / PyTorch |\n|---|---|---|---|---|")
    for name in ours:
        (a, cpu_a), (b, cpu_b) = times_ms([theirs[name], ours[name]], args.repeat)
        print(f"| {name} | {a:.0f} | {b:.0f} | {b / a:.2f} | {cpu_b / cpu_a:.2f} |", flush=True)


if __name__ == "__main__":
    main()
