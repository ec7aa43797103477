"""The charts of the report: what `plots` draws as PNG, and what only a page can show."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from redimnet_jax.evaluation import plots, report
from redimnet_jax.evaluation.html_report.chart import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    Axis,
    Chart,
    Point,
    Series,
    closed,
    horizontal,
    path,
    vertical,
)
from redimnet_jax.metrics import Roc

FARS = (0.001, 0.01, 0.02, 0.05, 0.1)  # of the table of thresholds
BINS = 80
ROW = 22  # pixels of a group
NAMES = 122  # pixels for the names of groups
SHIFT = 7  # pixels between the dimensions of a group


def det(curves: Mapping[int, Roc], points: Mapping[int, Roc], labels: np.ndarray) -> Chart:
    """Return the DET curves of the `points`, thinned operating points by dimension, with markers at the EERs.

    `curves` has all operating points; `labels` (trials,) are those of the trials.
    """
    from scipy.special import ndtr, ndtri

    eers = {dim: curve.eer() for dim, curve in curves.items()}
    inside = {dim: np.stack(curve.det()) for dim, curve in points.items()}
    rates = ndtr(np.concatenate([each.ravel() for each in inside.values()]))
    low, high = plots.det_range(rates, list(eers.values()), labels)
    ticks = [(float(ndtri(rate / 100)), f"{rate:g}") for rate in plots.RATE_TICKS if low <= ndtri(rate / 100) <= high]
    x = horizontal("false acceptance rate (%)", low, high, ticks)
    y = vertical("false rejection rate (%)", low, high, ticks)
    series = []
    for style, (dim, (far, frr)) in enumerate(inside.items()):
        eer = eers[dim]
        place = ndtri(np.clip(eer, 1e-9, 1 - 1e-9))
        marker = Point(float(x(place)), float(y(place)), f"dimension {dim}: EER {100 * eer:.2f} %")
        name = f"{dim}: EER {100 * eer:.2f} %" + ("" if far.size else ", no curve")
        shown = (far >= low) & (far <= high) & (frr >= low) & (frr <= high)
        series.append(Series(name, style, path(x(far[shown]), y(frr[shown])), points=[marker]))
    targets = int(np.sum(labels))
    return Chart(
        "det",
        "DET curves",
        f"False rejections against false acceptances on normal-deviate axes, a curve for each dimension, of "
        f"{targets:,} target and {len(labels) - targets:,} non-target trials. The marker of a curve is its EER.",
        x,
        y,
        series,
        rule=(LEFT, BOTTOM, RIGHT, TOP),
    )


def thresholds(curves: Mapping[int, Roc]) -> report.Table:
    """Return the threshold and the false rejections of every dimension at some false acceptance rates."""
    rows = []
    for far in FARS:
        row = [f"{100 * far:g}"]
        for curve in curves.values():
            index = int(np.searchsorted(curve.far, far, side="right")) - 1
            threshold = curve.thresholds[index]
            row.append(f"{threshold:.4f}" if np.isfinite(threshold) else "above every score")
            row.append(report.percent(curve.frr[index]))
        rows.append(row)
    header = ["FAR % at most", *(f"{column}, {dim}" for dim in curves for column in ("threshold", "FRR %"))]
    return report.Table("Thresholds for a wanted false acceptance rate, by dimension", header, rows)


def densities(scores: np.ndarray, labels: np.ndarray, results: report.Results) -> list[Chart]:
    """Return a chart of the densities of target and non-target scores, (dims, trials), for each dimension."""
    low, high = float(np.min(scores)), float(np.max(scores)) + 1e-6
    edges = np.linspace(low, high, BINS + 1)
    charts = []
    for row, (dim, entry) in zip(scores, results["dims"].items(), strict=True):
        columns = [np.histogram(row[chosen], edges, density=True)[0] for chosen in (labels, ~labels)]
        x = horizontal(f"score ({results.get('score', 'cosine')})", low, high)
        y = vertical("density", 0, 1.05 * float(np.max(columns)))
        stairs = x(np.repeat(edges, 2)[1:-1])
        series = []
        for style, (name, density) in enumerate(zip(("target", "non-target"), columns, strict=True)):
            top = y(np.repeat(density, 2))
            series.append(Series(name, style, path(stairs, top), closed(stairs, np.full_like(top, BOTTOM), top)))
        threshold = entry["threshold"]
        at = float(x(threshold))
        charts.append(
            Chart(
                f"density-{dim}",
                f"Scores at dimension {dim}",
                f"Densities of the scores. Target trials score {entry['target_mean']:.3f} on average, non-target "
                f"trials {entry['nontarget_mean']:.3f}. The vertical line is the threshold, at first that of the "
                f"EER, {threshold:.4f}.",
                x,
                y,
                series,
                rule=(at, BOTTOM, at, TOP),
                dim=int(dim),
            )
        )
    return charts


def eer_by_dimension(systems: Mapping[str, report.Results]) -> Chart:
    """Return the EER with its 95% interval against the dimension, a line for each system."""
    dims = sorted({dim for each in systems.values() for dim, _ in report.dims(each)})
    highest = max(entry["eer_ci95"][1] for each in systems.values() for _, entry in report.dims(each))
    # Between half the smallest and twice the largest, or from 0 on.
    scale, ends = (lambda dim: dim), (0, max(dims) + min(dims))
    if report.need_logarithmic_axis(dims):
        scale, ends = math.log2, (math.log2(min(dims) / 2), math.log2(2 * max(dims)))
    x = horizontal("dimension of the embedding", *ends, [(scale(dim), str(dim)) for dim in dims])
    y = vertical("EER (%)", 0, _headroom(highest))
    series = []
    for style, (name, each) in enumerate(systems.items()):
        # Side by side, so that no interval covers another.
        shift = 4 * (style - (len(systems) - 1) / 2)
        points = [
            _eer_point(x(scale(dim)) + shift, y, entry, f"{name}, dimension {dim}")
            for dim, entry in report.dims(each)
        ]
        places = np.array([(point.x, point.y) for point in points]).T
        series.append(Series(name, style, path(*places), points=points))
    return Chart(
        "dimensions",
        "EER by dimension",
        "EER with its 95% interval for each dimension of the embedding.",
        x,
        y,
        series,
    )


def eer_over_epochs(history: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Return the EER with its 95% interval over the epochs of a run, a line for each dimension; None without any."""
    evaluated = [entry for entry in history if entry.get("dims")]
    if not evaluated:
        return None
    dims = sorted({int(dim) for entry in evaluated for dim in entry["dims"]})
    last = evaluated[-1]["epoch"]
    highest = max(each["eer_ci95"][1] for entry in evaluated for each in entry["dims"].values())
    x = horizontal("epoch", 0, max(last, 1))
    y = vertical("EER (%)", 0, _headroom(highest))
    series, rows = [], []
    for style, dim in enumerate(dims):
        entries = [(entry["epoch"], entry["dims"][str(dim)]) for entry in evaluated if str(dim) in entry["dims"]]
        epochs = x(np.array([epoch for epoch, _ in entries]))
        points = [
            _eer_point(place, y, each, f"dimension {dim}, epoch {epoch}")._replace(low=None, high=None)
            for place, (epoch, each) in zip(epochs, entries, strict=True)
        ]
        low, high = y(100 * np.array([each["eer_ci95"] for _, each in entries])).T
        line = path(epochs, np.array([point.y for point in points]))
        series.append(Series(str(dim), style, line, closed(epochs, low, high), points))
        rows += [
            [str(e), str(dim), report.percent(each["eer"]), report.interval(each["eer_ci95"])] for e, each in entries
        ]
    rows.sort(key=lambda row: int(row[0]))
    return Chart(
        "epochs",
        "EER over epochs",
        f"EER of the validation after each of {last} epochs with its 95% interval, a line for each dimension.",
        x,
        y,
        series,
        report.Table("EER over epochs", ("epoch", "dim", "EER %", "95 % interval"), rows),
    )


