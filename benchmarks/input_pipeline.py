"""Utterances per second that the input delivers: decoding alone per format, and the whole pipeline.

    python benchmarks/input_pipeline.py [--crop=3] [--seconds=8] [--batch=64] [--workers=0] [--threads=1] [--time=3]
    python benchmarks/input_pipeline.py --augment=all        # or --augment=babble,codec: milliseconds of these steps

It makes its own recordings of one synthesised signal, as long as --seconds, at 16 kHz. "decode" is
random crops on one core; "pipeline" is batches from --workers processes or --threads threads, plain, with every
augmentation step at its default but the codec (noise and impulse responses from files), and with speed perturbation
besides. With --augment, only the processor time of each of the named steps is measured, and with codec of each codec.
Each figure is the best of three runs of --time seconds. Prints a Markdown table, or JSON with --json.
"""

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from redimnet_jax.cli.signals import reference
from redimnet_jax.data import audio
from redimnet_jax.data.augment import STEPS, Codec, Speed, Step, from_config, needs_folder
from redimnet_jax.data.augment.codec import PUBLISHED
from redimnet_jax.data.corpus import Corpus, open_corpus
from redimnet_jax.data.crops import Crops
from redimnet_jax.data.loader import Readers, train_batches

RATE = audio.SAMPLE_RATE
FORMATS = ("wav", "flac", "ogg", "mp3", "m4a")
SPEAKERS, UTTERANCES = 8, 16


