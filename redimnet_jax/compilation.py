"""`jax.jit` for programs that hold a network."""

import functools
from collections.abc import Callable
from typing import Any

import jax

# On a GPU cuBLAS adds biases and residuals in its products, where a product of XLA's own (Triton) is followed by a
# pass over the map for them; and to try out the latter takes most of the time of compiling.
#
# The scheduler that hides exchanges between GPUs behind computation keeps maps for longer: on two GPUs a step of the
# whole network takes 1.6 times the memory. There is nothing to hide: a batch's statistics are waited for at once, and
# gradients come last. What is waited for is exchanged fastest in the stream that computes. The list of exchanges that
# stay there does not reach those for which XLA has kernels of its own, so the pass that moves them goes.
OPTIONS = {
    "gpu": {
        "xla_gpu_enable_triton_gemm": False,
        "xla_gpu_enable_latency_hiding_scheduler": False,
        "xla_gpu_disable_async_collectives": "ALLREDUCE,ALLGATHER,REDUCESCATTER",
        "xla_disable_hlo_passes": "async-collective-creator",
    },
}
# Efforts of a TPU's compiler below the full one, 0, at which a step takes it many minutes (docs/dev/tpu.md). There
# the program keeps less on the chip, and at the least it takes three times as long by the compiler's estimate.
HALF_EFFORT = -0.5
LEAST_EFFORT = -1.0


def for_tpu(effort: float) -> dict[str, Any]:
    """Return the options of a TPU's compiler at an effort from -1 to 0."""
    if effort <= LEAST_EFFORT:
        # With products fused into products the compiler overflows its stack, and the process dies, at many batches
        # that are no multiple of 32.
        return {"exec_time_optimization_effort": effort, "xla_tpu_dot_dot_fusion": False}
    if effort:
        return {"exec_time_optimization_effort": effort}
    # What an operation may keep on the chip bounds the instructions that the compiler writes, and they its time. With
    # its own limit the forward pass takes more than twice as long to compile. With two thirds of this limit some
    # batches do not compile at all.
    return {"xla_tpu_scoped_vmem_limit_kib": 6144}


def jit(function: Callable, *, tpu_effort: float = 0.0, **arguments: Any) -> Callable:
    """`jax.jit(function, **arguments)` with the compiler's options for a network on this backend.

    `tpu_effort` is the effort of a TPU's compiler: less for a large program, or for many that run a few times only.
    """

    @functools.cache
    def jitted() -> Any:
        # Not before the first call, as it starts the backend.
        options = OPTIONS | {"tpu": for_tpu(tpu_effort)}
        return jax.jit(function, compiler_options=options.get(jax.default_backend()), **arguments)

    @functools.wraps(function)
    def call(*operands: Any) -> Any:
        return jitted()(*operands)

    program: Any = call  # A function may have attributes, which its type does not know.
    program.jitted = jitted
    program.lower = lambda *operands: jitted().lower(*operands)
    return program
