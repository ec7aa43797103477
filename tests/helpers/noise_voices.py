"""Speakers that a random network tells apart: noises, each speaker's trembling at nearly one rate."""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import soundfile
import tiny

from redimnet_jax import files
from redimnet_jax.checkpoints import native
from redimnet_jax.embedding import extract
from redimnet_jax.evaluation import protocol

UTTERANCES = 3


def write(root: Path, prefix: str, speakers: int, seed: int) -> Path:
    """Write a tree of noises with the list of all its pairs, `trials.txt`; return the tree."""
    rng, names = np.random.default_rng(seed), []
    for speaker in range(speakers):
        for utterance in range(UTTERANCES):
            rate = 4 * 2**speaker * rng.uniform(0.7, 1.4)
            noise = rng.normal(size=8000) * 10 ** np.sin(2 * np.pi * rate * np.arange(8000) / 16000)
            names.append(f"{prefix}{speaker}/{utterance}.wav")
            (root / names[-1]).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(root / names[-1], 0.1 * noise / np.std(noise), 16000)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
    files.write(root / "trials.txt", "".join(f"{int(a[:2] == b[:2])} {a} {b}\n" for a, b in pairs))
    return root


def save_model(folder: Path, tree: Path, dims: Sequence[int]) -> Path:
    """Save a random network whose embeddings of the noises in `tree` are centred; return the checkpoint."""
    model = tiny.model(mrl_dims=list(dims))
    pooled = extract.pool_recordings(model, protocol.from_list(tree / "trials.txt").recordings)[:, 0]
    bn, linear = model.network.bn, model.network.linear
    for variable, value in (
        (bn.mean, pooled.mean(axis=0)),
        (bn.var, pooled.var(axis=0)),
        (bn.bias, 0),
        (linear.bias, 0),
    ):
        variable.set_value(jnp.broadcast_to(jnp.asarray(value, jnp.float32), variable.get_value().shape))
    native.save(model, folder)
    return folder
