"""Exported models beside `model.embed`: the relative L2 error of their embeddings, and what exporting takes.

    python benchmarks/export_parity.py [--models b0 redimnet2-b2 ...] [--formats onnx stablehlo]
                                       [--costs b6 redimnet2-b6] [--output=FILE.json]

Published variants get random weights and random running statistics, and embeddings as the network gives them.
`small` is the small backbone of the package with prefixes, and `small:64` its first prefix, with length one. The
errors are the largest ones of recordings of 0.5, 2, 3.17 and 20 s, some of them soft:

  alone    a batch of one, without padding
  padded   a batch of one, with noise behind the recording
  zeros    all recordings in one batch, with zeros behind the shorter ones
  noise    the same with noise behind them

always to `model.embed` of the recording alone. XLA compiles a program for each shape, which takes minutes on a few
cores, so that StableHLO runs two shapes: one recording in 3.17 s, which one of them fills ("alone") and two do not,
and all four in 20 s. The writer runs ONNX's checker on every file.

--costs names variants whose export is timed as a command of its own: seconds and the peak of its memory, loading
included. The exit code is 1 when an error is above 1e-4, an export takes more than 120 s, or more than 4 GB.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from random_model import random_model

import redimnet_jax as rj
from redimnet_jax.checkpoints import native
from redimnet_jax.checkpoints.pretrained import SMALL
from redimnet_jax.cli import signals
from redimnet_jax.models import matryoshka
from redimnet_jax.models.variants import VARIANTS

MODELS = ("b0", "b2", "b5", "redimnet2-b0", "redimnet2-b2", "small", "small:64")
FORMATS = ("onnx", "stablehlo")
SECONDS = {0.5: 1.0, 2.0: 0.1, 3.17: 0.3, 20.0: 1.0}  # how long and how loud the recordings are
LIMIT, MAX_SECONDS, MAX_GB = 1e-4, 120.0, 4.0
# A process that runs the command and prints the peak of its memory. Its ru_maxrss would be that of the process it was
# forked from, if that is larger.
MEASURED = """
import sys
from redimnet_jax.cli.main import main
code = main(sys.argv[1:])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")))
sys.exit(code)
"""
Embed = Callable[[np.ndarray, list[int]], np.ndarray]


def opened(name: str) -> tuple[rj.SpeakerModel, int | None]:
    """Return a model by its name here, and the prefix to export, or None for the whole."""
    base, _, dim = name.partition(":")
    if base == "small":
        model = matryoshka.adapt(rj.load(SMALL), (64, 128, 192), init="keep")
    else:
        model = random_model(*VARIANTS[base])
    return model, int(dim) if dim else None


def in_onnxruntime(path: Path) -> Embed:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def embed(waveforms: np.ndarray, lengths: list[int]) -> np.ndarray:
        return session.run(None, {"waveforms": waveforms, "lengths": np.array(lengths, np.int64)})[0]

    return embed


def in_jax(path: Path) -> Embed:
    import jax
    from jax import export

    call = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    return lambda waveforms, lengths: np.asarray(call(waveforms, np.array(lengths, np.int32)))


RUNTIMES: dict[str, Callable[[Path], Embed]] = {"onnx": in_onnxruntime, "stablehlo": in_jax}


def batch(recordings: list[np.ndarray], samples: int, fill: np.ndarray | None) -> np.ndarray:
    """Return `recordings` as rows of `samples`, with zeros or the samples of `fill` behind them."""
    rows = (
        np.zeros((len(recordings), samples), np.float32)
        if fill is None
        else np.tile(fill[:samples], (len(recordings), 1))
    )
    for row, signal in zip(rows, recordings, strict=True):
        row[: len(signal)] = signal
    return rows


def calls(format: str, recordings: list[np.ndarray], fill: np.ndarray) -> Iterator[tuple[str, np.ndarray, list[int]]]:
    """Yield (what it shows, waveforms, indices of the recordings) of every call."""
    if format == "stablehlo":
        # The lengths up to the third in a batch of the third's, so that there is one program of them.
        size = len(recordings[2])
        yield "alone", recordings[2][None], [2]
        yield from (("padded", batch([recordings[index]], size, fill), [index]) for index in (0, 1))
    else:
        for index, signal in enumerate(recordings):
            yield "alone", signal[None], [index]
            yield "padded", batch([signal], len(signal) + 1234, fill), [index]
    longest = max(map(len, recordings))
    every = list(range(len(recordings)))
    yield "zeros", batch(recordings, longest, None), every
    yield "noise", batch(recordings, longest, fill), every


def errors(embed: Embed, format: str, recordings: list[np.ndarray], expected: np.ndarray) -> dict[str, float]:
    """Return the largest relative L2 error of each kind of call."""
    fill = np.random.default_rng(1).normal(0, 1, max(map(len, recordings)) + 1234).astype(np.float32)
    largest: dict[str, float] = {}
    for kind, waveforms, indices in calls(format, recordings, fill):
        found = embed(waveforms, [len(recordings[index]) for index in indices])
        theirs = expected[indices]
        relative = np.linalg.norm(found - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
        # NaN is larger than any limit, and `max` would lose it.
        largest[kind] = float(np.max([largest.get(kind, 0.0), *relative]))
    return largest


def compare(name: str, formats: list[str], folder: Path) -> Iterator[dict]:
    """Yield for every format the errors of the model `name` and the seconds that its export took."""
    model, dim = opened(name)
    recordings = [signals.reference(each, model.sample_rate) * gain for each, gain in SECONDS.items()]
    normalize = dim is not None
    expected = np.stack([np.asarray(model.embed(each, dim=dim, normalize=normalize)) for each in recordings])
    for format in formats:
        path = folder / f"{name.replace(':', '-')}.{format}"
        started = time.perf_counter()
        rj.export(model, path, format, dim=dim, normalize=normalize)
        seconds = time.perf_counter() - started
        found = errors(RUNTIMES[format](path), format, recordings, expected)
        yield {"model": name, "format": format, "errors": found, "export_seconds": seconds}


def cost(name: str, format: str, folder: Path) -> dict:
    """Return seconds and peak memory of the command that exports the variant `name` from a native checkpoint."""
    checkpoint = folder / name
    if not checkpoint.exists():
        native.save(random_model(*VARIANTS[name]), checkpoint)
    arguments = [str(checkpoint), f"--format={format}", f"--output={folder / name}.{format}"]
    started = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-c", MEASURED, "export", *arguments], stdout=subprocess.PIPE, text=True
    )
    if process.returncode:
        raise SystemExit(f"The export of {name} ended with code {process.returncode}.")
    seconds = time.perf_counter() - started
    return {"model": name, "format": format, "seconds": seconds, "gb": int(process.stdout.split()[-2]) * 1024 / 1e9}


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["-" if index < 2 else "-:" for index in range(len(header))], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def within_limits(report: dict) -> bool:
    """Return whether every figure of the report is a number within its limit."""
    return all(error <= LIMIT for row in report["errors"] for error in row["errors"].values()) and all(
        row["seconds"] <= MAX_SECONDS and row["gb"] <= MAX_GB for row in report["costs"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--costs", nargs="*", default=["b6", "redimnet2-b6"])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    import jax
    import onnxruntime

    report: dict = {"onnxruntime": onnxruntime.__version__, "jax": jax.__version__, "errors": [], "costs": []}
    with tempfile.TemporaryDirectory() as name:
        for model in args.models:
            for row in compare(model, args.formats, Path(name)):
                print(json.dumps(row), file=sys.stderr, flush=True)
                report["errors"].append(row)
        report["costs"] = [cost(model, format, Path(name)) for model in args.costs for format in args.formats]
    if report["errors"]:
        kinds = list(report["errors"][0]["errors"])
        rows = [
            [row["model"], row["format"], *(f"{row['errors'][kind]:.1e}" for kind in kinds)]
            for row in report["errors"]
        ]
        print(table(["model", "format", *kinds], rows))
    if report["costs"]:
        rows = [[row["model"], row["format"], f"{row['seconds']:.0f}", f"{row['gb']:.2f}"] for row in report["costs"]]
        print(table(["model", "format", "s", "GB"], rows))
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if within_limits(report) else 1


if __name__ == "__main__":
    sys.exit(main())
