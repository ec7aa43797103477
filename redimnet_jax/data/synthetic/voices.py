"""A small corpus of artificial voices, for demonstrations and tests that need no recordings.

A source-filter synthesiser (Fant, Acoustic Theory of Speech Production, 1960): the glottal pulse of Klatt and Klatt
(JASA 87, 1990) with its open quotient, spectral tilt, jitter, shimmer and breath excites a cascade of resonators
(Klatt, JASA 67, 1980) whose frequencies glide between the vowel formants of Hillenbrand et al. (JASA 97, 1995) and
the loci of consonants.

A speaker is a tract length, a larynx and habits; a session is a channel, a noise floor, a level and a mood; an
utterance is a sequence of random syllables. An EER on such voices says that a pipeline works, and nothing on speech.
"""

import dataclasses
import itertools
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from redimnet_jax import files
from redimnet_jax.errors import UserError

SAMPLE_RATE = 16000
PEAK = 0.95
# A frame's filter rings on over the second half of the transform.
HOP, WINDOW, TRANSFORM = 128, 256, 512
FREQUENCIES = np.fft.rfftfreq(TRANSFORM, 1 / SAMPLE_RATE).astype(np.float32)

# F1, F2, F3 (Hz) of twelve vowels, means of men.
VOWELS = np.array(
    [
        [342, 2322, 3000],  # heed
        [427, 2034, 2684],  # hid
        [476, 2089, 2691],  # hayed
        [580, 1799, 2605],  # head
        [588, 1952, 2601],  # had
        [768, 1333, 2522],  # hod
        [652, 997, 2538],  # hawed
        [497, 910, 2459],  # hoed
        [469, 1122, 2434],  # hood
        [378, 997, 2343],  # who'd
        [623, 1200, 2550],  # hud
        [474, 1379, 1710],  # heard
    ]
)
# F1, F2, F3 (Hz); seconds of closure before, seconds; amplitudes of voice and friction; centre of the friction (Hz).
CONSONANTS = np.array(
    [
        [450, 1500, 2500, 0.00, 0.02, 1.0, 0.0, 3000],  # none
        [200, 900, 2200, 0.05, 0.02, 0.3, 0.3, 1000],  # b
        [200, 1750, 2700, 0.05, 0.02, 0.3, 0.5, 4000],  # d
        [200, 1990, 2850, 0.05, 0.03, 0.3, 0.5, 2000],  # g
        [350, 1000, 2300, 0.07, 0.04, 0.0, 0.4, 1200],  # p
        [350, 1700, 2700, 0.07, 0.05, 0.0, 1.0, 4500],  # t
        [350, 1990, 2850, 0.07, 0.05, 0.0, 0.8, 2200],  # k
        [320, 1390, 2530, 0.00, 0.12, 0.0, 1.0, 5800],  # s
        [300, 1840, 2750, 0.00, 0.12, 0.0, 1.2, 3300],  # sh
        [340, 1100, 2080, 0.00, 0.10, 0.0, 0.4, 6500],  # f
        [240, 1390, 2530, 0.00, 0.09, 0.5, 0.5, 5800],  # z
        [270, 1150, 2300, 0.00, 0.08, 0.4, 0.0, 3000],  # m
        [270, 1500, 2600, 0.00, 0.08, 0.4, 0.0, 3000],  # n
        [310, 1060, 1380, 0.00, 0.07, 0.7, 0.0, 3000],  # r
        [310, 1050, 2880, 0.00, 0.07, 0.7, 0.0, 3000],  # l
        [290, 610, 2150, 0.00, 0.07, 0.6, 0.0, 3000],  # w
        [260, 2070, 3020, 0.00, 0.06, 0.6, 0.0, 3000],  # y
    ]
)
BANDWIDTHS = np.array([70.0, 100.0, 160.0])  # Hz, of F1 to F3
UPPER = np.array([3500.0, 4500.0, 5500.0, 6500.0])  # Hz, F4 to F7 of a uniform tube of 17.5 cm

