"""The figures hold the data that they are given, and what they draw can be read."""

import io
import subprocess
import sys

import numpy as np
import pytest
from refusals import refusal
from scipy.special import ndtr

from redimnet_jax import metrics
from redimnet_jax.evaluation import plots

DIMS = (64, 128, 256)


@pytest.fixture(scope="module")
def trials():
    rng = np.random.default_rng(0)
    labels = rng.random(2000) < 0.3
    scores = rng.normal(0, 0.2, (3, 2000)) + labels * np.array([[0.4], [0.5], [0.6]])
    return scores.astype(np.float32), labels


@pytest.fixture(scope="module")
def results(trials):
    scores, labels = trials
    entries = {}
    for dim, row in zip(DIMS, scores, strict=True):
        eer = metrics.eer(row, labels)
        threshold = metrics.eer_threshold(row, labels)
        entries[str(dim)] = {"eer": eer, "eer_ci95": [0.9 * eer, 1.2 * eer], "threshold": threshold}
    return {"dims": entries}


def history(epochs):
    def at(epoch, dim):
        eer = 0.1 / (1 + epoch) + 1 / dim
        return {"eer": eer, "eer_ci95": [0.8 * eer, 1.1 * eer]}

    return [
        {"step": 10 * e, "epoch": e, "loss": 5 - e, "dims": {str(dim): at(e, dim) for dim in DIMS}}
        for e in range(epochs)
    ]


def legend(figure):
    return [text.get_text() for box in [*figure.legends, figure.axes[0].get_legend()] if box for text in box.texts]


def test_det_curves(trials):
    scores, labels = trials
    figure = plots.det_curves(scores, labels, DIMS)
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) and line.get_color() in plots.COLORS]
    assert len(lines) == 6  # A curve and the marker of its EER for each dimension.
    for curve, point, row in zip(lines[::2], lines[1::2], scores, strict=True):
        eer = metrics.eer(row, labels)
        np.testing.assert_allclose(ndtr([*point.get_xdata(), *point.get_ydata()]), eer)
        # Every point of the curve is an operating point, and the marker lies between two of them.
        far, frr = ndtr(curve.get_xdata()), ndtr(curve.get_ydata())
        for index in np.linspace(0, len(far) - 1, 7).astype(int):
            threshold = np.sort(row[~labels])[::-1][round(far[index] * np.sum(~labels)) - 1]
            assert np.mean(row[~labels] >= threshold) == pytest.approx(far[index], abs=1e-9)
        assert (np.diff(far) >= -1e-12).all() and (np.diff(frr) <= 1e-12).all()
    assert [text.split(":")[0] for text in legend(figure)] == ["64", "128", "256"]
    assert f"{100 * metrics.eer(scores[0], labels):.2f} %" in legend(figure)[0]
    ticks = [float(tick.get_text()) for tick in figure.axes[0].get_xticklabels()]
    np.testing.assert_allclose(100 * ndtr(figure.axes[0].get_xticks()), ticks)
    assert len(ticks) >= 4


@pytest.mark.parametrize("kind", ["separable", "constant", "chance", "inverted"])
def test_det_curves_of_extreme_scores(kind):
    labels = np.arange(100) % 2 == 1
    noise = np.random.default_rng(0).random(100)
    row = {"separable": labels + 0.1 * noise, "constant": 0 * noise, "chance": noise, "inverted": 1.0 * ~labels}[kind]
    figure = plots.det_curves(row[None], labels, (64,))
    assert ("no curve" in legend(figure)[0]) == (kind != "chance")
    low, high = figure.axes[0].get_xlim()
    assert np.isfinite([low, high]).all() and low < high
    assert png(figure).startswith(b"\x89PNG")


def test_score_histograms(trials, results):
    scores, labels = trials
    figure = plots.score_histograms(scores, labels, DIMS, results)
    assert len(figure.axes) == 3
    for axes, dim in zip(figure.axes, DIMS, strict=True):
        (line,) = axes.lines
        assert line.get_xdata()[0] == results["dims"][str(dim)]["threshold"]
        for patch in axes.patches:  # Densities: their areas are one, whatever the number of trials.
            values, edges, _ = patch.get_data()
            assert np.sum(values * np.diff(edges)) == pytest.approx(1)
            assert edges[0] <= scores.min() and edges[-1] >= scores.max()
        assert str(dim) in axes.get_title()
    assert legend(figure)[:2] == [f"target ({labels.sum():,})", f"non-target ({(~labels).sum():,})"]


def test_labels_may_be_numbers(trials, results):
    """An index in place of a mask would pick other trials."""
    scores, labels = trials
    for left, right in zip(
        plots.score_histograms(scores, labels, DIMS, results).axes,
        plots.score_histograms(scores, labels.astype(np.int8), DIMS, results).axes,
        strict=True,
    ):
        for a, b in zip(left.patches, right.patches, strict=True):
            np.testing.assert_array_equal(a.get_data().values, b.get_data().values)


