"""Decoding: every format, whole and in segments, at every rate, and what is refused."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from audio_files import voice, write
from refusals import refusal

from redimnet_jax.data import audio, decoding

SUFFIXES = sorted(decoding.SUFFIXES)
LENGTH = 6007 * 16  # whole milliseconds: an MP4 is no more exact


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of every format with the same signal."""
    folder = tmp_path_factory.mktemp("audio")
    return {suffix: write(folder / f"voice{suffix}", voice(LENGTH)) for suffix in SUFFIXES}


def segments(total: int, count: int):
    """Starts and lengths; the last ones near the end, where the last Ogg page is."""
    rng = np.random.default_rng(1)
    for number in range(count):
        least = 0 if number < count // 2 else total - 8000
        yield int(rng.integers(least, total)), int(rng.integers(1, 20000))
    yield 0, 1
    yield total - 1, 100


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_segment_is_the_slice_of_the_whole(files, suffix):
    whole = audio.read(files[suffix])
    assert whole.dtype == np.float32 and whole.ndim == 1
    assert len(whole) == audio.duration(files[suffix]) == LENGTH
    encoded = files[suffix].read_bytes()
    assert audio.duration(encoded) == LENGTH
    for start, samples in segments(len(whole), 16):
        expected = whole[start : start + samples]
        np.testing.assert_array_equal(audio.read(files[suffix], start, samples), expected)
        np.testing.assert_array_equal(audio.read(encoded, start, samples), expected)
    np.testing.assert_array_equal(audio.read(str(files[suffix]), 5000), whole[5000:])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_waveform_is_the_encoded_one(files, suffix):
    """To the loss of the codec, with no delay of the encoder left in it."""
    original, decoded = voice(LENGTH), audio.read(files[suffix])
    correlations = [
        np.corrcoef(original[100:-100], decoded[100 + lag : LENGTH - 100 + lag])[0, 1] for lag in range(-9, 9)
    ]
    assert np.argmax(correlations) == 9
    assert correlations[9] > (0.9999 if suffix in (".wav", ".flac") else 0.97)
    assert np.std(decoded) == pytest.approx(np.std(original), rel=0.05)


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".m4a"])
@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_a_resampled_segment_is_close_to_the_slice_of_the_whole(tmp_path, suffix, rate):
    path = write(tmp_path / f"voice{suffix}", voice(3 * rate + 77, rate), rate)
    whole = audio.read(path)
    assert len(whole) == audio.duration(path)
    assert abs(len(whole) - (3 * rate + 77) * 16000 / rate) <= (16 if suffix == ".m4a" else 0.5)
    for start, samples in segments(len(whole), 8):
        expected = whole[start : start + samples]
        np.testing.assert_allclose(audio.read(path, start, samples), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 11025, 44100])
def test_resampling_keeps_time_and_level(tmp_path, rate):
    path = write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate), rate)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    np.testing.assert_allclose(audio.read(path)[500:-500], expected[500:-500], atol=2e-4)
    low = audio.read(path, 250, 2000, sample_rate=8000)
    np.testing.assert_allclose(low, expected[500:4500:2], atol=2e-4)


def test_channels_are_averaged(tmp_path):
    left, right = voice(4000, seed=1), voice(4000, seed=2)
    path = write(tmp_path / "stereo.wav", np.stack([left, right], axis=1))
    np.testing.assert_allclose(audio.read(path), (left + right) / 2, atol=2 / 32768)


def test_integers_in_mp4_get_the_scale_of_floats(tmp_path):
    waveform = np.round(voice(20000) * 32768) / 32768
    path = write(tmp_path / "lossless.m4a", waveform, codec="alac")
    np.testing.assert_array_equal(audio.read(path, 9000, 5000), waveform[9000:14000])


def test_the_end_and_beyond(files):
    for suffix in (".wav", ".ogg", ".m4a"):
        assert len(audio.read(files[suffix], LENGTH - 10, 100)) == 10
        assert audio.read(files[suffix], LENGTH, 100).shape == (0,)
        assert audio.read(files[suffix], 10 * LENGTH).shape == (0,)
        assert audio.read(files[suffix], 5, 0).shape == (0,)
    with pytest.raises(ValueError, match="negative"):
        audio.read(files[".wav"], -1)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_only_the_segment_is_decoded_where_the_format_seeks(files, suffix, monkeypatch):
    decoded = []
    real = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda self, n, **kw: decoded.append(n) or real(self, n, **kw))
    audio.read(files[suffix], 50000, 300)
    assert decoded == [300]