README = """Artificial voices, made by redimnet_jax.data.synthetic.voices with seed {seed}:
speakers {first} to {last}, {sessions} sessions each, {utterances} utterances a session,
{seconds:g} s each, 16 kHz, 16 bit, laid out as speaker/session/utterance.wav.

No person speaks here. An error rate measured on these files shows that a pipeline works;
it says nothing about speech.
"""


@dataclasses.dataclass(frozen=True)
class Voice:
    """What stays the same whenever one speaker speaks."""

    pitch: float  # Hz
    pitch_range: float  # semitones, standard deviation
    vowels: np.ndarray  # (12, 3) Hz
    vowel_weights: np.ndarray  # (12,) how often each is used
    consonant_weights: np.ndarray  # (17,)
    scale: float  # formants, relative to a tract of 17.5 cm
    upper: np.ndarray  # Hz, F4 and above
    bandwidth: float  # factor
    friction: float  # factor of the friction's centre
    open_quotient: float
    tilt: float  # dB at 3 kHz, of the larynx
    jitter: float  # relative, a cycle
    shimmer: float  # relative, a cycle
    breath: float  # amplitude of aspiration
    tempo: float  # seconds a vowel


@dataclasses.dataclass(frozen=True)
class Session:
    """What stays the same throughout one recording."""

    channel: np.ndarray  # (bins,) gain
    noise: np.ndarray  # (bins,) gain
    snr: float  # dB
    level: float  # dB relative to full scale, RMS
    drift: tuple[float, float]  # of the level: size in dB, phase in radians; its period is 6 s
    pitch: float  # factor
    effort: float  # dB of tilt


def make_voice(rng: np.random.Generator) -> Voice:
    """Draw a speaker; half have the pitch and formants of women's voices, half of men's."""
    high = rng.random() < 0.5
    scale = (1.16 if high else 1.0) * np.exp(0.06 * rng.standard_normal())
    upper = scale * UPPER * np.exp(0.04 * rng.standard_normal(len(UPPER)))
    return Voice(
        pitch=(205.0 if high else 115.0) * np.exp(0.16 * rng.standard_normal()),
        pitch_range=rng.uniform(1.0, 3.0),
        vowels=scale * VOWELS * np.exp([0.10, 0.08, 0.05] * rng.standard_normal(VOWELS.shape)),
        vowel_weights=rng.dirichlet(np.full(len(VOWELS), 3.0)),
        consonant_weights=rng.dirichlet(np.full(len(CONSONANTS), 3.0)),
        scale=scale,
        upper=upper[upper < 0.47 * SAMPLE_RATE],
        bandwidth=np.exp(0.2 * rng.standard_normal()),
        friction=np.exp(0.15 * rng.standard_normal()),
        open_quotient=rng.uniform(0.4, 0.75),
        tilt=rng.uniform(0.0, 12.0),
        jitter=rng.uniform(0.002, 0.02),
        shimmer=rng.uniform(0.02, 0.12),
        breath=10 ** rng.uniform(-2.2, -1.0),
        tempo=rng.uniform(0.10, 0.18),
    )


def make_session(rng: np.random.Generator) -> Session:
    """Draw a recording: its room, microphone and mood."""
    position = np.log1p(FREQUENCIES / 700) / np.log1p(FREQUENCIES[-1] / 700)
    ripples = np.cos(np.pi * np.arange(1, 7)[:, None] * position)
    channel = rng.normal(0, 3.0 / np.sqrt(np.arange(1, 7))) @ ripples
    channel -= 10 * np.log10(1 + (rng.uniform(40, 160) / np.maximum(FREQUENCIES, 1)) ** 4)
    channel -= 10 * np.log10(1 + (FREQUENCIES / rng.uniform(5000, 9000)) ** 8)
    noise = -rng.uniform(0, 6) * np.log2(np.maximum(FREQUENCIES, 60) / 60) + rng.normal(0, 2.0, 6) @ ripples
    return Session(
        channel=_gain(channel),
        noise=_gain(noise),
        snr=rng.uniform(22, 45),
        level=rng.uniform(-32, -18),
        drift=(rng.uniform(0, 3), rng.uniform(0, 2 * np.pi)),
        pitch=np.exp(0.04 * rng.standard_normal()),
        effort=rng.normal(0, 1.5),
    )


