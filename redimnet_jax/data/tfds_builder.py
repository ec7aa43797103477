"""The TFDS builder `speaker_corpus`: the files of a corpus as they are, one record an utterance, in ArrayRecord.

The module imports TensorFlow Datasets (never TensorFlow); import it only where a data set is built.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from redimnet_jax import addresses
from redimnet_jax.data import index as corpus_index
from redimnet_jax.data.corpus import Corpus

_BEAM_CHUNK = 256  # utterances a Beam element


class SpeakerCorpus(tfds.core.GeneratorBasedBuilder):
    """Utterances of speakers, for speaker verification.

    audio: the bytes of the audio file; speaker; session (empty where there is none); name: the path in the original
    tree, unique; samples: the length at 16 kHz.

    corpus: what to write; split: under which name; beam: whether with Apache Beam.
    """

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded, so there are no checksums beside the code; to look for them, TFDS would need a package
    # that it does not require (importlib_resources).
    code_path = None

    def __init__(self, *, corpus: Corpus, split: str = "train", beam: bool = False, **kwargs: Any):
        self._corpus, self._split, self._beam = corpus, split, beam
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Utterances of speakers, for speaker verification: encoded audio files with their speakers.",
            features=tfds.features.FeaturesDict(
                {
                    "audio": tfds.features.Scalar(np.object_),
                    "speaker": tfds.features.Text(),
                    "session": tfds.features.Text(),
                    "name": tfds.features.Text(),
                    "samples": tfds.features.Scalar(np.int64),
                }
            ),
            metadata=tfds.core.MetadataDict(corpus_digest=self._corpus.digest),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {self._split: self._generate_examples()}

    def _generate_examples(self):
        count = len(self._corpus)
        if not self._beam:
            return _examples(self._corpus, tqdm(range(count), desc="utterances"))
        import apache_beam  # pyright: ignore[reportMissingImports]

        chunks = [range(start, min(start + _BEAM_CHUNK, count)) for start in range(0, count, _BEAM_CHUNK)]
        return apache_beam.Create(chunks) | apache_beam.FlatMap(functools.partial(_examples, self._corpus))


def _examples(corpus: Corpus, numbers: Iterable[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    for i in numbers:
        name, speaker, source = corpus.name(i), corpus.speakers[corpus.labels[i]], corpus.source(i)
        yield (
            name,
            {
                "audio": source if isinstance(source, bytes) else addresses.read(source),
                "speaker": speaker,
                "session": corpus_index.session_of(name, speaker) or "",
                "name": name,
                "samples": int(corpus.samples[i]),
            },
        )
