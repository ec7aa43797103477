"""The command lines. Errors a user can mend are one sentence and exit code 1; wrong flags are exit code 2."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from redimnet_jax import files, locks, names
from redimnet_jax.checkpoints import download, native, torch_weights
from redimnet_jax.cli import signals
from redimnet_jax.cli.command import Parser, run
from redimnet_jax.cli.train import train
from redimnet_jax.errors import UserError
from redimnet_jax.evaluation.score_norm import METHODS
from redimnet_jax.models.speaker_model import SpeakerModel

TOP_K = 300  # of the cohort that count in as-norm

CONVERT_HELP = """Convert a PyTorch ReDimNet checkpoint into a native one. PyTorch is not needed, and nothing in
the file is executed.

  python convert_torch_weights.py --checkpoint=b2-vox2-ft_lm.pt --output=weights/b2
  python convert_torch_weights.py --model=b2 --train_type=ft_lm --output=weights/b2
  python convert_torch_weights.py --model=b6 --train_type=lm --arch=redimnet2 --output=weights/r2b6
"""

EVALUATE_HELP = """Verification results of a checkpoint: EER with its 95% interval, minDCF and more for every prefix,
as a table, results.json and plots.

  python eval.py --checkpoint=runs/b2 --trials=veri_test2.txt --audio_root=/data/vox1 --output=report/
  python eval.py --checkpoint=b2-vox2-ft_lm.pt --corpus=/data/unseen --output=report/

docs/evaluation.md shows score normalisation, calibration, comparison, enrolment by several utterances and the cache.
"""

EMBED_HELP = """Embeddings of all utterances of a corpus, as an array to be memory-mapped and a table of its rows.
An interrupted run goes on with the same command.

  python -m redimnet_jax.cli embed /data/vox2 --checkpoint=runs/b2 --output=embeddings/vox2

docs/embedding.md shows how to read them.
"""

HELP = """usage: python -m redimnet_jax.cli COMMAND ...

  train     train a Matryoshka speaker embedding (also: python train.py ...)
  eval      verification results of a checkpoint (also: python eval.py ...)
  convert   a PyTorch checkpoint into a native one (also: python convert_torch_weights.py ...)
  embed     embeddings of all utterances of a corpus

