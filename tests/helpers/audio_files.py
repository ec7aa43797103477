"""Small audio files of every format, for the tests."""

from pathlib import Path

import numpy as np
import soundfile


def voice(samples: int, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """Something with pitch, loudness and noise that change: float32 (samples,), within +-0.5."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / rate
    pitch = 120.0 + 30.0 * rng.random() + 20.0 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    tones = sum(np.sin(k * phase + k) / k for k in range(1, 12))
    loudness = 0.05 + 0.1 * (1.0 + np.sin(2 * np.pi * 2.3 * time))
    return (loudness * (tones + 0.3 * rng.standard_normal(samples))).clip(-0.5, 0.5).astype(np.float32)


def write(path: Path, waveform: np.ndarray, rate: int = 16000, codec: str = "aac") -> Path:
    """Writes (samples,) or (samples, channels) in the format of the suffix; `codec` is that of `.m4a`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".m4a":
        _write_m4a(path, waveform, rate, codec)
    else:
        kind = {".opus": ("OGG", "OPUS"), ".ogg": ("OGG", "VORBIS"), ".mp3": ("MP3", "MPEG_LAYER_III")}
        container, subtype = kind.get(path.suffix, (None, None))
        channels = 1 if waveform.ndim == 1 else waveform.shape[1]
        with soundfile.SoundFile(path, "w", rate, channels, subtype, format=container) as file:
            for start in range(0, len(waveform), rate):  # libsndfile crashes on long blocks of Vorbis.
                file.write(waveform[start : start + rate])
    return path


def _write_m4a(path: Path, waveform: np.ndarray, rate: int, codec: str) -> None:
    import av

    form, data = ("fltp", waveform) if codec == "aac" else ("s16p", np.round(waveform * 32768).astype(np.int16))
    # Without noise substitution, which a decoder draws anew.
    options = {"aac_pns": "0"} if codec == "aac" else {}
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono", options=options)
        frame = av.AudioFrame.from_ndarray(data[None], format=form, layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        for part in (frame, None):
            for packet in stream.encode(part):
                container.mux(packet)
