"""Compare the speakers of two recordings."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from redimnet_jax import scoring
from redimnet_jax.data import signal_quality, speech
from redimnet_jax.data.decoding import Source
from redimnet_jax.embedding.recording import EmbeddedRecording, embed_recording
from redimnet_jax.embedding.segments import CropPolicy
from redimnet_jax.errors import ArgumentError, UserError
from redimnet_jax.evaluation import quality_measures, system_calibration
from redimnet_jax.evaluation.quality_measures import COHORT
from redimnet_jax.evaluation.settings import CROPS
from redimnet_jax.evaluation.system_calibration import SystemCalibration
from redimnet_jax.models.speaker_model import MAX_SECONDS, SpeakerModel
from redimnet_jax.verification.decision import Decision, decide
from redimnet_jax.verification.operating_point import OperatingPoint

# How single recordings are embedded: whole, up to the usual limit.
WINDOWS = CropPolicy(crops=CROPS, max_seconds=MAX_SECONDS)
SCORE = "cosine"
HOW_TO_CALIBRATE = "make one with `redimnet-jax eval --calibrate_half`"


@dataclasses.dataclass(frozen=True)
class Verification:
    """The result of a comparison.

    dim: the dimension of the embeddings that were compared. seconds: how long each part took, by its name.
    """

    decision: Decision
    dim: int
    recordings: tuple[EmbeddedRecording, EmbeddedRecording]
    seconds: dict[str, float]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on what makes the result doubtful."""
        found = [
            f"{each.name}: {sentence}"
            for each in self.recordings
            for sentence in signal_quality.warnings(each.quality)
        ]
        reason = self.decision.reason
        return (*found, *([f"There is no log-likelihood ratio, because {reason}."] if reason else []))

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values; docs/guides/verify.md describes them."""
        recordings = [{"name": each.name, **dataclasses.asdict(each.quality)} for each in self.recordings]
        return {
            **self.decision.to_json(),
            "dim": self.dim,
            "recordings": recordings,
            "warnings": list(self.warnings),
            "seconds": self.seconds,
        }


def verify(
    model: SpeakerModel,
    a: Source,
    b: Source,
    dim: int | None = None,
    *,
    operating_point: OperatingPoint | None = None,
    calibration: SystemCalibration | str | Path | None = None,
    min_speech: float = speech.MIN_SECONDS,
) -> Verification:
    """Return whether the recordings `a` and `b`, paths or bytes of audio files, are of one speaker.

    dim: the dimension to compare, by default all. operating_point: by default that of equal priors and costs.
    calibration: a calibration or its file; by default that beside the model, if there is one. A recording with less
    than `min_speech` seconds of speech is refused.

    Raise UserError for a recording that cannot be used, for a given calibration of another system, and for a false
    acceptance rate that the calibration cannot show.
    """
    dim = model.embed_dim if dim is None else dim
    if not 1 <= dim <= model.embed_dim:
        raise ArgumentError(
            f"`dim` is {dim} but must lie between 1 and {model.embed_dim}, the width of the embedding."
        )
    known, reason = find_calibration(model, dim, calibration)
    sides = (embed_usable(model, a, min_speech), embed_usable(model, b, min_speech))
    started = time.perf_counter()
    score = score_pair(sides[0].vector, sides[1].vector, dim, known)
    decision = decide(
        score,
        measures_of(sides, dim),
        None if known is None else known.prefixes[dim],
        operating_point or OperatingPoint(),
        no_calibration=reason or "",
    )
    seconds = {
        "decode": sum(side.decode_seconds for side in sides),
        "embed": sum(side.embed_seconds for side in sides),
        "score": time.perf_counter() - started,
    }
    return Verification(decision, dim, sides, seconds)


def find_calibration(
    model: SpeakerModel, dim: int, calibration: SystemCalibration | str | Path | None = None
) -> tuple[SystemCalibration | None, str | None]:
    """Return the calibration for single recordings of `model` at `dim`, or None and why there is none.

    calibration: one, or its file; by default the file beside the model. Raise UserError when one that is given does
    not suit the model or `dim`.
    """
    beside = None if model.folder is None else model.folder / system_calibration.file_name(SCORE)
    if calibration is None and (beside is None or not beside.exists()):
        return None, f"there is no calibration for this model; {HOW_TO_CALIBRATE}"
    source = calibration or beside
    assert source is not None
    known = source if isinstance(source, SystemCalibration) else system_calibration.load(source)
    reason = known.reason_against_system(system_calibration.describe(model, WINDOWS, SCORE), (dim,))
    if reason is None and COHORT in known.prefixes[dim].limits:
        reason = "it needs scores with a cohort"
    if reason is None:
        return known, None
    if calibration is not None:
        raise UserError(f"The calibration cannot be used for this model, because {reason}; {HOW_TO_CALIBRATE}.")
    return None, f"the calibration beside the model does not suit it: {reason}"


def score_pair(a: np.ndarray, b: np.ndarray, dim: int, calibration: SystemCalibration | None) -> float:
    """Return the cosine of two raw embeddings, (embed_dim,) each, at `dim`.

    It is computed with all dimensions of the calibration, as in the evaluation that fitted it, so that it has the
    same bits.
    """
    dims = (dim,) if calibration is None else tuple(calibration.prefixes)
    scores = np.asarray(scoring.score_trials(np.stack([a, b]), np.array([0]), np.array([1]), dims))
    return float(scores[dims.index(dim), 0])


def measures_of(sides: tuple[EmbeddedRecording, EmbeddedRecording], dim: int) -> dict[str, tuple[float, float]]:
    """Return the quality measures of both sides at `dim`."""
    vectors = np.stack([side.vector for side in sides])
    measured = quality_measures.of_vectors(vectors, [side.quality for side in sides], dim)
    return {name: (float(values[0]), float(values[1])) for name, values in measured.items()}


def embed_usable(model: SpeakerModel, source: Source, min_speech: float) -> EmbeddedRecording:
    """Return the embedded recording; raise UserError when it has less than `min_speech` seconds of speech."""
    recording = embed_recording(model, source, max_seconds=MAX_SECONDS)
    found = recording.quality.speech_seconds
    if found < min_speech:
        raise UserError(
            f"{recording.name} has {found:.2f} s of speech in {recording.quality.seconds:.2f} s, less than the "
            f"{min_speech:g} s that a comparison needs; give a recording with more speech."
        )
    return recording
