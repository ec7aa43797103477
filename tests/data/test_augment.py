"""Every step against what it claims: levels, ratios, alignment, responses, and its switches."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
from refusals import refusal

from redimnet_jax.data import augment
from redimnet_jax.data.augment import Channel, Gain, GaussianNoise, NoiseFolder, Reverberation, Speed, from_config
from redimnet_jax.training.settings import Settings

SAMPLES = 8000


def signal(samples: int = SAMPLES) -> np.ndarray:
    return 0.1 * np.random.default_rng(1).standard_normal(samples, dtype=np.float32)


def decibels(ratio: float) -> float:
    return 10 * np.log10(ratio)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Noise as MUSAN lays it out, and impulse responses."""
    root = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    names = ["musan/noise/free/a", "musan/music/b", "flat/c", "flat/deep/d"]
    for name in [*names, *(f"musan/speech/s{index}" for index in range(4))]:
        path = root / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.2 * rng.standard_normal(20000), 16000, subtype="FLOAT")
    (root / "musan/noise/LICENSE").write_text("text")
    response = np.zeros(500)
    response[37] = -0.5
    response[137] = 0.25
    (root / "rirs").mkdir()
    soundfile.write(root / "rirs/room.wav", response, 16000, subtype="FLOAT")
    (root / "rooms").mkdir()
    for index in range(8):
        response = rng.standard_normal(500) * np.exp(-np.arange(500) / 100)
        soundfile.write(root / f"rooms/{index}.wav", response, 16000, subtype="FLOAT")
    return root


def all_steps(folders: Path) -> list[augment.Step]:
    return [
        Reverberation(p=1, folder=str(folders / "rooms")),
        NoiseFolder(p=1, folder=str(folders / "musan")),
        GaussianNoise(p=1),
        Channel(p=1),
        Gain(p=1),
    ]


def test_all_steps_are_tried_here(folders):
    assert [type(step) for step in all_steps(folders)] == list(augment.STEPS.values())


@pytest.mark.parametrize("name", augment.STEPS)
def test_what_all_steps_keep(folders, name):
    step = pickle.loads(pickle.dumps(all_steps(folders)[list(augment.STEPS).index(name)]))
    waveform = signal()
    before = waveform.copy()
    first = step(waveform, np.random.default_rng(5))
    assert first.dtype == np.float32 and first.shape == waveform.shape and np.isfinite(first).all()
    assert not np.array_equal(first, waveform)
    np.testing.assert_array_equal(waveform, before)
    np.testing.assert_array_equal(first, step(waveform, np.random.default_rng(5)))
    assert not np.array_equal(first, step(waveform, np.random.default_rng(6)))
    silence = np.zeros(SAMPLES, np.float32)
    np.testing.assert_array_equal(step(silence, np.random.default_rng(5)), silence)
    assert dataclasses.replace(step, p=0.0)(waveform, np.random.default_rng(5)) is waveform


def test_probability():
    step, rng, waveform = Gain(p=0.3, decibels=(6, 6)), np.random.default_rng(0), signal(10)
    changed = sum(step(waveform, rng) is not waveform for _ in range(2000))
    assert 0.26 < changed / 2000 < 0.34


def test_gain():
    louder = Gain(p=1, decibels=(6, 6))(signal(), np.random.default_rng(0))
    np.testing.assert_allclose(louder, signal() * 10**0.3, rtol=1e-5)


def test_gaussian_noise_has_its_ratio():
    noise = GaussianNoise(p=1, snr=(7, 7))(signal(), np.random.default_rng(0)) - signal()
    assert decibels(np.mean(signal() ** 2) / np.mean(noise**2)) == pytest.approx(7, abs=0.01)


def test_categories_of_noise(folders):
    ranges = {"noise": (1, 2), "music": (11, 12), "speech": (21, 22)}
    step = NoiseFolder(p=1, folder=str(folders / "musan"), **ranges)
    assert {key: len(files) for key, files in step.files.items()} == {"noise": 1, "music": 1, "speech": 4}
    rng, seen = np.random.default_rng(0), set()
    for _ in range(30):
        noise = step(signal(), rng) - signal()
        ratio = decibels(np.mean(signal() ** 2) / np.mean(noise**2))
        [category] = [key for key, (low, high) in ranges.items() if low - 0.01 < ratio < high + 0.01]
        seen.add(category)
    assert seen == set(ranges)


def test_a_folder_without_categories_is_noise(folders):
    assert NoiseFolder(folder=str(folders / "flat")).files == {"noise": ("c.wav", "deep/d.wav")}


