"""The description of a gallery, `gallery.json`: whose embeddings it holds, and its segments with their checksums.

It is replaced atomically, so a gallery changes from one moment to the next; a segment that it does not name is none
of the gallery's.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redimnet_jax import files
from redimnet_jax.checkpoints import native
from redimnet_jax.errors import UserError
from redimnet_jax.gallery.segment import MEND
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.version import VERSION

MANIFEST = "gallery.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Weights:
    """What makes embeddings comparable: the checksums of the weights and of the configuration, dtype, dimensions."""

    weights_sha256: str
    config_sha256: str
    dtype: str
    dim: int

    @classmethod
    def of(cls, model: SpeakerModel) -> "Weights":
        """Return those of `model`; its weights are read once more."""
        return cls(
            native.checksum(native.flat(model.network)),
            native.config_checksum(model.arch, model.model_config),
            str(model.network.dtype),
            model.embed_dim,
        )

    def check(self, location: Any, other: "Weights") -> None:
        """Raise UserError when the gallery at `location`, which has these weights, is not of the `other`.

        A gallery may have fewer dimensions than the model.
        """
        names = [field.name for field in dataclasses.fields(self) if field.name != "dim"]
        different = [name for name in names if getattr(self, name) != getattr(other, name)]
        if self.dim > other.dim:
            different.append("dim")
        if different:
            raise UserError(
                f"The gallery {location} holds embeddings of another model (other {', '.join(different)}); give the "
                "checkpoint that it was enrolled with, or choose another gallery."
            )


@dataclasses.dataclass(frozen=True)
class SegmentEntry:
    """A segment: the name of its folder, its numbers of models and utterances, and the checksums of its files."""

    name: str
    models: int
    utterances: int
    files: Mapping[str, Any] = dataclasses.field(compare=False)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of `gallery.json`."""

    weights: Weights
    segments: tuple[SegmentEntry, ...] = ()

    def write(self, folder: Path) -> None:
        """Write the description to `folder`, over the one that was there."""
        entries = {"format": FORMAT, "tool": f"redimnet_jax {VERSION}", **dataclasses.asdict(self)}
        entries["sha256"] = _digest(entries)
        files.write(folder / MANIFEST, json.dumps(entries, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """Return the description in `folder`, None when there is none; raise UserError when it is damaged."""
        path = folder / MANIFEST
        try:
            entries = files.parse_json(path.read_bytes())
            if entries["sha256"] != _digest(entries):
                raise ValueError("it does not match its checksum")
            if entries["format"] != FORMAT:
                raise UserError(
                    f"{path} has the format {entries['format']} but this version reads {FORMAT}; use a newer version."
                )
            segments = tuple(SegmentEntry(**entry) for entry in entries["segments"])
            return cls(Weights(**entries["weights"]), segments)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({files.first_line(error)}); {MEND}.") from error


def _digest(entries: Mapping[str, Any]) -> str:
    content = {name: value for name, value in entries.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