COMMAND --help says more.
"""


def evaluate(arguments: Sequence[str] | None = None) -> int:
    """`eval.py`: returns the exit code."""
    parser = Parser("eval.py", description=EVALUATE_HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="PATH", help="native checkpoint, workdir of a run, or .pt"
    )
    data = parser.add_argument_group("trials and their recordings")
    data.add_argument("--trials", type=Path, metavar="FILE", help="list in VoxCeleb's format; made when not given")
    data.add_argument(
        "--audio_root",
        type=Path,
        action="append",
        metavar="DIR",
        help="what its paths are relative to (default: its folder); may be given several times",
    )
    data.add_argument(
        "--utt2spk", type=Path, metavar="FILE", help="lines `utterance speaker` (default: speakers by folder)"
    )
    data.add_argument(
        "--speaker_pattern", metavar="REGEX", help="whose one group is the speaker in a name, such as '(id[0-9]+)'"
    )
    data.add_argument(
        "--corpus",
        metavar="SOURCE",
        help="tree, list file or tfds:NAME: in place of --audio_root, or to make trials of",
    )
    data.add_argument("--data_dir", type=Path, metavar="DIR", help="where TFDS datasets lie")
    data.add_argument("--count", type=int, default=10_000, help="trials to make (default: %(default)s)")
    data.add_argument(
        "--enrolment", type=Path, metavar="FILE", help="lines `model path path ...`; trials name models"
    )
    data.add_argument("--cache", type=Path, metavar="DIR", help="keep what the backbone gives for every recording")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder for scores, results and plots"
    )
    scores = parser.add_argument_group("scores")
    scores.add_argument("--score_norm", choices=METHODS, help="normalise against a cohort; the cosine stays beside")
    scores.add_argument("--cohort", metavar="SOURCE", help="tree, list file or tfds:NAME, best of training speakers")
    scores.add_argument(
        "--cohort_utterances", type=int, default=20, metavar="N", help="random ones a speaker (default: %(default)s)"
    )
    scores.add_argument("--top_k", type=int, metavar="N", help=f"of the cohort, with as-norm (default: {TOP_K})")
    scores.add_argument("--calibrate", type=Path, metavar="TRIALS", help="fit log-likelihood ratios on this list")
    scores.add_argument(
        "--calibrate_root",
        type=Path,
        action="append",
        metavar="DIR",
        help="of its paths (default: as those of --trials); may be given several times",
    )
    scores.add_argument("--allow_same_trials", action="store_true", help="calibrate on trials that are evaluated")
    scores.add_argument(
        "--compare", type=Path, metavar="FILE", help="a scores.tsv of the same trials to test against"
    )
    parser.add_argument(
        "--dims",
        type=_dims,
        metavar="64,128,...",
        help="prefixes to score (default: those the model was trained for)",
    )
    parser.add_argument("--crop_seconds", type=float, metavar="S", help="embed crops, not whole utterances")
    parser.add_argument("--crops", type=int, default=10, help="crops an utterance (default: %(default)s)")
    parser.add_argument(
        "--max_seconds", type=float, default=60.0, metavar="S", help="cut longer utterances (default: %(default)s)"
    )
    parser.add_argument(
        "--bootstrap", type=int, default=1000, metavar="N", help="resamples for intervals (default: %(default)s)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: %(default)s)")
    parser.add_argument(
        "--batch_seconds",
        type=float,
        default=240.0,
        metavar="S",
        help="audio in a batch on each device; less takes less memory (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of made trials and resamples (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.trials is None and args.corpus is None:
        parser.error("give --trials=FILE, or --corpus=SOURCE to make trials of")
    if args.enrolment is not None and args.trials is None:
        parser.error("--enrolment needs --trials=FILE, whose trials name its models")
    if args.utt2spk is not None and args.speaker_pattern is not None:
        parser.error("--utt2spk and --speaker_pattern each say all of the speakers: give one of them")
    if args.utt2spk is not None and args.trials is None:
        parser.error("--utt2spk needs --trials=FILE, whose utterances it is of")
    if args.speaker_pattern is not None and args.corpus is not None and args.calibrate_root is None:
        parser.error("--speaker_pattern has no effect with --corpus, which has the speakers: leave one of them out")
    if (args.score_norm is None) != (args.cohort is None):
        parser.error("--score_norm and --cohort need each other")
    if args.calibrate_root is not None and args.calibrate is None:
        parser.error("--calibrate_root needs --calibrate=TRIALS")
    if args.top_k is not None and args.score_norm != "as-norm":
        parser.error("--top_k belongs to --score_norm=as-norm")
    if args.score_norm == "as-norm" and args.top_k is None:
        args.top_k = TOP_K
    return run(lambda: _with_output(_evaluate, args))


def _with_output(command: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Runs `command` while no other process writes to the folder `args.output`."""
    with locks.locked(args.output):
        command(args)


