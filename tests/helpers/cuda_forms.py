"""The forms that the library keeps for CUDA GPUs, here: chosen on a CPU, their kernels emulated."""

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import lax

from redimnet_jax.nn.cuda import program

# To compile takes longer than to run. Variables that nothing has set are large numbers: what reads one shows.
OPTIONS = ("-O0", "-std=c++17", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-ftrivial-auto-var-init=pattern")
EMULATION = Path(__file__).with_name("cuda_on_cpu.h")
RUN = """
extern "C" const char* run(int n, byte** arrays, const long long* sizes, const int* launch) {
    return emulated::run(%s, n, arrays, sizes, launch);
}
"""
# Of NaN around every array: its bytes, and what they are.
EDGE, NAN_BYTE, ALIGNMENT = 1 << 16, 0xFF, 128


@functools.cache
def compiler() -> str:
    path = shutil.which("g++")
    version = subprocess.run([path, "-dumpversion"], capture_output=True, text=True).stdout if path else "0"
    if int(version.split(".")[0]) < 12:
        pytest.skip("the emulation of the kernels for CUDA GPUs needs g++ from version 12 on")
    return path


@functools.cache
def compiled(source: str, defines: program.Defines) -> ctypes.PyDLL:
    options = [*OPTIONS, *(f"-D{key}={value}" for key, value in defines)]
    name = hashlib.sha256("\0".join([source, *options]).encode()).hexdigest()
    folder = Path(os.environ["COMPILED_KERNELS"])
    folder.mkdir(exist_ok=True)
    library = folder / f"{name}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as own:
            new = Path(own, "new.so")
            command = [compiler(), *options, "-x", "c++", "-", "-o", new]
            done = subprocess.run(command, input=source, text=True, capture_output=True)
            assert done.returncode == 0, done.stderr
            new.replace(library)
    # Of Python's lock: the emulation has one state.
    loaded = ctypes.PyDLL(str(library))
    loaded.run.restype = ctypes.c_char_p
    return loaded


def _edged(shape: tuple[int, ...], dtype) -> tuple[np.ndarray, list[np.ndarray]]:
    """(an array of NaN, its edges of NaN)."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.full(size + 2 * EDGE + ALIGNMENT, NAN_BYTE, np.uint8)
    first = EDGE + -(memory.ctypes.data + EDGE) % ALIGNMENT
    before, within, after = np.split(memory, [first, first + size])
    return within.view(dtype).reshape(shape), [before, after]


def emulated(source: str, kernel: str, operands, results, launch: tuple[int, ...], defines) -> list[np.ndarray]:
    """What `kernel` of `source` writes; `launch` is the grid's extents, threads, bytes of shared memory."""
    arrays, edges = zip(*(_edged(x.shape, x.dtype) for x in (*operands, *results)), strict=True)
    for array, operand in zip(arrays, operands, strict=False):
        array[...] = np.asarray(operand)
    error = compiled(source + RUN % kernel, defines).run(
        len(arrays),
        (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays)),
        (ctypes.c_longlong * len(arrays))(*(array.nbytes for array in arrays)),
        (ctypes.c_int * len(launch))(*launch),
    )
    assert not error, f"{kernel}: {error.decode()}"
    for i, both in enumerate(edges):
        assert all((edge == NAN_BYTE).all() for edge in both), f"{kernel}: it wrote beyond array {i}"
    return list(arrays[len(operands) :])


def launched(names: list[str]):
    """`program.launch` on a CPU, which adds to `names` what runs."""

    def launch(name: str, operands, *results, grid, threads, shared_bytes, **defines):
        compiler()
        source, defines = program.source(name, primitives=str(EMULATION)), tuple(sorted(defines.items()))

        def call(*operands):
            names.append(name)
            return emulated(source, name, operands, results, (*grid, threads, shared_bytes), defines)

        return jax.pure_callback(call, list(results), *operands)

    return launch


@contextlib.contextmanager
def chosen(monkeypatch):
    """Gives the list of the names of kernels that have run."""
    names = []
    with monkeypatch.context() as patch:
        patch.setattr(program, "launch", launched(names))
        patch.setattr(lax, "platform_dependent", lambda *x, default, **forms: forms.get("cuda", default)(*x))
        # What was traced before holds the other forms, and the kernels as a GPU takes them.
        jax.clear_caches()
        yield names
    jax.clear_caches()
