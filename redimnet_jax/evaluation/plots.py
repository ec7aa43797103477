"""Plots of an evaluation and of a training run.

Every function returns a Matplotlib Figure that belongs to no window and no global state; `save` writes it as PNG. The
colours are those of Okabe and Ito (2008), which readers of any colour vision can tell apart; line styles and markers
repeat the distinction.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from redimnet_jax import files, metrics, optional
from redimnet_jax.evaluation import report
from redimnet_jax.names import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = "osD^vP*X"
LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
# Ticks of error rates, in percent.
RATE_TICKS = (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 40, 60, 80, 95)


def det_curves(scores: np.ndarray, labels: np.ndarray, dims: Sequence[int]) -> "Figure":
    """Plot false rejections against false acceptances on normal-deviate axes (Martin et al., Eurospeech 1997).

    `scores` has shape (dims, trials), `labels` (trials,) with 1 for a target trial. A marker shows the EER of each
    dimension. A dimension with one of the two errors at 0 or 1 for every threshold has no curve; its label says so.
    Raise the errors of `metrics.roc`.
    """
    figure = _figure(6.0, 7.0)
    from scipy.special import ndtr, ndtri

    axes = figure.add_subplot()
    rates: list[float] = []
    eers: list[float] = []
    for index, (dim, row) in enumerate(zip(dims, scores, strict=True)):
        points = metrics.roc(row, labels)
        far, frr = points.corners().det()
        eer = points.eer()
        label = f"{dim}: EER {100 * eer:.2f} %" + ("" if len(far) else ", no curve")
        axes.plot(far, frr, label=label, **_style(index, markevery=[]))
        if 0 < eer < 1:
            axes.plot(ndtri(eer), ndtri(eer), **_style(index, markersize=8, zorder=3))
        eers.append(eer)
        rates.extend(ndtr(np.concatenate([far, frr])))
    targets = int(np.sum(labels))
    low, high = det_range(rates, eers, labels)
    ticks = [rate for rate in RATE_TICKS if low <= ndtri(rate / 100) <= high]
    for axis, limits in ((axes.xaxis, axes.set_xlim), (axes.yaxis, axes.set_ylim)):
        limits(low, high)
        axis.set_ticks(ndtri(np.array(ticks) / 100), [f"{rate:g}" for rate in ticks])
    axes.axline((0, 0), slope=1, color="0.6", linewidth=0.8, zorder=0)
    axes.set(xlabel="false acceptance rate (%)", ylabel="false rejection rate (%)", aspect="equal")
    axes.set_title(f"DET curves: {targets:,} target, {len(labels) - targets:,} non-target trials")
    # Outside the axes the legend covers no curve.
    figure.legend(title="dimension", loc="outside lower center", ncols=2)
    return _gridded(figure)


def det_range(rates: Sequence[float], eers: Sequence[float], labels: np.ndarray) -> tuple[float, float]:
    """Return the least and greatest normal deviate that axes show of curves with those `rates` and `eers`.

    `labels` (trials,) are those of the trials.
    """
    from scipy.special import ndtri

    targets = int(np.sum(labels))
    # Below one error in all trials of a class there is nothing to draw.
    lowest = min(0.5 / max(targets, len(labels) - targets), 0.01)
    low = ndtri(np.clip(min(rates, default=lowest) * 0.8, max(lowest, 1e-5), 0.01))
    high = ndtri(np.clip(max(rates, default=0.5), 0.1, np.clip(2 * max(eers), 0.6, 0.95)))
    return float(low), float(high)


def score_histograms(
    scores: np.ndarray, labels: np.ndarray, dims: Sequence[int], results: report.Results
) -> "Figure":
    """Plot the densities of target and non-target scores, a panel for each dimension, with the EER thresholds.

    `scores` has shape (dims, trials), `labels` (trials,) with 1 for a target trial; `results` has the thresholds.
    """
    labels = metrics.checked_labels(labels)
    figure = _figure(6.5, 1.2 + 1.7 * len(dims))
    panels = figure.subplots(len(dims), 1, sharex=True, squeeze=False)[:, 0]
    edges = np.linspace(np.min(scores), np.max(scores) + 1e-6, 81)
    for axes, dim, row in zip(panels, dims, scores, strict=True):
        for index, (name, chosen) in enumerate((("target", labels), ("non-target", ~labels))):
            density, _ = np.histogram(row[chosen], edges, density=True)
            label = f"{name} ({np.sum(chosen):,})"
            axes.stairs(density, edges, fill=True, alpha=0.3, color=COLORS[index], linewidth=0)
            axes.stairs(density, edges, color=COLORS[index], linestyle=LINES[index], linewidth=1.5, label=label)
        entry = results["dims"][str(dim)]
        axes.axvline(entry["threshold"], color="black", linewidth=1, label="threshold at the EER")
        axes.set(ylabel="density", ylim=(0, None))
        axes.set_title(f"dimension {dim}: EER {100 * entry['eer']:.2f} %, threshold {entry['threshold']:.3f}")
    panels[-1].set_xlabel(f"score ({results.get('score', 'cosine')})")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return _gridded(figure)


def reliability(llrs: np.ndarray, labels: np.ndarray, dims: Sequence[int]) -> "Figure":
    """Plot what log-likelihood ratios should have been against what they are; calibrated ones lie on the diagonal.

    `llrs` has shape (dims, trials), `labels` (trials,) with 1 for a target trial. The tenths of either class bound
    the points: across is the mean of the ratios of a point, up the logarithm of its share of the target trials over
    its share of the non-target trials. Points that lack a class are left out.
    """
    labels = metrics.checked_labels(labels)
    figure = _figure(6.0, 6.0)
    axes = figure.add_subplot()
    for index, (dim, row) in enumerate(zip(dims, llrs, strict=True)):
        claimed, observed = reliability_points(row, labels)
        cllr, least = metrics.cllr(row, labels), metrics.min_cllr(row, labels)
        label = f"{dim}: Cllr {cllr:.3f}, least {least:.3f}"
        axes.plot(claimed, observed, label=label, **_style(index, markersize=5))
    axes.axline((0, 0), slope=1, color="0.6", linewidth=0.8, zorder=0)
    axes.set(xlabel="log-likelihood ratio", ylabel="observed log-likelihood ratio")
    axes.set_title(f"calibration: {labels.sum():,} target, {(~labels).sum():,} non-target trials")
    figure.legend(title="dimension", loc="outside lower center", ncols=2)
    return _gridded(figure)


def reliability_points(llrs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the observed log-likelihood ratio, (points,) each, of bins of `llrs` (trials,)."""
    deciles = np.linspace(0, 1, 11)[1:-1]
    edges = np.unique([*np.quantile(llrs[labels], deciles), *np.quantile(llrs[~labels], deciles)])
    bins = np.searchsorted(edges, llrs, side="right")
    targets, nontargets = (np.bincount(bins[mask], minlength=len(edges) + 1) for mask in (labels, ~labels))
    both = (targets > 0) & (nontargets > 0)
    means = np.bincount(bins, llrs, len(edges) + 1)[both] / (targets + nontargets)[both]
    observed = np.log(targets[both] / labels.sum()) - np.log(nontargets[both] / (~labels).sum())
    return means, observed