def test_babble_sums_talkers_at_equal_power(tmp_path):
    """Talkers of different levels, each a tone of its own: all are heard alike."""
    (tmp_path / "speech").mkdir()
    time = np.arange(SAMPLES) / 16000
    for index, level in enumerate((0.01, 0.1, 0.9)):
        tone = level * np.sin(2 * np.pi * 1000 * (index + 1) * time)
        soundfile.write(tmp_path / f"speech/{index}.wav", tone, 16000, subtype="FLOAT")
    step = NoiseFolder(p=1, folder=str(tmp_path), talkers=(3, 3), speech=(0, 0))
    counts = []
    for seed in range(8):
        noise = step(signal(), np.random.default_rng(seed)) - signal()
        amplitudes = np.abs(np.fft.rfft(noise))[[500, 1000, 1500]]
        quantum = amplitudes.sum() / 3
        counts.append(amplitudes / quantum)
    np.testing.assert_allclose(counts, np.round(counts), atol=0.01)
    assert any(np.ptp(count) == pytest.approx(0, abs=0.01) for count in counts)


def test_short_noise_is_repeated(tmp_path):
    piece = np.random.default_rng(3).standard_normal(300).astype(np.float32)
    soundfile.write(tmp_path / "short.wav", piece, 16000, subtype="FLOAT")
    noise = NoiseFolder(p=1, folder=str(tmp_path), noise=(0, 0))(signal(), np.random.default_rng(0)) - signal()
    expected = np.resize(piece, SAMPLES)
    scale = np.sqrt(np.mean(signal() ** 2) / np.mean(expected**2))
    np.testing.assert_allclose(noise, scale * expected, atol=1e-6)


def test_noise_starts_anywhere(folders):
    rng = np.random.default_rng(0)
    path = str(folders / "flat/c.wav")
    whole, _ = soundfile.read(path, dtype="float32")
    starts = []
    for _ in range(20):
        segment = augment.random_segment(path, 5000, rng)
        [start] = np.flatnonzero(whole == segment[0])
        np.testing.assert_array_equal(segment, whole[start : start + 5000])
        starts.append(start)
    assert min(starts) < 3000 and max(starts) > 12000


def test_reverberation_keeps_time_and_power(folders):
    wet = Reverberation(p=1, folder=str(folders / "rirs"))(signal(), np.random.default_rng(0))
    dry = signal()
    expected = -0.5 * dry
    expected[100:] += 0.25 * dry[:-100]
    expected *= np.sqrt(np.mean(dry**2) / np.mean(expected**2))
    np.testing.assert_allclose(wet, expected, atol=1e-6)


def test_flat_channel_changes_nothing():
    flat = Channel(p=1, equaliser=(0, 0), tilt=(0, 0), low=(1e-3, 1e-3), high=(1e6, 1e6))
    out = flat(signal(), np.random.default_rng(0))
    # Only the constant, which lies below all pass bands, may go.
    np.testing.assert_allclose(out, signal(), atol=2e-4)


def test_channel_response():
    channel = Channel(p=1, equaliser=(0, 0), tilt=(3, 3), low=(100, 100), high=(4000, 4000))
    at = dict(zip((50, 100, 1000, 2000, 4000, 8000), range(6), strict=True))
    gains = decibels(channel.response(np.array(list(at), float), np.random.default_rng(0)) ** 2)
    assert gains[at[1000]] == pytest.approx(0, abs=0.01)
    assert gains[at[2000]] == pytest.approx(3, abs=0.05)
    assert gains[at[4000]] == pytest.approx(6 - 3.01, abs=0.05)
    assert gains[at[8000]] == pytest.approx(9 - 24.1, abs=0.1)
    assert gains[at[100]] == pytest.approx(3 * np.log2(0.1) - 3.01, abs=0.05)
    assert gains[at[50]] == pytest.approx(3 * np.log2(0.05) - 24.1, abs=0.1)
    uneven = Channel(equaliser=(-5, 5), tilt=(0, 0), low=(1, 1), high=(1e6, 1e6))
    gains = decibels(uneven.response(np.geomspace(50, 8000, 300), np.random.default_rng(0)) ** 2)
    assert 2 < np.abs(gains).max() < 5.01 and np.abs(np.diff(gains)).max() < 0.5


