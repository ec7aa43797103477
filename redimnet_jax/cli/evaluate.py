"""The command `redimnet-jax eval`, also `python eval.py`: evaluate a checkpoint on verification trials."""

import argparse
import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from redimnet_jax import addresses, buckets, locks, names
from redimnet_jax.cli.command import Parser, closes_quietly, embedding_options, run, speech_options
from redimnet_jax.evaluation.settings import (
    ALL_MEASURES,
    BOOTSTRAP,
    COHORT_MEMBERS,
    COHORT_UTTERANCES,
    COUNT,
    CROPS,
    METHODS,
    PLAYERS,
    QUALITY_MEASURES,
    TOP_K,
    EvaluationSettings,
)

HELP = """Evaluate a checkpoint on verification trials: EER with its 95% confidence interval, minDCF and more for
every embedding dimension, as a table, results.json and plots.

  python eval.py --checkpoint=runs/b2 --trials=veri_test2.txt --audio_root=/data/vox1 --output=report/
  python eval.py --checkpoint=b2-vox2-ft_lm.pt --corpus=/data/unseen --output=report/

docs/guides/evaluate.md explains score normalisation, calibration, comparison, enrolment models and the cache.
"""

# The indices of corpora in the folder of an evaluation appear whole.
LAYOUT = buckets.Layout(whole=("index/index-*",))


def _parser() -> Parser:
    parser = Parser(
        "eval.py",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[embedding_options(crops=f"{CROPS}, with --crop_seconds"), speech_options()],
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder for scores, results and plots"
    )
    _add_trial_options(parser)
    _add_score_options(parser)
    _add_calibration_options(parser)
    _add_report_options(parser)
    parser.add_argument(
        "--dims",
        type=_dims,
        metavar="64,128,...",
        help="embedding dimensions to score (default: those that the model was trained for)",
    )
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="store the backbone's output for every recording in this folder"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="random seed for generated trials, cohort and bootstrap (default: %(default)s)",
    )
    return parser


def _add_trial_options(parser: Parser) -> None:
    data = parser.add_argument_group("trials and recordings")
    data.add_argument(
        "--trials",
        type=Path,
        metavar="FILE",
        help="trial list in VoxCeleb's format (default: generate from --corpus)",
    )
    data.add_argument(
        "--audio_root",
        type=Path,
        action="append",
        metavar="DIR",
        help="folder that the paths in the list are relative to (default: folder of the list); may be repeated",
    )
    data.add_argument(
        "--utt2spk", type=Path, metavar="FILE", help="lines `utterance speaker` (default: speakers by folder)"
    )
    data.add_argument(
        "--speaker_pattern",
        metavar="REGEX",
        help="regular expression with one group that finds the speaker in a name, such as '(id[0-9]+)'",
    )
    data.add_argument(
        "--allow_repeated_trials",
        action="store_true",
        help="count a pair as often as the list has it (default: refuse a list that repeats a pair)",
    )
    data.add_argument(
        "--corpus",
        metavar="SOURCE",
        help="corpus (folder, list file or tfds:NAME) with the recordings, or to generate trials from",
    )
    data.add_argument("--count", type=int, default=COUNT, help="number of trials to generate (default: %(default)s)")
    data.add_argument(
        "--enrolment",
        type=Path,
        metavar="FILE",
        help="enrolment models, lines `model path path ...`; the trials may name models",
    )


def _add_score_options(parser: Parser) -> None:
    scores = parser.add_argument_group("scores")
    scores.add_argument(
        "--score_norm", choices=METHODS, help="normalise scores against a cohort; cosines are kept beside them"
    )
    scores.add_argument(
        "--cohort",
        metavar="SOURCE",
        help="cohort corpus (folder, list file or tfds:NAME); training speakers work best",
    )
    scores.add_argument(
        "--cohort_utterances",
        type=int,
        default=COHORT_UTTERANCES,
        metavar="N",
        help="utterances per cohort speaker, chosen at random (default: %(default)s)",
    )
    scores.add_argument(
        "--cohort_by",
        choices=COHORT_MEMBERS,
        default="speaker",
        help="compare with the mean of each cohort speaker, or with every utterance (default: %(default)s)",
    )
    scores.add_argument(
        "--top_k",
        type=int,
        metavar="N",
        help=f"nearest cohort speakers, or utterances, that count in as-norm (default: {TOP_K})",
    )
    scores.add_argument(
        "--subtract_mean",
        metavar="SOURCE",
        help="subtract the mean embedding of this corpus, or of the cohort (--subtract_mean=cohort), from all others",
    )
    scores.add_argument(
        "--compare", type=Path, metavar="FILE", help="scores.tsv of another system on the same trials to test against"
    )
    scores.add_argument(
        "--bootstrap",
        type=int,
        default=BOOTSTRAP,
        metavar="N",
        help="bootstrap resamples for confidence intervals (default: %(default)s)",
    )