def eer_by_dimension(results: Mapping[str, report.Results]) -> "Figure":
    """Plot the EER with its 95% interval against the dimension and the storage, a line for each named system."""
    figure = _figure(6.5, 4.5)
    axes = figure.add_subplot()
    ticks = set()
    for index, (system, each) in enumerate(results.items()):
        dims, entries = zip(*report.dims(each), strict=True)
        ticks.update(dims)
        eers = 100 * np.array([entry["eer"] for entry in entries])
        bounds = 100 * np.array([entry["eer_ci95"] for entry in entries]).T
        # With few trials the bootstrap interval need not contain the EER itself.
        sizes = np.maximum([eers - bounds[0], bounds[1] - eers], 0)
        style = _style(index, markersize=6, capsize=4)
        axes.errorbar(dims, eers, sizes, label=_plain(system), **style)
        if len(results) == 1:
            for dim, eer in zip(dims, eers, strict=True):
                axes.annotate(f"{eer:.2f}", (dim, eer), (7, 5), textcoords="offset points", bbox=LABEL_BOX)
    if report.need_logarithmic_axis(ticks):
        axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks), map(str, sorted(ticks)))
    axes.minorticks_off()
    axes.set(xlabel="dimension of the embedding", ylabel="EER (%), with 95% interval", ylim=(0, None))
    axes.margins(x=0.1)
    bytes_axis = axes.secondary_xaxis("top", functions=(_bytes_of, _dimension_of))
    bytes_axis.set_xlabel("storage (bytes an embedding, float32)")
    storage = [4 * dim for dim in sorted(ticks)]
    bytes_axis.set_xticks(storage, map(str, storage))
    bytes_axis.minorticks_off()
    axes.legend()
    return _gridded(figure)