def test_channel_filters_and_keeps_power():
    """A low and a high tone of equal power, through a pass band that holds the high one alone."""
    time = np.arange(SAMPLES) / 16000
    tones = np.sin(2 * np.pi * 100 * time) + np.sin(2 * np.pi * 2000 * time)
    channel = Channel(p=1, equaliser=(0, 0), tilt=(0, 0), low=(400, 400), high=(7000, 7000))
    out = channel(tones.astype(np.float32), np.random.default_rng(0))
    assert np.mean(out**2) == pytest.approx(np.mean(tones**2), rel=1e-3)
    spectrum = np.abs(np.fft.rfft(out))
    assert spectrum[50] / spectrum[1000] == pytest.approx(0.25**4, rel=0.2)


def test_speed_changes_pitch_and_length():
    speed = Speed(factors=(1.0, 1.1, 0.9))
    for choice, factor in enumerate(speed.factors):
        time = np.arange(speed.samples(choice, SAMPLES)) / 16000
        out = speed.change(np.sin(2 * np.pi * 1000 * time).astype(np.float32), choice)
        assert SAMPLES <= len(out) <= SAMPLES + 1 and out.dtype == np.float32
        assert np.argmax(np.abs(np.fft.rfft(out[:SAMPLES]))) * 2 == pytest.approx(1000 * factor, abs=2)


def test_speed_labels():
    speed = Speed()
    assert speed.factors[0] == 1.0 and speed.classes(10) == 30
    labels = [speed.label(speaker, choice, 10) for choice in range(3) for speaker in range(10)]
    assert labels == list(range(30))
    same = Speed(new_speakers=False)
    assert same.classes(10) == 10 and same.label(7, 2, 10) == 7


def test_from_config(folders):
    rirs = str(folders / "rirs")
    config = {
        "gain": {"p": 1, "decibels": [-3, 3]},
        "channel": {},
        "reverberation": {"folder": rirs},
    }
    steps = from_config(config)
    assert steps == (Reverberation(folder=rirs), Channel(), Gain(p=1, decibels=(-3.0, 3.0)))
    assert from_config({}) == () and augment.speed_from_config(None) is None
    assert augment.speed_from_config({"factors": (1, 0.8)}) == Speed(factors=(1.0, 0.8))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"gian": {}}, ["'gian'", "gain"]),
        ({"gain": {"decibel": (0, 1)}}, ["gain", "'decibel'", "decibels"]),
        ({"gain": {"decibels": (3, -3)}}, ["decibels", "Gain", "(3, -3)"]),
        ({"gain": {"decibels": 3}}, ["decibels", "Gain", "3"]),
        ({"gain": {"decibels": (0, float("nan"))}}, ["decibels", "nan"]),
        ({"gain": {"p": 1.5}}, ["p of", "Gain", "1.5"]),
        ({"gain": {"p": "x"}}, ["p of", "Gain", "'x'"]),
        ({"channel": {"low": (0, 300)}}, ["low", "Channel"]),
        ({"noise_folder": {"folder": "{root}/flat", "talkers": (0, 3)}}, ["talkers", "NoiseFolder"]),
        ({"noise_folder": {}}, ["noise_folder", "folder"]),
        ({"noise_folder": {"folder": "{root}/nowhere"}}, ["folder", "NoiseFolder", "nowhere"]),
        ({"reverberation": {"folder": "{root}/empty"}}, ["folder", "Reverberation", "empty", ".wav"]),
    ],
)
def test_mistakes_are_named(tmp_path, config, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    soundfile.write(tmp_path / "flat/a.wav", signal(), 16000)

    def put(value):
        if isinstance(value, dict):
            return {key: put(entry) for key, entry in value.items()}
        return value.replace("{root}", str(tmp_path)) if isinstance(value, str) else value

    text = refusal(from_config, put(config))
    assert all(word in text for word in words), text


@pytest.mark.parametrize("factors", [(), (1.0, 1.0), (0.0, 1.0), 1.0, ("fast",)])
def test_bad_factors(factors):
    assert "factors" in refusal(augment.speed_from_config, {"factors": factors})


def test_a_silent_response_is_named(tmp_path):
    soundfile.write(tmp_path / "dead.wav", np.zeros(100), 16000)
    text = refusal(Reverberation(p=1, folder=str(tmp_path)), signal(), np.random.default_rng(0))
    assert "dead.wav" in text


def test_the_document_lists_all_steps_and_defaults():
    text = (Path(__file__).parents[2] / "docs/reference/augmentation.md").read_text()
    for key, step in vars(Settings().data.augment).items():
        [row] = [line for line in text.splitlines() if line.startswith(f"| `{key}` |")]
        for name, default in vars(step).items():
            if name not in ("p", "folder"):
                shown = [f"{value:g}" for value in default] if isinstance(default, tuple) else [str(default)]
                assert f"`{name}` {', '.join(shown) or 'none'}" in row, (key, name)
