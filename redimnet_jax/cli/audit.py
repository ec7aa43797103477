"""The command `redimnet-jax audit`: find recordings of a corpus whose label is doubtful, and duplicates."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from redimnet_jax import buckets, locks, names
from redimnet_jax.cli import embed
from redimnet_jax.cli.command import Parser, closes_quietly, embedding_options, run, say, speech_options
from redimnet_jax.cli.embed import EmbedSettings
from redimnet_jax.errors import ArgumentError

HELP = """Find the recordings of a corpus whose speaker is doubtful, names with two speakers, speakers with two names,
and duplicates. The result is a list to listen to and a list of the corpus without them.

  redimnet-jax audit /data/vox2 --checkpoint=runs/b2 --output=audits/vox2

docs/guides/audit.md says how they are found and how surely.
"""

LAYOUT = buckets.Layout(whole=("embeddings/corpus/index-*",))
EMBEDDINGS = "embeddings"
PRIOR = 0.01


@dataclasses.dataclass(frozen=True)
class AuditSettings(EmbedSettings):
    """What is audited; raise ArgumentError for values and combinations that no audit can have.

    prior: the fraction of labels, and of names, that are expected to be wrong.
    """

    prior: float = PRIOR

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.prior < 1:
            raise ArgumentError(f"`prior` is {self.prior} but must be a fraction between 0 and 1.")


def _parser() -> Parser:
    parser = Parser(
        "redimnet-jax audit",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[embedding_options(crops="1, the middle one"), speech_options()],
    )
    embed.add_corpus_options(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for lists and embeddings")
    parser.add_argument(
        "--prior",
        type=float,
        default=PRIOR,
        metavar="X",
        help="expected fraction of wrong labels (default: %(default)s)",
    )
    return parser


@closes_quietly
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with its `arguments`, by default those of the process; return the exit code."""
    parser = _parser()
    settings = parser.settings(AuditSettings, vars(parser.parse_args(arguments)))
    return run(lambda: _audit_locked(settings), parser.flags())


def _audit_locked(settings: AuditSettings) -> None:
    with buckets.writing(settings.output, LAYOUT) as mirror, locks.locked(mirror.local):
        _audit(settings, mirror.local)


def _audit(settings: AuditSettings, output: Path) -> None:
    from redimnet_jax.audit import findings
    from redimnet_jax.audit import output as audit_files
    from redimnet_jax.data.recordings import select
    from redimnet_jax.embedding import folder as embedding_folder

    whole = embed.embed(dataclasses.replace(settings, output=output / EMBEDDINGS), min_speakers=2)
    embeddings = embedding_folder.load(output / EMBEDDINGS, verify=False)  # `embed` has just compared the checksums.
    corpus = select(whole, embeddings.utterances)
    result = findings.audit(
        _vectors(embeddings.array),
        corpus.labels,
        embeddings.sessions,
        corpus.read,
        prior=settings.prior,
        workers=settings.workers or 8,
    )
    made_with = {
        key: embeddings.description[key] for key in ("tool", "weights_sha256", "windows", "speech", "corpus_sha256")
    }
    description = made_with | {
        "corpus": settings.corpus,
        "summary": whole.summary,
        "unreadable": embeddings.description["unreadable"],
        "prior": settings.prior,
    }
    audit_files.write(output, result, corpus, description)
    _show(result, corpus)
    say(f"{audit_files.LISTEN}, {audit_files.RESULTS} and {audit_files.KEPT} are in {output}")


def _vectors(array):
    """Return embeddings (recordings, dim), unit length: the mean over crops where there are several."""
    import numpy as np

    if array.ndim == 2:
        return array
    means = array.mean(axis=1)
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def _show(result, corpus) -> None:
    from redimnet_jax.audit.findings import REASONS
    from redimnet_jax.evaluation.report import Table

    rows = []
    for reason in REASONS:
        found = [finding for finding in result.findings if finding.reason == reason]
        first = names.quote(corpus.name(found[0].recording)) if found else ""
        speakers = len({int(corpus.labels[finding.recording]) for finding in found})
        rows.append([reason, f"{len(found):,}", f"{speakers:,}", first])
    table = Table("Findings", ("reason", "recordings", "names", "surest"), rows)
    print(f"\n{table.text()}", end="")
    kept = int(result.keep().sum())
    print(f"\n{len(corpus) - kept:,} of {len(corpus):,} recordings are doubtful, {kept:,} are kept")
    if result.duplicates.unread:
        print(f"{result.duplicates.unread:,} pairs could not be compared, since a recording cannot be read any more")
