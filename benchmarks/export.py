"""What the exported forms of a model cost: size, error rate and speed on a CPU, beside this library.

    python benchmarks/export.py [--checkpoint=PATH | --variant=b2] [--trials LIST ... --audio_root FOLDER ...]
                                [--calibration_audio=FOLDER] [--seconds=3] [--cores 1 2]
                                [--torch_repo=CHECKOUT] [--output=FOLDER]

The default checkpoint is the small backbone that comes with the package; --variant is a published network with
random weights, of which only sizes and speeds mean something. Error rates are EERs of whole recordings, one at a
time, by the cosine, on every one of the trial lists; a list takes the folder at its place in --audio_root.
"difference" is the largest distance of an embedding of length one from the library's. int8-static is measured where
--calibration_audio gives recordings, which should be none of the trials'.

A time is of one recording of noise, of --seconds, batch 1: the median of --repeat calls, all forms taking turns in
one process that is bound to as many cores as it has threads. In parentheses is the speed relative to the library,
above 1 where a form is faster. CHECKOUT is a clone of github.com/IDRnD/ReDimNet; with it PyTorch and torchaudio must
be installed. Without numbers after --cores no times are measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

PRECISIONS = ("float32", "float16", "int8", "int8-static")
LIBRARY = "this library"
Embed = Callable[[np.ndarray], np.ndarray]


def open_model(args):
    from flax import nnx

    from redimnet_jax.checkpoints import open as checkpoints
    from redimnet_jax.models import config
    from redimnet_jax.models.network import SpeakerNetwork
    from redimnet_jax.models.speaker_model import Source, SpeakerModel
    from redimnet_jax.models.variants import VARIANTS

    if args.variant is None:
        return checkpoints.open_model(args.checkpoint)
    arch, entries = VARIANTS[args.variant]
    network = SpeakerNetwork(config.parse(arch, entries), rngs=nnx.Rngs(0))
    return SpeakerModel(network, entries, Source(f"{args.variant}, random weights", "", "redimnet_jax"))


def files(folder: Path) -> dict[str, Path]:
    """Return the exported files in `folder` by what the tables call them."""
    found = {f"ONNX {precision}": folder / f"{precision}.onnx" for precision in PRECISIONS}
    found["StableHLO"] = folder / "float32.stablehlo"
    return {name: path for name, path in found.items() if path.exists()}


def write_files(model, folder: Path, calibration_audio: Path | None) -> None:
    import redimnet_jax as rj

    rj.export(model, folder / "float32.stablehlo", "stablehlo")
    for precision in PRECISIONS:
        audio = calibration_audio if precision == "int8-static" else None
        if audio is not None or precision != "int8-static":
            rj.export(model, folder / f"{precision}.onnx", "onnx", precision=precision, calibration_audio=audio)


def opened(path: Path, threads: int) -> Embed:
    """Return the function of one waveform that an exported file is, by its runtime."""
    if path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that wait busily for the next call would take the cores from the form whose turn it is.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"waveforms": x[None], "lengths": np.array([len(x)], np.int64)})[0]
    import jax
    from jax import export as jax_export

    call = jax.jit(jax_export.deserialize(bytearray(path.read_bytes())).call)
    return lambda x: np.asarray(call(x[None], np.array([len(x)], np.int32)))


def error_rates(args, model, folder: Path) -> list[dict]:
    """Return for every trial list the EER of the library and of every ONNX file, and the largest difference."""
    from redimnet_jax import metrics, scoring, trials
    from redimnet_jax.data import audio

    rows = []
    for path, root in zip(args.trials, args.audio_root, strict=True):
        listed = trials.read(path)
        signals = [audio.read(root / name) for name in listed.names]
        library = np.asarray(model.embed(signals))
        # StableHLO is the library's program, and would compile for every length.
        forms = {name: file for name, file in files(folder).items() if file.suffix == ".onnx"}
        for name, file in [(LIBRARY, None), *forms.items()]:
            embeddings = library if file is None else np.concatenate(list(map(opened(file, 1), signals)))
            scores = np.asarray(scoring.score_trials(embeddings, listed.left, listed.right, (model.embed_dim,)))[0]
            difference = float(np.linalg.norm(embeddings - library, axis=1).max())
            rows.append(
                {
                    "trials": path.parent.name,
                    "form": name,
                    "eer": metrics.eer(scores, listed.labels),
                    "difference": difference,
                }
            )
    return rows


def speeds(args, folder: Path) -> dict[str, float]:
    """Return the ms of a call of every form, in this process with the threads of `args.bound`."""
    model = open_model(args)
    forms: dict[str, Embed] = {LIBRARY: lambda x: np.asarray(model.embed(x[None]))}
    forms |= {name: opened(path, args.bound) for name, path in files(folder).items()}
    if args.torch_repo is not None:
        forms["PyTorch"] = torch_form(args, model)
    signal = np.random.default_rng(0).normal(0, 0.1, round(args.seconds * model.sample_rate)).astype(np.float32)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(args.repeat + 2):
        for name, embed in forms.items():
            start = time.perf_counter()
            embed(signal)
            if turn > 1:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(each) for name, each in times.items()}


def torch_form(args, model) -> Embed:
    sys.path.insert(0, args.torch_repo)
    import torch
    from redimnet.model import ReDimNetWrap

    torch.set_num_threads(args.bound)
    network = ReDimNetWrap(**model.model_config).eval()

    def embed(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(x[None])).numpy()

    return embed


def bound_speeds(folder: Path, cores: int) -> dict[str, float]:
    """Return `speeds` of a process on `cores` cores; XLA has as many threads as the cores it finds at its start."""
    command = [sys.executable, *sys.argv, f"--bound={cores}", f"--files={folder}"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["-" if i == 0 else "-:" for i in range(len(header))], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    from redimnet_jax.checkpoints.pretrained import SMALL

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=SMALL)
    parser.add_argument("--variant")
    parser.add_argument("--trials", type=Path, nargs="*", default=[])
    parser.add_argument("--audio_root", type=Path, nargs="*", default=[])
    parser.add_argument("--calibration_audio", type=Path)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--cores", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--torch_repo")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--bound", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--files", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bound is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.bound])
        print(json.dumps(speeds(args, args.files)))
        return
    model = open_model(args)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(model, folder, args.calibration_audio)
        sizes = {form: path.stat().st_size / 1e6 for form, path in files(folder).items()}
        rates = error_rates(args, model, folder)
        times = {cores: bound_speeds(folder, cores) for cores in args.cores}
    report = {"sizes_mb": sizes, "error_rates": rates, "ms": times}
    columns = [f"ms, {cores} core{'s' * (cores > 1)}" for cores in args.cores]
    rows = []
    for form in next(iter(times.values())) if times else sizes:
        cells = [
            f"{times[cores][form]:.1f} ({times[cores][LIBRARY] / times[cores][form]:.2f})" for cores in args.cores
        ]
        rows.append([form, f"{sizes[form]:.2f}" if form in sizes else "–", *cells])
    text = table(["form", "MB", *columns], rows)
    if rates:
        cells = [[r["trials"], r["form"], f"{100 * r['eer']:.2f}", f"{r['difference']:.1e}"] for r in rates]
        text += "\n" + table(["trials", "form", "EER %", "difference"], cells)
    print(text)
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "export.md").write_text(text)
        (args.output / "export.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
