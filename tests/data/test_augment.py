"""Every step against what it claims: levels, ratios, alignment, responses, and its switches."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fake_corpus import FakeCorpus
from refusals import refusal

from redimnet_jax.data import augment
from redimnet_jax.data.augment import Speed, from_config
from redimnet_jax.data.augment.channel import Channel, Gain, LowPass
from redimnet_jax.data.augment.codec import CODECS, PUBLISHED, Codec, coded
from redimnet_jax.data.augment.draw import Drawn
from redimnet_jax.data.augment.noise import Babble, GaussianNoise, Music, Noise, NoiseFolder, Speech
from redimnet_jax.data.augment.room import Reverberation
from redimnet_jax.data.augment.sounds import random_segment
from redimnet_jax.data.augment.step import mix
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
        Noise(p=1, folder=str(folders / "musan/noise")),
        Music(p=1, folder=str(folders / "musan/music")),
        Speech(p=1, folder=str(folders / "musan/speech")),
        Babble(p=1).on(FakeCorpus([3 * SAMPLES] * 9)),
        GaussianNoise(p=1),
        Channel(p=1),
        LowPass(p=1, cutoff=(0.3, 0.9)),
        Codec(p=1),
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
        segment = random_segment(path, 5000, rng)
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
        ({"noise": {}}, ["noise", "folder"]),
        ({"babble": {"talkers": (0, 3)}}, ["talkers", "Babble"]),
        ({"low_pass": {"cutoff": (0.5, 1.5)}}, ["cutoff", "LowPass", "1.5"]),
        ({"low_pass": {"width": 0}}, ["width", "LowPass"]),
        ({"codec": {"codecs": ("opus-16k", "mp4")}}, ["codecs", "'mp4'", "opus-16k", "g711-alaw"]),
        ({"codec": {"codecs": ()}}, ["codecs", "empty", "opus-16k"]),
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


# The public formulas: WeSpeaker's processor.py and the authors' augs.py, on these numbers, in float64.
SPEECH = np.array([0.5, -0.25, 0.125, 1.0, -0.75, 0.3, 0.2, -0.1], np.float32)
SOUND = np.array([0.01, 0.02, -0.03, 0.04, 0.05, -0.06, 0.02, 0.01], np.float32)
GOLDEN_SCALES = {0.0: 14.5438453, 7.5: 6.1330887, 15.0: 2.5863021}


@pytest.mark.parametrize(("snr", "scale"), GOLDEN_SCALES.items())
def test_the_gain_of_a_ratio_is_that_of_the_public_code(snr, scale):
    np.testing.assert_allclose(mix(SPEECH, SOUND, snr), SPEECH + scale * SOUND, atol=1e-6)


def test_the_ranges_are_those_of_the_public_code():
    assert (Noise.snr, Music.snr, Speech.snr, Babble.snr) == ((0, 15), (5, 15), (13, 20), (13, 20))


def test_low_pass_is_that_of_the_public_code():
    """The response of the authors' LowPassAug at 0.6 and 0.08, at frequencies around its transition."""
    at = {0.0: 1, 0.55: 1, 0.57: 0.691342, 0.6: 1, 0.62: 0.853553, 0.635: 0.597545, 0.65: 0, 1.0: 0}
    response = LowPass().response(np.array(list(at)), 0.6)
    np.testing.assert_allclose(response, list(at.values()), atol=1e-6)
    time = np.arange(SAMPLES) / 16000
    tones = np.sin(2 * np.pi * 3000 * time) + np.sin(2 * np.pi * 6000 * time)
    out = LowPass(p=1)(tones.astype(np.float32), np.random.default_rng(0))
    np.testing.assert_allclose(out, np.sin(2 * np.pi * 3000 * time), atol=1e-5)


def test_low_pass_of_an_odd_number_of_samples():
    assert LowPass(p=1)(signal(801), np.random.default_rng(0)).shape == (801,)


def test_babble_of_the_corpus():
    """The sum of 3 to 7 recordings, each at its own level, of speakers of the corpus."""
    corpus = FakeCorpus([SAMPLES] * 9)
    step = Babble(p=1, snr=(5, 5)).on(corpus)
    for seed in range(5):
        babble = step.sound(SAMPLES, np.random.default_rng(seed))
        ramp = np.arange(SAMPLES) * 2.0**-14
        talkers = round((babble[-1] - babble[0]) / ramp[-1])
        assert 3 <= talkers <= 7
        assert babble - talkers * ramp == pytest.approx(round(babble[0]), abs=1e-2)
    noise = step(signal(), np.random.default_rng(0)) - signal()
    assert decibels(np.mean(signal() ** 2) / np.mean(noise**2)) == pytest.approx(5, abs=0.01)


def test_babble_passes_over_a_recording_that_cannot_be_read():
    few = Babble(p=1).on(FakeCorpus([SAMPLES] * 9, broken=2))
    for seed in range(20):
        few(signal(), np.random.default_rng(seed))
    only = Babble(p=1).on(FakeCorpus([SAMPLES], broken=0))
    assert "0.wav" in refusal(only, signal(), np.random.default_rng(0))


def test_babble_without_a_corpus_is_refused():
    assert "folder" in refusal(Babble(p=1), signal(), np.random.default_rng(0))


def voice(samples: int) -> np.ndarray:
    """A harmonic sound with pauses, which every codec takes for speech."""
    time = np.arange(samples) / 16000
    tones = sum(np.sin(2 * np.pi * 120 * k * time + k) / k for k in range(1, 25))
    return (0.05 * tones * (np.sin(2 * np.pi * 3 * time) > -0.5)).astype(np.float32)


