"""The front ends alone: against the public code, against librosa, and their gradient."""

import json

import golden
import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from redimnet_jax.models import config as model_config
from redimnet_jax.models import frontend
from redimnet_jax.models.config_spec import SpecParams

ARRAYS = golden.arrays("frontends")
SPEC = {k: v for k, v in json.loads((golden.FOLDER / "frontends.json").read_text()).items() if k != "audio"}


def build(name: str) -> frontend.FrontEnd:
    options = dict(SPEC[name]["options"])
    feat_type = {"MelBanks": "pt", "TFMelBanks": "tf", "Kaldi": "kaldi"}[SPEC[name]["kind"]]
    mels, hop = options.pop("n_mels"), options.pop("hop_length", 160)
    config = model_config.parse("redimnet", {"feat_type": feat_type, "spec_params": options})
    return frontend.FRONT_ENDS[feat_type](mels, hop, config.spec_params)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SPEC))
def test_agrees_with_the_public_code(name):
    front_end = build(name)
    if not name.startswith(
        "tf"
    ):  # Compiled as a whole is quicker, but rounds the DFT of the TF front end too coarsely.
        front_end = jax.jit(front_end)
    audio = golden.audio(5, 1, 16000)
    for length in SPEC[name]["lengths"]:
        theirs = ARRAYS[f"{name}:{length}"]
        # Exactly fitting, and padded with noise to one length for all.
        ours, frames = front_end(jnp.asarray(audio[:, :length]))
        assert frames is None and ours.shape[1:] == theirs.T.shape
        padded = np.random.default_rng(0).standard_normal((1, 16000)).astype(np.float32)
        padded[:, :length] = audio[:, :length]
        masked, count = front_end(jnp.asarray(padded), jnp.array([length]))
        assert count.tolist() == [theirs.shape[1]]
        for mel in (ours[0], masked[0, : theirs.shape[1]]):
            # A single frame less its mean is zero, so the scale is that of the largest value or one.
            # Kaldi's in float32 are 1.8e-4 from those in float64 where little energy is left, ours 5e-5.
            tolerance = 4e-5 if name.startswith("kaldi") else 2e-5
            np.testing.assert_allclose(mel, theirs.T, rtol=0, atol=tolerance * max(1.0, np.abs(theirs).max()))
        assert not np.asarray(masked[0, theirs.shape[1] :]).any()


@pytest.mark.parametrize("name", sorted(name for name in SPEC if SPEC[name]["kind"] != "Kaldi"))
def test_constants_are_those_of_the_public_code(name):
    front_end = build(name)
    bank = ".mel_scale.fb" if SPEC[name]["kind"] == "MelBanks" else ".melbanks_pt"
    theirs = ARRAYS[f"{name}:constant:torchfbank.2{bank}"]
    theirs = theirs if theirs.ndim == 2 else theirs[:, :, 0].T
    # PyTorch computes the triangles in float32, whose rounding of Hz shows at their narrow end.
    np.testing.assert_allclose(front_end.filter_bank[...], theirs, atol=2e-4)


@pytest.mark.slow
def test_filter_bank_is_librosas():
    params = SpecParams()
    theirs = librosa.filters.mel(sr=16000, n_fft=512, n_mels=72, fmin=20, fmax=7600, htk=True, norm=None)
    np.testing.assert_allclose(frontend.mel_filter_bank(257, 72, params), theirs.T, atol=1e-5)


def test_log_mel_is_librosas():
    audio = golden.audio(3, 1, 16000)
    params = SpecParams(do_preemph=False)
    ours, _ = jax.jit(frontend.TorchMel(72, 240, params))(audio)
    power = librosa.feature.melspectrogram(
        y=audio[0],
        sr=16000,
        n_fft=512,
        win_length=400,
        hop_length=240,
        window="hamming",
        pad_mode="reflect",
        n_mels=72,
        fmin=20,
        fmax=7600,
        htk=True,
        norm=None,
    )
    theirs = np.log(power.T + 1e-6)
    np.testing.assert_allclose(ours[0], theirs - theirs.mean(0), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pt", "tf"])
def test_is_differentiable(kind):
    front_end = frontend.FRONT_ENDS[kind](24, 240, SpecParams(norm_signal=True))
    audio, direction = jnp.asarray(golden.audio(1, 1, 4000)), jnp.asarray(golden.audio(2, 1, 4000))

    @jax.jit
    def mean_square(x):
        return jnp.mean(jnp.square(front_end(x)[0]))

    slope = float(jnp.sum(jax.jit(jax.grad(mean_square))(audio) * direction))
    step = 1e-3
    numeric = (mean_square(audio + step * direction) - mean_square(audio - step * direction)) / (2 * step)
    assert slope == pytest.approx(float(numeric), rel=0.05)


@pytest.mark.slow
def test_spec_augment_zeroes_one_band_of_each_axis():
    params = SpecParams(freq_mask_width=(3, 4), time_mask_width=(5, 6), freq_start_bin=2)
    x = frontend.spec_augment(jnp.ones((50, 30, 20)), None, params, jax.random.key(0))
    zero = np.asarray(x) == 0
    frames, mels = zero.all(axis=2), zero.all(axis=1)
    assert (frames.sum(1) == 5).all() and (mels.sum(1) == 3).all()
    assert (zero == (frames[:, :, None] | mels[:, None, :])).all()
    starts = mels.argmax(1)
    assert starts.min() >= 2 and starts.max() < 20 - 3 and len(set(starts)) > 5


@pytest.mark.slow
def test_spec_augment_stays_inside_each_utterance():
    params = SpecParams(time_mask_width=(4, 5), freq_mask_width=(0, 1))
    lengths = jnp.array([10, 30] * 20)
    zero = np.asarray(frontend.spec_augment(jnp.ones((40, 30, 8)), lengths, params, jax.random.key(0))) == 0
    ends = 30 - zero.all(axis=2)[:, ::-1].argmax(1)
    assert (ends <= np.asarray(lengths)).all()


@pytest.mark.parametrize(("samples", "n_fft"), [(400, 512), (80, 96), (15, 15)])
def test_power_spectrum_by_fft_is_that_by_products(samples, n_fft, monkeypatch):
    frames = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, samples)), jnp.float32)
    by_products = frontend.power_spectrum(frames, n_fft)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda x, *, cuda, **others: cuda(x))
    by_fft = frontend.power_spectrum(frames, n_fft)
    assert by_fft.shape == (2, 3, n_fft // 2 + 1)
    np.testing.assert_allclose(by_fft, by_products, rtol=1e-4, atol=1e-5 * float(by_products.max()))
