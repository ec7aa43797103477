"""The command `redimnet-jax embed`: embed all utterances of a corpus."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from redimnet_jax import buckets, locks
from redimnet_jax.cli.command import Parser, closes_quietly, embedding_options, run, say, speech_options
from redimnet_jax.errors import ArgumentError
from redimnet_jax.evaluation.settings import (
    BATCH_SECONDS,
    DTYPES,
    MAX_SECONDS,
    check_choice,
    check_number,
    check_positive,
    check_speech,
    check_windows,
)

if TYPE_CHECKING:
    from redimnet_jax.data.corpus import Corpus

HELP = """Embed all utterances of a corpus. The result is an array to be memory-mapped and a table of its rows. The
same command continues an interrupted run.

  redimnet-jax embed /data/vox2 --checkpoint=runs/b2 --output=embeddings/vox2

docs/guides/embed.md shows how to read the result.
"""

# The index of the corpus in the folder of the embeddings appears whole.
LAYOUT = buckets.Layout(whole=("corpus/index-*",))


@dataclasses.dataclass(frozen=True)
class EmbedSettings:
    """What is embedded and how; raise ArgumentError for values and combinations that no run can have."""

    corpus: str
    checkpoint: Path
    output: Path
    audio_root: Path | None = None
    data_dir: Path | None = None
    dim: int | None = None
    crop_seconds: float | None = None
    crops: int | None = None
    max_seconds: float = MAX_SECONDS
    speech_only: bool = False
    min_speech: float | None = None
    max_bad: float = 0.01
    dtype: str = "float32"
    batch_seconds: float = BATCH_SECONDS
    workers: int | None = None

    def __post_init__(self) -> None:
        for name in ("dim", "workers"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), minimum=1)
        check_windows(self.crop_seconds, self.crops, self.max_seconds)
        check_speech(self.speech_only, self.min_speech)
        check_choice("dtype", self.dtype, DTYPES)
        check_positive("batch_seconds", self.batch_seconds)
        if not 0 <= self.max_bad <= 1:
            raise ArgumentError(f"`max_bad` is {self.max_bad} but must be a fraction from 0 to 1.")


def _parser() -> Parser:
    parser = Parser(
        "redimnet-jax embed",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[embedding_options(crops="1, the middle one"), speech_options()],
    )
    add_corpus_options(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the embeddings")
    return parser


def add_corpus_options(parser: Parser) -> None:
    """Add the corpus and the options of how all of it is read and embedded."""
    parser.add_argument("corpus", metavar="SOURCE", help="corpus: folder, list file or tfds:NAME")
    parser.add_argument(
        "--audio_root", type=Path, metavar="DIR", help="folder that the paths in a list file are relative to"
    )
    parser.add_argument("--dim", type=int, metavar="N", help="keep the first N dimensions (default: all)")
    parser.add_argument(
        "--max_bad",
        type=float,
        default=0.01,
        metavar="X",
        help="fraction of recordings that may be unusable (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="threads that decode audio (default: number of CPUs plus four)"
    )


@closes_quietly
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with its `arguments`, by default those of the process; return the exit code."""
    parser = _parser()
    settings = parser.settings(EmbedSettings, vars(parser.parse_args(arguments)))
    return run(lambda: _embed_locked(settings), parser.flags())


def _embed_locked(settings: EmbedSettings) -> None:
    with buckets.writing(settings.output, LAYOUT) as mirror, locks.locked(mirror.local):
        embed(dataclasses.replace(settings, output=mirror.local))


def embed(settings: EmbedSettings, min_speakers: int = 1) -> "Corpus":
    """Embed what is not in the local folder `settings.output` yet, print what was done, and return the corpus.

    Raises UserError when the corpus has fewer than `min_speakers`.
    """
    import jax.numpy as jnp

    from redimnet_jax import scoring
    from redimnet_jax.checkpoints.open import open_model
    from redimnet_jax.data import speech_only
    from redimnet_jax.data.corpus import open_corpus, require_speakers
    from redimnet_jax.embedding import folder as embedding_folder
    from redimnet_jax.embedding.segments import CropPolicy

    model = open_model(settings.checkpoint, dtype=jnp.dtype(settings.dtype))
    (dim,) = scoring.checked_dims((settings.dim or model.embed_dim,), model.embed_dim)
    windows = CropPolicy(settings.crop_seconds, settings.crops or 1, settings.max_seconds)
    cut = speech_only.description(settings.min_speech) if settings.speech_only else None
    description = embedding_folder.settings(model, windows, dim, cut)
    embedding_folder.check(
        settings.output, description, verify=False
    )  # Before the corpus is indexed, which can take long.
    whole = open_corpus(
        settings.corpus,
        cache_dir=settings.output / "corpus",
        audio_root=settings.audio_root,
        data_dir=settings.data_dir,
        max_bad=settings.max_bad,
        workers=settings.workers,
    )
    require_speakers(whole, settings.corpus, min_speakers)
    corpus = whole
    if settings.speech_only:
        corpus = speech_only.speech_corpus(
            whole,
            settings.output / "corpus",
            min_seconds=settings.min_speech,
            max_bad=settings.max_bad,
            workers=settings.workers,
        )
    description["corpus_sha256"] = corpus.digest
    if embedding_folder.check(settings.output, description):
        say(f"{settings.output} has all embeddings of {settings.corpus} already")
        return whole
    done = embedding_folder.embed(
        model,
        corpus,
        settings.output,
        description,
        crop_policy=windows,
        batch_seconds=settings.batch_seconds,
        workers=settings.workers,
        max_bad=settings.max_bad,
    )
    hours, seconds = done.audio_seconds / 3600, done.wall_seconds
    if done.recordings:
        print(
            f"{done.recordings:,} utterances, {hours:,.2f} h of audio, in {seconds:,.1f} s: "
            f"{done.recordings / seconds:,.1f} utterances/s, real-time factor {seconds / done.audio_seconds:.2g}"
        )
    if done.unreadable:
        say(f"{done.unreadable:,} that cannot be read are in {settings.output / embedding_folder.UNREADABLE}")
    say(f"{done.total:,} utterances of {dim} dimensions are in {settings.output / embedding_folder.ARRAY}")
    return whole
