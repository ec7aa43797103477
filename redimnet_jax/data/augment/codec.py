"""Lossy codecs, of files and of telephones, through PyAV: a crop is encoded and decoded again."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from redimnet_jax.data.audio import SAMPLE_RATE
from redimnet_jax.data.augment.step import Step
from redimnet_jax.errors import UserError

TELEPHONE = 8000


@dataclass(frozen=True)
class Coding:
    """How a codec codes: its encoders, the first of which that there is codes, its container, rate and options.

    `layout` is that of the channels, which are alike. `options` are FFmpeg's.
    """

    encoders: tuple[str, ...]
    container: str
    options: Mapping[str, str] = field(default_factory=dict)
    rate: int = SAMPLE_RATE
    layout: str = "mono"

    def encoder(self) -> str | None:
        """Return the first of the encoders that PyAV's build of FFmpeg has, or None."""
        return next((name for name in self.encoders if _has_encoder(name)), None)


def _quality(scale: int) -> dict[str, str]:
    """Return FFmpeg's options for a variable rate of the quality `scale`, whose unit is 1/118."""
    return {"flags": "+qscale", "global_quality": str(118 * scale)}


def _rate(bits: int) -> dict[str, str]:
    return {"b": str(bits)}


def _vorbis(scale: int) -> Coding:
    # FFmpeg's own encoder is called experimental, and codes two channels only.
    return Coding(("libvorbis", "vorbis"), "ogg", _quality(scale) | {"strict": "experimental"}, layout="stereo")


# The codecs by their name in a configuration. Names, qualities and bit rates are those of the authors' recipes of
# ReDimNet2, which code G.711 at 16 kHz; here the band of a telephone's codec is a telephone's, too.
CODECS: dict[str, Coding] = {
    "mp3-lo": Coding(("libmp3lame",), "mp3", _quality(9)),
    "mp3-mid": Coding(("libmp3lame",), "mp3", _quality(5)),
    "mp3-hi": Coding(("libmp3lame",), "mp3", _quality(2)),
    "vorbis-lo": _vorbis(1),
    "vorbis-hi": _vorbis(10),
    "opus-11k": Coding(("libopus",), "ogg", _rate(11000)),
    "opus-16k": Coding(("libopus",), "ogg", _rate(16000)),
    "opus-32k": Coding(("libopus",), "ogg", _rate(32000)),
    "opus-64k": Coding(("libopus",), "ogg", _rate(64000)),
    "g722": Coding(("g722",), "g722"),
    "g711-mulaw": Coding(("pcm_mulaw",), "wav", rate=TELEPHONE),
    "g711-alaw": Coding(("pcm_alaw",), "wav", rate=TELEPHONE),
    "amr-nb": Coding(("libopencore_amrnb",), "amr", _rate(12200), rate=TELEPHONE),
}
# Those of the authors' recipes.
PUBLISHED = tuple(name for name in CODECS if name != "amr-nb")


@lru_cache
def _has_encoder(name: str) -> bool:
    from av.codec import Codec as AVCodec
    from av.codec.codec import UnknownCodecError

    try:
        AVCodec(name, "w")
    except UnknownCodecError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class Codec(Step):
    """Code a crop with a codec that is drawn evenly from `codecs` (names of `CODECS`), and decode it.

    Codecs with a telephone's band, g711 and amr-nb, resample to 8 kHz and back. A codec's delay stays, and its length
    is cut or filled with zeros. Signals beyond full scale are coded at full scale.
    """

    codecs: tuple[str, ...] = PUBLISHED

    def __post_init__(self) -> None:
        super().__post_init__()
        codecs = (self.codecs,) if isinstance(self.codecs, str) else tuple(self.codecs)
        there = [name for name, coding in CODECS.items() if coding.encoder()]
        wrong = [name for name in codecs if name not in there]
        if wrong or not codecs:
            reason = f"has {wrong[0]!r}, which PyAV does not encode here" if wrong else "is empty"
            raise UserError(f"{self.where('codecs')} {reason}, so give some of {', '.join(there)}.")
        object.__setattr__(self, "codecs", codecs)

    def apply(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        name = self.codecs[rng.integers(len(self.codecs))]
        # Silence is coded as noise by some, and stays silence here.
        return coded(waveform, name) if waveform.any() else waveform


def coded(waveform: np.ndarray, name: str) -> np.ndarray:
    """Return `waveform`, float32 (samples,) at 16 kHz, as the codec `name` of `CODECS` gives it back.

    Raises UserError when the codec fails.
    """
    import av.error

    full_scale = max(1.0, float(np.abs(waveform).max()))
    try:
        data = _encoded(waveform / np.float32(full_scale), CODECS[name])
        decoded = _decoded(data, CODECS[name].container)[: len(waveform)]
    except av.error.FFmpegError as error:
        raise UserError(
            f"The codec {name} fails for a crop of {len(waveform)} samples ({error.strerror})."
        ) from error
    return np.float32(full_scale) * np.pad(decoded, (0, len(waveform) - len(decoded)))


def _encoded(waveform: np.ndarray, coding: Coding) -> bytes:
    import av

    encoder = coding.encoder()
    assert encoder is not None
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=coding.container) as container:
        stream: Any = container.add_stream(
            encoder, rate=coding.rate, layout=coding.layout, options=dict(coding.options)
        )
        formats = stream.codec_context.codec.audio_formats
        resampler = av.AudioResampler(format=formats[0].name, layout=coding.layout, rate=coding.rate)
        frame = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        for part in (*resampler.resample(frame), *resampler.resample(None), None):
            container.mux(stream.encode(part))
    return buffer.getvalue()


def _decoded(data: bytes, container_format: str) -> np.ndarray:
    """Return the decoded signal of the bytes of a file, float32 (n,) at 16 kHz, the mean of its channels."""
    import av

    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    with av.open(io.BytesIO(data), "r", format=container_format) as container:
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray()[0] for frame in (*frames, *resampler.resample(None))])