def synthesize(speaker: int, session: int, utterance: int, seconds: float, *, seed: int = 0) -> np.ndarray:
    """One utterance, float32 (samples,) at 16 kHz, samples = round(16000 * seconds), within +-0.95.

    The numbers name it: the same ones give the same signal, whatever was made before. Sessions of different speakers
    have nothing in common. Raises UserError on a negative number and on a length that is not positive and finite.
    """
    for name, number in {"speaker": speaker, "session": session, "utterance": utterance, "seed": seed}.items():
        if number < 0:
            raise UserError(f"{name} is {number} but must not be negative; count from 0.")
    if not (np.isfinite(seconds) and seconds * SAMPLE_RATE >= WINDOW):
        raise UserError(f"seconds is {seconds} but must be finite and at least {WINDOW / SAMPLE_RATE:g}.")
    voice = make_voice(np.random.default_rng([seed, speaker]))
    recording = make_session(np.random.default_rng([seed, speaker, session, 1]))
    rng = np.random.default_rng([seed, speaker, session, utterance, 2])
    samples = round(seconds * SAMPLE_RATE)
    frames = samples // HOP + 2
    tracks = _phrase(voice, frames, rng)

    tilt = _tilt(max(voice.tilt + recording.effort, 0.0))
    speech = _analyse(_source(voice, recording, tracks, frames * HOP, rng)) * (_tract(tracks.formants, voice) * tilt)
    # One white noise serves for friction and for the floor, which friction drowns.
    white = _analyse(_noise(rng, frames * HOP))
    speech += white * _friction(tracks)
    size, phase = recording.drift
    drift = size * np.sin(phase + 2 * np.pi * np.arange(frames) * HOP / SAMPLE_RATE / 6)
    speech *= _gain(drift)[:, None] * recording.channel
    floor = white * recording.noise
    floor *= _gain(-recording.snr) * np.linalg.norm(speech) / np.linalg.norm(floor)
    signal = _overlap_add(speech + floor)[:samples]
    signal /= np.sqrt(np.mean(np.square(signal)))
    return signal * min(_gain(recording.level), PEAK / np.abs(signal).max())


@dataclasses.dataclass(frozen=True)
class _Tracks:
    """A phrase, one value a frame of HOP samples."""

    formants: np.ndarray  # (frames, 3) Hz
    voice: np.ndarray  # (frames,) amplitude
    friction: np.ndarray  # (frames,) amplitude
    centre: np.ndarray  # (frames,) Hz
    melody: np.ndarray  # (frames,) semitones


