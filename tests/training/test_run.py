"""Whole runs on artificial voices: to the end, stopped and resumed, gone wrong, refused."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny
import training_runs
from refusals import refusal
from training_runs import config, history, same_bits, same_runs, saved, settings, stop_at

import redimnet_jax as rj
from redimnet_jax.checkpoints import native
from redimnet_jax.cli import train as train_command
from redimnet_jax.evaluation import html_report, plots
from redimnet_jax.training import data as training_data
from redimnet_jax.training import preemption, trainer, validator
from redimnet_jax.training import run as training_run

PLOTS = ("det.png", "scores.png", "dimensions.png", "training.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_runs.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """(workdir, results) of a run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, training_run.train(config(data), workdir)


@pytest.fixture
def no_plots(monkeypatch):
    monkeypatch.setattr(plots, "save", lambda *_: None)
    monkeypatch.setattr(html_report, "write", lambda *_: None)


def test_a_run_to_the_end(whole, data):
    workdir, results = whole
    assert set(results["dims"]) == {str(dim) for dim in tiny.DIMS}
    assert json.loads((workdir / "results.json").read_text()) == results
    entries = history(workdir)
    assert [entry["step"] for entry in entries] == [0, 4, 8, 12]
    assert "loss" not in entries[0] and all(np.isfinite(entry["loss"]) for entry in entries[1:])
    for entry in entries[1:]:
        assert entry["loss"] == pytest.approx(np.mean(list(entry["losses"].values())), rel=1e-5)
        assert all(0 <= share <= 1 for share in entry["accuracies"].values())
    assert entries[-1]["loss"] < entries[1]["loss"]
    best = min(entries, key=lambda entry: entry["dims"]["12"]["eer"])
    assert results["dims"] == best["dims"]
    assert entries[1]["overfitting"] == {}
    assert f"last (epoch {entries[-1]['epoch']})" in (workdir / "results.md").read_text() or best is entries[-1]
    assert (workdir / "best").resolve().name == f"best-{best['step']}"
    for name in PLOTS:
        assert (workdir / name).stat().st_size > 1000
    page = (workdir / "report.html").read_text()
    assert all(f'<figcaption id="{chart}-title">' in page for chart in ("epochs", "losses", "det"))
    assert "<audio" in page
    assert list((workdir / "events").iterdir())
    assert json.loads((workdir / "config.json").read_text())["data"]["train"] == data["data.train"]
    # The newest two, and the best.
    kept = {int(folder.name) for folder in (workdir / "checkpoints").iterdir()}
    assert kept == {8, 12} | ({best["step"]} - {0})
    assert not list(workdir.glob(".*")) and len(list(workdir.glob("best-*/"))) == 1


def test_the_start_is_lossless(whole):
    """Before the first step, 8 dimensions give what the pretrained model's 8 give."""
    workdir, _ = whole
    _, progress = saved(workdir, 12)
    pretrained, first = progress["progress"]["pretrained"]["dims"], progress["progress"]["history"][0]["dims"]
    assert set(pretrained) == {"4", "8"}
    assert pretrained["8"]["eer"] == first["8"]["eer"]
    assert pretrained["8"]["target_mean"] == pytest.approx(first["8"]["target_mean"], abs=1e-6)
    assert pretrained["4"]["target_mean"] != pytest.approx(first["4"]["target_mean"], abs=1e-4)


def test_the_best_model_gives_the_reported_rates(whole, data):
    from redimnet_jax.embedding import extract
    from redimnet_jax.evaluation import results as evaluation_results

    workdir, results = whole
    model = rj.load(workdir)
    assert model.mrl_dims == tiny.DIMS
    judged = training_data.open_data(settings(data), workdir).validation
    again, *_ = evaluation_results.evaluate(
        model, extract.pool_recordings(model, judged.recordings), judged, tiny.DIMS
    )
    for dim in map(str, tiny.DIMS):
        assert again["dims"][dim]["eer"] == pytest.approx(results["dims"][dim]["eer"], abs=1e-9)
        assert again["dims"][dim]["target_mean"] == pytest.approx(results["dims"][dim]["target_mean"], abs=1e-6)


def test_a_frozen_backbone_of_a_run(whole, data):
    before = native.flat(rj.load(data["model.checkpoint"]).network)
    after = native.flat(rj.load(whole[0]).network)
    frozen = [name for name in before if name.startswith(("frontend", "backbone", "pool"))]
    same_bits(*({name: np.asarray(arrays[name]) for name in frozen} for arrays in (before, after)))