def encode(waveform: np.ndarray, suffix: str) -> bytes:
    """A file of `suffix` that holds the waveform: 16-bit PCM or the encoder's default rate."""
    buffer = io.BytesIO()
    if suffix != "m4a":
        soundfile.write(buffer, waveform, RATE, format=suffix.upper())
        return buffer.getvalue()
    import av

    with av.open(buffer, "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        for packets in (stream.encode(frame), stream.encode(None)):
            container.mux(packets)
    return buffer.getvalue()


def make_corpus(root: Path, suffix: str, seconds: float) -> Corpus:
    """`SPEAKERS` speakers of `UTTERANCES` files, all alike."""
    data = encode(reference(seconds), suffix)
    for speaker in range(SPEAKERS):
        folder = root / suffix / f"id{speaker:05}" / "session"
        folder.mkdir(parents=True)
        for utterance in range(UTTERANCES):
            (folder / f"{utterance:05}.{suffix}").write_bytes(data)
    return open_corpus(str(root / suffix), cache_dir=None, progress=False)


def make_steps(root: Path) -> dict[str, Step]:
    """Every step at its default, by its key; noise files of 30 s, impulse responses of half a second."""
    rng = np.random.default_rng(0)
    for folder in ("musan/noise", "musan/music", "musan/speech", "rirs"):
        (root / folder).mkdir(parents=True)
        for index in range(8):
            length = RATE // 2 if folder == "rirs" else 30 * RATE
            noise = 0.1 * rng.standard_normal(length) * np.exp(-np.arange(length) / length)
            soundfile.write(root / folder / f"{index}.wav", noise, RATE)
    folders = {"noise_folder": "musan", "noise": "musan/noise", "music": "musan/music", "reverberation": "rirs"}
    folders |= {"speech": "musan/speech", "babble": "musan/speech"}
    options = {key: {"folder": str(root / folders[key])} if key in folders else {} for key in STEPS}
    assert all(key in folders for key in STEPS if needs_folder(key))
    return dict(zip(STEPS, from_config(options), strict=True))


def rate(work: Callable[[], int], seconds: float, repeats: int = 3) -> float:
    """Items per second, the best of `repeats` runs; `work` does some and says how many."""
    best = 0.0
    for _ in range(repeats):
        done, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            done += work()
        best = max(best, done / elapsed)
    return round(best, 1)


def decode_rate(corpus: Corpus, crop: int, seconds: float) -> float:
    rng = np.random.default_rng(0)

    def work() -> int:
        index = int(rng.integers(len(corpus)))
        corpus.read(index, int(rng.integers(corpus.samples[index] - crop + 1)), crop)
        return 1

    return rate(work, seconds)


def step_rate(step: Step, crop: int, seconds: float) -> float:
    """Crops per second of one step alone, applied every time."""
    waveform, rng = reference(crop / RATE), np.random.default_rng(0)

    def work() -> int:
        step.apply(waveform, rng)
        return 1

    return rate(work, seconds)


def step_times(steps: dict[str, Step], crop: int, seconds: float) -> dict[str, float]:
    """Milliseconds of processor time that each step, and with the codec each codec, takes for a crop."""
    alone = steps | {f"codec {name}": Codec(codecs=(name,)) for name in PUBLISHED if "codec" in steps}
    waveform, times = reference(crop / RATE), {}
    for key, step in alone.items():
        rng, count = np.random.default_rng(0), 0
        step.apply(waveform, rng)  # Imports and caches are not of a crop.
        start = time.process_time()
        while (elapsed := time.process_time() - start) < seconds:
            step.apply(waveform, rng)
            count += 1
        times[key] = round(1000 * elapsed / count, 2)
    return times


def pipeline_rate(crops: Crops, seconds: float, batch_size: int, readers: Readers) -> float:
    batches = train_batches(crops, batch_size, crops_per_utterance=1000, readers=readers)
    # What was prefetched before the clock starts is not counted: the buffers are full again at its end.
    for _ in range(2 * max(readers.workers * 4, readers.threads) + 1):
        next(batches)
    try:
        return rate(lambda: len(next(batches)["label"]), seconds)
    finally:
        batches.close()


def table(title: str, figures: dict[str, float], unit: str = "per second") -> str:
    rows = "\n".join(f"| {name} | {figure:,.{0 if figure > 99 else 2}f} |" for name, figure in figures.items())
    return f"| {title} | {unit} |\n|---|---|\n{rows}\n"


def chosen_steps(steps: dict[str, Step], names: str) -> dict[str, Step]:
    wanted = list(STEPS) if names == "all" else names.split(",")
    if unknown := [name for name in wanted if name not in STEPS]:
        raise SystemExit(f"There is no augmentation {unknown[0]!r}, only {', '.join(STEPS)}.")
    return {name: steps[name] for name in wanted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--crop", type=float, default=3.0, help="seconds")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of the recordings")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--time", type=float, default=3.0, help="seconds of each of three runs")
    parser.add_argument("--augment", metavar="NAMES", help="measure these steps alone: all, or names with commas")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    crop = int(args.crop * RATE)
    results = vars(args) | {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if args.augment:
            times = step_times(chosen_steps(make_steps(root), args.augment), crop, args.time)
            results |= {"milliseconds": times, "load_after": os.getloadavg()[0]}
            if args.json:
                print(json.dumps(results, indent=2))
            else:
                load = f"load {results['load']:.1f} before and {results['load_after']:.1f} after"
                print(f"{results['cores']} cores, {load}\n")
                print(table(f"step, every time, crops of {args.crop:g} s", times, "ms of a core"))
            return
        corpora = {suffix: make_corpus(root, suffix, args.seconds) for suffix in FORMATS}
        steps = make_steps(root)
        results["decode"] = {suffix: decode_rate(corpus, crop, args.time) for suffix, corpus in corpora.items()}
        results["steps"] = {key: step_rate(step, crop, args.time) for key, step in steps.items()}
        readers = Readers(args.workers, args.threads)
        every = {"steps": tuple(step for key, step in steps.items() if key != "codec")}
        results["pipeline"] = {
            f"{suffix}, {name}": pipeline_rate(
                Crops(corpora[suffix], crop, 0, **chosen), args.time, args.batch, readers
            )
            for suffix in ("wav", "m4a")
            for name, chosen in (
                ("plain", {}),
                ("augmented", every),
                ("augmented, speed", every | {"speed": Speed()}),
            )
        }
    results["load_after"] = os.getloadavg()[0]
    if args.json:
        print(json.dumps(results, indent=2))
        return
    print(f"{results['cores']} cores, load {results['load']:.1f} before and {results['load_after']:.1f} after\n")
    print(table("decoding on one core", results["decode"]))
    print(table("step alone, every time", results["steps"]))
    makers = f"{args.workers} workers" if args.workers else f"{args.threads} threads"
    print(table(f"pipeline, {makers}", results["pipeline"]))


if __name__ == "__main__":
    main()
