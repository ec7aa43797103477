"""Runs every kernel for CUDA GPUs under compute-sanitizer: `python tests/gpu/sanitize_kernels.py`, on a GPU machine.

JAX runs on the CPU and takes the forms for CUDA GPUs. Each kernel that it launches is compiled as the package
compiles it, runs on the GPU through the driver's API, and is written to a file. Values and gradients are compared
with those of the plain forms in float32. Then every launch is run again in processes of its own, which do not import
JAX, under memcheck, initcheck and racecheck. The command ends with 1 where a tool finds something or an error is too
large.
"""

import argparse
import contextlib
import dataclasses
import functools
import inspect
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from unittest import mock

import compiling
import jax
import jax.numpy as jnp
import numpy as np
import replay_kernel
from jax import lax
from replay_kernel import Launch
from test_kernels import ROUNDING, block, exact, mixing, normal, residual_half

from redimnet_jax.models import pooling
from redimnet_jax.nn import attention, convnext, convolution, residual, squeeze
from redimnet_jax.nn.cuda import conv2d, device, program
from redimnet_jax.nn.layers import LayerNorm, pointwise

TOOLS = ("memcheck", "initcheck", "racecheck")
# Read and write errors within this many bytes behind an array are seen even where arrays lie side by side.
PADDING_BYTES = 4096
FOUND = 99
BF16 = jnp.bfloat16
# A mistake of each kind, in the order of `TOOLS`.
PLANTED = """
extern "C" __global__ void planted(const float* x, float* y) {
    __shared__ volatile float shared[64];
    const int i = threadIdx.x;
#if FAULT == 0
    y[i] = x[i + 1];
#elif FAULT == 1
    y[i] += x[i];
#else
    shared[i] = x[i];
    y[i] = shared[63 - i];
#endif
}
"""


@dataclasses.dataclass
class Problem:
    """A function that launches kernels, its plain form, and the operands of both.

    `inputs` are bfloat16 maps, which the plain form takes in float32; `others` are float32 in both. Gradients in all
    of them are compared as well where `gradients` is true.
    """

    ours: Callable
    plain: Callable
    inputs: Sequence[jax.Array]
    others: Sequence[jax.Array] = ()
    gradients: bool = True


@dataclasses.dataclass
class Case:
    """The kernels that a problem launches, what makes it, and what the GPU is taken to have (None: what it has)."""

    kernels: set[str]
    make: Callable[..., Problem]
    arguments: tuple
    shared_bytes: int | None = None
    multiprocessors: int | None = None

    def __str__(self) -> str:
        names = inspect.signature(self.make).parameters
        given = ", ".join(f"{name}={value}" for name, value in zip(names, self.arguments, strict=False))
        return f"{self.make.__name__.removesuffix('_case')}({given})"


def mask(batch: int, frames: int, masked: bool) -> jax.Array | None:
    """Utterances of fewer and fewer frames, (batch, frames), at least one of each; None where not `masked`."""
    lengths = jnp.array([max(1, frames - 3 * i) for i in range(batch)])
    return jnp.arange(frames)[None] < lengths[:, None] if masked else None


def attention_case(shape: tuple[int, ...], heads: int, masked: bool = False) -> Problem:
    keys = mask(*shape[:2], masked)
    return Problem(
        lambda *x: attention.attention(*x, keys, heads),
        lambda *x: attention._plain(*x, keys, heads),
        [normal(i, shape, BF16) for i in range(3)],
    )


def block_case(shape: tuple[int, ...], taps: tuple[int, ...], masked: bool = False) -> Problem:
    frames = mask(*shape[:2], masked)
    return Problem(
        lambda x, *rest: convnext.block(x, frames, *rest),
        lambda x, *rest: convnext._plain(x, frames, *rest),
        [normal(0, shape, BF16)],
        block(shape[-1], *taps),
    )


def block_of_batch_case(shape: tuple[int, ...], members: int) -> Problem:
    taps = (normal(4, (3, 3, members, shape[-1])) + 0.2) / (3 * members**0.5)

    def function(*arrays: jax.Array) -> jax.Array:
        return convnext.block_of_batch(*arrays, 1e-2)[0]

    return Problem(function, function, [normal(0, shape, BF16) + 1], [taps, *mixing(shape[-1])[1:]])


