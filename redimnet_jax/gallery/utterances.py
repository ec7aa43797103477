"""Enrolled utterances and the models that they belong to."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Utterances:
    """Utterances of enrolled models.

    `models` and `names` (utterances,) say whose they are and what they are called. `seconds` and `speech_seconds`,
    float64 (utterances,), are NaN where they are not known. `vectors`, float32 (utterances, dim), are embeddings as
    the network gives them: of any length, since a prefix is cut first. They may be mapped.
    """

    models: list[str]
    names: list[str]
    seconds: np.ndarray
    speech_seconds: np.ndarray
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.models)

    def rows(self, rows: Sequence[int] | np.ndarray) -> "Utterances":
        """Return the utterances of these numbers, in memory."""
        rows = np.asarray(rows, np.int64)
        return Utterances(
            [self.models[row] for row in rows.tolist()],
            [self.names[row] for row in rows.tolist()],
            self.seconds[rows],
            self.speech_seconds[rows],
            np.ascontiguousarray(self.vectors[rows], np.float32),
        )

    def of(self, models: frozenset[str]) -> "Utterances":
        """Return the utterances of these models."""
        return self.rows([row for row, model in enumerate(self.models) if model in models])

    def parts(self, most: int) -> Iterator["Utterances"]:
        """Yield all utterances in parts of at most `most`, in memory, with those of a model side by side.

        Models come in the order of their first utterance, utterances of a model in theirs. No model is cut: one that
        has more than `most` utterances is a part of its own.
        """
        numbers = {model: number for number, model in enumerate(dict.fromkeys(self.models))}
        labels = np.array([numbers[model] for model in self.models], np.int64)
        order = np.argsort(labels, kind="stable")
        ends = np.cumsum(np.bincount(labels))
        start = 0
        while start < len(order):
            fitting = ends[(ends > start) & (ends <= start + most)]
            end = int(fitting[-1] if len(fitting) else ends[ends > start][0])
            yield self.rows(order[start:end])
            start = end


def joined(parts: Iterable[Utterances]) -> Utterances:
    """Return the utterances of all `parts`, one at least, in order."""
    parts = list(parts)
    return Utterances(
        [model for part in parts for model in part.models],
        [name for part in parts for name in part.names],
        np.concatenate([part.seconds for part in parts]),
        np.concatenate([part.speech_seconds for part in parts]),
        np.concatenate([part.vectors for part in parts]),
    )


def groups(models: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return each of the models that lie side by side once, and the bounds of their rows, int64 (models + 1,)."""
    starts = [row for row, model in enumerate(models) if row == 0 or models[row - 1] != model]
    return [models[row] for row in starts], np.array([*starts, len(models)], np.int64)
