"""A corpus kept as a TFDS data set: reading it, and the command that writes one from a tree or a list of files.

    python -m redimnet_jax.data.tfds --source=TREE --data_dir=DIR --name=vox2

On one machine nothing but TensorFlow Datasets is needed; with --beam_options it is written by Apache Beam.
"""

import argparse
import dataclasses
import functools
import hashlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from redimnet_jax.cli import command as cli
from redimnet_jax.data.corpus import open_corpus
from redimnet_jax.data.index import Entries
from redimnet_jax.errors import UserError

BUILDER = "speaker_corpus"

_FEATURES = ("audio", "name", "samples", "speaker")
_BATCH = 64  # records


@dataclasses.dataclass(frozen=True)
class Records:
    """The records of one split; the data source is opened in each process on the first use."""

    folder: str  # of the version: NAME/CONFIG/VERSION
    split: str

    @classmethod
    def of(cls, dataset: str, data_dir: str | Path | None) -> "Records":
        """The records of "NAME[/CONFIG][:SPLIT]" in `data_dir` (default: TFDS's own).

        Raises UserError when there is no such data set, or not one of utterances as `SpeakerCorpus` writes them.
        """
        name, _, split = dataset.partition(":")
        builder = _builder(name, data_dir)
        lacking = [feature for feature in _FEATURES if feature not in builder.info.features]
        if lacking:
            raise UserError(
                f"The data set {name} has no {lacking[0]!r} in its records; write it with "
                "`python -m redimnet_jax.data.tfds`."
            )
        splits = sorted(builder.info.splits)
        split = split or (splits[0] if len(splits) == 1 else "")
        if split not in splits:
            raise UserError(f"The data set {name} has the splits {', '.join(splits)}; give one as tfds:{name}:SPLIT.")
        return cls(str(builder.data_path), split)

    def identity(self) -> dict[str, Any]:
        from etils import epath

        info = (epath.Path(self.folder) / "dataset_info.json").read_bytes()
        return {"tfds": self.folder, "split": self.split, "info": hashlib.sha256(info).hexdigest()}

    def entries(self, workers: int, progress: bool) -> Entries:
        source = self._source()
        names, speakers = [], []
        samples = np.zeros(len(source), np.int64)
        with tqdm(total=len(source), desc="records", disable=not progress) as bar:
            for start in range(0, len(source), _BATCH):
                numbers = range(start, min(start + _BATCH, len(source)))
                for number, record in zip(numbers, source.__getitems__(list(numbers)), strict=True):
                    names.append(os.fsdecode(record["name"]))
                    speakers.append(os.fsdecode(record["speaker"]))
                    samples[number] = record["samples"]
                bar.update(len(numbers))
        return Entries(names, speakers, samples, records=np.arange(len(source)))

    def fetch(self, name: str, record: int | None) -> bytes:
        return self._source()[record]["audio"]

    def _source(self):
        # By process: readers do not survive a fork.
        return _data_source(self.folder, self.split, os.getpid())


@functools.lru_cache(maxsize=8)
def _data_source(folder: str, split: str, process: int):
    return _tfds().builder_from_directory(folder).as_data_source(split)


def _tfds():
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(f"TensorFlow Datasets cannot be imported ({error}); install tensorflow-datasets.") from error
    return tensorflow_datasets


def _builder(name: str, data_dir: str | Path | None):
    tfds = _tfds()
    dataset, _, config = name.partition("/")
    try:
        return tfds.core.read_only_builder.builder_from_files(dataset, config=config or None, data_dir=data_dir)
    except ValueError as error:  # not found, or no name of a data set
        raise UserError(
            f"There is no data set {name} in {data_dir or 'the data_dir of TFDS'}; check both."
        ) from error


def build(
    source: str,
    data_dir: str | Path,
    name: str,
    *,
    split: str = "train",
    beam_options: Sequence[str] | None = None,
    **options: Any,
) -> str:
    """Writes the corpus in `source` to the data set "speaker_corpus/`name`" in `data_dir`; returns what opens it.

    `options` are those of `open_corpus`. `beam_options` (such as "runner=DirectRunner") let Apache Beam write it; all
    its workers must then see `source` and `cache_dir` under the same paths.

    Raises UserError when the corpus cannot be opened, or the data set exists.
    """
    tfds = _tfds()
    for word in (name, split):
        if not re.fullmatch(r"[A-Za-z]\w*", word):
            raise UserError(f"{word!r} cannot name a data set or a split; use letters, digits and underscores.")
    corpus = open_corpus(source, **options)
    from redimnet_jax.data.tfds_builder import SpeakerCorpus

    config = tfds.core.BuilderConfig(name=name, description=f"Written from {source}: {corpus.summary}")
    builder = SpeakerCorpus(
        corpus=corpus, split=split, beam=beam_options is not None, config=config, data_dir=str(data_dir)
    )
    if builder.data_path.exists():
        raise UserError(
            f"{builder.data_path} exists already and is never overwritten; remove it or give another name."
        )
    download = tfds.download.DownloadConfig(compute_stats=tfds.download.ComputeStatsMode.SKIP)
    if beam_options is not None:
        download = dataclasses.replace(download, beam_options=_pipeline_options(beam_options))
    builder.download_and_prepare(download_config=download)
    return f"tfds:{BUILDER}/{name}:{split}"


def _pipeline_options(options: Sequence[str]):
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(f"Apache Beam cannot be imported ({error}); install apache-beam.") from error
    return PipelineOptions(flags=[f"--{option}" for option in options])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m redimnet_jax.data.tfds",
        description="Write a TFDS data set (ArrayRecord) from a tree speaker/[session/]utterance or a list of files.",
    )
    parser.add_argument("--source", required=True, metavar="PATH", help="a folder, or a file of `path speaker` lines")
    parser.add_argument("--data_dir", required=True, type=Path, metavar="DIR", help="where TFDS keeps data sets")
    parser.add_argument("--name", default="default", help="becomes speaker_corpus/NAME (default: %(default)s)")
    parser.add_argument("--split", default="train", help="name of the split (default: %(default)s)")
    parser.add_argument("--audio_root", metavar="DIR", help="what the paths in a list are relative to")
    parser.add_argument("--cache_dir", type=Path, metavar="DIR", help="where the index is kept (default: nowhere)")
    parser.add_argument("--min_seconds", type=float, default=0.5, metavar="S", help="default: %(default)s")
    parser.add_argument("--max_bad", type=float, default=0.01, metavar="FRACTION", help="default: %(default)s")
    parser.add_argument(
        "--beam_options", metavar="A=B,...", help="write with Apache Beam, with these options, such as runner=..."
    )
    args = parser.parse_args(arguments)

    def command() -> None:
        written = build(
            args.source,
            args.data_dir,
            args.name,
            split=args.split,
            beam_options=None if args.beam_options is None else args.beam_options.split(","),
            audio_root=args.audio_root,
            cache_dir=args.cache_dir,
            min_seconds=args.min_seconds,
            max_bad=args.max_bad,
        )
        print(f"Written: {written}, with data_dir {args.data_dir}")

    return cli.run(command)


if __name__ == "__main__":
    sys.exit(main())