def grouped_conv2d_case(shape: tuple[int, ...], members: int) -> Problem:
    kernel = (normal(2, (3, 3, members, shape[-1])) / (3 * members**0.5)).astype(BF16)
    function = convolution.grouped_conv2d
    return Problem(function, function, [normal(0, shape, BF16), kernel])


def half_case(shape: tuple[int, ...], members: int, masked: bool = False, second: bool = False) -> Problem:
    """The first half of a residual block, or the second one, which adds a map."""
    frames = mask(*shape[:2], masked)
    gain, offset, *product = mixing(shape[-1])[1:]
    taps = normal(2, (3, 3, members, shape[-1])) / (3 * members**0.5)

    def ours(x: jax.Array, other: jax.Array) -> jax.Array:
        if second:
            return conv2d.conv2d_and_product(x, frames, other, taps, *product, relu=True)
        return conv2d.conv2d_and_product(x, frames, None, taps, *product, gain, offset, relu=True)

    def plain(x: jax.Array, other: jax.Array) -> jax.Array:
        y = jax.nn.relu(residual._convolved(x, frames, taps, *product) + (other if second else 0))
        return y if second else y * gain + offset

    return Problem(ours, plain, [normal(i, shape, BF16) for i in (0, 1)], gradients=False)


def mix_channels_case(shape: tuple[int, ...]) -> Problem:
    maps = [normal(i, shape, BF16) for i in (0, 1)]
    return Problem(convnext.mix_channels, convnext.mix_channels, maps, mixing(shape[-1]))


def depthwise_residual_case(shape: tuple[int, ...], masked: bool = False, add: bool = True) -> Problem:
    frames, channels = mask(*shape[:2], masked), shape[-1]
    weights = residual_half(channels, 2) + residual_half(channels, 8)

    def function(x: jax.Array) -> jax.Array:
        return residual.block(x, frames, weights[:6], weights[6:], add=add)

    return Problem(function, function, [normal(0, shape, BF16)], gradients=False)


def squeeze_case(shape: tuple[int, ...], members: int, out: int, masked: bool = False) -> Problem:
    frames = mask(*shape[:2], masked)
    weights = [normal(1, (3, 3, members, out)) / (3 * members**0.5), *mixing(out)]

    def function(x: jax.Array) -> jax.Array:
        return squeeze.squeeze(x, frames, *weights)

    return Problem(function, function, [normal(0, shape, BF16)], gradients=False)


def pointwise_case(shape: tuple[int, ...], out: int) -> Problem:
    weights = normal(1, (shape[-1], out)) / shape[-1] ** 0.5, normal(2, (out,))
    return Problem(pointwise, pointwise, [normal(0, shape, BF16)], weights, gradients=False)