def _add_calibration_options(parser: Parser) -> None:
    calibration = parser.add_argument_group("calibration")
    calibration.add_argument(
        "--calibrate", type=Path, metavar="TRIALS", help="fit log-likelihood ratios on this trial list"
    )
    calibration.add_argument(
        "--calibrate_root",
        type=Path,
        action="append",
        metavar="DIR",
        help="folder that the paths in --calibrate are relative to (default: as for --trials); may be repeated",
    )
    calibration.add_argument(
        "--calibrate_half",
        action="store_true",
        help="calibrate on half of the speakers of the trials, and evaluate the trials of the others",
    )
    calibration.add_argument(
        "--calibrate_quality",
        type=_names,
        nargs="?",
        default=(),
        const=(ALL_MEASURES,),
        metavar="MEASURE,...",
        help=f"let the calibration know the quality of recordings: {', '.join(QUALITY_MEASURES)} (default: all)",
    )
    calibration.add_argument(
        "--allow_same_trials", action="store_true", help="allow calibration on trials that are evaluated"
    )


def _add_report_options(parser: Parser) -> None:
    more = parser.add_argument_group("further figures and the report")
    more.add_argument(
        "--metadata",
        type=Path,
        metavar="FILE",
        help="table with a header `utterance|speaker COLUMN...`, tabs between columns, to group trials by",
    )
    more.add_argument(
        "--by",
        type=_names,
        metavar="COLUMN,...",
        help="columns to group trials by; duration and speech need no table (default: all columns of --metadata)",
    )
    more.add_argument(
        "--edges",
        type=_edges,
        action="append",
        default=[],
        metavar="COLUMN=1,2,...",
        help="bounds between groups of a numeric column (default: its quartiles); may be repeated",
    )
    more.add_argument(
        "--enrol_utterances",
        type=int,
        default=1,
        metavar="N",
        help="recordings per speaker that identification enrols, without --enrolment (default: %(default)s)",
    )
    more.add_argument(
        "--table", action="store_true", help="also give the EER by width, format and duration; embeds 1, 2 and 3 s"
    )
    more.add_argument(
        "--players",
        choices=PLAYERS,
        default="embed",
        help="recordings of the hardest trials in report.html: embedded, linked to the files, or none (default: "
        "%(default)s)",
    )


def _edges(text: str) -> tuple[str, tuple[float, ...]]:
    name, _, bounds = text.rpartition("=")
    return name, tuple(map(float, bounds.split(",")))


_edges.__name__ = "COLUMN=1,2,..."


def _dims(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


_dims.__name__ = "list of dimensions"  # in argparse's message


@closes_quietly
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with its `arguments`, by default those of the process; return the exit code."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    for name in ("audio_root", "calibrate_root"):
        given[name] = None if given[name] is None else tuple(given[name])
    given["edges"] = dict(given["edges"])
    settings = parser.settings(EvaluationSettings, given)
    return run(lambda: _evaluate(settings), parser.flags())


def _evaluate(settings: EvaluationSettings) -> None:
    from redimnet_jax.evaluation import html_report, output, system

    with contextlib.ExitStack() as stack:
        # Where they are in a bucket, their local copies are worked on.
        folder = stack.enter_context(buckets.writing(settings.output, LAYOUT)).local
        cache = None if settings.cache is None else stack.enter_context(buckets.writing(settings.cache)).local
        stack.enter_context(locks.locked(folder))
        evaluation = system.evaluate(dataclasses.replace(settings, output=folder, cache=cache))
        fields = {field.name: getattr(evaluation, field.name) for field in dataclasses.fields(evaluation)}
        output.write(folder, **fields)
        html_report.write(folder / "report.html", evaluation.as_report(settings.players))
    for table in evaluation.tables:
        print(f"\n{names.one_line(table.title)}\n\n{table.text()}", end="")
    output_folder = addresses.repaired(str(settings.output))
    print(f"\nreport.html, scores.tsv, results.json, results.md and plots are in {output_folder}")
