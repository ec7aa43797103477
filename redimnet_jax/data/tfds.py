"""A corpus kept as a TFDS data set: reading one, and writing one from a tree or a list of files.

On one machine only TensorFlow Datasets is needed; Apache Beam can write a data set on a cluster.
"""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from redimnet_jax import addresses, buckets
from redimnet_jax.data.corpus import open_corpus
from redimnet_jax.data.index import Entries
from redimnet_jax.errors import UserError

BUILDER = "speaker_corpus"

_FEATURES = ("audio", "name", "samples", "speaker")
_BATCH = 64  # records


@dataclasses.dataclass(frozen=True)
class Records:
    """The records of one split; each process opens the data source on its first use."""

    folder: str  # that of the version: NAME/CONFIG/VERSION
    split: str

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

    def seeks(self, name: str) -> bool:
        return False  # Every reading fetches the whole record.

    def _source(self) -> Any:
        # One for each process, because readers do not survive a fork.
        return _open_data_source(self.folder, self.split, os.getpid())


def open_records(dataset: str, data_dir: str | Path | None) -> Records:
    """Return the records of "NAME[/CONFIG][:SPLIT]" in `data_dir` (default: that of TFDS).

    Raises UserError when there is no such data set, or when its records are not those that `SpeakerCorpus` writes.
    """
    name, _, split = dataset.partition(":")
    builder = _open_builder(name, data_dir)
    missing = [feature for feature in _FEATURES if feature not in builder.info.features]
    if missing:
        raise UserError(
            f"The data set {name} has no {missing[0]!r} in its records; write it with `redimnet-jax tfds`."
        )
    splits = sorted(builder.info.splits)
    split = split or (splits[0] if len(splits) == 1 else "")
    if split not in splits:
        raise UserError(f"The data set {name} has the splits {', '.join(splits)}; give one as tfds:{name}:SPLIT.")
    return Records(str(builder.data_path), split)


@functools.lru_cache(maxsize=8)
def _open_data_source(folder: str, split: str, _process: int) -> Any:
    return _import_tfds().builder_from_directory(folder).as_data_source(split)


def _import_tfds() -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(f"TensorFlow Datasets cannot be imported ({error}); install tensorflow-datasets.") from error
    return tensorflow_datasets


def _open_builder(name: str, data_dir: str | Path | None) -> Any:
    tfds = _import_tfds()
    if addresses.of(data_dir) is not None:
        return _open_staged_builder(name, f"{data_dir}/{name}")
    dataset, _, config = name.partition("/")
    try:
        return tfds.core.read_only_builder.builder_from_files(dataset, config=config or None, data_dir=data_dir)
    except ValueError as error:  # There is no such data set, or its name cannot be one.
        raise UserError(
            f"There is no data set {name} in {data_dir or 'the data_dir of TFDS'}; check both."
        ) from error


def _open_staged_builder(name: str, address: str) -> Any:
    """Return the builder of the newest version of a data set at `address`; ArrayRecord reads local files only."""
    folder = buckets.staged(address)
    versions = [path.parent for path in folder.glob("*/dataset_info.json")]
    if not versions:
        raise UserError(f"There is no data set {name} at {addresses.of(address)}; give tfds:NAME/CONFIG.")
    newest = max(versions, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)])
    return _import_tfds().builder_from_directory(newest)


def build(
    source: str,
    data_dir: str | Path,
    name: str,
    *,
    split: str = "train",
    beam_options: Sequence[str] | None = None,
    **options: Any,
) -> str:
    """Write the corpus in `source` to the data set "speaker_corpus/`name`" in `data_dir`.

    Returns the source that `open_corpus` reads it from, "tfds:...". `options` are those of `open_corpus`. With
    `beam_options` (such as "runner=DirectRunner") Apache Beam writes the data set; all its workers must then see
    `source` and `cache_dir` under the same paths.

    Raises UserError when the corpus cannot be opened, or the data set exists.
    """
    tfds = _import_tfds()
    for word in (name, split):
        if not re.fullmatch(r"[A-Za-z]\w*", word):
            raise UserError(f"{word!r} cannot name a data set or a split; use letters, digits and underscores.")
    corpus = open_corpus(source, **options)
    from redimnet_jax.data.tfds_builder import SpeakerCorpus

    config = tfds.core.BuilderConfig(name=name, description=f"Written from {source}: {corpus.summary}")

    def make(folder: Path) -> Any:
        return SpeakerCorpus(
            corpus=corpus, split=split, beam=beam_options is not None, config=config, data_dir=str(folder)
        )

    if addresses.of(data_dir) is not None:
        with buckets.new_folder(f"{data_dir}/{BUILDER}/{name}") as folder:
            building = folder.parent / ".building"
            _write(make(building), beam_options)
            (building / BUILDER / name).rename(folder)
    else:
        _write(make(Path(data_dir)), beam_options)
    return f"tfds:{BUILDER}/{name}:{split}"


def _write(builder: Any, beam_options: Sequence[str] | None) -> None:
    tfds = _import_tfds()
    if builder.data_path.exists():
        raise UserError(
            f"{builder.data_path} exists already and is never overwritten; remove it or give another name."
        )
    download = tfds.download.DownloadConfig(compute_stats=tfds.download.ComputeStatsMode.SKIP)
    if beam_options is not None:
        download = dataclasses.replace(download, beam_options=_pipeline_options(beam_options))
    builder.download_and_prepare(download_config=download)


def _pipeline_options(options: Sequence[str]) -> Any:
    try:
        # An optional dependency, the extra "beam".
        from apache_beam.options.pipeline_options import (  # pyright: ignore[reportMissingImports]
            PipelineOptions,
        )
    except ImportError as error:
        raise UserError(f"Apache Beam cannot be imported ({error}); install apache-beam.") from error
    return PipelineOptions(flags=[f"--{option}" for option in options])