def losses(history: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Return the loss over the epochs, and that of recordings that are kept out of training; None without any."""
    trained = [(entry["epoch"], entry["loss"]) for entry in history if entry.get("loss") is not None]
    kept = [(entry["epoch"], entry["classification"]["loss"]) for entry in history if entry.get("classification")]
    if not trained:
        return None
    values = [value for _, value in [*trained, *kept]]
    low, high = min(0.0, *values), max(values)
    x, y = horizontal("epoch", 0, max(1, trained[-1][0])), vertical("loss", low, _headroom(high, 1.0))
    series, rows = [], []
    for style, (name, entries) in enumerate((("training", trained), ("recordings kept out of training", kept))):
        if entries:
            epochs, column = np.array(entries, np.float64).T
            series.append(Series(name, style, path(x(epochs), y(column))))
            rows += [[name, str(epoch), f"{value:.4f}"] for epoch, value in entries]
    table = report.Table("Loss over epochs", ("of", "epoch", "loss"), rows)
    return Chart("losses", "Loss over epochs", "Mean classification loss of each epoch.", x, y, series, table)


def reliability(llrs: np.ndarray, labels: np.ndarray, dims: Sequence[int]) -> Chart:
    """Return what log-likelihood ratios (dims, trials) should have been against what they are."""
    columns = [plots.reliability_points(row, labels) for row in llrs]
    every = np.concatenate([np.concatenate(each) for each in columns])
    low, high = float(np.floor(every.min())), float(np.ceil(every.max()))
    x = horizontal("log-likelihood ratio", low, high)
    y = vertical("observed log-likelihood ratio", low, high)
    series, rows = [], []
    for style, (dim, (claimed, observed)) in enumerate(zip(dims, columns, strict=True)):
        points = [
            Point(px, py, f"dimension {dim}: {a:.2f}, observed {b:.2f}")
            for px, py, a, b in zip(x(claimed).tolist(), y(observed).tolist(), claimed, observed, strict=True)
        ]
        series.append(Series(str(dim), style, path(x(claimed), y(observed)), points=points))
        rows += [[str(dim), f"{a:.3f}", f"{b:.3f}"] for a, b in zip(claimed, observed, strict=True)]
    summary = (
        "Mean log-likelihood ratio of groups of trials against that which their classes show; calibrated ones lie on "
        "the diagonal."
    )
    table = report.Table("Reliability", ("dim", "log-likelihood ratio", "observed"), rows)
    rule = (LEFT, BOTTOM, RIGHT, TOP)
    return Chart("reliability", "Reliability", summary, x, y, series, table, rule)


def eer_by_group(name: str, groups: Mapping[str, Any], number: int) -> Chart:
    """Return the EER with its 95% interval of every group at every dimension, a row for each group.

    `groups` are those of `subgroups.figures`; `number` tells the charts of several columns apart.
    """
    dims = [int(dim) for dim in next(iter(groups.values()))["dims"]]
    rate = [each for group in groups.values() for entry in group["dims"].values() for each in entry["eer_ci95"] or ()]
    step = ROW + SHIFT * (len(dims) - 1)
    bottom = TOP + step * len(groups)
    x = dataclasses.replace(horizontal("EER (%)", 0, _headroom(max(rate, default=0.5))), start=NAMES)
    places = [TOP + step * (index + 0.5) for index in range(len(groups))]
    # The scale is that of pixels, so that a group's name stands beside its row.
    names = [_short(f"{value}, small" if group["small"] else value) for value, group in groups.items()]
    y = Axis("", bottom, TOP, bottom, TOP, list(zip(places, names, strict=True)))
    series = []
    for style, dim in enumerate(dims):
        points = []
        for at, (value, group) in zip(places, groups.items(), strict=True):
            entry = group["dims"][str(dim)]
            if entry["eer"] is None:
                continue
            small = f", small: {group['speakers']} speakers" if group["small"] else ""
            bounds = entry["eer_ci95"]
            low, high = (None, None) if bounds is None else [float(x(100 * bound)) for bound in bounds]
            text = f"{name} {value}, dimension {dim}: {_eer_text(entry)}, {group['trials']:,} trials{small}"
            offset = SHIFT * (style - (len(dims) - 1) / 2)
            points.append(Point(float(x(100 * entry["eer"])), at + offset, text, low, high))
        series.append(Series(str(dim), style, points=points))
    summary = f"EER with its 95% interval of the trials in each group of {name}."
    return Chart(
        f"group-{number}", f"EER by {name}", summary, x, y, series, across=True, height=int(bottom) + HEIGHT - BOTTOM
    )


def _eer_point(x: Any, y: Any, entry: Mapping[str, Any], text: str) -> Point:
    low, high = (float(y(100 * bound)) for bound in entry["eer_ci95"])
    return Point(float(x), float(y(100 * entry["eer"])), f"{text}: {_eer_text(entry)}", low, high)


def _eer_text(entry: Mapping[str, Any]) -> str:
    interval = "" if entry["eer_ci95"] is None else f" ({report.interval(entry['eer_ci95'])})"
    return f"EER {report.percent(entry['eer'])} %{interval}"


def _headroom(highest: float, unit: float = 100.0) -> float:
    return 1.05 * unit * highest or 1.0


def _short(text: str) -> str:
    return text if len(text) <= 18 else f"{text[:17]}…"
