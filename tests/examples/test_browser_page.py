"""The page of examples/browser gives what the library gives, and sends nothing anywhere."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import browser_page
import numpy as np
import pytest
import soundfile
import soxr
import tiny

import redimnet_jax as rj
from redimnet_jax.checkpoints import native, pretrained
from redimnet_jax.data.synthetic import voices
from redimnet_jax.evaluation import system_calibration
from redimnet_jax.verification.verify import find_calibration, score_pair

RATE = 16000
SECONDS = 3.0
# The browser resamples with another filter; what its microphone gives begins anywhere, and ends there.
RESAMPLED, RECORDED = 0.005, 0.1


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> dict[str, Path]:
    """Files of two artificial voices, and of what the page has to refuse."""
    folder = tmp_path_factory.mktemp("recordings")
    first, again, other = (voices.synthesize(*which, SECONDS) for which in ((0, 0, 0), (0, 0, 1), (1, 0, 0)))
    wide, beside = (soxr.resample(signal, RATE, 44100) for signal in (again, other))
    hiss = np.random.default_rng(0).normal(0, 1e-4, 2 * RATE)
    signals = {
        "first": (first, RATE),
        "again": (again, RATE),
        "other": (other, RATE),
        "wide": (np.stack([wide, beside], axis=1), 44100),
        "short": (first[: RATE // 4], RATE),
        "brief": (first[:RATE], RATE),
        "silence": (hiss, RATE),
        "long": (np.tile(other, 21), RATE),
    }
    for name, (signal, rate) in signals.items():
        soundfile.write(folder / f"{name}.wav", signal, rate, subtype="FLOAT")
    # Chromium's microphone reads whole numbers only.
    soundfile.write(folder / "spoken.wav", first, RATE, subtype="PCM_16")
    (folder / "text.wav").write_text("no audio")
    return {path.stem: path for path in folder.iterdir()}


def cosine(model: rj.SpeakerModel, recordings: dict[str, Path], a: str, b: str, dim: int) -> float:
    left, right = (np.asarray(model.embed_file(recordings[name], normalize=False)) for name in (a, b))
    return score_pair(left, right, dim, None)


def spread(model: rj.SpeakerModel, recordings: dict[str, Path]) -> rj.SpeakerModel:
    """Centre the embeddings of a random `model`, which gives nearly one to all voices; return it."""
    vectors = [
        np.asarray(model.embed_file(recordings[name], normalize=False)) for name in ("first", "again", "other")
    ]
    bias = model.network.linear.bias
    bias.set_value(bias.get_value() - np.mean(vectors, axis=0))
    return model


def test_the_calibration_suits_the_small_model():
    path = browser_page.FOLDER / "calibration-cosine.json"
    known, _ = find_calibration(rj.load(pretrained.SMALL), 192, path)
    assert known is not None and not known.prefixes[192].calibration.weights


@pytest.mark.slow
def test_the_page_in_a_browser(recordings, tmp_path):
    browser_page.require()
    calibrated, plain = tmp_path / "calibrated", tmp_path / "plain"
    browser_page.bundle(calibrated)
    shutil.copytree(calibrated, plain)
    browser_page.export(calibrated)
    native.save(spread(tiny.model(mrl_dims=[4, 8]), recordings), tmp_path / "tiny")
    browser_page.export(plain, f"--checkpoint={tmp_path / 'tiny'}")
    steps = {
        "opened": ["open", calibrated],
        "first": ["file", 0, recordings["first"]],
        "same": ["file", 1, recordings["again"]],
        "rare": ["prior", 0],
        "keyboard": ["press", "ArrowRight"],
        "wide": ["file", 1, recordings["wide"]],
        "different": ["file", 1, recordings["other"]],
        "recorded": ["record", 1, 3.0],
        "playing": ["play", 1],
        "stopped": ["play", 1],
        "brief": ["file", 1, recordings["brief"]],
        "short": ["file", 0, recordings["short"]],
        "silence": ["file", 0, recordings["silence"]],
        "text": ["file", 0, recordings["text"]],
        "refused": ["refuse", 1],
        "uncalibrated": ["open", plain],
        "left": ["file", 0, recordings["first"]],
        "whole": ["file", 1, recordings["long"]],
        "prefix": ["dim", 4],
    }
    drove = browser_page.drive(list(steps.values()), recordings["spoken"])
    shown = dict(zip(steps, drove["shown"], strict=True))

    # Nothing leaves the page's own server.
    assert drove["failures"] == []
    requests = {url.removeprefix(drove["origin"]) for url in drove["requests"]}
    assert {"/page.js", "/model/model.onnx", "/model/model.json", "/ort-wasm-simd-threaded.wasm"} <= requests
    assert all(url.startswith("/") for url in requests)

    small = rj.load(pretrained.SMALL)
    check_decisions(shown, small, recordings)
    assert shown["wide"]["cosine"] == pytest.approx(cosine(small, recordings, "first", "wide", 192), abs=RESAMPLED)
    assert shown["recorded"]["cosine"] > 1 - RECORDED
    # A busy machine ends the recording late.
    name, seconds = re.fullmatch(r"(.*): ([\d.]+) s", shown["recorded"]["status"][1]).groups()
    assert name == "The microphone's recording" and 2.5 < float(seconds) < 15
    assert [shown[step]["buttons"][2:] for step in ("playing", "stopped")] == [["Record", "Stop"], ["Record", "Play"]]
    check_refusals(shown)
    check_prefixes(shown, rj.load(tmp_path / "tiny"), recordings)


def check_decisions(shown, model, recordings):
    assert shown["opened"]["verdict"] == shown["first"]["verdict"] == "Two recordings are needed."
    path = browser_page.FOLDER / "calibration-cosine.json"
    calibration = system_calibration.load(path).prefixes[192].calibration
    for step, name, prior in (
        ("same", "again", 0.5),
        ("rare", "again", 0.001),
        ("keyboard", "again", 0.002),
        ("different", "other", 0.002),
    ):
        found = shown[step]
        assert found["cosine"] == pytest.approx(cosine(model, recordings, "first", name, 192), abs=1e-4)
        llr = float(calibration([found["cosine"]])[0])
        assert found["llr"] == pytest.approx(llr, abs=1e-9)
        assert found["prior"] == f"{prior:.1%}".replace(".0%", "%")
        assert found["posterior"] == pytest.approx(1 / (1 + math.exp(-llr) * (1 - prior) / prior), abs=1e-9)
        assert found["verdict"] == ("Same speaker" if found["posterior"] >= 0.5 else "Different speakers")
    assert shown["same"]["verdict"] != shown["different"]["verdict"]


def check_refusals(shown):
    reasons = {
        "short": "“short.wav” has 0.25 s, but a comparison needs 0.5 s; take a longer one.",
        "silence": "“silence.wav” is silent but for 0.00 s; check the microphone, or take another recording.",
        "text": "“text.wav” is not audio that this browser can decode; try WAV, FLAC, MP3, Ogg or M4A.",
    }
    for step, sentence in reasons.items():
        assert shown[step]["errors"][0] == sentence and shown[step]["cosine"] is None
    assert shown["refused"]["errors"][1].startswith("The microphone was refused; allow it ")
    # `redimnet-jax verify` gives no decision outside the calibration's limits either.
    brief = shown["brief"]
    assert brief["verdict"] == "No decision" and brief["llr"] is None and brief["cosine"] is not None
    assert brief["explanation"].endswith("knows recordings of 1.9 to 19.9 s, and one has 1.0 s.")


def check_prefixes(shown, model, recordings):
    assert abs(shown["whole"]["cosine"] - shown["prefix"]["cosine"]) > 0.01
    for step, dim in (("whole", 8), ("prefix", 4)):
        found = shown[step]
        assert found["cosine"] == pytest.approx(cosine(model, recordings, "first", "long", dim), abs=1e-4)
        assert found["dims"] == ["4", "8"] and found["prior"] is found["llr"] is found["posterior"] is None
        assert found["verdict"] == "No decision"
        assert found["explanation"] == "Only the cosine is known, because the model is uncalibrated."
    assert shown["whole"]["status"][1] == "“long.wav”: 63.0 s, of which the first 60 s are used"


@pytest.mark.skipif(not shutil.which("node"), reason="node not found")
def test_scores_in_javascript():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6)).tolist()
    facts = {"dim": 6, "calibration": {"scale": 20.0, "offset": -8.0, "limits": {"duration": [2, 9]}}}
    script = f"""
        import * as score from {json.dumps((browser_page.FOLDER / "src" / "score.js").as_uri())};
        const [a, b, facts] = {json.dumps([a, b, facts])};
        const at = score.scoreThreshold(facts.calibration, 0.1);
        console.log(JSON.stringify({{
            cosine: score.cosine(a, b, 4),
            even: score.posterior(score.logLikelihoodRatio(facts.calibration, at), 0.1),
            reasons: [[6, [2, 9]], [4, [2, 9]], [6, [1, 3]]].map((given) => score.reasonAgainst(facts, ...given)),
        }}));
    """
    command = ["node", "--input-type=module", "--eval", script]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    expected = np.dot(a[:4], b[:4]) / np.linalg.norm(a[:4]) / np.linalg.norm(b[:4])
    assert found["cosine"] == pytest.approx(expected, abs=1e-12)
    assert found["even"] == pytest.approx(0.5, abs=1e-12)
    assert found["reasons"] == [
        None,
        "the model is calibrated at 6 dimensions only",
        "the calibration knows recordings of 2.0 to 9.0 s, and one has 1.0 s",
    ]
