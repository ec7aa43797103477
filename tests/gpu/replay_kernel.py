"""Runs one compiled kernel on a CUDA GPU through the driver's API, without JAX.

A launch that was written to a file is run again by `python tests/gpu/replay_kernel.py LAUNCH.npz`, in a process small
enough for compute-sanitizer.
"""

import argparse
import ctypes
import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# Numbers of the driver's API.
MAX_DYNAMIC_SHARED_BYTES, MULTIPROCESSORS, SHARED_BYTES_OF_A_BLOCK = 8, 16, 97
# Every byte of a result before the launch: bfloat16 and float32 values of these bytes are NaN.
UNWRITTEN = 0xFF
LAUNCHED = "The kernel ran and wrote the bits that it wrote before."


@dataclasses.dataclass
class Launch:
    """A kernel in PTX and how it is launched; arrays are NumPy's, bfloat16 as uint16."""

    kernel: str
    ptx: str
    grid: tuple[int, int]
    threads: int
    shared_bytes: int
    operands: Sequence[np.ndarray]
    results: Sequence[np.ndarray]

    def write(self, path: Path) -> None:
        plain = ("kernel", "ptx", "grid", "threads", "shared_bytes")
        arrays = {f"operand{i}": array for i, array in enumerate(self.operands)}
        arrays |= {f"result{i}": array for i, array in enumerate(self.results)}
        np.savez(path, launch=json.dumps({name: getattr(self, name) for name in plain}), **arrays)

    @classmethod
    def read(cls, path: Path) -> "Launch":
        with np.load(path) as file:
            plain = json.loads(str(file["launch"]))

            def arrays(kind: str) -> list[np.ndarray]:
                return [file[f"{kind}{i}"] for i in range(sum(name.startswith(kind) for name in file.files))]

            return cls(**plain, operands=arrays("operand"), results=arrays("result"))


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _call(name: str, *arguments) -> None:
    code = getattr(_driver(), name)(*arguments)
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorName(code, ctypes.byref(text))
        raise RuntimeError(f"{name} returned {text.value.decode() if text.value else code}.")


@functools.cache
def _context() -> tuple[ctypes.c_int, ctypes.c_void_p]:
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _call("cuInit", 0)
    _call("cuDeviceGet", ctypes.byref(device), 0)
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    return device, context


def attribute(number: int) -> int:
    """An attribute of the first GPU, by its number in the driver's API."""
    value = ctypes.c_int()
    _call("cuDeviceGetAttribute", ctypes.byref(value), number, _context()[0])
    return value.value


def _function(module: ctypes.c_void_p, launch: Launch) -> ctypes.c_void_p:
    function = ctypes.c_void_p()
    _call("cuModuleLoadData", ctypes.byref(module), launch.ptx.encode())
    _call("cuModuleGetFunction", ctypes.byref(function), module, launch.kernel.encode())
    _call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED_BYTES, launch.shared_bytes)
    return function


def run(launch: Launch, fill: bool = True) -> list[np.ndarray]:
    """Runs the kernel and returns its results, of the shapes and dtypes of `launch.results`.

    Every array is an allocation of its own of exactly its size. Results hold NaN before the launch, or what is there
    where `fill` is false. Raises RuntimeError where the driver reports an error.
    """
    # The context belongs to a thread, and JAX calls from several.
    _call("cuCtxSetCurrent", _context()[1])
    module, pointers = ctypes.c_void_p(), []
    function = _function(module, launch)
    for i, array in enumerate((*launch.operands, *launch.results)):
        pointer, size = ctypes.c_uint64(), ctypes.c_size_t(array.nbytes)
        _call("cuMemAlloc_v2", ctypes.byref(pointer), size)
        pointers.append(pointer)
        if i < len(launch.operands):
            host = np.ascontiguousarray(array)
            _call("cuMemcpyHtoD_v2", pointer, ctypes.c_void_p(host.ctypes.data), size)
        elif fill:
            _call("cuMemsetD8_v2", pointer, ctypes.c_ubyte(UNWRITTEN), size)
    arguments = (ctypes.c_void_p * len(pointers))(*(ctypes.addressof(pointer) for pointer in pointers))
    extents = [ctypes.c_uint(n) for n in (*launch.grid, 1, launch.threads, 1, 1, launch.shared_bytes)]
    _call("cuCtxSynchronize")
    _call("cuLaunchKernel", function, *extents, None, arguments, None)
    _call("cuCtxSynchronize")
    results = [np.empty_like(array) for array in launch.results]
    for pointer, array in zip(pointers[len(launch.operands) :], results, strict=True):
        _call("cuMemcpyDtoH_v2", ctypes.c_void_p(array.ctypes.data), pointer, ctypes.c_size_t(array.nbytes))
    for pointer in pointers:
        _call("cuMemFree_v2", pointer)
    _call("cuModuleUnload", module)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("launch", type=Path)
    parser.add_argument("--no_fill", action="store_true", help="leave the results unwritten before the launch")
    arguments = parser.parse_args()
    launch = Launch.read(arguments.launch)
    for i, (again, before) in enumerate(zip(run(launch, not arguments.no_fill), launch.results, strict=True)):
        if again.tobytes() != before.tobytes():
            sys.exit(f"{launch.kernel}: result {i} differs from the one in {arguments.launch}.")
    print(LAUNCHED)


if __name__ == "__main__":
    main()
