"""Utterances per second of one variant: forward, and forward with backward, on the default device.

    python benchmarks/throughput.py [--variant=b2] [--batch=256] [--seconds=3] [--dtype=bfloat16]

Random weights and noise: neither changes the time. The backward pass is the gradient of the summed squares of the
embeddings in every parameter, with batch norm in eval mode. Prints JSON.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
from flax import nnx
from variants import VARIANTS

from redimnet_jax import model_config
from redimnet_jax.network import SpeakerNetwork


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--variant", default="b2", choices=VARIANTS)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--repeat", type=int, default=20)
    args = parser.parse_args()
    config = model_config.parse(*VARIANTS[args.variant])
    network = SpeakerNetwork(config, dtype=args.dtype, rngs=nnx.Rngs(0))
    graph, parameters, rest = nnx.split(network, nnx.Param, ...)
    audio = 0.1 * jax.random.normal(jax.random.key(0), (args.batch, int(args.seconds * config.spec.sample_rate)))

    def embed(parameters, rest, audio):
        return nnx.merge(graph, parameters, rest)(audio)

    def loss(parameters, rest, audio):
        return jnp.sum(jnp.square(embed(parameters, rest, audio)))

    results = vars(args) | {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    for name, function in (("forward", embed), ("forward_backward", jax.grad(loss))):
        start = time.perf_counter()
        program = jax.jit(function).lower(parameters, rest, audio).compile()
        results[f"{name}_compile_s"] = round(time.perf_counter() - start, 1)
        jax.block_until_ready(program(parameters, rest, audio))
        start = time.perf_counter()
        for _ in range(args.repeat):
            out = program(parameters, rest, audio)
        jax.block_until_ready(out)
        step = (time.perf_counter() - start) / args.repeat
        results[f"{name}_ms"] = round(1e3 * step, 2)
        results[f"{name}_utterances_per_s"] = round(args.batch / step, 1)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
