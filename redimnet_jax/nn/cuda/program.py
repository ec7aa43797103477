"""CUDA C++ as an operation of JAX: NVRTC compiles the source, XLA launches the kernel as part of its program.

NVRTC comes with `jax[cuda13]`; no compiler, CUDA toolkit or GPU is needed to compile.
"""

import contextlib
import ctypes
import functools
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import mlir

from redimnet_jax.errors import UserError

Array = jax.Array
Defines = tuple[tuple[str, int], ...]

# The oldest GPU, and the oldest driver's language, that have what the kernels use.
ARCHITECTURE, PTX_VERSION = "compute_80", "7.8"


def source(name: str, primitives: str = "primitives.cuh") -> str:
    """Return the CUDA C++ of the kernel `name`, whole."""
    folder = Path(__file__).parent
    return "\n".join(
        (folder / part).read_text() for part in (primitives, "gelu.cuh", "attention.cuh", "narrow.cuh", f"{name}.cu")
    )


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
    for path in (path for folder in folders for path in folder.glob("*/lib/libnvrtc.so.1[23]")):
        # NVRTC looks for its second library by name alone.
        for second in path.parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(second))
        return ctypes.CDLL(str(path))
    for name in ("libnvrtc.so.13", "libnvrtc.so.12"):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    raise UserError(
        "libnvrtc.so.13 (or .12), which compiles the kernels for CUDA GPUs, was not found: "
        "install the package nvidia-cuda-nvrtc, which `jax[cuda13]` brings, or CUDA's own."
    )


@functools.cache
def ptx(name: str, defines: Defines) -> str:
    """Return the kernel `name` with macros `defines`, in PTX."""
    nvrtc, program = _nvrtc(), ctypes.c_void_p()

    def text(size_of, get) -> str:
        size = ctypes.c_size_t()
        size_of(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        get(program, buffer)
        return buffer.value.decode()

    options = [f"--gpu-architecture={ARCHITECTURE}", "--std=c++17", *(f"-D{key}={value}" for key, value in defines)]
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source(name).encode(), f"{name}.cu".encode(), 0, None, None)
    try:
        encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), encoded):
            raise RuntimeError(f"{name}.cu: {text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)}")
        compiled = text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    # NVRTC writes its own version, which an older driver of the same CUDA would refuse.
    return re.sub(r"^\.version .*$", f".version {PTX_VERSION}", compiled, count=1, flags=re.MULTILINE)


_launch = Primitive("cuda_launch")
_launch.multiple_results = True


@_launch.def_abstract_eval
def _(*_, results: tuple[jax.ShapeDtypeStruct, ...], **__):
    return [ShapedArray(result.shape, result.dtype) for result in results]


def _lower(ctx, *operands, name: str, results, grid: tuple[int, int], threads: int, shared_bytes: int, defines):
    numbers = {
        "grid_x": grid[0],
        "grid_y": grid[1],
        "grid_z": 1,
        "block_x": threads,
        "block_y": 1,
        "block_z": 1,
        "shared_mem_bytes": shared_bytes,
    }
    lowered = jax.ffi.ffi_lowering("__gpu$xla.gpu.ptx")
    return lowered(
        ctx,
        *operands,
        name=name,
        kernel_type="ptx",
        kernel_data=ptx(name, defines),
        output_indices=[np.int32(len(operands) + i) for i in range(len(results))],
        **{key: np.int32(number) for key, number in numbers.items()},
    )


# Compiled when a program is made for a GPU, not when it is traced: that is done on every platform.
mlir.register_lowering(_launch, _lower, platform="cuda")


def launch(
    name: str,
    operands: Sequence[Array],
    *results: jax.ShapeDtypeStruct,
    grid: tuple[int, int],
    threads: int,
    shared_bytes: int,
    **defines: int,
) -> list[Array]:
    """Return what the kernel `name` (of the file of that name) writes, given `operands` and macros `defines`."""
    return _launch.bind(
        *operands,
        name=name,
        results=results,
        grid=grid,
        threads=threads,
        shared_bytes=shared_bytes,
        defines=tuple(sorted(defines.items())),
    )