def training_curves(history: Sequence[Mapping[str, Any]]) -> "Figure":
    """Plot the losses, and for each dimension the EER with its 95% interval, over the epochs.

    `history` has entries {"step", "epoch", "loss", "dims": as in results, "classification": {"loss"}}, of which all
    but the first two may be missing. The classification loss is that of recordings of training speakers that are not
    trained on.
    """
    figure = _figure(6.5, 7.0)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    evaluated = [entry for entry in history if entry.get("dims")]
    dims = sorted({int(dim) for entry in evaluated for dim in entry["dims"]})
    for index, dim in enumerate(dims):
        rows = [(entry["epoch"], entry["dims"][str(dim)]) for entry in evaluated if str(dim) in entry["dims"]]
        epochs = [epoch for epoch, _ in rows]
        low, high = 100 * np.array([entry["eer_ci95"] for _, entry in rows]).T
        style = _style(index, markersize=4)
        eers = [100 * entry["eer"] for _, entry in rows]
        upper.plot(epochs, eers, label=f"{dim} ({eers[-1]:.2f} % at the end)", **style)
        upper.fill_between(epochs, low, high, color=style["color"], alpha=0.12, linewidth=0)
    upper.set(ylabel="EER (%), with 95% interval", ylim=(0, None))
    upper.set_title("validation")
    if dims:
        upper.legend(title="dimension")
    losses = [(entry["epoch"], entry["loss"]) for entry in history if entry.get("loss") is not None]
    if losses:
        lower.plot(
            *zip(*losses, strict=True), color="black", marker="o", markersize=3, linewidth=1.5, label="training"
        )
    known = [(entry["epoch"], entry["classification"]["loss"]) for entry in history if entry.get("classification")]
    if known:
        lower.plot(*zip(*known, strict=True), label="recordings kept out of training", **_style(1, markersize=4))
        lower.legend()
    lower.set(xlabel="epoch", ylabel="loss")
    lower.set_title("classification" if known else "training")
    return _gridded(figure)


def save(figure: "Figure", path: str | Path) -> Path:
    """Write `figure` as PNG, whole or not at all; return the path; raise UserError when it cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=150)
    return files.write(path, buffer.getvalue())


def _figure(width: float, height: float) -> "Figure":
    optional.require("report")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _plain(name: str) -> str:
    """Return a name that a legend shows: dollars start no mathematics, a leading underscore hides no entry."""
    shown = one_line(name).replace("$", "\\$")
    return f" {shown}" if shown.startswith("_") else shown


def _style(index: int, **more: Any) -> dict[str, Any]:
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": LINES[index % len(LINES)],
        "marker": MARKERS[index % len(MARKERS)],
        "linewidth": 1.6,
        **more,
    }


def _gridded(figure: "Figure") -> "Figure":
    for axes in figure.axes:
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize("medium")
    return figure


def _bytes_of(dimension: Any) -> Any:
    return 4 * dimension


def _dimension_of(size: Any) -> Any:
    return size / 4
