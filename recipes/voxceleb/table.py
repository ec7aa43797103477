"""The table of a run: EER and minDCF of every prefix, on every list, by every kind of score."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redimnet_jax import files
from redimnet_jax.evaluation import plots, report

COSINE, AS_NORM, CALIBRATED = "cosine", "as-norm", "calibrated"
HEADER = ("list", "dim", "score", "EER %", "95% interval", "minDCF 0.01", "minDCF 0.05", "Cllr")

Figures = dict[str, dict[str, dict[str, Any]]]


def figures(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return {score: {dim: figures}} from the `results.json` of a list with as-norm scores and a calibration."""
    return {
        COSINE: {dim: _of_scores(entry) for dim, entry in results[COSINE]["dims"].items()},
        AS_NORM: {dim: _of_scores(entry) for dim, entry in results["dims"].items()},
        CALIBRATED: {
            dim: {
                "eer": entry["eer_llr"],
                "eer_ci95": None,
                "min_dcf": entry["min_dcf_llr"],
                "cllr": entry["cllr"],
                "min_cllr": entry["min_cllr"],
            }
            for dim, entry in results["dims"].items()
        },
    }


def _of_scores(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in ("eer", "eer_ci95", "min_dcf")}


def table(by_list: Figures) -> report.Table:
    """Return the table of the figures {list: {score: {dim: figures}}}."""
    rows = []
    for name, by_score in by_list.items():
        for dim in sorted(by_score[COSINE], key=int):
            for score, by_dim in by_score.items():
                each = by_dim[dim]
                costs = [f"{each['min_dcf'][prior]:.4f}" for prior in ("0.01", "0.05")]
                cllr = f"{each['cllr']:.4f}" if "cllr" in each else "–"
                cells = [report.percent(each["eer"]), report.interval(each["eer_ci95"]), *costs, cllr]
                rows.append([f"VoxCeleb1-{name}", dim, score, *cells])
    return report.Table("VoxCeleb1", HEADER, rows)


def write(folder: Path, by_list: Figures, about: Mapping[str, Any]) -> report.Table:
    """Write `table.md`, `table.json` and `table.png`, with what the figures are `about`; return the table."""
    made = table(by_list)
    notes = "".join(f"- {key}: {value}\n" for key, value in about.items())
    files.write(folder / "table.md", f"{made.markdown()}\n{notes}")
    report.write_json(folder / "table.json", {"about": about, "lists": by_list})
    plots.save(_plot(by_list), folder / "table.png")
    return made


def _plot(by_list: Figures) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(by_list), 3.6), layout="constrained")
    panels = figure.subplots(1, len(by_list), squeeze=False)[0]
    for axes, (name, by_score) in zip(panels, by_list.items(), strict=True):
        for index, (score, by_dim) in enumerate(by_score.items()):
            dims = sorted(by_dim, key=int)
            eers = [100 * by_dim[dim]["eer"] for dim in dims]
            style = {"color": plots.COLORS[index], "linestyle": plots.LINES[index], "marker": plots.MARKERS[index]}
            axes.plot(list(map(int, dims)), eers, label=score, **style)
            axes.set_xticks(list(map(int, dims)))
        axes.set(xlabel="dimension", ylim=(0, None))
        axes.set_title(f"VoxCeleb1-{name}")
    panels[0].set_ylabel("EER (%)")
    panels[0].legend()
    return figure
