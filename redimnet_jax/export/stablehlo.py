"""The format stablehlo: the program of a model for CPUs, GPUs and TPUs, as `jax.export` serialises it.

Behind the program the file has a ZIP archive, whose only member is `metadata.json`. Each reader ignores what belongs
to the other, so `jax.export.deserialize` takes the bytes of the file as they are, and `zipfile.ZipFile` the file.
"""

import io
import json
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export as jax_export

from redimnet_jax import files
from redimnet_jax.export import metadata
from redimnet_jax.export.options import ExportOptions
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.numerics import unit

Array = jax.Array

PLATFORMS = ("cpu", "cuda", "tpu")
METADATA = "metadata.json"


def write(model: SpeakerModel, path: Path, options: ExportOptions) -> None:
    """Write `model` to the new file `path`.

    The program takes waveforms (batch, samples) float32 and lengths (batch,) int32, and gives embeddings (batch, dim)
    float32, NaN for a signal without one. Raise UserError for an arithmetic other than float32.
    """
    options.refuse("stablehlo", "precision")
    batch, samples = jax_export.symbolic_shape(
        "batch, samples", constraints=("batch >= 1", f"samples >= {model.min_samples}")
    )
    exported = jax_export.export(_program(model, options), platforms=PLATFORMS)(
        jax.ShapeDtypeStruct((batch, samples), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    )
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr(METADATA, json.dumps(metadata.describe(model, options)))
    files.write(path, bytes(exported.serialize()) + archive.getvalue())


def _program(model: SpeakerModel, options: ExportOptions):
    """Return the function that is exported, with the weights as constants."""
    graph, state = nnx.split(model.network)
    width, least = options.width(model), model.min_samples

    def embed(waveforms: Array, lengths: Array) -> Array:
        network = nnx.merge(graph, state)
        network.dtype = jnp.dtype(jnp.float32)
        raw = network(waveforms, lengths)[:, :width]
        usable = (lengths >= least) & (lengths <= waveforms.shape[1])
        return jnp.where(usable[:, None], unit(raw) if options.normalize else raw, jnp.nan)

    return jax.jit(embed)
