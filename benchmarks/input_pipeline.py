"""Utterances per second that the input delivers: decoding alone per format, and the whole pipeline.

    python benchmarks/input_pipeline.py [--crop=3] [--seconds=8] [--batch=64] [--workers=0] [--threads=1] [--time=3]
    python benchmarks/input_pipeline.py --augment=all        # or --augment=babble,codec: milliseconds of these steps
    python benchmarks/input_pipeline.py --by_format --seconds=7.8 --workers=16 --card=28590 --step=5600

It makes its own recordings of one synthesised signal, as long as --seconds, at 16 kHz. "decode" is
random crops on one core; "pipeline" is batches from --workers processes or --threads threads, plain, with every
augmentation step at its default but the codec (noise and impulse responses from files), and with speed perturbation
besides. With --augment, only the processor time of each of the named steps is measured, and with codec of each codec.
Each figure is the best of three runs of --time seconds. Prints a Markdown table, or JSON with --json.

With --by_format, a table has a row for each of --formats: crops decoded on one core, and of the pipeline, plain and
with the speeds and augmentation of `configs/redimnet.py`; with one crop a decoding and with --crops_per_read. The
megabytes are those of the encoded files that the plain pipeline read in a second, from memory: a disk has to deliver
as many. A second table says what VoxCeleb2's 1,092,009 files take by the figures of m4a, where the card computes the
features of --card crops a second and trains the whole network on --step.
"""

import argparse
import dataclasses
import io
import json
import os
import runpy
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
from redimnet_jax.data.recordings import ReadOnce

RATE = audio.SAMPLE_RATE
FORMATS = ("wav", "flac", "ogg", "opus", "mp3", "m4a")
SPEAKERS, UTTERANCES = 8, 16
# The files of VoxCeleb2's development part.
VOXCELEB2 = 1_092_009


