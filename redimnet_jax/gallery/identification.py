"""Who of a gallery speaks in a recording, or that nobody of them does."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from redimnet_jax import scoring
from redimnet_jax.data import signal_quality, speech
from redimnet_jax.data.decoding import Source
from redimnet_jax.data.signal_quality import SignalQuality
from redimnet_jax.embedding.recording import EmbeddedRecording
from redimnet_jax.evaluation import quality_measures
from redimnet_jax.evaluation.system_calibration import SystemCalibration
from redimnet_jax.gallery.gallery import DEFAULT_METHOD, Gallery, Match, Method
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.names import one_line
from redimnet_jax.verification.decision import Decision, decide
from redimnet_jax.verification.operating_point import OperatingPoint
from redimnet_jax.verification.verify import embed_usable, find_calibration


@dataclasses.dataclass(frozen=True)
class Identification:
    """The models of a gallery that are nearest to a recording, and the decision about the nearest.

    matches: the nearest first. models: the number of models in the gallery. enrolled_by: the number of utterances of
    the nearest. seconds: how long each part took, by its name.
    """

    matches: tuple[Match, ...]
    decision: Decision
    dim: int
    models: int
    enrolled_by: int
    recording: EmbeddedRecording
    seconds: dict[str, float]

    @property
    def model(self) -> str | None:
        """The model that speaks in the recording; None when it is unknown, or when there is no decision."""
        return self.matches[0].model if self.decision.same_speaker else None

    @property
    def stranger_accepted(self) -> float | None:
        """The chance that a speaker who is not enrolled is taken for somebody who is; None where it is not known.

        It follows from the false acceptance rate of one comparison as if all comparisons were independent.
        """
        errors = self.decision.errors
        return None if errors is None else float(-np.expm1(self.models * np.log1p(-min(errors.far, 1 - 1e-12))))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on what makes the result doubtful."""
        found = [f"{self.recording.name}: {line}" for line in signal_quality.warnings(self.recording.quality)]
        if self.decision.reason:
            found.append(f"There is no log-likelihood ratio, because {self.decision.reason}.")
        elif self.enrolled_by > 1:
            found.append(
                f"{one_line(self.matches[0].model)} is enrolled by {self.enrolled_by} utterances, but the "
                "calibration was fitted on single recordings."
            )
        stranger = self.stranger_accepted
        if stranger is not None and stranger > 0.1:
            found.append(
                f"Among {self.models:,} models a stranger is taken for one of them with a chance of up to "
                f"{stranger:.0%}; lower the false acceptance rate."
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values; docs/guides/gallery.md describes them."""
        return {
            "model": self.model,
            "matches": [{"model": match.model, "score": match.score} for match in self.matches],
            "models": self.models,
            "stranger_accepted": self.stranger_accepted,
            **self.decision.to_json(),
            "dim": self.dim,
            "recording": {"name": self.recording.name, **dataclasses.asdict(self.recording.quality)},
            "warnings": list(self.warnings),
            "seconds": self.seconds,
        }


@dataclasses.dataclass(frozen=True)
class IdentifyOptions:
    """How a gallery is searched, and how it is decided.

    dim: the dimensions to compare, by default all. best: score a model by the mean of its `best` nearest utterances,
    by default by the mean of its embeddings. top: how many models to return. method: how candidates are found.
    operating_point: by default that of equal priors and costs. calibration: one, or its file; by default that beside
    the model, if there is one. min_speech: a recording with fewer seconds of speech is refused.
    """

    dim: int | None = None
    best: int | None = None
    top: int = 5
    method: Method = DEFAULT_METHOD
    operating_point: OperatingPoint = OperatingPoint()
    calibration: SystemCalibration | str | Path | None = None
    min_speech: float = speech.MIN_SECONDS


def identify(
    model: SpeakerModel, source: Source, gallery: Gallery, options: IdentifyOptions | None = None
) -> Identification:
    """Return who of `gallery` speaks in a recording, the path of an audio file or its bytes.

    The gallery must have been opened with `model`. Raises UserError for a recording that cannot be used, for an empty
    gallery, and for a given calibration of another system.
    """
    options = options or IdentifyOptions()
    (dim,) = scoring.checked_dims((options.dim or gallery.weights.dim,), gallery.weights.dim)
    known, reason = find_calibration(model, dim, options.calibration)
    recording = embed_usable(model, source, options.min_speech)
    started = time.perf_counter()
    (matches,) = gallery.identify(
        recording.vector[None],
        top=options.top,
        best=options.best,
        dim=dim,
        method=options.method,
        dims=None if known is None else [each for each in known.prefixes if each <= gallery.weights.dim],
    )
    searched = time.perf_counter() - started
    rows = gallery.rows_of(matches[0].model)
    measures, unknown = _measures(gallery, recording, rows, dim)
    prefix = None if known is None else known.prefixes[dim]
    if prefix is not None and unknown & prefix.limits.keys():
        prefix = None
        reason = f"the {', '.join(sorted(unknown))} of the enrolled utterances is not known"
    decision = decide(matches[0].score, measures, prefix, options.operating_point, no_calibration=reason or "")
    seconds = {"decode": recording.decode_seconds, "embed": recording.embed_seconds, "search": searched}
    return Identification(tuple(matches), decision, dim, len(gallery), len(rows), recording, seconds)


def _measures(
    gallery: Gallery, recording: EmbeddedRecording, rows: np.ndarray, dim: int
) -> tuple[dict[str, tuple[float, float]], set[str]]:
    """Return the quality measures of the recording and, on average, of the utterances `rows`, and unknown ones."""
    enrolled = [
        SignalQuality(seconds, speech_seconds, level_db=0.0, clipped=0.0, bandwidth_hz=0.0)
        for seconds, speech_seconds in gallery.durations(rows)
    ]
    own = quality_measures.of_vectors(recording.vector[None], [recording.quality], dim)
    other = quality_measures.of_vectors(gallery.vectors(rows), enrolled, dim)
    measures = {name: (float(values[0]), float(other[name].mean())) for name, values in own.items()}
    return measures, {name for name, (_, value) in measures.items() if np.isnan(value)}
