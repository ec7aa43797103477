"""The files of an audit: a list to listen to, the same as JSON, and a list of the recordings without findings."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from redimnet_jax import addresses, files, names
from redimnet_jax.audit.findings import DUPLICATE, Audit, Finding
from redimnet_jax.audit.labels import UNKNOWN
from redimnet_jax.data.recordings import Utterances

LISTEN, RESULTS, KEPT = "listen.tsv", "audit.json", "kept.txt"
COLUMNS = ("utterance", "speaker", "suspected", "score", "reason")


def write(folder: Path, result: Audit, corpus: Utterances, description: dict[str, Any]) -> None:
    """Write the findings about `corpus`, whose utterance i is recording i, to `folder`.

    description: what the audit was made with, as JSON. Raises UserError when a file cannot be written.
    """
    rows = [_entry(finding, corpus) for finding in result.findings]
    files.write(folder / LISTEN, _listen(rows))
    kept = np.flatnonzero(result.keep())
    files.write(folder / KEPT, "".join(f"{_path(corpus, i)}\t{_speaker(corpus, i)}\n" for i in kept.tolist()))
    content = description | {
        "recordings": len(corpus),
        "speakers": len(corpus.speakers),
        "kept": len(kept),
        "counts": result.counts(),
        "duplicates": {"compared": result.duplicates.compared, "unread": result.duplicates.unread},
        "findings": rows,
    }
    files.write(folder / RESULTS, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _entry(finding: Finding, corpus: Utterances) -> dict[str, Any]:
    """Return a finding as JSON; `suspected` is None where the speaker is not in the corpus."""
    entry: dict[str, Any] = {
        "utterance": corpus.name(finding.recording),
        "speaker": corpus.speakers[corpus.labels[finding.recording]],
        "suspected": None if finding.suspected == UNKNOWN else corpus.speakers[finding.suspected],
        "score": round(finding.score, 4),
        "reason": finding.reason,
    }
    return entry if finding.other is None else entry | {"other": corpus.name(finding.other)}


def _listen(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow(COLUMNS)
    for row in rows:
        reason = f"{DUPLICATE} of {names.quote(row['other'])}" if "other" in row else row["reason"]
        suspected = "" if row["suspected"] is None else names.quote(row["suspected"])
        table.writerow([names.quote(row["utterance"]), names.quote(row["speaker"]), suspected, row["score"], reason])
    return text.getvalue()


def _path(corpus: Utterances, index: int) -> str:
    """Return the path of an utterance as a list of a corpus has it; the name, where it is a record of a data set."""
    source = corpus.source(index)
    return names.quote(corpus.name(index) if isinstance(source, bytes) else addresses.repaired(str(source)))


def _speaker(corpus: Utterances, index: int) -> str:
    return names.quote(corpus.speakers[corpus.labels[index]])