def layer_norm_case(shape: tuple[int, ...]) -> Problem:
    def function(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        layer = LayerNorm(shape[-1], 1e-5)
        layer.scale[...], layer.bias[...] = scale, bias
        return layer(x)

    others = 1 + normal(2, shape[-1:]), normal(3, shape[-1:])
    return Problem(function, function, [1 + normal(0, shape, BF16)], others)


def attentive_statistics_case(shape: tuple[int, ...], masked: bool = False) -> Problem:
    function = functools.partial(pooling.attentive_statistics, mask=mask(*shape[:2], masked))
    # One frame has no deviation, whose square root has no finite gradient.
    return Problem(function, function, [1 + normal(i, shape, BF16) for i in (0, 1)], gradients=False)


def depthwise_conv1d_case(shape: tuple[int, ...], taps: int) -> Problem:
    kernel = (normal(2, (taps, shape[-1])) / taps**0.5).astype(BF16)
    function = convolution.depthwise_conv1d
    return Problem(function, function, [normal(0, shape, BF16), kernel])


ATTENTION = {"attention", "attention_gradient"}
CONV, STREAMED, CONV_GRADIENT = {"grouped_conv2d"}, {"streamed_conv2d"}, {"grouped_conv2d", "grouped_kernel_gradient"}
CONV1D, CONV1D_GRADIENT = {"depthwise_conv1d"}, {"depthwise_conv1d", "depthwise_kernel_gradient"}
MIX = {"mix_channels_gradient"}

# One to three frames, one utterance, sizes that no tile divides, masks, and channels as odd as a kernel takes them.
CASES = [
    Case(ATTENTION, attention_case, ((1, 1, 3), 1)),
    Case(ATTENTION, attention_case, ((2, 3, 20), 4, True)),
    Case(ATTENTION, attention_case, ((3, 17, 28), 4, True)),
    Case(ATTENTION, attention_case, ((1, 33, 7), 1)),
    Case(ATTENTION, attention_case, ((2, 130, 288), 4, True)),
    Case(CONV_GRADIENT | MIX, block_case, ((1, 1, 3, 16), (3, 3, 4))),
    Case(CONV_GRADIENT | MIX, block_case, ((2, 3, 5, 32), (3, 3, 16), True)),
    Case(CONV_GRADIENT | MIX, block_case, ((3, 17, 7, 48), (3, 3, 1), True)),
    Case(CONV_GRADIENT | MIX, block_case, ((1, 35, 11, 96), (3, 3, 2))),
    Case(CONV1D_GRADIENT | MIX, block_case, ((1, 1, 16), (7,))),
    Case(CONV1D | {"pointwise"}, block_case, ((2, 3, 20), (19,), True)),
    Case(CONV1D_GRADIENT, block_case, ((3, 211, 40), (31,), True)),
    Case(CONV_GRADIENT | MIX, block_of_batch_case, ((1, 3, 3, 16), 8)),
    Case(CONV_GRADIENT | MIX, block_of_batch_case, ((2, 19, 7, 48), 4)),
    Case(CONV_GRADIENT, grouped_conv2d_case, ((1, 1, 3, 16), 1)),
    Case(CONV_GRADIENT, grouped_conv2d_case, ((2, 2, 5, 208), 16)),
    Case(CONV, grouped_conv2d_case, ((1, 3, 15, 96), 32), shared_bytes=80_000),
    Case(CONV_GRADIENT, grouped_conv2d_case, ((3, 19, 11, 32), 4), shared_bytes=40_000),
    Case(STREAMED, grouped_conv2d_case, ((2, 18, 6, 256), 32)),
    Case(STREAMED, half_case, ((1, 1, 3, 64), 32), multiprocessors=2),
    Case(STREAMED, half_case, ((3, 19, 9, 128), 16, True, True), multiprocessors=2),
    Case(STREAMED, half_case, ((2, 3, 6, 192), 32, True, True), multiprocessors=2),
    Case(CONV, half_case, ((3, 19, 5, 64), 32, True)),
    Case(CONV, half_case, ((1, 17, 7, 32), 16, True, True), shared_bytes=30_000),
    Case(MIX, mix_channels_case, ((1, 1, 48),)),
    Case(MIX, mix_channels_case, ((3, 70, 5, 32),), multiprocessors=3),
    Case(MIX, mix_channels_case, ((1, 31, 3, 176),)),
    Case({"depthwise_residual"}, depthwise_residual_case, ((1, 1, 1, 2),)),
    Case({"depthwise_residual"}, depthwise_residual_case, ((2, 3, 6, 10), True)),
    Case({"depthwise_residual"}, depthwise_residual_case, ((1, 11, 17, 40), False, False), shared_bytes=30_000),
    Case({"depthwise_residual"}, depthwise_residual_case, ((2, 5, 3, 126), True)),
    Case({"squeeze"}, squeeze_case, ((1, 1, 1, 6), 3, 2)),
    Case({"squeeze"}, squeeze_case, ((2, 3, 6, 60), 3, 20, True)),
    Case({"squeeze"}, squeeze_case, ((1, 13, 17, 40), 2, 20), shared_bytes=50_000),
    Case({"squeeze"}, squeeze_case, ((3, 7, 3, 64), 8, 32, True)),
    Case({"pointwise"}, pointwise_case, ((1, 1, 2), 2)),
    Case({"pointwise"}, pointwise_case, ((2, 3, 6, 10), 12)),
    Case({"pointwise"}, pointwise_case, ((1, 13, 17, 20), 126)),
    Case({"pointwise"}, pointwise_case, ((3, 37, 78), 18)),
    Case({"layer_norm"}, layer_norm_case, ((1, 1, 4),)),
    Case({"layer_norm"}, layer_norm_case, ((3, 7, 20),)),
    Case({"layer_norm"}, layer_norm_case, ((1, 3, 5, 132),)),
    Case({"layer_norm"}, layer_norm_case, ((2, 3, 1020),)),
    Case({"attentive_statistics"}, attentive_statistics_case, ((1, 1, 2),)),
    Case({"attentive_statistics"}, attentive_statistics_case, ((2, 3, 70), True)),
    Case({"attentive_statistics"}, attentive_statistics_case, ((3, 41, 130), True)),
    Case(CONV1D_GRADIENT, depthwise_conv1d_case, ((1, 1, 8), 1)),
    Case(CONV1D_GRADIENT, depthwise_conv1d_case, ((2, 3, 24), 5)),
    Case(CONV1D, depthwise_conv1d_case, ((1, 14, 12), 3)),
    Case(CONV1D_GRADIENT, depthwise_conv1d_case, ((3, 230, 96), 59)),
]


def stored(array) -> np.ndarray:
    """The array as NumPy keeps it in a file: the bits of bfloat16 as uint16."""
    array = np.asarray(array)
    return array.view(np.uint16) if array.dtype == BF16 else array


def launched(run: Callable[[Launch], list[np.ndarray]], launches: list[Launch]) -> Callable:
    """`program.launch` that runs kernels by `run`, and adds to `launches` what ran with its results."""

    def launch(name: str, operands, *results, grid, threads, shared_bytes, **defines):
        ptx = program.ptx(name, tuple(sorted(defines.items())))

        def call(*operands):
            empty = [stored(np.empty(result.shape, result.dtype)) for result in results]
            one = Launch(name, ptx, grid, threads, shared_bytes, [stored(x) for x in operands], empty)
            one = dataclasses.replace(one, results=run(one))
            launches.append(one)
            return [array.view(result.dtype) for array, result in zip(one.results, results, strict=True)]

        return jax.pure_callback(call, list(results), *operands)

    return launch


@contextlib.contextmanager
def on_the_gpu(case: Case, run: Callable[[Launch], list[np.ndarray]], attribute: Callable[[int], int]) -> Iterator:
    """JAX on the CPU chooses the forms for CUDA GPUs. Gives the list of launches."""
    launches = []
    shared = case.shared_bytes or min(device.SHARED_BYTES, attribute(replay_kernel.SHARED_BYTES_OF_A_BLOCK))
    processors = case.multiprocessors or attribute(replay_kernel.MULTIPROCESSORS)
    with (
        mock.patch.object(program, "launch", launched(run, launches)),
        mock.patch.object(device, "shared_bytes", lambda: shared),
        mock.patch.object(device, "multiprocessors", lambda: processors),
        mock.patch.object(lax, "platform_dependent", lambda *x, default, **forms: forms.get("cuda", default)(*x)),
    ):
        jax.clear_caches()
        yield launches
    jax.clear_caches()


def relative_error(ours, plain) -> float:
    """|ours - plain| / |plain|, where a root mean square of `plain` below 1 counts as 1; infinite for NaN."""
    ours, plain = (np.asarray(x, np.float64) for x in (ours, plain))
    error = np.linalg.norm(ours - plain) / max(np.linalg.norm(plain), plain.size**0.5)
    return float(error) if np.isfinite(error) else np.inf


def largest_error(problem: Problem) -> float:
    """The largest relative error of values and gradients."""

    @functools.partial(compiling.jit, static_argnums=0)
    def results(function, arrays, dout):
        if not problem.gradients:
            return function(*arrays)
        values, backward = jax.vjp(function, *arrays)
        return values, backward(dout.astype(values.dtype))

    inputs = (*problem.inputs, *problem.others)
    dout = normal(9, jax.eval_shape(problem.ours, *inputs).shape).astype(BF16)
    ours = results(problem.ours, inputs, dout)
    plain = results(problem.plain, (*exact(problem.inputs), *problem.others), dout)
    return max(map(relative_error, jax.tree.leaves(ours), jax.tree.leaves(plain)))


def sanitized(tool: str, path: Path) -> tuple[bool, str]:
    """Runs a launch again under a tool of compute-sanitizer: (whether it found nothing, what it wrote)."""
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(FOUND)]
    command += ["--padding", str(PADDING_BYTES)] if tool == "memcheck" else []
    command += [sys.executable, str(Path(replay_kernel.__file__)), str(path)]
    # What a kernel leaves unwritten is uninitialised for initcheck, and NaN for the others.
    command += ["--no_fill"] if tool == "initcheck" else []
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode == 0 and is_clean(done.stdout), done.stdout


