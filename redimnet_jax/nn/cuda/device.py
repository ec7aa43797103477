"""What a GPU has, as far as the kernels ask."""

import jax

# Of most programs.
WARPS = 8
# Shared memory that a program can have at most, in general and by compute capability.
SHARED_BYTES = 227 * 1024
LESS_SHARED_BYTES = {"8.0": 163 * 1024, "8.6": 99 * 1024, "8.7": 163 * 1024, "8.9": 99 * 1024, "12.0": 99 * 1024}


def shared_bytes() -> int:
    """Return the bytes of shared memory that a program may have on the GPU in use."""
    # On other backends the kernels are traced and left out.
    of_device = jax.devices()[0].compute_capability if jax.default_backend() == "gpu" else ""
    return min(SHARED_BYTES, LESS_SHARED_BYTES.get(of_device, SHARED_BYTES))


def multiprocessors() -> int:
    """Return the number of multiprocessors of the GPU in use."""
    # Elsewhere the kernels are traced and left out, so any number serves: this is an H200's.
    return jax.devices()[0].core_count if jax.default_backend() == "gpu" else 132
