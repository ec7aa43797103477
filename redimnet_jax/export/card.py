"""The model card beside an export: what the file is, where its weights come from, and how good they are.

Every fact is the checkpoint's own, or a result that is stored with it; what neither says is unknown in the card.
"""

import os
from pathlib import Path
from typing import Any

from redimnet_jax import files
from redimnet_jax.errors import UserError
from redimnet_jax.evaluation import report
from redimnet_jax.export import metadata
from redimnet_jax.export.options import ExportOptions
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.names import one_line

RESULTS = "results.json"
BEST = "best"  # the link to the best model in a workdir


def text(model: SpeakerModel, options: ExportOptions, format: str, name: str) -> str:
    """Return the card, in Markdown, of the file `name` that is `model` in `format` as `options` say."""
    facts = metadata.describe(model, options)
    parts = [f"# {one_line(name)}\n\nA {model.arch} speaker embedding in the format {format}.\n", _use(facts)]
    parts += [_data(model, facts), _results(model, facts), _limits(facts)]
    return "\n".join(parts)


def _use(facts: dict[str, Any]) -> str:
    prefixes = ", ".join(map(str, facts["prefixes"]))
    length = "scaled to length one" if facts["normalized"] else "as the network gives it, of any length"
    return (
        "## Use\n\n"
        f"- Input: recordings of one speaker, mono, {facts['sample_rate']:,} Hz, float32 in [-1, 1], of at least "
        f"{facts['min_samples']:,} samples.\n"
        f"- Output: an embedding of {facts['dim']} dimensions, {length}.\n"
        f"- Prefixes trained to stand alone: {prefixes}.\n"
        "- Score: the cosine of two embeddings. Of a prefix, cut first and then scale to length one.\n"
        f"- Arithmetic: {facts['precision']}.\n"
    )


def _data(model: SpeakerModel, facts: dict[str, Any]) -> str:
    return (
        "## Weights and data\n\n"
        f"- Source: {one_line(model.source.file) or 'unknown'}\n"
        f"- SHA-256 of the source: {model.source.sha256 or 'unknown'}\n"
        f"- SHA-256 of the arrays: {facts['weights_sha256']}\n"
        f"- Licence: {one_line(model.source.licence or 'unknown; ask who made the weights')}\n"
        f"- Written by: {facts['tool']}\n"
    )


def _results(model: SpeakerModel, facts: dict[str, Any]) -> str:
    path = results_file(model)
    if path is None:
        body = "No results are stored with these weights; evaluate them on trials of recordings like yours.\n"
    else:
        body = _measured(path, facts["dim"])
    if "calibration" in facts:
        known = facts["calibration"]
        body += (
            f"\nA calibration was fitted on {one_line(known['fitted_on'])}: log-likelihood ratio = "
            f"{known['scale']:.6g} cosine {known['offset']:+.6g}; the cosine at the EER there was "
            f"{known['threshold']:.4f}.\n"
        )
    return f"## Results\n\n{body}"


def _measured(path: Path, dim: int) -> str:
    try:
        results = files.parse_json(path.read_bytes())
        rows = [
            (str(each), report.percent(entry["eer"]), report.interval(entry["eer_ci95"]), f"{entry['trials']:,}")
            for each, entry in report.dims(results)
            if each <= dim
        ]
        score, trials = results["score"], results.get("trials_from")
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not the results of an evaluation ({error}); evaluate the model again.") from error
    table = report.Table("Results", ("dim", "EER %", "95 % interval", "trials"), rows)
    where = f", on {one_line(str(trials))}" if trials else ""
    protocol = (
        f"The score is {one_line(str(score))}{where}, of whole embeddings and of prefixes; intervals are over "
        "resampled speakers. The weights were measured before the export, in their own precision.\n"
    )
    return f"{protocol}\n{table.markdown()}"


def results_file(model: SpeakerModel) -> Path | None:
    """Return the file of the results that are stored with `model`: in its folder, or in the run whose best it is."""
    folder = model.folder
    if folder is None:
        return None
    places = [folder]
    best = folder.parent / BEST
    if os.path.islink(best) and best.resolve() == folder.resolve():
        places.append(folder.parent)
    return next((place / RESULTS for place in places if (place / RESULTS).is_file()), None)


def _limits(facts: dict[str, Any]) -> str:
    return (
        "## Limits\n\n"
        "- Figures hold for recordings like those they were measured on; a threshold belongs to one model, one "
        "dimension and one kind of recordings.\n"
        "- Silence and noise have embeddings too, and they match each other: check that somebody speaks.\n"
        f"- The model knows nothing beyond {facts['sample_rate'] // 2:,} Hz; resample other rates first.\n"
    )
