"""Write a gallery as a folder of embeddings, as `redimnet-jax embed` does."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from redimnet_jax.embedding import folder as embedding_folder
from redimnet_jax.gallery.gallery import Gallery
from redimnet_jax.version import VERSION


def export(gallery: Gallery, folder: Path) -> None:
    """Write the embeddings of all utterances, scaled to length one, to a new `folder`; models become speakers.

    Raises UserError when the folder exists or cannot be written.
    """
    rows = []
    for part in gallery.segments:
        entries = part.utterances
        rows += zip(entries.names, entries.models, [-1] * len(entries), entries.seconds.tolist(), strict=True)
    description = {
        "format": embedding_folder.FORMAT,
        "tool": f"redimnet_jax {VERSION}",
        **dataclasses.asdict(gallery.weights),
    }
    embedding_folder.write(folder, _unit_blocks(gallery), rows, description)


def _unit_blocks(gallery: Gallery) -> Iterator[np.ndarray]:
    for start in range(0, gallery.utterances, embedding_folder.WRITE_ROWS):
        end = min(start + embedding_folder.WRITE_ROWS, gallery.utterances)
        vectors = gallery.vectors(np.arange(start, end))
        yield vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