def test_eer_by_dimension(results):
    halved = {"dims": {dim: entry | {"eer": entry["eer"] / 2} for dim, entry in results["dims"].items()}}
    figure = plots.eer_by_dimension({"one": results, "other": halved})
    axes = figure.axes[0]
    assert legend(figure) == ["one", "other"]
    first, second = [container.lines[0] for container in axes.containers]
    np.testing.assert_array_equal(first.get_xdata(), DIMS)
    np.testing.assert_allclose(first.get_ydata(), [100 * results["dims"][str(dim)]["eer"] for dim in DIMS])
    np.testing.assert_allclose(second.get_ydata(), first.get_ydata() / 2)
    (bars,) = axes.containers[0].lines[2]
    low, high = 100 * np.array(results["dims"]["64"]["eer_ci95"])
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], [low, high])
    (storage,) = axes.child_axes
    np.testing.assert_array_equal(storage.get_xticks(), [256, 512, 1024])
    assert png(figure).startswith(b"\x89PNG")


def test_narrow_dimensions_have_places_of_their_own(results):
    dims = (8, 16, 32, 64, 128, 192, 256)
    figure = plots.eer_by_dimension({"one": {"dims": dict.fromkeys(map(str, dims), results["dims"]["64"])}})
    axes = figure.axes[0]
    assert axes.get_xscale() == "log" and [label.get_text() for label in axes.get_xticklabels()] == list(
        map(str, dims)
    )
    figure.draw_without_rendering()
    (storage,) = axes.child_axes
    for each in (axes, storage):
        labels = [label.get_window_extent() for label in each.get_xticklabels()]
        assert len(labels) == len(dims) and all(a.x1 < b.x0 for a, b in zip(labels, labels[1:], strict=False))


def test_training_curves():
    entries = history(5)
    del entries[0]["loss"], entries[3]["dims"]  # Nothing trained yet; nothing validated at the end of that epoch.
    upper, lower = plots.training_curves(entries).axes
    assert len(upper.lines) == 3 and len(upper.collections) == 3
    np.testing.assert_array_equal(upper.lines[0].get_xdata(), [0, 1, 2, 4])
    np.testing.assert_allclose(upper.lines[0].get_ydata()[-1], 100 * (0.02 + 1 / 64))
    band = upper.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(110 * (0.1 + 1 / 64))
    np.testing.assert_array_equal(lower.lines[0].get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(lower.lines[0].get_ydata(), [4, 3, 2, 1])


@pytest.mark.parametrize("epochs", [0, 1])
def test_training_curves_of_a_run_that_has_just_begun(epochs):
    assert png(plots.training_curves(history(epochs))).startswith(b"\x89PNG")


def test_dimensions_look_different():
    """By colour and by line style or marker, as many as there may be."""
    styles = [plots._style(index) for index in range(7)]
    assert len({style["color"] for style in styles}) == 7
    assert len({(style["linestyle"], style["marker"]) for style in styles}) == 7


def test_save(tmp_path, results):
    path = plots.save(plots.eer_by_dimension({"one": results}), tmp_path / "report" / "eer.png")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
    assert "cannot be written" in refusal(plots.save, plots.training_curves([]), path / "inside.png")


@pytest.mark.slow
def test_no_global_state(tmp_path):
    """Neither importing nor drawing touches pyplot, which would choose a window system for the whole program."""
    code = """
import sys
from redimnet_jax.evaluation import plots
assert "matplotlib" not in sys.modules
plots.save(plots.training_curves([]), sys.argv[1])
assert "matplotlib.figure" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "training.png")], check=True)
    assert (tmp_path / "training.png").exists()


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    return buffer.getvalue()


def test_calibrated_ratios_lie_on_the_diagonal():
    rng = np.random.default_rng(0)
    labels = rng.random(40_000) < 0.2
    llrs = rng.normal(np.where(labels, 2.0, -2.0), 2.0)  # their own log-likelihood ratios
    means, observed = plots.reliability_points(llrs, labels)
    assert 15 <= len(means) <= 19 and (np.diff(means) > 0).all()
    np.testing.assert_allclose(observed, means, atol=0.5)
    np.testing.assert_allclose(plots.reliability_points(2 * llrs, labels)[1], observed)
    figure = plots.reliability(np.stack([llrs, 2 * llrs]), labels, (64, 128))
    (axes,) = figure.axes
    drawn = [line for line in axes.lines if len(line.get_xdata()) > 2]
    np.testing.assert_array_equal(drawn[0].get_xydata().T, [means, observed])
    assert f"Cllr {metrics.cllr(2 * llrs, labels):.3f}" in drawn[1].get_label()
