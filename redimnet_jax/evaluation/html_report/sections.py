"""The sections of the report: which figures, tables and trials stand under which heading."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from redimnet_jax import metrics
from redimnet_jax.evaluation import calibration_figures, comparison, identification, report, subgroups, width_table
from redimnet_jax.evaluation.html_report import figures, hardest, players
from redimnet_jax.evaluation.html_report.chart import Chart
from redimnet_jax.evaluation.html_report.operating_points import thinned
from redimnet_jax.evaluation.html_report.players import Player
from redimnet_jax.evaluation.protocol import TrialSet
from redimnet_jax.metrics import Roc

NO_PLAYER = Player(problem="The report was made without recordings.")


@dataclasses.dataclass(frozen=True)
class Report:
    """What a report shows: the `scores` (dims, trials) of a `trial_set`, and the `results` that they gave.

    `systems` has the results of every system that is compared, by name. `history` has the entries of a run's epochs.
    `llrs` (dims, trials) are the log-likelihood ratios, if there is a calibration.
    `players` is one of `evaluation.settings.PLAYERS`.
    """

    title: str
    trial_set: TrialSet
    dims: Sequence[int]
    scores: np.ndarray
    results: Mapping[str, Any]
    systems: Mapping[str, report.Results]
    history: Sequence[Mapping[str, Any]] = ()
    llrs: np.ndarray | None = None
    players: str = "embed"


@dataclasses.dataclass(frozen=True)
class Side:
    """One recording of a trial."""

    name: str
    speaker: str
    player: Player


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A wrong decision: its `score` as text, and both recordings."""

    score: str
    sides: tuple[Side, ...]


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading with text, figures, tables and lists of wrong decisions by title.

    `operates` says that its first figure lets one choose the operating point.
    """

    key: str
    title: str
    text: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[report.Table] = ()
    trials: Mapping[str, Sequence[Wrong]] = dataclasses.field(default_factory=dict)
    operates: bool = False


def sections(content: Report) -> tuple[list[Section], dict[str, Any]]:
    """Return the sections of a report, and what the script needs to know of the operating points."""
    labels = content.trial_set.trials.labels
    curves = {dim: metrics.roc(row, labels) for dim, row in zip(content.dims, content.scores, strict=True)}
    points = {dim: thinned(curve) for dim, curve in curves.items()}
    det = figures.det(curves, points, labels)
    densities = figures.densities(content.scores, labels, content.results)
    made = [
        _overview(content),
        Section(
            "operating",
            "Operating points",
            (
                "A trial is accepted where its score is at least the threshold. Move the pointer over a curve, or "
                "choose a dimension and a threshold.",
            ),
            [det, *densities],
            [figures.thresholds(curves)],
            operates=True,
        ),
        _training(content),
        _calibration(content),
        _subgroups(content),
        _identification(content),
        _widths(content),
        _hardest(content),
    ]
    return [section for section in made if section is not None], _operating_data(
        det, densities, curves, points, labels
    )


def _overview(content: Report) -> Section:
    trial_set = content.trial_set
    text = [f"{trial_set.description}, of {len(set(trial_set.speakers)):,} speakers."]
    if silent := content.results.get("no_signal"):
        text.append(
            f"{len(silent['recordings']):,} recordings hold no signal; the scores of the {silent['trials']:,} trials "
            "that they are in mean nothing."
        )
    tables = [report.table(content.systems)]
    if "comparison" in content.results:
        tables.append(comparison.table(content.results["comparison"]))
    charts = [figures.eer_by_dimension(content.systems)] if len(content.dims) > 1 else []
    return Section("results", "Results", text, charts, tables)


def _training(content: Report) -> Section | None:
    charts = [chart for chart in (figures.eer_over_epochs(content.history), figures.losses(content.history)) if chart]
    return Section("training", "Training", charts=charts) if charts else None


def _calibration(content: Report) -> Section | None:
    if content.llrs is None:
        return None
    charts = [figures.reliability(content.llrs, content.trial_set.trials.labels, content.dims)]
    text = "Cllr is the cost of the log-likelihood ratios in bits; what it has above minCllr is lost by calibration."
    return Section("calibration", "Calibration", [text], charts, [calibration_figures.table(content.results)])


def _subgroups(content: Report) -> Section | None:
    columns = content.results.get("subgroups")
    if not columns:
        return None
    charts = [
        figures.eer_by_group(name, each["groups"], number) for number, (name, each) in enumerate(columns.items())
    ]
    text = (
        f"A group is small, and its figures say little, where it has fewer than {subgroups.MIN_SPEAKERS} speakers or "
        f"{subgroups.MIN_TRIALS} trials of a class. FAR and FRR are those at the threshold of all trials."
    )
    tables = [subgroups.table(name, each) for name, each in columns.items()]
    return Section("groups", "Groups of trials", [text], charts, tables)


def _identification(content: Report) -> Section | None:
    figures_of = content.results.get("identification", {})
    if "dims" not in figures_of:
        return None
    text = [
        "Rank-1 is the share of searches whose own speaker scores highest. FNIR is the share of searches that do not "
        "return their speaker, at the threshold at which a given share (FPIR) of searches without an enrolled "
        "speaker return somebody."
    ]
    if "reason" in figures_of:
        text.append(f"A dash says that {figures_of['reason']}.")
    return Section("identification", "Identification", text, tables=[identification.table(dict(figures_of))])


def _widths(content: Report) -> Section | None:
    if "widths" not in content.results:
        return None
    table = width_table.table(content.results["widths"])
    return Section("widths", "Width, format and duration", tables=[table])


def _hardest(content: Report) -> Section:
    dim = max(content.dims)
    row = content.scores[list(content.dims).index(dim)]
    threshold = content.results["dims"][str(dim)]["threshold"]
    wrong = {
        "Worst false acceptances": hardest.false_acceptances(row, content.trial_set, threshold),
        "Worst false rejections": hardest.false_rejections(row, content.trial_set, threshold),
    }
    trial_set = content.trial_set
    first = trial_set.first_recordings()
    pairs = {
        each.trial: (int(trial_set.trials.left[each.trial]), int(trial_set.trials.right[each.trial]))
        for trials in wrong.values()
        for each in trials
    }
    indices = list(dict.fromkeys(int(first[name]) for pair in pairs.values() for name in pair))
    made = players.players(trial_set.recordings, indices, content.players)

    def side(name: int) -> Side:
        player = made.get(int(first[name]), NO_PLAYER)
        return Side(trial_set.trials.names[name], trial_set.speakers[name], player)

    lists = {
        title: [Wrong(f"{each.score:.4f}", tuple(map(side, pairs[each.trial]))) for each in trials]
        for title, trials in wrong.items()
    }
    text = [
        f"Errors at dimension {dim} and the threshold of the EER, {threshold:.4f}, the worst first; each pair of "
        "speakers is there once. Wrong labels and bad recordings show here first."
    ]
    if content.players == "embed":
        text.append(f"The players hold the first {players.SECONDS:g} s of a recording.")
    return Section("hardest", "Hardest trials", text, trials=lists)


def _operating_data(
    det: Chart, densities: Sequence[Chart], curves: Mapping[int, Roc], points: Mapping[int, Roc], labels: np.ndarray
) -> dict[str, Any]:
    """Return {"dims": the operating points of each dimension, their place in the DET curves and among the scores}."""
    from scipy.special import ndtri

    entries = []
    for density, (dim, each) in zip(densities, points.items(), strict=True):
        with np.errstate(divide="ignore"):  # A rate of 0 or 1 lies at the edge of the figure.
            x, y = det.x(ndtri(each.far)), det.y(ndtri(each.frr))
        entries.append(
            {
                "dim": dim,
                "threshold": [float(f"{value:.6g}") for value in each.thresholds],
                "far": [float(f"{value:.5g}") for value in each.far],
                "frr": [float(f"{value:.5g}") for value in each.frr],
                "x": np.round(x, 1).tolist(),
                "y": np.round(y, 1).tolist(),
                "score": np.round(density.x(each.thresholds), 1).tolist(),
                "start": int(np.flatnonzero(each.thresholds == curves[dim].eer_threshold())[0]),
            }
        )
    targets = int(labels.sum())
    frame = {"left": det.x.start, "bottom": det.y.start, "top": det.y.stop}
    return {"dims": entries, "targets": targets, "nontargets": len(labels) - targets, **frame}
