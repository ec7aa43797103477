"""Plant wrong labels and duplicates in a corpus, audit it, and count what is found.

    python experiments/audit.py CORPUS --checkpoint=redimnet_jax/checkpoints/pretrained/small --work=/tmp/audit

For every seed, 1% of the recordings get the name of another speaker, and 0.5% are there twice: the copy has another
format, level and sampling rate and lacks the first part. Then, for each seed, five speakers get two names each, and
five names two speakers each. A wrong label counts as found when it is called so, or a second speaker of its name.
What the audit finds in the corpus as it is counts as false in `precision`, and is left out in `precision, new`.
Embeddings are kept in the folder `--work`.
"""

import argparse
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import soundfile
import soxr

from redimnet_jax.audit import findings
from redimnet_jax.audit.findings import ALIAS, DUPLICATE, SECOND, WRONG, Audit
from redimnet_jax.checkpoints.open import open_model
from redimnet_jax.cli import main as command
from redimnet_jax.data.corpus import open_corpus
from redimnet_jax.data.recordings import AudioFiles, Utterances
from redimnet_jax.embedding import folder
from redimnet_jax.embedding.extract import embed_pooled, pool_recordings

FORMATS = {".wav": "PCM_16", ".flac": "PCM_16", ".mp3": "MPEG_LAYER_III", ".ogg": "VORBIS", ".opus": "OPUS"}
RATES = (16_000, 24_000, 48_000)


def copies(corpus: Utterances, chosen: np.ndarray, where: Path, narrow: bool, rng: np.random.Generator) -> list[str]:
    """Write copies of the recordings `chosen` to the folder `where`; return the names of the files."""
    where.mkdir(parents=True, exist_ok=True)
    written = []
    for number, index in enumerate(chosen.tolist()):
        suffix = rng.choice(list(FORMATS))
        rate = 8_000 if narrow else int(rng.choice(RATES))
        waveform = rng.uniform(0.1, 1.0) * corpus.read(index)[int(rng.integers(8_000)) :]
        waveform = np.clip(soxr.resample(waveform, 16_000, rate), -1, 1)
        path = where / f"{number}{suffix}"
        container = "OGG" if suffix == ".opus" else None
        with soundfile.SoundFile(path, "w", rate, 1, FORMATS[suffix], format=container) as file:
            for start in range(0, len(waveform), rate):  # libsndfile crashes on long blocks of Vorbis.
                file.write(waveform[start : start + rate])
        written.append(path.name)
    return written


def rates(found: set[int], planted: set[int], known: set[int]) -> dict[str, float]:
    new = found - known
    return {
        "planted": len(planted),
        "found": len(found),
        "precision": round(len(found & planted) / max(1, len(found)), 3),
        "precision, new": round(len(new & planted) / max(1, len(new)), 3),
        "recall": round(len(found & planted) / len(planted), 3),
    }


def of_labels(audit: Audit) -> set[int]:
    return {finding.recording for finding in audit.findings if finding.reason in (WRONG, SECOND)}


class Joined:
    """The recordings of a corpus, then those of files."""

    def __init__(self, corpus: Utterances, extra: AudioFiles):
        self.corpus, self.extra = corpus, extra

    def read(self, index: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        n = len(self.corpus)
        source, number = (self.corpus, index) if index < n else (self.extra, index - n)
        return source.read(number, start, samples)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--wrong", type=float, default=0.01)
    parser.add_argument("--copies", type=float, default=0.005)
    parser.add_argument(
        "--near", type=int, default=10**9, help="a wrong label is one of this many speakers that sound nearest"
    )
    parser.add_argument("--narrow", action="store_true", help="copies have a sampling rate of 8 kHz")
    return parser.parse_args()


def main() -> None:
    args = parsed()
    embedded = args.work / "embeddings"
    code = command.main(["embed", args.corpus, f"--checkpoint={args.checkpoint}", f"--output={embedded}"])
    assert code == 0
    corpus = open_corpus(args.corpus, cache_dir=embedded / "corpus", progress=False)
    model = open_model(args.checkpoint, dtype=jnp.dtype("float32"))
    vectors = np.array(folder.load(embedded).array)
    labels, n = np.asarray(corpus.labels, np.int64), len(corpus)
    speakers, nowhere = len(corpus.speakers), np.full(n, -1)

    def run(vectors, labels, sessions, read) -> Audit:
        return findings.audit(vectors, labels, sessions, read, progress=False)

    means = np.stack([vectors[labels == speaker].mean(0) for speaker in range(speakers)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    nearest = np.argsort(-(means @ means.T - 3 * np.eye(speakers)), axis=1)[:, :-1]  # of every speaker, the others

    known = of_labels(run(vectors, labels, nowhere, corpus.read))
    print(json.dumps({"found in the corpus as it is": len(known)}))
    for seed in range(args.seeds):
        rng = np.random.default_rng(seed)
        wrong = rng.choice(n, round(args.wrong * n), replace=False)
        planted = labels.copy()
        planted[wrong] = nearest[labels[wrong], rng.integers(0, min(args.near, speakers - 1), len(wrong))]
        chosen = rng.choice(np.setdiff1d(np.arange(n), wrong), round(args.copies * n), replace=False)
        where = args.work / f"copies-{seed}{'-narrow' * args.narrow}"
        extra = AudioFiles([where], copies(corpus, chosen, where, args.narrow, rng))
        new = embed_pooled(model, pool_recordings(model, extra))[:, 0]
        new /= np.linalg.norm(new, axis=1, keepdims=True)
        audit = run(
            np.concatenate([vectors, new]),
            np.concatenate([planted, planted[chosen]]),
            np.full(n + len(new), -1),
            Joined(corpus, extra).read,
        )
        repeated = {finding.recording for finding in audit.findings if finding.reason == DUPLICATE}
        suspected = [f.suspected == labels[f.recording] for f in audit.findings if f.recording in set(wrong.tolist())]
        line = {"seed": seed, "wrong": rates(of_labels(audit), set(wrong.tolist()), known)}
        line["wrong"]["speaker right"] = round(float(np.mean(suspected)), 3)
        line["duplicates"] = rates(repeated, set(range(n, n + len(new))), set())
        line["duplicates"]["lowest correlation"] = round(float(audit.duplicates.correlations.min(initial=1.0)), 3)
        print(json.dumps(line), flush=True)

        chosen = rng.choice(speakers, 15, replace=False)
        planted = labels.copy()
        for number, name in enumerate(chosen[:5]):
            planted[np.flatnonzero(labels == name)[1::2]] = speakers + number
        for name, other in zip(chosen[5:10], chosen[10:], strict=True):
            planted[labels == other] = name
        numbers = np.unique(planted, return_inverse=True)[1]
        audit = run(vectors, numbers, nowhere, corpus.read)
        line = {"seed": seed}
        for reason, names in ((ALIAS, [*chosen[:5], *range(speakers, speakers + 5)]), (SECOND, chosen[5:10])):
            found = {int(planted[f.recording]) for f in audit.findings if f.reason == reason}
            line[reason] = {"planted": 5, "found": len(found), "right": len(found & {int(name) for name in names})}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