@pytest.mark.slow
def test_stopped_within_an_epoch_and_resumed(whole, data, tmp_path, monkeypatch, no_plots, caplog):
    # Twice: in the first epoch, and at the very end of the second one, before its validation.
    for step in (3, 8):
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(preemption.Preempted, match=f"step {step}"):
                training_run.train(config(data), tmp_path)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    caplog.clear()
    training_run.train(config(data), tmp_path)
    assert "resumed at step 8" in caplog.text
    same_runs(whole[0], tmp_path, 12)
    # And what is complete is only reported again.
    training_run.train(config(data), tmp_path)
    same_runs(whole[0], tmp_path, 12)


SCRATCH = {"parts": ("backbone", "projection", "heads"), "epochs": 2, "model__config": tiny.CONFIG}
SCRATCH |= {"model__checkpoint": None, "heads__init": "random"}
SCRATCH |= {"projection__mrl_dims": (8,), "validation__dim": 8}


@pytest.mark.slow
def test_from_nothing_and_stopped_while_validating(data, tmp_path, monkeypatch, no_plots):
    wanted = config(data, **SCRATCH)
    training_run.train(wanted, tmp_path / "whole")
    workdir, validations = tmp_path / "stopped", []

    def pool_recordings(*arguments, **options):
        validations.append(len(validations))
        if len(validations) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    original = validator.pool_recordings
    with monkeypatch.context() as patch:
        patch.setattr(validator, "pool_recordings", pool_recordings)
        with pytest.raises(preemption.Preempted, match="step 4"):
            training_run.train(wanted, workdir)
    assert len(saved(workdir, 4)[1]["progress"]["history"]) == 1
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(preemption.Preempted):
            training_run.train(wanted, workdir)
    # The checkpoint of the stop has become that of the whole epoch.
    assert len(saved(workdir, 4)[1]["progress"]["history"]) == 2
    training_run.train(wanted, workdir)
    same_runs(tmp_path / "whole", workdir, 8)
    assert "pretrained" not in (workdir / "results.md").read_text()


@pytest.mark.slow
def test_killed_between_the_best_model_and_its_checkpoint(whole, data, tmp_path, monkeypatch, no_plots):
    """The next start validates again, and `best` is a whole model all the while."""

    class Killed(Exception):
        pass

    def save(checkpoints, *arguments):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training_run.TrainingCheckpoints, "save", save)
        with pytest.raises(Killed):
            training_run.train(config(data), tmp_path)
    rj.load(tmp_path)
    training_run.train(config(data), tmp_path)
    same_bits(*(native.flat(rj.load(workdir).network) for workdir in (whole[0], tmp_path)))
    assert len(list(tmp_path.glob("best-*/"))) == 1


@pytest.mark.slow
def test_early_stopping(data, tmp_path, no_plots, caplog):
    # No EER gets better by 100%.
    wanted = config(data, validation__patience=2, validation__min_improvement=1.0, epochs=9)
    results = training_run.train(wanted, tmp_path)
    assert [entry["step"] for entry in history(tmp_path)] == [0, 4, 8]
    assert "stopped early" in caplog.text
    assert training_run.train(wanted, tmp_path) == results
    assert [entry["step"] for entry in history(tmp_path)] == [0, 4, 8]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(data, tmp_path, monkeypatch, no_plots):
    # Warms up for an epoch, so that the first steps are still harmless; then float32 is too small.
    wanted = config(
        data, optimizer__learning_rate=1e38, optimizer__warmup_epochs=3.0, checkpoint__every_steps=1, epochs=4
    )
    told = refusal(training_run.train, wanted, tmp_path)
    assert "optimizer.learning_rate" in told and " at step " in told
    kept = sorted(int(folder.name) for folder in (tmp_path / "checkpoints").iterdir())
    assert f"the checkpoint of step {kept[-1]} is kept" in told
    for array in saved(tmp_path, kept[-1])[0].values():
        assert np.isfinite(array).all()