def test_what_cannot_be_decoded_is_refused(files, tmp_path):
    assert (
        refusal(audio.read, tmp_path / "none.wav") == f"There is no audio file {tmp_path}/none.wav; check the path."
    )
    assert "There is no audio file" in refusal(audio.duration, tmp_path)
    for suffix in SUFFIXES:
        path = tmp_path / f"text{suffix}"
        path.write_text("This is no audio file at all, whatever its name says")
        assert f"{path} cannot be decoded" in refusal(audio.read, path)
        assert f"{path} cannot be decoded" in refusal(audio.duration, path)
        path.write_bytes(b"")
        assert f"{path} cannot be decoded" in refusal(audio.read, path)
    for content in (b"", b"RIFF", b"    ftypM4A " + bytes(100)):
        assert f"audio of {len(content)} bytes cannot be decoded" in refusal(audio.read, content)
    assert refusal(audio.read, b"", name="utterance 7").startswith("utterance 7 cannot be decoded")


@pytest.mark.parametrize("suffix", [".flac", ".mp3", ".m4a"])
def test_a_truncated_file_is_refused(files, tmp_path, suffix):
    path = tmp_path / f"half{suffix}"
    path.write_bytes(files[suffix].read_bytes()[: files[suffix].stat().st_size // 2])
    message = refusal(audio.read, path)
    assert str(path) in message and ("promises" in message or "decoded" in message)


def test_samples_that_are_not_finite_are_refused(tmp_path):
    waveform = voice(1000)
    waveform[500] = np.nan
    path = tmp_path / "nan.wav"
    soundfile.write(path, waveform, 16000, subtype="FLOAT")
    assert "not finite" in refusal(audio.read, path)
    assert len(audio.read(path, 0, 500)) == 500


def test_what_holds_no_signal_is_told(tmp_path):
    quiet = np.full(16000, 0.25), np.zeros(16000), np.stack([voice(16000), -voice(16000)], axis=1)
    for waveform in quiet:
        path = tmp_path / "quiet.wav"
        soundfile.write(path, waveform, 16000, subtype="FLOAT")
        found = audio.inspect(path)
        assert found.samples == 16000 and not found.has_signal
    assert audio.inspect(write(tmp_path / "voice.wav", voice(16000))).has_signal


def test_every_link_of_a_chained_ogg_counts_and_a_cut_one_is_refused(tmp_path):
    link = write(tmp_path / "a.ogg", voice(16000)).read_bytes()
    whole = audio.read(link)
    np.testing.assert_array_equal(audio.read(link + link), np.concatenate([whole, whole]))
    assert audio.duration(link + link) == 32000
    assert "ends within a page" in refusal(audio.read, link[:-100])


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_wav_whose_header_was_never_completed_is_read_to_its_end(tmp_path, size):
    content = bytearray(write(tmp_path / "a.wav", voice(16000)).read_bytes())
    expected = audio.read(bytes(content))
    content[40:44] = size.to_bytes(4, "little")
    np.testing.assert_array_equal(audio.read(bytes(content)), expected)
    content[40:44] = (32000).to_bytes(4, "little")
    assert "promises" in refusal(audio.read, bytes(content[:-1000]))


def test_the_content_not_the_suffix_chooses_the_decoder(tmp_path):
    content = write(tmp_path / "a.mp3", voice(16000)).read_bytes()
    (tmp_path / "b.m4a").write_bytes(content)
    np.testing.assert_array_equal(audio.read(tmp_path / "b.m4a"), audio.read(content))


def encoded(waveform, codec, form, rate=16000, layout="mono", container="mp4", to=None, **options):
    """The bytes of `waveform` float32 (samples,) or (channels, samples), by FFmpeg."""
    import av

    target = io.BytesIO() if to is None else str(to)
    data = np.atleast_2d(waveform)
    if form.startswith("s16"):
        data = np.round(data * 32767).astype(np.int16)
    with av.open(target, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout, options=options)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(data), format=form, layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        for part in (frame, None):
            for packet in stream.encode(part):
                output.mux(packet)
    return target.getvalue() if to is None else to.read_bytes()


def wav_of(subtype):
    file = io.BytesIO()
    soundfile.write(file, voice(LENGTH), 16000, format="WAV", subtype=subtype)
    return file.getvalue()


def mp3():
    """An MP3 whose frames have several sizes, as a pipe gives it: without a first frame that says the length."""
    content = encoded(voice(LENGTH), "mp3", "fltp", container="mp3", global_quality="500")
    place = max(content.find(b"Xing"), content.find(b"Info"))
    second = content.index(content[content.index(b"\xff\xf3") :][:2], place)
    return content[second:]


def flac_of_unknown_length(tmp_path):
    content = bytearray(write(tmp_path / "a.flac", voice(LENGTH)).read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    return bytes(content)


def rf64():
    plain = wav_of("PCM_16")
    begin = plain.index(b"data")
    sizes = struct.pack("<QQQI", len(plain) + 28, len(plain) - begin - 8, LENGTH, 0)
    head = b"RF64" + b"\xff" * 4 + b"WAVE" + b"ds64" + struct.pack("<I", len(sizes)) + sizes
    return head + plain[12:begin] + b"data" + b"\xff" * 4 + plain[begin + 8 :]


UNUSUAL = {
    "MP3 without a length": lambda folder: mp3(),
    "MP3 with ID3 tags": lambda folder: b"ID3\x04\x00\x00\x00\x00\x02\x00" + bytes(256) + mp3() + b"TAG" + bytes(125),
    "MP3 with an APE tag": lambda folder: mp3() + b"APETAGEX" + struct.pack("<IIII", 2000, 32, 0, 0) + bytes(8),
    "GSM": lambda folder: wav_of("GSM610"),
    "ADPCM": lambda folder: wav_of("IMA_ADPCM"),
    "RF64": lambda folder: rf64(),
    "FLAC in Ogg": lambda folder: encoded(voice(LENGTH), "flac", "s16", container="ogg"),
    "FLAC of unknown length": flac_of_unknown_length,
    "ADTS": lambda folder: encoded(voice(LENGTH), "aac", "fltp", container="adts"),
    "Opus in MP4": lambda folder: encoded(voice(LENGTH), "libopus", "flt"),
    "chained Ogg": lambda folder: 2 * write(folder / "a.ogg", voice(LENGTH)).read_bytes(),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_a_segment_of_an_unusual_file_is_the_slice_of_the_whole(kind, tmp_path):
    content = UNUSUAL[kind](tmp_path)
    path = tmp_path / "file.m4a"  # The name of a file says nothing on its content.
    path.write_bytes(content)
    whole = audio.read(content)
    links = 1 + (kind == "chained Ogg")
    assert abs(len(whole) - links * LENGTH) <= 4096  # A codec without the exact length pads to whole packets.
    assert len(whole) == audio.duration(content) == audio.duration(path) == audio.inspect(path).samples
    correlation = np.correlate(whole[:20000], voice(LENGTH)[4000:12000])
    assert correlation.max() > 0.85 * np.dot(voice(LENGTH)[4000:12000], voice(LENGTH)[4000:12000])
    exact = 0 if kind != "Opus in MP4" else 1e-6  # resampled from 48 kHz
    for start, samples in ((0, 100), (50001, 3000), (len(whole) - 700, 5000), (len(whole), 10)):
        for source in (content, path):
            segment = audio.read(source, start, samples)
            np.testing.assert_allclose(segment, whole[start : start + samples], rtol=0, atol=exact)


def test_a_header_that_promises_too_much_is_refused_at_once():
    content = bytearray(wav_of("PCM_16"))
    flac = io.BytesIO()
    soundfile.write(flac, voice(16000), 16000, format="FLAC")
    lying = bytearray(flac.getvalue())
    lying[21] |= 0x0F
    lying[22:26] = b"\xff\xff\xff\x00"
    for source in (bytes(lying), bytes(content[:44] + content[44:20000])):
        for function in (audio.read, audio.inspect):
            assert "promises" in refusal(function, source)


def test_a_cut_opus_file_is_refused(files):
    content = files[".opus"].read_bytes()
    for end in (len(content) // 2, len(content) - 3, 40):
        assert "cannot be decoded" in refusal(audio.read, content[:end])


MEMORY = """
import resource, sys
from redimnet_jax.data import audio
audio.read(sys.argv[1], 0, 100)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert len(audio.read(sys.argv[1], 16000 * 230, 48000)) == 48000
assert audio.inspect(sys.argv[1]).samples >= 16000 * 240
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mp3", ".ogg"])
def test_what_is_skipped_takes_no_memory(suffix, tmp_path):
    """Four minutes are 15 MB of samples, of which a crop near the end needs 0.2 MB."""
    path = write(tmp_path / f"long{suffix}", np.tile(voice(16000), 240))
    command = [sys.executable, "-c", MEMORY, str(path)]
    assert float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) < 8