def _phrase(voice: Voice, frames: int, rng: np.random.Generator) -> _Tracks:
    """Random syllables, each of three segments: a closure or pause, a consonant and a vowel."""
    # No syllable is shorter than 0.06 s, 7 frames.
    count = frames // 7 + 1
    which = rng.choice(len(CONSONANTS), count, p=voice.consonant_weights)
    consonant = CONSONANTS[which]
    vowel = voice.vowels[rng.choice(len(VOWELS), count, p=voice.vowel_weights)]
    # Unstressed vowels fall short of their target, towards the neutral one.
    reduction = rng.beta(1.5, 4.0, count)[:, None]
    neutral = voice.scale * np.array([500.0, 1500.0, 2500.0])
    vowel = (vowel + reduction * (neutral - vowel)) * np.exp(0.03 * rng.standard_normal((count, 3)))
    pause = np.where(rng.random(count) < 0.08, rng.uniform(0.15, 0.4, count), 0.0)

    spread = np.exp(0.25 * rng.standard_normal((count, 2)))
    durations = np.stack(
        [
            consonant[:, 3] + pause,
            consonant[:, 4] * spread[:, 0],
            np.maximum(voice.tempo * (1.2 - 0.6 * reduction[:, 0]) * spread[:, 1], 0.05),
        ],
        axis=1,
    )
    durations[0, 0] = 0.0  # Even the shortest signal has some speech in it, to which the noise is scaled.
    ends = np.rint(np.cumsum(durations) * SAMPLE_RATE / HOP).astype(int)
    segments = np.searchsorted(ends, np.arange(frames), side="right")
    syllables = segments // 3

    locus = voice.scale * consonant[:, :3]
    formants = np.stack([locus, locus, vowel], axis=1).reshape(-1, 3)[segments]
    loudness = 10 ** (rng.normal(0, 2.5, count) / 20)
    zero = np.zeros(count)
    amplitude = np.stack([zero, consonant[:, 5], 1 - 0.4 * reduction[:, 0]], axis=1) * loudness[:, None]
    friction = np.stack([zero, consonant[:, 6], zero], axis=1) * loudness[:, None]
    accent = rng.normal(0, voice.pitch_range, count)
    decline = 3.0 - 6.0 * np.arange(frames) / frames
    return _Tracks(
        formants=_smooth(formants, 9),
        voice=_smooth(amplitude.reshape(-1)[segments], 3),
        friction=_smooth(friction.reshape(-1)[segments], 3),
        centre=_smooth((voice.friction * consonant[:, 7])[syllables], 9),
        melody=_smooth(accent[syllables], 21) + 0.5 * decline,
    )