@pytest.mark.slow
def test_speakers_kept_out_where_no_trials_are_given(data, tmp_path, no_plots, caplog):
    wanted = settings(
        data,
        epochs=2,
        batch_size=4,
        validation__tree=None,
        validation__every_epochs=2,
        validation__crop_seconds=0.4,
        validation__crops=2,
        validation__holdout=0.34,
        heads__shared=True,
        loss__weights=(1.0, 2.0),
        projection__mrl_dims=(2, 5),
        optimizer__accumulate=2,
    )
    training_run.train(wanted, tmp_path)
    out = caplog.text
    assert "24 utterances of 4 speakers" in out and "2 training speakers kept out" in out
    assert "the first 5 of 8 pretrained directions" in out
    assert rj.load(tmp_path).mrl_dims == (2, 5)
    assert ["dims" in entry for entry in history(tmp_path)] == [True, False, True]
    _, progress = saved(tmp_path, 12)
    assert len(progress["speakers"]) == 4
    held = training_data.open_data(wanted, tmp_path).validation
    assert not set(held.speakers) & set(progress["speakers"]) and len(set(held.speakers)) == 2


def test_synthetic_sources(data, tmp_path):
    wanted = settings(data, data__train="synthetic:3x1x2", validation__tree="synthetic:2x1x2@3")
    opened = training_data.open_data(wanted, tmp_path)
    assert len(opened.corpus) == 6 and set(opened.corpus.samples) == {48000}
    assert len(set(opened.corpus.speakers) | set(opened.validation.speakers)) == 5
    waveform = opened.corpus.read(0)
    marker = tmp_path / "synthetic" / "3x1x2" / "marker"
    marker.touch()
    again = training_data.open_data(wanted, tmp_path)
    assert marker.exists() and np.array_equal(again.corpus.read(0), waveform)
    for wrong in ("synthetic:3x2", "synthetic:axbxc", "synthetic:0x1x1"):
        refusal(training_data.open_data, settings(data, data__train=wrong), tmp_path)


def speech(folder, *names) -> str:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * np.random.default_rng(len(name)).standard_normal(9600), 16000)
    folder.mkdir(exist_ok=True)
    return str(folder)


def trial_list(folder, *lines) -> str:
    path = folder / "trials.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def damaged(data, folder) -> str:
    shutil.copytree(data["model.checkpoint"], folder / "damaged")
    (folder / "damaged" / "checkpoint.json").write_text("{")
    return str(folder / "damaged")


