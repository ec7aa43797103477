"""Enrolled utterances made of numbers, for tests of galleries."""

import numpy as np

from redimnet_jax.gallery.changes import writing
from redimnet_jax.gallery.gallery import Gallery
from redimnet_jax.gallery.manifest import Weights
from redimnet_jax.gallery.utterances import Utterances

DIM = 24
WEIGHTS = Weights("weights", "config", "float32", DIM)


def utterances(model: str, count: int = 2, seed: int = 0, first: int = 0) -> Utterances:
    """`count` utterances of `model`, near to a direction that depends on its name and `seed`."""
    rng = np.random.default_rng([seed, first, *model.encode(errors="surrogateescape")])
    centre = np.random.default_rng([seed, *model.encode(errors="surrogateescape")]).standard_normal(DIM)
    vectors = (3 * centre + rng.standard_normal((count, DIM))).astype(np.float32)
    names = [f"{model}/{number}.wav" for number in range(first, first + count)]
    return Utterances([model] * count, names, np.full(count, 2.5), np.full(count, np.nan), vectors)


def content(path) -> dict[str, list]:
    """Model -> [(utterance, vector)] of the gallery at `path`."""
    gallery = Gallery.open(path, WEIGHTS)
    return {
        model: [(gallery.utterance(row)[1], *gallery.vectors(np.array([row]))[0].tolist()) for row in rows.tolist()]
        for model, rows in ((model, gallery.rows_of(model)) for model in gallery.models)
    }


def expected(*parts: Utterances) -> dict[str, list]:
    models: dict[str, list] = {}
    for part in parts:
        for model, name, vector in zip(part.models, part.names, part.vectors.tolist(), strict=True):
            models.setdefault(model, []).append((name, *vector))
    return models


def enrol(path, *parts: Utterances, **options) -> None:
    with writing(path, WEIGHTS) as writer:
        for part in parts:
            writer.enrol(part, **options)