def shared_bands(a: np.ndarray, b: np.ndarray) -> float:
    """The correlation of the log spectra of two signals, in 40 bands up to 3.4 kHz."""
    spectra = [np.abs(np.fft.rfft(x)) ** 2 for x in (a, b)]
    edges = np.linspace(0, 3400 * len(a) // 16000, 41).astype(int)
    bands = [np.log([s[low:high].sum() + 1e-9 for low, high in zip(edges, edges[1:], strict=False)]) for s in spectra]
    return np.corrcoef(*bands)[0, 1]


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_gives_back_what_it_codes(name):
    dry = voice(SAMPLES)
    wet = coded(dry, name)
    assert wet.dtype == np.float32 and wet.shape == dry.shape and not np.array_equal(wet, dry)
    assert shared_bands(wet, dry) > 0.9
    assert abs(decibels(np.mean(wet**2) / np.mean(dry**2))) < 3
    np.testing.assert_array_equal(wet, coded(dry, name))
    assert coded(dry[:160], name).shape == (160,)
    above = np.abs(np.fft.rfft(coded(signal(), name)))[SAMPLES * 5 // 16 :]
    whole = np.abs(np.fft.rfft(signal()))[SAMPLES * 5 // 16 :]
    telephone = name.startswith(("g711", "amr"))
    assert (np.mean(above**2) < 1e-3 * np.mean(whole**2)) == telephone


def test_a_codec_keeps_levels_beyond_full_scale():
    loud = 30 * voice(SAMPLES)
    assert abs(decibels(np.mean(coded(loud, "g711-alaw") ** 2) / np.mean(loud**2))) < 0.5


def test_an_encoder_that_the_build_lacks_is_named_with_those_there(monkeypatch):
    from redimnet_jax.data.augment import codec

    monkeypatch.setattr(codec, "_has_encoder", lambda name: name != "libopus")
    text = refusal(Codec, codecs=("g722", "opus-11k"))
    assert "'opus-11k'" in text and "mp3-lo" in text and "opus-16k" not in text
    assert Codec(codecs=("g722",)).codecs == ("g722",) and set(PUBLISHED) < CODECS.keys()


def drawn(p: float, one_of=(), weights=None, chances=(1, 1, 1)) -> list[int]:
    """The factors of 4,000 crops, changed by three steps that multiply by 2, 3 and 5."""
    names = ("channel", "low_pass", "gain")
    config = {name: {"p": chance} for name, chance in zip(names, chances, strict=True)}
    steps = from_config(config, p=p, one_of=one_of, weights=weights)
    [made] = steps

    class Times(augment.Step):
        def apply(self, waveform, rng):
            return waveform * {"Channel": 2, "LowPass": 3, "Gain": 5}[self.of]

    named = []
    for name, step in made.steps:
        times = Times(p=step.p)
        object.__setattr__(times, "of", type(step).__name__)
        named.append((name, times))
    made = dataclasses.replace(made, steps=tuple(named))
    rng = np.random.default_rng(0)
    factors = [int(made(np.ones(1, np.float32), rng)[0]) for _ in range(4000)]
    return factors


def test_one_kind_is_drawn_for_each_crop():
    """As the recipes draw: nothing for 0.4 of the crops, else one kind by its weight."""
    factors = drawn(0.6, ("channel+low_pass", "channel", "low_pass"), (0.25, 0.1, 0.65), (1, 1, 0.5))
    share = {factor: factors.count(factor) / 4000 for factor in set(factors)}
    # The gain is in no kind and has a probability of its own.
    expected = {1: 0.4, 6: 0.075, 30: 0.075, 2: 0.03, 10: 0.03, 3: 0.195, 15: 0.195}
    assert share.keys() == expected.keys()
    assert all(share[factor] == pytest.approx(expected[factor], abs=0.025) for factor in expected)


def test_kinds_are_drawn_evenly_without_weights():
    factors = drawn(1.0, ("channel", "low_pass", "gain"), chances=(1, 0.5, 1))
    share = {factor: factors.count(factor) / 4000 for factor in set(factors)}
    assert share == pytest.approx({2: 1 / 3, 3: 1 / 6, 1: 1 / 6, 5: 1 / 3}, abs=0.025)


def test_without_a_draw_the_steps_are_as_before():
    assert from_config({"gain": {"p": 1}}, p=1.0) == (Gain(p=1),)
    [made] = from_config({"gain": {"p": 1}, "low_pass": {}}, p=0.6)
    assert isinstance(made, Drawn) and made.p == 0.6 and "Gain" in repr(made)
    assert from_config({}, p=0.6) == ()


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        ({"one_of": ("gain", "codec")}, ["'codec'", "gain"]),
        ({"one_of": ("gain", "low_pass"), "weights": (1,)}, ["weights", "gain, low_pass"]),
        ({"one_of": ("gain", "low_pass"), "weights": (0, 0)}, ["weights", "above 0"]),
    ],
)
def test_mistakes_of_a_draw_are_named(draw, words):
    text = refusal(from_config, {"gain": {}, "low_pass": {}}, **draw)
    assert all(word in text for word in words), text


def test_the_document_lists_all_steps_and_defaults():
    text = (Path(__file__).parents[2] / "docs/reference/augmentation.md").read_text()
    for key, step in vars(Settings().data.augment).items():
        [row] = [line for line in text.splitlines() if line.startswith(f"| `{key}` |")]
        for name, default in vars(step).items():
            if name not in ("p", "folder"):
                values = default if isinstance(default, tuple) else (str(default),)
                shown = [value if isinstance(value, str) else f"{value:g}" for value in values]
                assert f"`{name}` {', '.join(shown) or 'none'}" in row, (key, name)