def _smooth(track: np.ndarray, width: int) -> np.ndarray:
    """`track` (frames, ...) convolved over time with a Hann window of `width` frames, odd: coarticulation."""
    kernel = np.hanning(width + 2)[1:-1]
    padded = np.pad(track, [(width // 2, width // 2)] + [(0, 0)] * (track.ndim - 1), mode="edge")
    smooth = np.lib.stride_tricks.sliding_window_view(padded, width, axis=0) @ (kernel / kernel.sum())
    return smooth.astype(np.float32)


def _source(voice: Voice, recording: Session, tracks: _Tracks, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Excitation (samples,): the derivative of the glottal flow at + bt^2 over the open phase, and breath."""
    time = np.arange(samples) / HOP
    at = np.arange(len(tracks.melody))
    melody = np.interp(time, at, tracks.melody + rng.normal(0, 0.2, len(at)))
    pitch = voice.pitch * recording.pitch * 2 ** (melody / 12)
    phase = np.cumsum(pitch) / SAMPLE_RATE
    cycles = int(phase[-1]) + 2
    # A cycle that comes early or late moves the phase, and not the mean pitch.
    phase += np.interp(phase, np.arange(cycles), voice.jitter * rng.standard_normal(cycles))
    cycle = np.clip(np.floor(phase).astype(int), 0, cycles - 1)
    position = (phase - cycle) / voice.open_quotient
    pulse = np.where(position < 1, 2 * position - 3 * position**2, 0.0)
    pulse *= (1 + voice.shimmer * rng.standard_normal(cycles))[cycle]
    breath = voice.breath * _noise(rng, samples) * np.where(position < 1, 1.0, 0.4)
    return (np.interp(time, at, tracks.voice) * (pulse + breath)).astype(np.float32)


def _gain(decibels: np.ndarray | float) -> np.ndarray:
    """Amplitude factors, float32: with them the spectra stay in single precision, twice as fast."""
    return np.float32(10.0) ** (np.asarray(decibels, np.float32) / 20)


def _noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    return rng.standard_normal(samples, dtype=np.float32)


def _tilt(decibels: float) -> np.ndarray:
    """Gain (bins,) of one pole whose loss at 3 kHz is `decibels`."""
    corner = 3000.0 / np.sqrt(max(10 ** (decibels / 10) - 1, 1e-6))
    return (1 / np.sqrt(1 + (FREQUENCIES / corner) ** 2)).astype(np.float32)


def _resonators(centres: np.ndarray, bandwidths: np.ndarray) -> np.ndarray:
    """Response (..., bins) of cascaded digital resonators at `centres` (..., resonators) in Hz, one at zero."""
    radius = np.exp(-np.pi * bandwidths / SAMPLE_RATE)
    first = (2 * radius * np.cos(2 * np.pi * centres / SAMPLE_RATE)).astype(np.float32)
    second = np.broadcast_to(-(radius**2), centres.shape).astype(np.float32)
    delay = np.exp(-2j * np.pi * FREQUENCIES / SAMPLE_RATE).astype(np.complex64)
    square = delay * delay
    response = np.ones((*centres.shape[:-1], len(delay)), np.complex64)
    for index in range(centres.shape[-1]):
        b, c = first[..., index, None], second[..., index, None]
        response *= (1 - b - c) / (1 - b * delay - c * square)
    return response


def _tract(formants: np.ndarray, voice: Voice) -> np.ndarray:
    """Response (frames, bins) of the vocal tract."""
    upper = _resonators(voice.upper, voice.bandwidth * 0.06 * voice.upper)
    return _resonators(formants, voice.bandwidth * BANDWIDTHS) * upper


def _friction(tracks: _Tracks) -> np.ndarray:
    """Gain (frames, bins) of the noise made at a constriction, a bell over frequency."""
    centre = tracks.centre[:, None]
    return 0.15 * tracks.friction[:, None] * np.exp(-0.5 * ((FREQUENCIES - centre) / (0.35 * centre)) ** 2)


def _analyse(signal: np.ndarray) -> np.ndarray:
    """Spectra (frames, bins) of half-overlapping windows that sum to one."""
    padded = np.pad(signal, (HOP, HOP))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][: len(signal) // HOP]
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)
    return np.fft.rfft(windows * hann, TRANSFORM)


def _overlap_add(spectra: np.ndarray) -> np.ndarray:
    """Return the signal of filtered spectra (frames, bins); it starts where the one analysed did."""
    pieces = np.fft.irfft(spectra, TRANSFORM).reshape(len(spectra), TRANSFORM // HOP, HOP)
    signal = np.zeros((len(spectra) + TRANSFORM // HOP - 1, HOP), pieces.dtype)
    for index in range(TRANSFORM // HOP):
        signal[index : index + len(spectra)] += pieces[:, index]
    return signal.reshape(-1)[HOP:]


def write_corpus(
    folder: str | Path,
    *,
    speakers: int,
    sessions: int,
    utterances: int,
    seconds: float,
    seed: int = 0,
    first_speaker: int = 0,
) -> Path:
    """Write `folder`/speaker/session/utterance.wav (16 kHz, 16 bit) and a README.txt; return the folder.

    Speakers `first_speaker` and after, so that disjoint ranges give disjoint corpora. The folder must not exist; it
    is written under another name and renamed when whole. Raises UserError when it exists or cannot be written, and on
    a count below one.
    """
    folder = Path(folder).absolute()
    files.check_new(folder)
    for name, count in {"speakers": speakers, "sessions": sessions, "utterances": utterances}.items():
        if count < 1:
            raise UserError(f"{name} is {count} but must be at least 1.")
    with files.new_folder(folder, advice="choose another folder") as part:
        numbers = range(first_speaker, first_speaker + speakers), range(sessions), range(utterances)
        with ThreadPoolExecutor() as pool:
            list(
                pool.map(
                    lambda numbers: _write_utterance(part, numbers[0], numbers[1], numbers[2], seconds, seed),
                    itertools.product(*numbers),
                )
            )
        about = README.format(
            first=first_speaker,
            last=first_speaker + speakers - 1,
            sessions=sessions,
            utterances=utterances,
            seconds=seconds,
            seed=seed,
        )
        (part / "README.txt").write_text(about)
    return folder


def _write_utterance(folder: Path, speaker: int, session: int, utterance: int, seconds: float, seed: int) -> None:
    signal = synthesize(speaker, session, utterance, seconds, seed=seed)
    place = folder / f"speaker{speaker:04}" / f"session{session:02}"
    place.mkdir(parents=True, exist_ok=True)
    with wave.open(str(place / f"utterance{utterance:03}.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.rint(signal * 32767).astype("<i2").tobytes())
