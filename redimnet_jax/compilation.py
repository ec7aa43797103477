"""`jax.jit` for programs that hold a network."""

import functools
from collections.abc import Callable
from typing import Any

import jax

# What an operation may keep on a TPU's chip bounds the instructions that the compiler writes, and these its time. With
# the compiler's own limit the forward pass takes more than twice as long to compile (docs/dev/tpu.md).
FOR_TPU = {"xla_tpu_scoped_vmem_limit_kib": 6144}
# On a GPU cuBLAS adds biases and residuals in its products, where a product of XLA's own (Triton) is followed by a
# pass over the map for them; and to try out the latter takes most of the time of compiling.
#
# The scheduler that hides exchanges between GPUs behind computation keeps maps for longer: on two GPUs a step of the
# whole network takes 1.6 times the memory. There is nothing to hide: a batch's statistics are waited for at once, and
# gradients come last. What is waited for is exchanged fastest in the stream that computes.
OPTIONS = {
    "gpu": {
        "xla_gpu_enable_triton_gemm": False,
        "xla_gpu_enable_latency_hiding_scheduler": False,
        "xla_gpu_disable_async_collectives": "ALLREDUCE,ALLGATHER,REDUCESCATTER",
    },
    "tpu": FOR_TPU,
}
# With the least effort a TPU's compiler takes a sixth of its time, which is minutes for a network. The program keeps
# less on the chip, and takes three times as long by the compiler's estimate (docs/dev/tpu.md).
LEAST_EFFORT = {"tpu": {"exec_time_optimization_effort": -1.0}}


def jit(function: Callable, *, many_shapes: bool = False, **arguments: Any) -> Callable:
    """`jax.jit(function, **arguments)` with the compiler's options for a network on this backend.

    With `many_shapes` the program is compiled for many shapes, and each is run a few times only.
    """

    @functools.cache
    def jitted() -> Any:
        # Not before the first call, as it starts the backend.
        options = OPTIONS | LEAST_EFFORT if many_shapes else OPTIONS
        return jax.jit(function, compiler_options=options.get(jax.default_backend()), **arguments)

    @functools.wraps(function)
    def call(*operands: Any) -> Any:
        return jitted()(*operands)

    program: Any = call  # A function may have attributes, which its type does not know.
    program.jitted = jitted
    program.lower = lambda *operands: jitted().lower(*operands)
    return program
