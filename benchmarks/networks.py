"""Forward pass and training step of the networks: time, compile time and memory, beside the public PyTorch code.

    python benchmarks/networks.py [--variants b0 b2 b5 b6] [--batch=256] [--seconds=3] [--dtype=bfloat16]
                                  [--remat] [--torch_repo=CHECKOUT] [--output=FOLDER]

CHECKOUT is a clone of github.com/IDRnD/ReDimNet; with it PyTorch and torchaudio must be installed, and both sides are
measured in this run, taking turns, on the same kind of device: PyTorch as it comes and, on a GPU, compiled, where
bfloat16 means autocast. "forward" is eval mode. "step" trains everything, with batch statistics: loss (the squares of
the embeddings), gradients and AdamW. A time is of one call; on a GPU of five in a row, after which the host waits.
Random weights and noise: neither changes the time. The speed over PyTorch is that over compiled PyTorch on a GPU.
"memory" is what a program needs at its peak, parameters included. Prints a Markdown table; --output has it too, and
the same as JSON.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# PyTorch needs memory beside JAX.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from redimnet_jax.compilation import jit
from redimnet_jax.models import config as model_config
from redimnet_jax.models.blocks import Execution
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.models.variants import VARIANTS

COLUMNS = ("variant", "part", "code", "ms", "utterances_per_s", "speed_over_pytorch", "compile_s", "memory_gib")
# What calls a program, what waits for the result of a call, what is known of the program.
Measured = tuple[Callable[[], object], Callable[[object], object], dict]
# In a row, then waited for, as a loop over batches does: what a call costs the host meanwhile does not show.
CALLS = 5


def jax_parts(
    variant: str, audio: np.ndarray, dtype: str, parts: Sequence[str], remat: bool = False
) -> dict[str, Measured]:
    """Of each of `parts`, "forward" and "step", what is to be measured."""
    config = model_config.parse(*VARIANTS[variant])
    network = SpeakerNetwork(config, dtype=dtype, rngs=nnx.Rngs(0))
    network.backbone.execution = Execution(remat=remat)
    graph, *states = nnx.split(network, nnx.Param, ...)
    # Lists of arrays, as in the library's own programs: states of nnx are taken apart in Python, call by call.
    (parameters, of_parameters), (rest, of_rest) = (jax.tree.flatten(state) for state in states)
    optimiser = optax.adamw(1e-5)

    def merged(parameters, rest):
        return nnx.merge(graph, of_parameters.unflatten(parameters), of_rest.unflatten(rest), copy=True)

    def forward(parameters, rest, audio):
        return merged(parameters, rest)(audio)

    def step(parameters, rest, moments, audio):
        def loss(parameters):
            network = merged(parameters, rest)
            embedding = network(audio, train=True, key=jax.random.key(0))
            return jnp.mean(jnp.square(embedding)), jax.tree.leaves(nnx.state(network, nnx.Not(nnx.Param)))

        gradients, rest_ = jax.grad(loss, has_aux=True)(parameters)
        updates, moments = optimiser.update(gradients, moments, parameters)
        return optax.apply_updates(parameters, updates), rest_, moments

    def compiled(function, *arguments, donate=()):
        start = time.perf_counter()
        program = jit(function, donate_argnums=donate).lower(*arguments).compile()
        memory = program.memory_analysis()
        peak = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
        peak -= memory.alias_size_in_bytes
        known = {"compile_s": round(time.perf_counter() - start, 1), "memory_gib": round(peak / 2**30, 2)}
        return program, known

    audio = jnp.asarray(audio)
    found = {}
    if "forward" in parts:
        forward_program, known = compiled(forward, parameters, rest, audio)
        found["forward"] = lambda: forward_program(parameters, rest, audio), jax.block_until_ready, known
    if "step" in parts:
        moments = optimiser.init(parameters)
        step_program, known = compiled(step, parameters, rest, moments, audio, donate=(0, 1, 2))
        # The step is given its buffers away, so it has its own.
        held = [jax.tree.map(jnp.copy, (parameters, rest, moments))]

        def run_step():
            held[0] = step_program(*held[0], audio)
            return held[0]

        found["step"] = run_step, jax.block_until_ready, known
    return found


def torch_parts(
    repo: str, variant: str, audio: np.ndarray, dtype: str, parts: Sequence[str], compiled: bool
) -> dict[str, Measured]:
    """The same of the public PyTorch code."""
    sys.path.insert(0, repo)
    import torch
    from redimnet.model import ReDimNetWrap

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    torch.manual_seed(0)
    network = ReDimNetWrap(**VARIANTS[variant][1]).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=device == "cuda")
    waveform = torch.from_numpy(audio).to(device)
    call = torch.compile(network) if compiled else network

    def embed():
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            return call(waveform)

    def wait(_):
        if device == "cuda":
            torch.cuda.synchronize()

    def forward():
        network.eval()
        with torch.no_grad():
            embed()

    def step():
        network.train()
        optimiser.zero_grad()
        embed().float().square().mean().backward()
        optimiser.step()

    found = {}
    for name, run in (("forward", forward), ("step", step)):
        if name not in parts:
            continue
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        wait(run())
        known = {"compile_s": round(time.perf_counter() - start, 1) if compiled else None}
        known["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2) if device == "cuda" else None
        found[name] = run, wait, known
    return found


def medians_ms(measured: list[Measured], repeat: int) -> list[float]:
    """Median times of a call, taking turns, after one warm-up."""
    calls = CALLS if jax.default_backend() == "gpu" else 1
    times = [[] for _ in measured]
    for turn in range(repeat + 1):
        for (call, wait, _), seconds in zip(measured, times, strict=True):
            start = time.perf_counter()
            for _ in range(calls):
                result = call()
            wait(result)
            if turn:
                seconds.append((time.perf_counter() - start) / calls)
    return [1e3 * statistics.median(seconds) for seconds in times]


def measure(variant: str, args) -> list[dict]:
    """The rows of one variant."""
    audio = 0.1 * np.random.default_rng(0).standard_normal((args.batch, int(16000 * args.seconds)))
    audio = audio.astype(np.float32)
    codes = {"JAX": jax_parts(variant, audio, args.dtype, args.parts, args.remat)}
    if args.torch_repo and VARIANTS[variant][0] == "redimnet":
        codes["PyTorch"] = torch_parts(args.torch_repo, variant, audio, args.dtype, args.parts, compiled=False)
        if jax.default_backend() == "gpu":
            codes["PyTorch, compiled"] = torch_parts(
                args.torch_repo, variant, audio, args.dtype, args.parts, compiled=True
            )
    reference = list(codes)[-1]
    rows = []
    for part in args.parts:
        times = dict(zip(codes, medians_ms([code[part] for code in codes.values()], args.repeat), strict=True))
        for code, ms in times.items():
            rate = {"ms": round(ms, 2), "utterances_per_s": round(1e3 * args.batch / ms, 1)}
            ratio = {"speed_over_pytorch": round(times[reference] / ms, 2)} if len(codes) > 1 else {}
            rows.append({"variant": variant, "part": part, "code": code} | rate | ratio | codes[code][part][2])
    return rows


def table(rows: list[dict]) -> str:
    lines = [" | ".join(COLUMNS), "|".join("---" for _ in COLUMNS)]
    lines += [" | ".join("" if row.get(c) is None else str(row[c]) for c in COLUMNS) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["b0", "b2", "b5", "b6"], choices=VARIANTS)
    parser.add_argument("--parts", nargs="+", default=["forward", "step"], choices=["forward", "step"])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--remat", action="store_true", help="the step of the JAX network with config.remat")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--torch_repo", help="clone of github.com/IDRnD/ReDimNet")
    parser.add_argument("--output", type=Path, help="folder for networks.json and networks.md")
    args = parser.parse_args()
    machine = f"{jax.devices()[0].device_kind}, JAX {jax.__version__}"
    title = f"{machine}, {args.batch} x {args.seconds:g} s, {args.dtype}, medians of {args.repeat}"
    rows = []
    for variant in args.variants:
        rows += measure(variant, args)
        print(f"{title}\n\n{table(rows)}\n", flush=True)
        if args.output is not None:
            args.output.mkdir(parents=True, exist_ok=True)
            (args.output / "networks.json").write_text(json.dumps({"title": title, "rows": rows}, indent=2) + "\n")
            (args.output / "networks.md").write_text(f"{title}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