def encode(waveform: np.ndarray, suffix: str) -> bytes:
    """A file of `suffix` that holds the waveform: 16-bit PCM or the encoder's default rate."""
    buffer = io.BytesIO()
    if suffix != "m4a":
        kind = {"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {"format": suffix.upper()}
        soundfile.write(buffer, waveform, RATE, **kind)
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


def decode_rate(corpus: Corpus, crop: int, seconds: float, crops_per_read: int = 1) -> float:
    rng = np.random.default_rng(0)

    def work() -> int:
        index = int(rng.integers(len(corpus)))
        recordings = corpus if crops_per_read == 1 else ReadOnce(corpus, crops_per_read)
        for _ in range(crops_per_read):
            recordings.read(index, int(rng.integers(corpus.samples[index] - crop + 1)), crop)
        return crops_per_read

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


def pipeline_rate(crops: Crops, seconds: float, batch_size: int, readers: Readers, crops_per_read: int = 1) -> float:
    batches = train_batches(
        crops,
        batch_size,
        crops_per_utterance=1000 * crops_per_read,
        crops_per_read=crops_per_read,
        readers=readers,
    )
    # Until all that make batches have begun. What is ready is taken at once, so none waits when the clock starts.
    for _ in range(2 * max(readers.workers, readers.threads or 1) + 1):
        next(batches)
    try:
        return rate(lambda: len(next(batches)["label"]), seconds)
    finally:
        batches.close()


def published_steps(steps: dict[str, Step]) -> tuple[Step, ...]:
    """The augmentation of `configs/redimnet.py` with the folders of `steps`."""
    config = runpy.run_path(str(Path(__file__).parents[1] / "configs" / "redimnet.py"))["get_config"]("b2")
    draw = config.data.augment.draw
    folders = {name: {"folder": steps[name].folder} for name in draw.one_of}
    return from_config(folders, p=draw.p, one_of=draw.one_of, weights=draw.weights)


def by_format(args: argparse.Namespace, root: Path, crop: int) -> dict[str, dict[str, float]]:
    """Figures of every format: bytes a file, crops a second decoded and of the pipeline, megabytes a second."""
    readers, several = Readers(args.workers, args.threads), args.crops_per_read
    augmented = {"steps": published_steps(make_steps(root)), "speed": Speed(factors=(1.0, 0.9, 1.1))}
    figures = {}
    for suffix in args.formats.split(","):
        corpus = make_corpus(root, suffix, args.seconds)
        plain = Crops(corpus, crop, 0)
        figures[suffix] = row = {"bytes": Path(corpus.source(0)).stat().st_size}
        for count in (1, several):
            row[f"decode, {count}"] = decode_rate(corpus, crop, args.time, count)
            row[f"plain, {count}"] = pipeline_rate(plain, args.time, args.batch, readers, count)
            row[f"augmented, {count}"] = pipeline_rate(
                dataclasses.replace(plain, **augmented), args.time, args.batch, readers, count
            )
            row[f"MB/s, {count}"] = round(row[f"plain, {count}"] / count * row["bytes"] / 1e6, 1)
    return figures


def format_table(figures: dict[str, dict[str, float]], several: int, makers: str) -> str:
    """The figures of `by_format` as Markdown."""
    kinds = {"decode": "one core", "plain": f"{makers}", "augmented": "augmented", "MB/s": "MB/s read"}
    columns = [f"{kind}, {count}" for kind in kinds for count in (1, several)]
    names = [f"{title}, {count} a decoding" for title in kinds.values() for count in (1, several)]
    rows = [
        f"| {suffix} | {row['bytes'] / 1e3:.0f} | " + " | ".join(f"{row[name]:,.0f}" for name in columns) + " |"
        for suffix, row in figures.items()
    ]
    head = f"| format | kB a file | {' | '.join(names)} |\n|{'---|' * (len(names) + 2)}"
    return "\n".join([head, *rows, ""])


def voxceleb2(row: dict[str, float], several: int, rates: dict[str, float]) -> list[dict[str, object]]:
    """Seconds that `several` crops of every file of VoxCeleb2 take, by the figures of its format.

    `rates` are the crops a second that the card takes, by what it does with them.
    """
    return [
        {
            "work": work,
            "audio": kind,
            "crops_per_read": count,
            "seconds": round(VOXCELEB2 * several / min(row[f"{kind}, {count}"], card)),
            "limit": "CPU" if row[f"{kind}, {count}"] < card else "card",
            "card_busy": round(min(1.0, row[f"{kind}, {count}"] / card), 3),
        }
        for work, card in rates.items()
        for kind in ("plain", "augmented")
        for count in (1, several)
    ]


def voxceleb2_table(entries: list[dict[str, object]], several: int) -> str:
    """The estimates of `voxceleb2` as Markdown."""
    rows = [
        f"| {entry['work']} | {entry['audio']} | {entry['crops_per_read']} | {entry['seconds']:,} "
        f"| {entry['limit']} | {entry['card_busy']:.0%} |"
        for entry in entries
    ]
    title = f"VoxCeleb2, {several} crops of every file"
    return "\n".join(
        [f"| {title} | crops | a decoding | s | limited by | card busy |\n|---|---|---|---|---|---|", *rows, ""]
    )


def table(title: str, figures: dict[str, float], unit: str = "per second") -> str:
    rows = "\n".join(f"| {name} | {figure:,.{0 if figure > 99 else 2}f} |" for name, figure in figures.items())
    return f"| {title} | {unit} |\n|---|---|\n{rows}\n"


def chosen_steps(steps: dict[str, Step], names: str) -> dict[str, Step]:
    wanted = list(STEPS) if names == "all" else names.split(",")
    if unknown := [name for name in wanted if name not in STEPS]:
        raise SystemExit(f"There is no augmentation {unknown[0]!r}, only {', '.join(STEPS)}.")
    return {name: steps[name] for name in wanted}


def report_formats(args: argparse.Namespace, root: Path, crop: int, results: dict, makers: str) -> None:
    """Measure and print the tables of --by_format; write them as JSON where --output says."""
    results["formats"] = by_format(args, root, crop)
    results["load_after"] = os.getloadavg()[0]
    rates = {"features, once": args.card, "training, an epoch": args.step}
    if "m4a" in results["formats"]:
        results["voxceleb2"] = voxceleb2(results["formats"]["m4a"], args.crops_per_read, rates)
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=2) + "\n")
    if args.json:
        print(json.dumps(results, indent=2))
        return
    print(f"{results['cores']} cores, load {results['load']:.1f} before and {results['load_after']:.1f} after\n")
    print(f"Crops of {args.crop:g} s, of files of {args.seconds:g} s, a second:\n")
    print(format_table(results["formats"], args.crops_per_read, makers))
    if "voxceleb2" in results:
        print(voxceleb2_table(results["voxceleb2"], args.crops_per_read))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--crop", type=float, default=3.0, help="seconds")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of the recordings")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--time", type=float, default=3.0, help="seconds of each of three runs")
    parser.add_argument("--augment", metavar="NAMES", help="measure these steps alone: all, or names with commas")
    parser.add_argument("--by_format", action="store_true", help="print the tables by format and for VoxCeleb2")
    parser.add_argument("--formats", default="wav,flac,m4a,opus", help="those of --by_format, with commas")
    parser.add_argument("--crops_per_read", type=int, default=2, help="crops of one decoding in --by_format")
    parser.add_argument("--card", type=float, default=28_590, help="crops a second whose features the card computes")
    parser.add_argument("--step", type=float, default=5_600, help="crops a second that the card trains on")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--output", metavar="FILE", help="write the JSON of --by_format there, beside the tables")
    args = parser.parse_args()
    crop = int(args.crop * RATE)
    results = vars(args) | {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
    makers = f"{args.workers} workers" if args.workers else f"{args.threads} threads"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if args.by_format:
            report_formats(args, root, crop, results, makers)
            return
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
    print(table(f"pipeline, {makers}", results["pipeline"]))


if __name__ == "__main__":
    main()
