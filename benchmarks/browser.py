"""What the page of examples/browser weighs and how fast it is, beside onnxruntime outside of the browser.

    make page
    python benchmarks/browser.py --chromium=/usr/bin/chromium [--seconds=3] [--repeat=20] [--loads=5]

Sizes are those of the files in examples/browser/dist, as they are and as gzip packs them. A load goes from opening
the page, served from this machine, to a model that is ready. An embedding is of one recording of noise, of --seconds:
the median of --repeat, in one thread in both. onnxruntime runs before and after the browser, with the times joined.
"""

import argparse
import gzip
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

FOLDER = Path(__file__).parents[1] / "examples" / "browser"
SITE = FOLDER / "dist"
RATE = 16000
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", required=True, help="path of Chromium or Chrome")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of the recording")
    parser.add_argument("--repeat", type=int, default=20, help="embeddings on each side")
    parser.add_argument("--loads", type=int, default=5, help="times that the page is opened")
    args = parser.parse_args()
    noise = 0.1 * np.random.default_rng(0).standard_normal(round(RATE * args.seconds)).astype(np.float32)
    native = outside(noise, args.repeat)
    loads, embeddings = inside(noise, args)
    native += outside(noise, args.repeat)
    sizes()
    print(f"load {min(loads):.0f} to {max(loads):.0f} ms, median {statistics.median(loads):.0f} of {len(loads)}")
    browser, alone = statistics.median(embeddings), statistics.median(native)
    print(f"embedding of {args.seconds:g} s: {browser:.1f} ms in the browser, {alone:.1f} ms in onnxruntime")
    print(f"ratio {browser / alone:.2f}")


def sizes() -> None:
    for path in sorted(each for each in SITE.rglob("*") if each.is_file()):
        content = path.read_bytes()
        packed = len(gzip.compress(content))
        print(f"{path.relative_to(SITE)}: {len(content) / 1e6:.3f} MB, {packed / 1e6:.3f} MB packed")


def outside(noise: np.ndarray, repeat: int) -> list[float]:
    """Return the milliseconds of every embedding in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(SITE / "model" / "model.onnx", options, providers=["CPUExecutionProvider"])
    inputs = {"waveforms": noise[None], "lengths": np.array([len(noise)])}
    times = []
    for _ in range(repeat + 1):
        started = time.perf_counter()
        session.run(None, inputs)
        times.append(1000 * (time.perf_counter() - started))
    return times[1:]


def inside(noise: np.ndarray, args: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Return the milliseconds of every load, and of every embedding, in the browser."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "noise.wav"
        soundfile.write(path, noise, RATE, subtype="FLOAT")
        opened = [["open", str(SITE)]] * args.loads
        # The page has two places; the model embeds what is put into either.
        embedded = [["file", i % 2, str(path)] for i in range(args.repeat + 1)]
        job = {"chromium": args.chromium, "flags": FLAGS, "steps": opened + embedded}
        command = ["node", "drive.js"]
        ended = subprocess.run(command, cwd=FOLDER, input=json.dumps(job), capture_output=True, text=True, check=True)
    shown = json.loads(ended.stdout)["shown"]
    loads = [dict(each["milliseconds"])["load"] for each in shown[: args.loads]]
    embeddings = [milliseconds for name, milliseconds in shown[-1]["milliseconds"] if name == "embed"]
    return loads, embeddings[1:]


if __name__ == "__main__":
    main()
