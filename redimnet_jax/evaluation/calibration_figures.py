"""What a calibration is worth on trials: Cllr and detection costs, with their intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from redimnet_jax import metrics
from redimnet_jax.evaluation import report, resampling
from redimnet_jax.evaluation.protocol import TrialSet
from redimnet_jax.evaluation.system_calibration import PrefixCalibration

FAR = 0.01  # the false acceptance rate of an operating point that is looked at
_BINS = 1024  # of log-likelihood ratios in resamples; more change no digit that is printed


def figures(
    prefix: PrefixCalibration,
    scores: np.ndarray,
    llrs: np.ndarray,
    trial_set: TrialSet,
    p_targets: Sequence[float],
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Return the figures of `scores` (trials,) and of their log-likelihood ratios `llrs` (trials,).

    They are {"cllr", "min_cllr", "act_dcf": {p_target: cost}, "transferred": {"threshold", "far", "frr"}, "eer_llr",
    "min_dcf_llr": {p_target: cost}, "at_far": {"asked", "threshold", "far", "frr"}, "ci95": the 95% intervals of all
    but "transferred" and "eer_llr"}. Without quality measures, EER and minDCF are those of the scores. "at_far" is at
    the threshold that has the false acceptance rate `FAR`, or the lowest that shows, on the fitting trials.
    """
    labels = trial_set.trials.labels
    far, frr = metrics.error_rates(scores, labels, prefix.threshold)
    curve = metrics.roc(llrs, labels)
    asked = max(FAR, 1 / prefix.fitted.nontargets)
    threshold = prefix.fitted.threshold_at_far(asked)
    at_far = dict(zip(("far", "frr"), metrics.error_rates(llrs, labels, threshold), strict=True))
    return {
        "cllr": metrics.cllr(llrs, labels),
        "min_cllr": metrics.min_cllr(llrs, labels),
        "act_dcf": {f"{p:g}": metrics.act_dcf(llrs, labels, p_target=p) for p in p_targets},
        "transferred": {"threshold": prefix.threshold, "far": far, "frr": frr},
        "eer_llr": curve.eer(),
        "min_dcf_llr": {f"{p:g}": curve.min_dcf(p) for p in p_targets},
        "at_far": {"asked": asked, "threshold": threshold, **at_far},
        "ci95": _intervals(llrs, trial_set, p_targets, threshold, resamples=resamples, seed=seed),
    }


def _intervals(
    llrs: np.ndarray,
    trial_set: TrialSet,
    p_targets: Sequence[float],
    threshold: float,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Return 95% intervals of Cllr, minCllr, actDCF, minDCF and the rates at `threshold`, over resampled speakers."""
    labels = trial_set.trials.labels
    bayes = np.array([metrics.bayes_threshold(p) for p in p_targets])
    edges = np.unique([*np.quantile(llrs, np.linspace(0, 1, _BINS)), *bayes, threshold])
    bins = np.searchsorted(edges, llrs, side="right")
    losses = np.logaddexp(0.0, np.where(labels, -llrs, llrs)) / np.log(2)
    # Every bin once for each class, with the weight of its trials.
    both = np.tile(np.arange(len(edges) + 1), 2)
    is_target = np.repeat([True, False], len(edges) + 1)
    rows = []
    for weights in resampling.trial_weights(labels, *trial_set.speaker_numbers(), resamples=resamples, seed=seed):
        counts = np.bincount(bins + (len(edges) + 1) * ~labels, weights, len(both))
        targets, nontargets = counts[is_target], counts[~is_target]
        costs = np.bincount(labels, weights * losses, 2) / np.array([nontargets.sum(), targets.sum()])
        frr = targets.cumsum()[:-1] / targets.sum()
        far = 1 - nontargets.cumsum()[:-1] / nontargets.sum()
        at = np.searchsorted(edges, bayes)
        actual = [metrics.detection_cost(far[i], frr[i], p) for i, p in zip(at, p_targets, strict=True)]
        least = [metrics.detection_cost(far, frr, p).min() for p in p_targets]
        rates = [rate[np.searchsorted(edges, threshold)] for rate in (far, frr)]
        cllrs = [costs.mean(), metrics.min_cllr(both, is_target, counts)]
        rows.append([*cllrs, *rates, *actual, *np.minimum(least, 1.0)])
    low, high = np.quantile(rows, [0.025, 0.975], axis=0)
    cllr, min_cllr, far, frr, *costs = [list(pair) for pair in zip(low.tolist(), high.tolist(), strict=True)]
    names = [f"{p:g}" for p in p_targets]
    return {
        "cllr": cllr,
        "min_cllr": min_cllr,
        "at_far": {"far": far, "frr": frr},
        "act_dcf": dict(zip(names, costs[: len(names)], strict=True)),
        "min_dcf_llr": dict(zip(names, costs[len(names) :], strict=True)),
    }


def table(results: report.Results) -> report.Table:
    """Return the calibration figures in `results`, a row for every dimension."""
    header = ("dim", "Cllr", "95 % interval", "minCllr", "ratio", "actDCF 0.01", "minDCF 0.01")
    header += ("actDCF 0.05", "minDCF 0.05", "threshold", "FAR %", "FRR %")
    header += (f"FAR at {100 * FAR:g} %", "95 % interval")
    rows = []
    for dim, entry in report.dims(results):
        transferred = entry["transferred"]
        low, high = entry["ci95"]["cllr"]
        ratio = entry["cllr"] / entry["min_cllr"] if entry["min_cllr"] else np.inf
        cllr = [f"{entry['cllr']:.4f}", f"{low:.4f} to {high:.4f}", f"{entry['min_cllr']:.4f}", f"{ratio:.3f}"]
        costs = [f"{entry[kind][p]:.4f}" for p in ("0.01", "0.05") for kind in ("act_dcf", "min_dcf_llr")]
        rates = [f"{100 * transferred['far']:.2f}", f"{100 * transferred['frr']:.2f}"]
        low, high = entry["ci95"]["at_far"]["far"]
        at_far = [f"{100 * entry['at_far']['far']:.2f}", f"{100 * low:.2f} to {100 * high:.2f}"]
        rows.append([str(dim), *cllr, *costs, f"{transferred['threshold']:.4f}", *rates, *at_far])
    return report.Table(_title(results["calibration"]), header, rows)


def _title(source: Mapping[str, Any]) -> str:
    """Return what the calibration was fitted on, and what limits its figures."""
    title = f"Calibrated on {source['trials']}"
    if source["measures"]:
        title += f" with {', '.join(source['measures'])}"
    if source["shared_speakers"]:
        title += f", {source['shared_speakers']} of whose speakers are evaluated too"
    if source["outside"]:
        title += f"; {source['outside']:,} trials have measures outside those it was fitted on"
    return title
