"""Identification among a million enrolled speakers: latency and recall, with FAISS as the yardstick.

    python benchmarks/gallery.py --embeddings FOLDER... [--device=gpu] [--entries=1000000] [--queries=512]
                                 [--parts gallery faiss]

Speakers are artificial but distributed like real ones. FOLDER is what `redimnet-jax embed` wrote of speakers with
several utterances each. Their mean and covariances, between speakers (less what the few utterances of each add) and
within, make a Gaussian model: a speaker is a sample of the former, an utterance adds one of the latter. Every speaker
is enrolled by one utterance; queries are other utterances of some of them.

`find` is the shortlist alone, `identify` all from an embedding on the host to names with exact scores. Times are
medians of single queries, and of batches of 64 per query. `recall` is how often the first place is that of the
exhaustive search. Bounds are the bytes of the table over `--bandwidth` (bytes/s). FAISS (pip install faiss-cpu) runs
on the CPU. Prints a line of JSON for each case.
"""

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--embeddings", nargs="+", required=True, type=Path)
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu", "tpu"])
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--bandwidth", type=float, default=12e9)
    parser.add_argument("--counts", nargs="+", type=int, default=[128, 256, 512, 1024])
    parser.add_argument("--parts", nargs="+", default=["gallery"], choices=["gallery", "faiss"])
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(args.device, args.device)
    table, queries, speakers = population(args.embeddings, args.entries, args.queries)
    if "gallery" in args.parts:
        measure(args, table, queries, speakers)
    if "faiss" in args.parts:
        measure_faiss(args, table, queries)


def show(**entry) -> None:
    print(json.dumps(entry), flush=True)


