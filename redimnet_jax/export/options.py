"""What an export holds, beside the model."""

import dataclasses
from pathlib import Path

from redimnet_jax.errors import ArgumentError, UserError
from redimnet_jax.models.speaker_model import SpeakerModel

PRECISIONS = ("float32", "float16", "int8", "int8-static")


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What a format writes; raise ArgumentError for values and combinations that no export can have.

    dim: the width of the embedding, a prefix of the model's, or None for all of it. normalize: whether embeddings
    have length one. precision: the arithmetic, one of `PRECISIONS`. calibration_audio: a folder of recordings, from
    which 'int8-static' takes the ranges of the activations. calibration: the file of a calibration of the cosine, by
    default the one beside the model.
    """

    dim: int | None = None
    normalize: bool = True
    precision: str = "float32"
    calibration_audio: Path | None = None
    calibration: str | Path | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ArgumentError(f"`precision` is {self.precision!r} but must be one of {', '.join(PRECISIONS)}.")
        static = self.precision == "int8-static"
        if static and self.calibration_audio is None:
            raise ArgumentError(
                "`precision` 'int8-static' needs `calibration_audio`, a folder of recordings; give it, or use 'int8'."
            )
        if self.calibration_audio is not None and not static:
            raise ArgumentError(
                f"`calibration_audio` has no effect on `precision` {self.precision!r}; leave it out, or "
                "use 'int8-static'."
            )

    def width(self, model: SpeakerModel) -> int:
        """Return the width of the exported embedding; raise ArgumentError when `model` has no such prefix."""
        if self.dim is None:
            return model.embed_dim
        if not 1 <= self.dim <= model.embed_dim:
            raise ArgumentError(
                f"`dim` is {self.dim} but must lie between 1 and {model.embed_dim}, the width of the embedding."
            )
        return self.dim

    def refuse(self, format: str, *names: str) -> None:
        """Raise UserError when one of the options `names`, which `format` does not have, differs from its default."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in names and value != field.default:
                raise UserError(f"The format {format} cannot have {field.name} {value!r}; leave it out.")