BAD = {
    "no training data": (lambda d, f: {"data__train": ""}, "config.data.train"),
    "wrong path": (lambda d, f: {"data__train": str(f / "nothing")}, "nothing"),
    "wrong validation path": (lambda d, f: {"validation__tree": str(f / "nothing")}, "nothing"),
    "wrong trials": (lambda d, f: {"validation__trials": str(f / "nothing.txt")}, "nothing.txt"),
    "no audio": (lambda d, f: {"data__train": speech(f / "empty")}, "no audio"),
    "one speaker": (lambda d, f: {"data__train": speech(f / "one", "a/1.wav", "a/2.wav")}, "1 speaker"),
    "too few to keep out": (
        lambda d, f: {"data__train": speech(f / "few", "a/1.wav", "b/2.wav", "c/1.wav"), "validation__tree": None},
        "validation tree",
    ),
    "dims that fall": (lambda d, f: {"projection__mrl_dims": (8, 4)}, "projection.mrl_dims"),
    "dims beyond the width": (lambda d, f: {"projection__mrl_dims": (8, 25)}, "24"),
    "no such dim": (lambda d, f: {"validation__dim": 9}, "validation.dim"),
    "batch and pieces": (lambda d, f: {"optimizer__accumulate": 3}, "batch_size"),
    "batch beyond the data": (lambda d, f: {"batch_size": 64}, "64"),
    "no such model": (lambda d, f: {"model__checkpoint": str(f / "nothing")}, "nothing"),
    "damaged model": (lambda d, f: {"model__checkpoint": damaged(d, f)}, "damaged"),
    "no model": (lambda d, f: {"model__checkpoint": None}, "model.checkpoint"),
    "file of a trial": (
        lambda d, f: {
            "validation__tree": None,
            "validation__trials": trial_list(f, "1 a/1.wav a/2.wav", "0 a/1.wav b/1.wav"),
            "validation__audio_root": speech(f / "audio", "a/1.wav", "b/1.wav"),
        },
        "a/2.wav",
    ),
    "file of a trial in a tree": (lambda d, f: {"validation__trials": trial_list(f, "1 x/1.wav x/2.wav")}, "x/1.wav"),
    "shared speakers": (lambda d, f: {"validation__tree": d["data.train"]}, "validation.allow_shared_speakers"),
    "loss of the unseen": (lambda d, f: {"classification__source": d["validation.tree"]}, "no prototype"),
    "same sex without metadata": (lambda d, f: {"validation__same_sex": True}, "validation.metadata"),
    "parts": (lambda d, f: {"parts": ("projection",)}, "parts"),
    "too few crops": (lambda d, f: {"projection__crops": 8}, "projection.crops"),
    "augmentation": (lambda d, f: {"data__augment__noise_folder__p": 0.5}, "folder"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_sentence_before_long_work(kind, data, tmp_path, monkeypatch):
    def long_work(*_, **__):
        raise AssertionError("long work was started")

    monkeypatch.setattr(validator, "pool_recordings", long_work)
    monkeypatch.setattr(trainer, "compile_step", long_work)
    if "dims" in kind or "model" in kind:
        monkeypatch.setattr(training_data, "open_corpus", long_work)
    changes, told = BAD[kind]
    assert told in refusal(training_run.train, config(data, **changes(data, tmp_path)), tmp_path / "run")


def test_batch_that_the_devices_cannot_share(data):
    from redimnet_jax.training import config as train_config

    told = refusal(train_config.check, config(data), 3)
    assert "3 device(s)" in told and "batch_size" in told


def copied(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / "run", symlinks=True)


@pytest.mark.slow
def test_resuming_with_another_setting_or_speakers(whole, data, tmp_path):
    workdir = copied(whole, tmp_path)
    told = refusal(training_run.train, config(data, optimizer__learning_rate=1.0, seed=3), workdir)
    assert "optimizer.learning_rate (was 0.01, is 1.0)" in told and "seed (was 0, is 3)" in told
    moved = tmp_path / "moved"
    shutil.copytree(data["data.train"], moved)
    # The same data elsewhere is the same.
    assert training_run.train(config(data, data__train=str(moved), log_every_steps=7), workdir) == whole[1]
    speaker = min(path for path in moved.iterdir() if path.is_dir())
    speaker.rename(moved / "somebody")
    assert "speakers" in refusal(training_run.train, config(data, data__train=str(moved)), workdir)
    (moved / "somebody").rename(speaker)
    # Recordings that are gone are no reason to refuse; other recordings of these speakers are.
    shutil.rmtree(next(speaker.iterdir()))
    assert training_run.train(config(data, data__train=str(moved)), workdir) == whole[1]
    (workdir / "index").rename(workdir / "lost")
    assert "corpus" in refusal(training_run.train, config(data, data__train=str(moved)), workdir)


@pytest.mark.parametrize("part", ["progress", "arrays"])
def test_resuming_from_a_damaged_checkpoint(part, whole, data, tmp_path):
    workdir = copied(whole, tmp_path)
    for path in (workdir / "checkpoints" / "12" / part).rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert "checkpoints/12" in refusal(training_run.train, config(data, epochs=3), workdir)


def test_a_workdir_that_is_a_file(data, tmp_path):
    (tmp_path / "file").touch()
    assert "workdir" in refusal(training_run.train, config(data), tmp_path / "file")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--config=configs/projection_only.py", "--workdir={}", "--config.epoch=3"], "epoch"),
        (["--config=configs/projection_only.py", "--workdir={}", "--config.data.augment.gian.p=1"], "gian"),
        (["--config=configs/projection_only.py", "--workdir={}", "--config.epochs=many"], "epochs"),
        (["--config=configs/projection_only.py:nothing", "--workdir={}"], "nothing"),
        (["--config=configs/from_scratch.py:nothing", "--workdir={}"], "nothing"),
        (["--config=configs/nothing.py", "--workdir={}"], "nothing.py"),
        (["--workdir={}"], "--config"),
        (["--config=configs/projection_only.py", "--workdir="], "--workdir"),
        (
            ["--config=configs/projection_only.py", "--workdir={}", "--config.learning_rate=1"],
            "optimizer.learning_rate",
        ),
        (
            ["--config=configs/projection_only.py", "--workdir={}", "--config.optimiser.clip_norm=1"],
            "optimizer.clip_norm",
        ),
        (["--config=configs/projection_only.py", "--workdir={}", "--config.data.trian=x"], "data.train"),
        (["--config=configs/projection_only.py", "--workdir={}", "--wrokdir=x"], "wrokdir"),
        (["--config=configs/projection_only.py", "--workdir={}", "--coordinator=localhost:1"], "--processes"),
    ],
)
def test_flags_that_are_wrong(flags, told, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    assert train_command.main([*(flag.format(tmp_path / "run") for flag in flags)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and told in err
    assert not (tmp_path / "run").exists()
