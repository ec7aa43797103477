"""A gallery: enrolled models and their utterances in a folder or bucket, and who of them is nearest to a voice.

    gallery.json        whose embeddings these are, and the segments with their checksums (see `manifest`)
    segment-XXXXXXXX/   utterances and models, in float32, int8 and binary (see `segment`)

`changes.writing` changes a gallery. An open one is what it was when it was opened.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from redimnet_jax import buckets, scoring
from redimnet_jax.embedding.codes import Form
from redimnet_jax.errors import UserError
from redimnet_jax.gallery import ranking, segment
from redimnet_jax.gallery.manifest import Manifest, Weights
from redimnet_jax.gallery.segment import Level, Segment
from redimnet_jax.gallery.shortlist import Shortlist
from redimnet_jax.models.speaker_model import SpeakerModel

# Writers replace segments under a reader's feet; it then reads the new description.
_ATTEMPTS = 5
_BLOCK_UTTERANCES = 1 << 16


@dataclasses.dataclass(frozen=True)
class Method:
    """How candidates are found before the whole embeddings are compared.

    The `count` nearest by the first `dim` elements of the embeddings in a `form` are candidates. By default these are
    64 in float32 and int8, and all bits of binary codes. float32 with all dimensions is an exhaustive search.
    """

    form: Form = "float32"
    dim: int | None = None
    count: int = 512

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"The shortlist has {self.count} candidates but must have at least 1.")


DEFAULT_METHOD = Method()


@dataclasses.dataclass(frozen=True)
class Match:
    """A model or an utterance of a model, `utterance`, with its score: a cosine, or a mean of cosines."""

    model: str
    score: float
    utterance: str | None = None


class Gallery:
    """An open gallery of the models `models`; made by `open`."""

    def __init__(self, path: str | Path, weights: Weights, segments: Sequence[Segment]):
        self.path = path
        self.weights = weights
        self.segments = tuple(segments)
        self.models = [model for part in segments for model in part.models]
        bounds = [np.zeros(1, np.int64)]
        for part in segments:
            bounds.append(part.bounds[1:] + bounds[-1][-1])
        # The utterances of model i are the rows from bounds[i] to bounds[i + 1].
        self.bounds = np.concatenate(bounds)
        self._shortlists: dict[tuple[Level, Form, int], Shortlist] = {}

    @classmethod
    def open(cls, path: str | Path, model: SpeakerModel | Weights | None = None, *, verify: bool = True) -> "Gallery":
        """Open the gallery at `path`, a folder or an address, for embeddings of `model`.

        Without `model` nothing checks that embeddings which are compared with it are of the same weights. `verify`
        False leaves out the checksums of the arrays, which take a pass over all of them. Raises UserError when there
        is no gallery, when it is of another model, and when a file of it is damaged.
        """
        for _ in range(_ATTEMPTS):
            folder = buckets.staged(path)
            manifest = Manifest.read(folder)
            if manifest is None:
                raise UserError(f"There is no gallery {path}; check the path, or enrol a speaker first.")
            if model is not None:
                manifest.weights.check(path, model if isinstance(model, Weights) else Weights.of(model))
            dim = manifest.weights.dim
            with contextlib.suppress(FileNotFoundError):
                parts = [
                    segment.read(folder / entry.name, entry.files, dim, verify=verify) for entry in manifest.segments
                ]
                return cls(path, manifest.weights, parts)
        raise UserError(f"A segment of {path} is missing; {segment.MEND}.")

    def __len__(self) -> int:
        return len(self.models)

    @property
    def utterances(self) -> int:
        """The number of utterances."""
        return int(self.bounds[-1])

    def utterance(self, row: int) -> tuple[str, str]:
        """Return the model and the name of the utterance of a row."""
        part, start = self._segment_of("utterances", row)
        return part.utterances.models[row - start], part.utterances.names[row - start]

    def rows_of(self, model: str) -> np.ndarray:
        """Return the rows of the utterances of a model; raise UserError when it is not enrolled."""
        number = self._numbers.get(model)
        if number is None:
            raise UserError(f"{model} is not enrolled in {self.path}; `redimnet-jax gallery list` shows who is.")
        return np.arange(self.bounds[number], self.bounds[number + 1])

    def durations(self, rows: np.ndarray) -> list[tuple[float, float]]:
        """Return the seconds of utterances and of the speech in them, NaN where they are not known, by their rows."""
        found = []
        for row in rows.tolist():
            part, start = self._segment_of("utterances", row)
            place = row - start
            found.append((float(part.utterances.seconds[place]), float(part.utterances.speech_seconds[place])))
        return found

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Return embeddings of utterances by their rows, float32 (rows, dim), as the network gave them."""
        out = np.empty((len(rows), self.weights.dim), np.float32)
        starts = self._starts("utterances")
        numbers = np.searchsorted(starts, rows, side="right") - 1
        for number in np.unique(numbers).tolist():
            there = numbers == number
            out[there] = self.segments[number].arrays["utterances", "float32"][rows[there] - starts[number]]
        return out

    def identify(
        self,
        embeddings: np.ndarray,
        *,
        top: int = 1,
        best: int | None = None,
        dim: int | None = None,
        dims: Sequence[int] | None = None,
        method: Method = DEFAULT_METHOD,
    ) -> list[list[Match]]:
        """Return the `top` models nearest to each of the `embeddings` (queries, width), the nearest first.

        The score of a model is the cosine with the mean of its unit embeddings; with `best` it is the mean of the
        cosines with its `best` nearest utterances (1: the nearest one). Scores are of the first `dim` elements
        (default: all). They equal those of `scoring` to the bit: with `dims`, those of `score_trials` with these.
        Raises UserError when the gallery is empty, and for embeddings that are narrower than it.
        """
        queries, dim = self._checked(embeddings, dim, top)
        if best is not None and best < 1:
            raise UserError(f"best is {best} but must be at least 1.")
        if best is None:
            found = self._candidates("models", queries, method, max(top, method.count))
        else:
            rows = self._candidates("utterances", queries, method, max(top, method.count))
            found = np.searchsorted(self.bounds, rows, side="right") - 1
        left, models = _pairs(found)
        scores = self._score_models(queries, left, models, best, (dim, dims))
        return [
            [Match(self.models[models[pair]], float(scores[pair])) for pair in _first(scores, left == query, top)]
            for query in range(len(queries))
        ]

    def search(
        self, embeddings: np.ndarray, *, top: int = 10, dim: int | None = None, method: Method = DEFAULT_METHOD
    ) -> list[list[Match]]:
        """Return the `top` utterances nearest to each of the `embeddings` (queries, width), the nearest first.

        Scores and errors are those of `identify`.
        """
        queries, dim = self._checked(embeddings, dim, top)
        left, rows = _pairs(self._candidates("utterances", queries, method, max(top, method.count)))
        unique, right = np.unique(rows, return_inverse=True)
        scores = ranking.score_pairs(queries, self.vectors(unique), left, right, dim)
        results = []
        for query in range(len(queries)):
            chosen = _first(scores, left == query, top)
            found = [(*self.utterance(int(rows[pair])), float(scores[pair])) for pair in chosen]
            results.append([Match(model, score, utterance) for model, utterance, score in found])
        return results

    def prepare(self, level: Level, method: Method = DEFAULT_METHOD) -> Shortlist:
        """Return the table of `method` on the device; `identify` and `search` prepare what they need on first use."""
        width = self.weights.dim
        default = width if method.form == "binary" else min(64, width)
        (dim,) = scoring.checked_dims((method.dim or default,), width)
        key = level, method.form, dim
        if key not in self._shortlists:
            arrays = [part.arrays[level, method.form] for part in self.segments]
            self._shortlists[key] = Shortlist(arrays, method.form, dim)
        return self._shortlists[key]

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {model: number for number, model in enumerate(self.models)}

    def _starts(self, level: Level) -> np.ndarray:
        counts = [len(part.arrays[level, "float32"]) for part in self.segments]
        return np.array([0, *itertools.accumulate(counts)][:-1], np.int64)

    def _segment_of(self, level: Level, row: int) -> tuple[Segment, int]:
        starts = self._starts(level)
        number = int(np.searchsorted(starts, row, side="right")) - 1
        return self.segments[number], int(starts[number])

    def _checked(self, embeddings: np.ndarray, dim: int | None, top: int) -> tuple[np.ndarray, int]:
        if not len(self):
            raise UserError(f"The gallery {self.path} is empty; enrol a speaker first.")
        if top < 1:
            raise UserError(f"top is {top} but must be at least 1.")
        queries = np.asarray(scoring.checked_embeddings(np.asarray(embeddings, np.float32)))
        if queries.shape[1] < self.weights.dim:
            raise UserError(
                f"Embeddings have {queries.shape[1]} dimensions but the gallery {self.path} has {self.weights.dim}; "
                "embed with the model that it was enrolled with."
            )
        queries = queries[:, : self.weights.dim]
        (dim,) = scoring.checked_dims((self.weights.dim if dim is None else dim,), self.weights.dim)
        return queries, dim

    def _candidates(self, level: Level, queries: np.ndarray, method: Method, count: int) -> np.ndarray:
        return self.prepare(level, method).find(queries, count)

    def _score_models(
        self, queries: np.ndarray, left: np.ndarray, models: np.ndarray, best: int | None, scored: tuple
    ) -> np.ndarray:
        """Return the scores of queries `left` with `models`, float32 (pairs,); `scored` is (dim, dims)."""
        dim, dims = scored
        unique, numbers = np.unique(models, return_inverse=True)
        sizes = self.bounds[unique + 1] - self.bounds[unique]
        scores = np.empty(len(models), np.float32)
        for start, end in _blocks(sizes):
            chosen = np.flatnonzero((numbers >= start) & (numbers < end))
            rows = np.concatenate([np.arange(*self.bounds[m : m + 2].tolist()) for m in unique[start:end].tolist()])
            groups = np.repeat(np.arange(end - start), sizes[start:end])
            vectors = self.vectors(rows)
            right = numbers[chosen] - start
            if best is None:
                means = ranking.means(vectors, groups, dim)
                scores[chosen] = ranking.score_pairs(queries, means, left[chosen], right, dim)
                continue
            # Every pair of a query and a model becomes one for each of the model's utterances.
            firsts = np.cumsum(sizes[start:end]) - sizes[start:end]
            counts = sizes[start:end][right]
            pairs = np.repeat(np.arange(len(chosen)), counts)
            offsets = np.arange(len(pairs)) - np.repeat(np.cumsum(counts) - counts, counts)
            single = ranking.score_pairs(
                queries, vectors, left[chosen][pairs], firsts[right][pairs] + offsets, dim, dims
            )
            scores[chosen] = ranking.best_means(single, pairs, best)
        return scores


def _pairs(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (query, candidate) of each candidate of each query, once, int64 (pairs,) each."""
    left = np.repeat(np.arange(len(found)), found.shape[1])
    unique = np.unique(np.stack([left, found.reshape(-1)]), axis=1)
    return unique[0], unique[1]


def _first(scores: np.ndarray, chosen: np.ndarray, top: int) -> np.ndarray:
    """Return where the `top` highest of the `chosen` scores are, the highest first, and the first of equal ones."""
    places = np.flatnonzero(chosen)
    return places[np.argsort(-scores[places], kind="stable")][:top]


def _blocks(sizes: np.ndarray) -> list[tuple[int, int]]:
    """Return (start, end) of models whose utterances, of `sizes`, are loaded together."""
    blocks = []
    start, total = 0, 0
    for number, size in enumerate(sizes.tolist()):
        if total and total + size > _BLOCK_UTTERANCES:
            blocks.append((start, number))
            start, total = number, 0
        total += size
    return [*blocks, (start, len(sizes))]