def _dims(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _evaluate(args: argparse.Namespace) -> None:
    from redimnet_jax.checkpoints.open import open_model
    from redimnet_jax.evaluation import files as evaluation_files
    from redimnet_jax.evaluation import system as evaluation

    model = open_model(args.checkpoint, dtype=jnp.dtype(args.dtype))
    data = evaluation.open_data(args)
    judged = data.judged
    print(f"{judged.description}, {len(judged.recordings):,} recordings of {len(set(judged.speakers)):,} speakers")
    system = evaluation.open_system(args, model, data)
    fixed = evaluation.fixed_before(args, system, data)
    scores = system.scores(judged)
    results, systems, tables = evaluation.results(args, system, data, scores, fixed)
    evaluation_files.write(args.output, judged.trials, system.dims, scores, results, systems, tables)
    for table in tables:
        print(f"\n{names.one_line(table.title)}\n\n{table.text()}", end="")
    print(f"\nscores.tsv, results.json, results.md and plots are in {args.output}")


def embed(arguments: Sequence[str] | None = None) -> int:
    """`python -m redimnet_jax.cli embed`: returns the exit code."""
    parser = Parser(
        "python -m redimnet_jax.cli embed",
        description=EMBED_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("corpus", metavar="SOURCE", help="tree, list file or tfds:NAME")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="PATH", help="native checkpoint, workdir of a run, or .pt"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the embeddings")
    parser.add_argument("--audio_root", type=Path, metavar="DIR", help="what the paths of a list are relative to")
    parser.add_argument("--data_dir", type=Path, metavar="DIR", help="where TFDS datasets lie")
    parser.add_argument("--dim", type=_positive(int), metavar="N", help="the first N dimensions (default: all)")
    parser.add_argument(
        "--crop_seconds", type=_positive(float), metavar="S", help="embed crops, not whole utterances"
    )
    parser.add_argument(
        "--crops", type=_positive(int), default=1, metavar="N", help="crops an utterance (default: the middle one)"
    )
    parser.add_argument(
        "--max_seconds",
        type=_positive(float),
        default=60.0,
        metavar="S",
        help="cut longer utterances (default: %(default)s)",
    )
    parser.add_argument(
        "--max_bad",
        type=float,
        default=0.01,
        metavar="X",
        help="fraction that may be unusable (default: %(default)s)",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: %(default)s)")
    parser.add_argument(
        "--batch_seconds",
        type=_positive(float),
        default=240.0,
        metavar="S",
        help="audio in a batch on each device; less takes less memory (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=_positive(int),
        metavar="N",
        help="threads that decode (default: four more than there are CPUs)",
    )
    args = parser.parse_args(arguments)
    if args.crops > 1 and args.crop_seconds is None:
        parser.error("--crops needs --crop_seconds=S, the length of a crop")
    return run(lambda: _with_output(_embed, args))


def _positive(kind: type) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse


def _embed(args: argparse.Namespace) -> None:
    from redimnet_jax import scoring
    from redimnet_jax.checkpoints.open import open_model
    from redimnet_jax.data.corpus import open_corpus
    from redimnet_jax.embedding import folder as embedding_folder
    from redimnet_jax.embedding.segments import CropPolicy

    model = open_model(args.checkpoint, dtype=jnp.dtype(args.dtype))
    (dim,) = scoring.checked_dims((args.dim or model.embed_dim,), model.embed_dim)
    windows = CropPolicy(args.crop_seconds, args.crops, args.max_seconds)
    wanted = embedding_folder.settings(model, windows, dim)
    embedding_folder.check(args.output, wanted, verify=False)  # Before the corpus is indexed, which can take long.
    corpus = open_corpus(
        args.corpus,
        cache_dir=args.output / "corpus",
        audio_root=args.audio_root,
        data_dir=args.data_dir,
        max_bad=args.max_bad,
        workers=args.workers,
    )
    wanted["corpus_sha256"] = corpus.digest
    if embedding_folder.check(args.output, wanted):
        print(f"{args.output} has all embeddings of {args.corpus} already")
        return
    done = embedding_folder.embed(
        model,
        corpus,
        args.output,
        wanted,
        crop_policy=windows,
        batch_seconds=args.batch_seconds,
        workers=args.workers,
        max_bad=args.max_bad,
    )
    hours, seconds = done.audio_seconds / 3600, done.wall_seconds
    if done.recordings:
        print(
            f"{done.recordings:,} utterances, {hours:,.2f} h of audio, in {seconds:,.1f} s: "
            f"{done.recordings / seconds:,.1f} utterances/s, real-time factor {seconds / done.audio_seconds:.2g}"
        )
    if done.unreadable:
        print(f"{done.unreadable:,} that cannot be read are in {args.output / embedding_folder.UNREADABLE}")
    print(f"{done.total:,} utterances of {dim} dimensions are in {args.output / embedding_folder.ARRAY}")


def convert(arguments: Sequence[str] | None = None) -> int:
    """`convert_torch_weights.py`: returns the exit code."""
    parser = Parser(
        "convert_torch_weights.py",
        description=CONVERT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_argument_group("what to convert: a file, or a release to download first")
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="what torch.save wrote, whatever its suffix")
    source.add_argument("--model", metavar="NAME", help="b0 to b6, S or M")
    source.add_argument("--train_type", metavar="TYPE", help="ptn, ft_lm, ft_mix; lm for ReDimNet2")
    source.add_argument("--dataset", default="vox2", metavar="NAME", help="training data (default: %(default)s)")
    source.add_argument(
        "--download_dir",
        type=Path,
        default=Path.home() / ".cache" / "redimnet_jax",
        metavar="DIR",
        help="where downloads are kept (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a folder that does not exist yet")
    parser.add_argument(
        "--arch",
        choices=torch_weights.LAYOUTS,
        help="the key layout; detected when not given, and wins when given",
    )
    parser.add_argument(
        "--model_config", type=Path, metavar="FILE", help="JSON, for a file that holds no model_config"
    )
    parser.add_argument("--sha256", metavar="HEX", help="refuse a file whose SHA-256 is another one")
    args = parser.parse_args(arguments)
    if (args.checkpoint is None) == (args.model is None):
        parser.error("give either --checkpoint=FILE or --model=NAME with --train_type=TYPE")
    if args.model is not None and args.train_type is None:
        parser.error("--model needs --train_type=TYPE (ptn, ft_lm or ft_mix; lm for ReDimNet2)")
    return run(lambda: _convert(args))


def _convert(args: argparse.Namespace) -> None:
    native.check_output(args.output)
    config = None if args.model_config is None else _read_json(args.model_config)
    path = args.checkpoint
    if path is None:
        arch = "redimnet2" if args.arch == "redimnet2" else "redimnet"
        url = download.release_url(args.model, args.train_type, args.dataset, arch)
        print(f"Source: {url}")
        path = download.fetch(url, args.download_dir, args.sha256)
    source = torch_weights.read_checkpoint(path, arch=args.arch, model_config=config)
    download.verify(path, args.sha256, "use an intact copy, or check which sum is meant")
    model, report = torch_weights.convert(source)
    del source  # as large as the model
    native.save(model, args.output)
    print_report(model, report, args.output)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = files.parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}; check --model_config.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); correct it.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not an object; write the model_config entries.")
    return content