def is_clean(log: str) -> bool:
    """Tells whether compute-sanitizer's log says that the kernel ran and that nothing was found."""
    summary = re.search(r"SUMMARY: (\d+) (?:errors?|hazards?)", log)
    return replay_kernel.LAUNCHED in log and summary is not None and summary[1] == "0"


@dataclasses.dataclass
class Row:
    """What the tools found in one launch; `logs` are those of the tools that found something."""

    kernel: str
    case: str
    clean: dict[str, bool]
    error: float
    logs: list[str]


def checked(case: Case) -> list[Row]:
    """Runs a case on the GPU, and each of its different launches under every tool."""
    jax.config.update("jax_platforms", "cpu")
    with on_the_gpu(case, replay_kernel.run, replay_kernel.attribute) as launches:
        error = largest_error(case.make(*case.arguments))
    different = {(launch.kernel, launch.ptx, tuple(launch.grid)): launch for launch in launches}
    launched_kernels = {kernel for kernel, *_ in different}
    if launched_kernels != case.kernels:
        raise RuntimeError(f"it launched {launched_kernels} where {case.kernels} were expected.")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for i, launch in enumerate(different.values()):
            path = Path(folder, f"{i}.npz")
            launch.write(path)
            found = {tool: sanitized(tool, path) for tool in TOOLS}
            logs = [f"{tool}:\n{log}" for tool, (clean, log) in found.items() if not clean]
            rows.append(
                Row(launch.kernel, str(case), {tool: clean for tool, (clean, _) in found.items()}, error, logs)
            )
    return rows