def population(folders: list[Path], entries: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(enrolled (entries, dim), queries (count, dim), who speaks in the queries (count,)) of the Gaussian model."""
    from redimnet_jax.embedding import folder

    parts = [folder.load(path) for path in folders]
    rows = np.concatenate([part.array for part in parts]).astype(np.float64)
    names = [f"{number}/{speaker}" for number, part in enumerate(parts) for speaker in part.speakers]
    _, labels, sizes = np.unique(names, return_inverse=True, return_counts=True)
    means = np.stack([rows[labels == label].mean(axis=0) for label in range(len(sizes))])
    within = (rows - means[labels]).T @ (rows - means[labels]) / (len(rows) - len(means))
    between = np.cov(means.T) - within * (1 / sizes).mean()
    rng = np.random.default_rng(0)

    def sample(covariance: np.ndarray, number: int) -> np.ndarray:
        values, vectors = np.linalg.eigh(covariance)
        root = (vectors * np.sqrt(np.maximum(values, 0))).astype(np.float32)
        return rng.standard_normal((number, len(root)), dtype=np.float32) @ root.T

    table = sample(between, entries) + means.mean(axis=0).astype(np.float32)
    speakers = rng.choice(entries, count, replace=False)
    queries = table[speakers] + sample(within, count)
    table += sample(within, entries)
    return table, queries, speakers


def milliseconds(function: Callable, items: list, repeat: int, queries: int = 1) -> float:
    """The median time of a call with one of `items`, of `queries` each, per query, after a call that compiles."""
    function(items[0])
    times = []
    for number in range(repeat):
        start = time.perf_counter()
        function(items[number % len(items)])
        times.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(times) / queries, 3)


def measure(args, table: np.ndarray, queries: np.ndarray, speakers: np.ndarray) -> None:
    from redimnet_jax.embedding import codes
    from redimnet_jax.gallery.gallery import Gallery, Method
    from redimnet_jax.gallery.manifest import Weights
    from redimnet_jax.gallery.segment import LEVELS, Segment
    from redimnet_jax.gallery.utterances import Utterances

    count, dim = table.shape
    names = list(map(str, range(count)))
    unknown = np.full(count, np.nan)
    begin = time.perf_counter()
    encoded = {form: codes.encode(table, dim, form) for form in codes.FORMS}
    encoding = time.perf_counter() - begin
    arrays = {(level, form): encoded[form] for level in LEVELS for form in codes.FORMS}
    segment = Segment(Utterances(names, names, unknown, unknown, table), names, np.arange(count + 1), arrays)
    gallery = Gallery("memory", Weights("", "", "float32", dim), [segment])
    single = [queries[number : number + 1] for number in range(len(queries))]
    batches = [queries[start : start + BATCH] for start in range(0, len(queries) - BATCH + 1, BATCH)]
    exhaustive = Method("float32", dim, 1)
    first = [matches[0].model for matches in gallery.identify(queries, method=exhaustive)]
    truth = np.mean([name == str(speaker) for name, speaker in zip(first, speakers, strict=True)])
    show(entries=count, dim=dim, speaker_found=float(truth), encode_s=round(encoding, 2))
    methods = [("float32", dim, [1]), ("float32", 64, args.counts), ("int8", 64, args.counts)]
    for form, width, sizes in [*methods, ("binary", dim, args.counts)]:
        for size in sizes:
            method = Method(form, width, size)
            begin = time.perf_counter()
            shortlist = gallery.prepare("models", method)
            prepared = time.perf_counter() - begin
            found = [matches[0].model for matches in gallery.identify(queries, method=method)]
            bytes_read = count * codes.code_width(width, form) * (4 if form == "float32" else 1)

            def identify(embeddings, method=method):
                return gallery.identify(embeddings, method=method)

            def find(embeddings, shortlist=shortlist, size=size):
                return shortlist.find(embeddings, size)

            show(
                form=form,
                dim=width,
                count=size,
                megabytes=round(bytes_read / 1e6),
                bound_ms=round(1e3 * bytes_read / args.bandwidth, 3),
                prepare_s=round(prepared, 2),
                find_ms=milliseconds(find, single, args.repeat),
                find_batch_ms=milliseconds(find, batches, 3, BATCH),
                identify_ms=milliseconds(identify, single, args.repeat),
                identify_batch_ms=milliseconds(identify, batches, 3, BATCH),
                recall=round(float(np.mean([a == b for a, b in zip(found, first, strict=True)])), 4),
            )
        gallery._shortlists.clear()


def measure_faiss(args, table: np.ndarray, queries: np.ndarray) -> None:
    import faiss

    from redimnet_jax.embedding import codes

    count, dim = table.shape
    unit, probes = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (table, queries))
    flat = faiss.IndexFlatIP(dim)
    flat.add(unit)
    first = flat.search(probes, 1)[1][:, 0]
    prefix = faiss.IndexFlatIP(64)
    prefix.add(np.ascontiguousarray(table[:, :64] / np.linalg.norm(table[:, :64], axis=1, keepdims=True)))
    binary = faiss.IndexBinaryFlat(dim)
    binary.add(codes.encode(table, dim, "binary"))
    bits = codes.encode(queries, dim, "binary")
    cut = np.ascontiguousarray(queries[:, :64])
    begin = time.perf_counter()
    inverted = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, 1024, faiss.METRIC_INNER_PRODUCT)
    inverted.train(unit[:: max(1, count // 50_000)])
    inverted.add(unit)
    building = time.perf_counter() - begin
    cases: list[tuple[str, Callable, np.ndarray, list[int]]] = [
        ("IndexFlatIP, all dimensions", flat.search, probes, [1]),
        ("IndexFlatIP, 64 dimensions", prefix.search, cut, args.counts),
        ("IndexBinaryFlat", binary.search, bits, args.counts),
    ]
    for name, search, rows, sizes in cases:
        for size in sizes:
            show(faiss=name, count=size, **_faiss_entry(functools.partial(_search, search, size), rows, first, args))
    for probe in (16, 64, 256):
        inverted.nprobe = probe
        entry = _faiss_entry(functools.partial(_search, inverted.search, 1), probes, first, args)
        show(faiss=f"IndexIVFFlat, 1024 lists, nprobe {probe}", count=1, build_s=round(building, 1), **entry)


def _search(search: Callable, count: int, rows: np.ndarray) -> np.ndarray:
    return search(rows, count)[1]


def _faiss_entry(search: Callable, rows: np.ndarray, first: np.ndarray, args) -> dict:
    found = np.concatenate([search(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)])
    single = [rows[number : number + 1] for number in range(len(rows))]
    batches = [rows[start : start + BATCH] for start in range(0, len(rows) - BATCH + 1, BATCH)]
    return {
        "find_ms": milliseconds(search, single, args.repeat),
        "find_batch_ms": milliseconds(search, batches, 1, BATCH),
        "recall": round(float((found == first[:, None]).any(axis=1).mean()), 4),
    }


if __name__ == "__main__":
    main()