def reference_norm(model: SpeakerModel) -> float:
    """Length of the raw embedding of one second of the reference signal."""
    graph, state = nnx.split(model.network)
    # A program that runs once is not worth optimising.
    embed = jax.jit(
        lambda state, signal: nnx.merge(graph, state)(signal),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return float(jnp.linalg.norm(embed(state, signals.reference(1.0, model.sample_rate)[None])))


def print_report(model: SpeakerModel, report: torch_weights.Report, output: Path) -> None:
    """The conversion report, a line a fact."""
    facts = {
        "source file": model.source.file,
        "SHA-256": model.source.sha256
        + (
            " (a known release)"
            if model.source.sha256 in download.KNOWN_SHA256.values()
            else " (not a known release)"
        ),
        "licence note": model.source.licence or "none known; see the source's release page",
        "architecture": f"{model.arch} (layout {report.layout})",
        **{
            name.replace("_", " "): value if isinstance(value, str) else f"{value:,}"
            for name, value in dataclasses.asdict(report).items()
            if name != "layout"
        },
        "embedding": f"{model.embed_dim} dimensions"
        + (f", prefixes {', '.join(map(str, model.mrl_dims))}" if model.mrl_dims else ""),
        "array checksum": native.checksum(native.flat(model.network)),
        "embedding norm of the reference signal": f"{reference_norm(model):.6f}",
        "written to": output,
    }
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


def main(arguments: Sequence[str]) -> int:
    """`python -m redimnet_jax.cli`, with `sys.argv`: returns the exit code."""
    commands = {
        "train": lambda rest: train(["train.py", *rest]),
        "eval": evaluate,
        "convert": convert,
        "embed": embed,
    }
    name, *rest = arguments[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if name not in commands:
        print(f"error: {name!r} is no command; see python -m redimnet_jax.cli --help.", file=sys.stderr)
        return 2
    return commands[name](rest)


def console() -> int:
    """Run the console command `redimnet-jax`; return the exit code."""
    return main(sys.argv)
