"""Scoring and error rates at the size of VoxCeleb1-H, against NumPy and scikit-learn.

    python benchmarks/scoring.py [--device=gpu] [--trials=580000] [--utterances=145000]
                                 [--resamples=1000] [--cohort=6000]

Artificial embeddings of 1,200 speakers on the device, four dimensions. `scoring_and_rates` is the scores of all
trials at all dimensions, EER and minDCF at two operating points: on a GPU or TPU all on the device, on a CPU with the
host's sort, the dimensions side by side. `numpy_and_scikit_learn` is a cosine by NumPy for every dimension and the
same figures from `roc_curve`. Times are medians of `--repeat` runs after one that compiles; of the bootstrap and of
score normalisation, one run.
The peak of memory is that of the device since the start, where the device tells it. Prints JSON.
"""

import argparse
import json
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

DIMS = (64, 128, 192, 256)
P_TARGETS = (0.01, 0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu", "tpu"])
    parser.add_argument("--trials", type=int, default=580_000)
    parser.add_argument("--utterances", type=int, default=145_000)
    parser.add_argument("--speakers", type=int, default=1200)
    parser.add_argument("--resamples", type=int, default=1000, help="0 leaves the bootstrap out")
    parser.add_argument("--cohort", type=int, default=6000, help="0 leaves score normalisation out")
    parser.add_argument("--top_k", type=int, default=300)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(args.device, args.device)
    print(json.dumps(vars(args) | measure(args), indent=2))


def measure(args) -> dict:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from redimnet_jax import metrics, scoring
    from redimnet_jax.evaluation import confidence, device_metrics, score_norm

    def seconds(function, repeat: int = args.repeat) -> float:
        times = []
        for _ in range(repeat):
            start = time.perf_counter()
            jax.block_until_ready(function())
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    rng = np.random.default_rng(0)
    speaker = rng.integers(0, args.speakers, args.utterances)
    voices = rng.standard_normal((args.speakers, max(DIMS)), dtype=np.float32)
    host = 0.4 * voices[speaker] + rng.standard_normal((args.utterances, max(DIMS)), dtype=np.float32)
    left = rng.integers(0, args.utterances, args.trials).astype(np.int32)
    # The other side is of the same speaker in half of the trials: some utterance of that speaker's run in the order.
    order = np.argsort(speaker, kind="stable")
    first = np.searchsorted(speaker[order], np.arange(args.speakers))
    size = np.bincount(speaker, minlength=args.speakers)
    same = order[first[speaker[left]] + rng.integers(0, size[speaker[left]])]
    right = np.where(rng.random(args.trials) < 0.5, same, rng.integers(0, args.utterances, args.trials))
    right = right.astype(np.int32)
    labels = speaker[left] == speaker[right]
    device = jax.devices()[0]
    embeddings, a, b, y = jax.device_put((host, left, right, labels), device)

    def rates(points) -> list[float]:
        return [points.eer(), *(points.min_dcf(p) for p in P_TARGETS)]

    def ours():
        scores = scoring.score_trials(embeddings, a, b, DIMS)
        if args.device == "cpu":
            with ThreadPoolExecutor() as pool:
                return np.array(list(pool.map(lambda row: rates(metrics.roc(row, labels)), np.asarray(scores))))
        eer, dcf = device_metrics.eer_and_min_dcf(scores, y, P_TARGETS)
        return jnp.concatenate([eer[None], dcf]).T

    def usual():
        from sklearn.metrics import roc_curve

        figures = []
        for dim in DIMS:
            x, z = host[left, :dim], host[right, :dim]
            cosine = (x * z).sum(axis=1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(z, axis=1))
            far, hit, thresholds = roc_curve(labels, cosine)
            figures.append(rates(metrics.Roc(thresholds, far, 1 - hit)))
        return np.array(figures)

    results = {"device": device.device_kind, "jax": jax.__version__, "trials": args.trials}
    eers = np.asarray(ours())[:, 0]
    results["eer"] = eers.round(6).tolist()
    results["largest_difference"] = float(np.abs(np.asarray(ours()) - usual()).max())
    results["scoring_and_rates_ms"] = 1e3 * seconds(ours)
    results["scoring_ms"] = 1e3 * seconds(lambda: scoring.score_trials(embeddings, a, b, DIMS))
    results["numpy_and_scikit_learn_ms"] = 1e3 * seconds(usual)
    results["times_faster"] = results["numpy_and_scikit_learn_ms"] / results["scoring_and_rates_ms"]
    scores = scoring.score_trials(embeddings, a, b, DIMS)
    if args.resamples:
        sides = speaker[left], speaker[right]

        def bootstrap():
            return confidence.bootstrap(scores, labels, *sides, resamples=args.resamples, p_targets=P_TARGETS)

        bootstrap()
        results["bootstrap_s"] = seconds(bootstrap, 1)
    if args.cohort:
        cohort = tuple(
            jnp.asarray(rng.standard_normal((args.cohort, dim), dtype=np.float32), jnp.float32) for dim in DIMS
        )

        def as_norm():
            mean, deviation = score_norm.cohort_statistics(embeddings, cohort, top_k=args.top_k)
            return score_norm.normalise(scores, left, right, mean, deviation)

        as_norm()
        results["as_norm_s"] = seconds(as_norm, 1)
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    results["peak_gib"] = None if peak is None else peak / 2**30
    return {k: round(v, 3) if isinstance(v, float) and k != "largest_difference" else v for k, v in results.items()}


if __name__ == "__main__":
    main()
