"""Time and memory of the index of a large corpus: building, saving, loading, pickling, and reading names.

    python benchmarks/corpus_index.py [--utterances=1100000] [--speakers=6000] [--sessions=150000]

The index is of names alone, laid out like VoxCeleb2; no audio is read or needed. Each stage runs in a process of its
own, and `peak_mb` is what its memory peaked at beyond an interpreter that has imported the same modules. Prints JSON.
"""

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from redimnet_jax.data import index as corpus_index
from redimnet_jax.data.corpus import Corpus
from redimnet_jax.data.tree import Tree


def peak_mb() -> float:
    """The most memory this process ever held, mapped files included."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def entries(utterances: int, speakers: int, sessions: int) -> corpus_index.Entries:
    """As many utterances as asked for, evenly over sessions, and these over speakers."""
    rng = np.random.default_rng(0)
    names, owners = [], []
    for i in range(utterances):
        session = i * sessions // utterances
        speaker = f"id{session * speakers // sessions:05}"
        names.append(f"{speaker}/{session:011x}/{i % 100_000:05}.m4a")
        owners.append(speaker)
    return corpus_index.Entries(names, owners, rng.integers(64_000, 320_000, utterances))


def build(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    found = entries(args.utterances, args.speakers, args.sessions)
    start = time.perf_counter()
    index, bad = corpus_index.build(found, 0.5)
    built = time.perf_counter()
    assert not bad and len(index.speakers) == args.speakers
    corpus_index.save(index, {"digest": index.digest(), "summary": ""}, folder)
    saved = time.perf_counter()
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {"build_s": built - start, "save_s": saved - built, "disk_mb": size / 2**20}


def load(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    start = time.perf_counter()
    index, description = corpus_index.load(folder)
    corpus = Corpus(index, Tree(folder), description["digest"], "", folder)
    loaded = time.perf_counter()
    copy = pickle.loads(pickle.dumps(corpus))
    copied = time.perf_counter()
    rows = np.random.default_rng(0).integers(0, len(copy), 10_000)
    for row in rows:
        copy.name(row)
    named = time.perf_counter()
    return {"load_s": loaded - start, "pickle_s": copied - loaded, "name_us": 1e6 * (named - copied) / len(rows)}


STAGES = {"build": build, "load": load}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--utterances", type=int, default=1_100_000)
    parser.add_argument("--speakers", type=int, default=6_000)
    parser.add_argument("--sessions", type=int, default=150_000)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        before = peak_mb()
        figures = STAGES[args.stage](args.folder, args)
        print(json.dumps(figures | {"peak_mb": peak_mb() - before}))
        return
    results = {"utterances": args.utterances, "speakers": args.speakers, "sessions": args.sessions}
    with tempfile.TemporaryDirectory() as folder:
        for stage in STAGES:
            command = [sys.executable, *sys.argv, f"--stage={stage}", f"--folder={folder}/index-0"]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[stage] = {name: round(value, 3) for name, value in json.loads(output).items()}
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
