"""The artificial corpus: the same everywhere, at sane levels, and neither trivial nor hopeless to tell apart."""

import itertools
import wave

import numpy as np
import pytest
from refusals import refusal

from redimnet_jax.data.synthetic import voices as synthesis
from redimnet_jax.data.synthetic.voices import SAMPLE_RATE, synthesize, write_corpus

SPEAKERS, SESSIONS, UTTERANCES = 16, 2, 2


@pytest.fixture(scope="module")
def signals():
    numbers = itertools.product(range(SPEAKERS), range(SESSIONS), range(UTTERANCES))
    return {names: synthesize(*names, 2.5) for names in numbers}


def cepstra(signal):
    """Log spectra in 40 bands as cosine coefficients (frames, 20) of the louder frames."""
    frames = np.lib.stride_tricks.sliding_window_view(signal, 512)[::160] * np.hanning(512)
    power = np.square(np.abs(np.fft.rfft(frames)))
    edges = 700 * (np.geomspace(1 + 60 / 700, 1 + 7600 / 700, 42) - 1)
    bins = np.fft.rfftfreq(512, 1 / SAMPLE_RATE)
    bands = np.stack([np.interp(bins, edges[k : k + 3], [0, 1, 0]) for k in range(40)])
    log = np.log(power @ bands.T + 1e-9)
    log = log[log.mean(axis=1) > np.median(log.mean(axis=1))]
    return log @ np.cos(np.pi * np.outer(np.arange(40) + 0.5, np.arange(20)) / 40)


def test_the_numbers_alone_name_a_signal(signals):
    again = synthesize(3, 1, 1, 2.5)
    np.testing.assert_array_equal(again, signals[3, 1, 1])
    others = [synthesize(3, 1, 1, 2.5, seed=1), *(signals[n] for n in [(1, 1, 1), (3, 0, 1), (3, 1, 0), (1, 1, 0)])]
    for other in others:
        assert abs(np.corrcoef(again, other)[0, 1]) < 0.2


def test_a_voice_is_the_same_in_all_its_sessions_and_a_session_in_all_its_utterances(monkeypatch):
    made = []
    for name in ("make_voice", "make_session"):
        original = getattr(synthesis, name)
        monkeypatch.setattr(synthesis, name, lambda rng, original=original: made.append(original(rng)) or made[-1])
    for names in [(4, 0, 0), (4, 0, 1), (4, 1, 0), (5, 0, 0)]:
        synthesize(*names, 0.5)
    voices, sessions = [v.pitch for v in made[::2]], [s.level for s in made[1::2]]
    assert voices[0] == voices[1] == voices[2] != voices[3]
    assert sessions[0] == sessions[1] and len(set(sessions)) == 3


def test_level_and_length(signals):
    for signal in signals.values():
        assert signal.dtype == np.float32 and signal.shape == (40000,)
        assert np.abs(signal).max() <= 0.95 and np.isfinite(signal).all()
        assert -40 < 20 * np.log10(np.sqrt(np.mean(np.square(signal)))) < -15
    assert synthesize(0, 0, 0, 0.30003).shape == (4800,)


def test_the_shortest_signals_are_speech_too():
    """A pause at the start would leave nothing that the noise could be measured against."""
    signals = np.stack([synthesize(speaker, 0, 0, 0.016) for speaker in range(40)])
    assert np.isfinite(signals).all() and (np.abs(signals).max(axis=1) > 0).all()


@pytest.mark.parametrize("speaker", range(4))
def test_the_pitch_is_the_one_of_the_voice(speaker, monkeypatch):
    """The strongest lag of the autocorrelation, in a voice without habits of melody, mood and friction."""
    rng = np.random.default_rng(speaker)
    voice = synthesis.make_voice(rng)
    voice.consonant_weights[:] = np.arange(len(voice.consonant_weights)) == 0
    calm = synthesis.dataclasses.replace(voice, pitch_range=0.0, jitter=0.0)
    monkeypatch.setattr(synthesis, "make_voice", lambda rng: calm)
    session = synthesis.dataclasses.replace(synthesis.make_session(rng), pitch=1.0)
    monkeypatch.setattr(synthesis, "make_session", lambda rng: session)
    middle = synthesize(0, 0, 0, 2.0)[14000:18000]  # The melody falls through zero in the middle.
    spectrum = np.abs(np.fft.rfft(middle, 16384)) ** 2
    correlation = np.fft.irfft(spectrum)[:400]
    lag = 50 + np.argmax(correlation[50:320])
    assert SAMPLE_RATE / lag == pytest.approx(voice.pitch, rel=0.05)


def test_speakers_differ_more_than_their_sessions(signals):
    """By means and deviations of cepstra: better than chance and far from perfect, across sessions."""
    names = np.array(list(signals))
    features = np.stack([np.r_[c.mean(0)[1:], c.std(0)] for c in map(cepstra, signals.values())])
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    left, right = np.triu_indices(len(names), 1)
    scores = np.sum(features[left] * features[right], axis=1)
    same, session = (names[left, 0] == names[right, 0]), (names[left, 1] == names[right, 1])
    targets, others = scores[same & ~session], scores[~same]
    wrong = np.mean(targets[:, None] < others)  # The probability that a non-target scores above a target.
    assert 0.02 < wrong < 0.25
    assert targets.mean() < scores[same & session].mean() - 0.05


def test_corpus_on_disk(tmp_path):
    folder = tmp_path / "made" / "corpus"
    kwargs = dict(speakers=2, sessions=2, utterances=2, seconds=0.25, seed=5, first_speaker=7)
    assert write_corpus(folder, **kwargs) == folder
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.wav"))
    assert files == [
        f"speaker{a:04}/session{b:02}/utterance{c:03}.wav" for a in (7, 8) for b in (0, 1) for c in (0, 1)
    ]
    with wave.open(str(folder / "speaker0008/session01/utterance000.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16000)
        stored = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767
    np.testing.assert_allclose(stored, synthesize(8, 1, 0, 0.25, seed=5), atol=0.51 / 32767)
    about = (folder / "README.txt").read_text()
    assert "says nothing about speech" in about and "7 to 8" in about
    assert [path.name for path in folder.parent.iterdir()] == ["corpus"]
    assert "exists already" in refusal(write_corpus, folder, **kwargs)


def test_a_corpus_is_whole_or_absent(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synthesis.wave, "open", full)
    text = refusal(write_corpus, tmp_path / "corpus", speakers=1, sessions=1, utterances=1, seconds=0.25)
    assert "No space left" in text and "corpus" in text
    assert not list(tmp_path.iterdir())


def test_refusals(tmp_path):
    assert "session is -1" in refusal(synthesize, 0, -1, 0, 1.0)
    assert "seconds is 0.001" in refusal(synthesize, 0, 0, 0, 0.001)
    assert "seconds is nan" in refusal(synthesize, 0, 0, 0, float("nan"))
    counts = dict(speakers=1, sessions=1, utterances=0, seconds=1.0)
    assert "utterances is 0" in refusal(write_corpus, tmp_path / "corpus", **counts)
    assert not list(tmp_path.iterdir())