def misses_of_planted_mistakes() -> list[str]:
    """Plants one mistake for each tool, and returns the tools that do not find theirs."""
    missed = []
    with mock.patch.object(program, "source", lambda _: PLANTED), tempfile.TemporaryDirectory() as folder:
        for fault, tool in enumerate(TOOLS):
            x, path = np.ones(64, np.float32), Path(folder, f"{tool}.npz")
            ptx = program.ptx("planted", (("FAULT", fault),))
            Launch("planted", ptx, (1, 1), 64, 0, [x], [x]).write(path)
            _, log = sanitized(tool, path)
            if "SUMMARY" not in log or re.search(r"SUMMARY: 0 ", log):
                missed.append(f"{tool} did not find its planted mistake:\n{log}")
    return missed


def table(rows: list[Row]) -> str:
    """A row for every launch, in Markdown."""
    lines = [f"| kernel | case | {' | '.join(TOOLS)} | error |", "| --- " * (len(TOOLS) + 3) + "|"]
    for row in sorted(rows, key=lambda row: (row.kernel, row.case)):
        found = " | ".join("clean" if row.clean[tool] else "FOUND" for tool in TOOLS)
        lines.append(f"| {row.kernel} | {row.case} | {found} | {row.error:.1e} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the cases whose names contain this alone")
    parser.add_argument("--jobs", type=int, default=max(1, min(14, os.cpu_count() - 2)), help="cases at a time")
    arguments = parser.parse_args()
    if not shutil.which("compute-sanitizer"):
        sys.exit("compute-sanitizer is not in PATH: install NVIDIA's CUDA toolkit, or add its bin folder to PATH.")
    chosen = [case for case in CASES if arguments.only in str(case)]
    if not chosen:
        sys.exit(f"No case has {arguments.only!r} in its name: choose another --only, such as attention.")
    failures, rows = misses_of_planted_mistakes(), []
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(checked, case): case for case in chosen}
        for future in as_completed(futures):
            try:
                rows += future.result()
            except Exception as error:
                failures.append(f"{futures[future]}: {type(error).__name__}: {error}")
    print(table(rows))
    failures += [f"{row.kernel}, {row.case}, {log}" for row in rows for log in row.logs]
    failures += [f"{row.kernel}, {row.case}: an error of {row.error:.1e}" for row in rows if row.error > 2 * ROUNDING]
    print(*failures, f"{len(rows)} launches, {len(failures)} failures.", sep="\n")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
