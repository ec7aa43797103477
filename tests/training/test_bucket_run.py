"""A run with every folder in a bucket: killed and resumed, then its model is evaluated and embeds from there."""

import json
import os
import shutil
import signal
from pathlib import Path

import bucket_server
import checkpoint_files
import jax
import numpy as np
import pytest
import run_commands
import training_runs
from refusals import refusal

import redimnet_jax as rj
from redimnet_jax import addresses, buckets
from redimnet_jax.checkpoints import native
from redimnet_jax.checkpoints.open import open_model
from redimnet_jax.cli import convert, embed, evaluate
from redimnet_jax.data import decoding, tfds
from redimnet_jax.data.corpus import open_corpus
from redimnet_jax.embedding import folder as embedding_folder
from redimnet_jax.evaluation import score_file
from redimnet_jax.mirrored_files import SEAL
from redimnet_jax.training import run as training_run
from redimnet_jax.training import saved_run

SETTINGS = {"epochs": 2, "checkpoint.every_steps": 2, "averaging.last": 2, "cache.crops": 1}


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Give the settings of a run that trains on local data."""
    folder = tmp_path_factory.mktemp("data")
    data = training_runs.write_data(folder)
    shutil.copytree(Path(data["data.train"]), folder / "noise")
    return data | {"data.augment.noise_folder.folder": str(folder / "noise"), "data.augment.noise_folder.p": 0.5}


@pytest.fixture(scope="module")
def bucket(local):
    """Give a bucket with the same data in `data`."""
    with bucket_server.served() as url:
        address = bucket_server.make_bucket(url)
        folder = str(Path(local["data.train"]).parent)
        for path in filter(Path.is_file, Path(folder).rglob("*")):
            addresses.upload(path, f"{address}/data/{path.relative_to(folder)}")
        yield address


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Give a function that goes on on the machine of a name, which has a disk of its own."""

    def use(name: str) -> None:
        monkeypatch.setenv(buckets.STAGING, str(tmp_path / f"disk-{name}"))

    use("a")
    return use


def in_bucket(settings: dict, bucket: str) -> dict:
    folder = str(Path(settings["data.train"]).parent)
    return {
        key: value.replace(folder, f"{bucket}/data") if isinstance(value, str) else value
        for key, value in settings.items()
    }


def sealed(workdir: str) -> list[int]:
    names = [name for name in addresses.files_below(f"{workdir}/checkpoints") if name.endswith(SEAL)]
    return sorted(
        int(name.partition("/")[0])
        for name in names
        if json.loads(addresses.read(f"{workdir}/checkpoints/{name}"))["complete"]
    )


@pytest.mark.slow
def test_killed_resumed_evaluated_and_embedded(local, bucket, machine, tmp_path, capsys, caplog):
    whole = tmp_path / "run"
    training_run.train(training_runs.config(local | SETTINGS), whole)
    workdir = f"{bucket}/run"
    settings = in_bucket(local, bucket) | SETTINGS | {"cache.folder": f"{bucket}/features"}
    flags = training_runs.SETTINGS | settings
    process = run_commands.begin(f"--workdir={workdir}", *(f"--config.{key}={value}" for key, value in flags.items()))
    run_commands.wait_until(lambda: process.poll() is not None or sealed(workdir), "a checkpoint")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not addresses.is_file(f"{workdir}/results.json")
    # Another machine, where nothing of the run is, goes on; it need not wait, since the killed process was here.
    machine("b")
    caplog.clear()
    training_run.train(training_runs.config(settings), workdir)
    assert "resumed at step" in caplog.text and "features of 36 crops, " not in caplog.text
    copy = buckets.staged(workdir)
    arrays, _ = training_runs.saved(copy, saved_run.saved_steps(workdir)[-1])
    training_runs.same_bits(arrays, training_runs.saved(whole, saved_run.saved_steps(whole)[-1])[0])
    assert training_runs.history(copy) == training_runs.history(whole)
    assert json.loads((copy / "results.json").read_text()) == json.loads((whole / "results.json").read_text())
    assert {path.name for path in copy.iterdir()} >= {
        "averaged",
        "epochs",
        "events",
        "index",
        "det.png",
        "config.json",
    }
    assert saved_run.open_run(workdir).step == saved_run.open_run(whole).step

    machine("c")
    training_runs.same_bits(*(native.flat(rj.load(place).network) for place in (workdir, whole)))
    report = f"{bucket}/report"
    trials = f"{bucket}/trials.txt"
    addresses.write(trials, (trial_list(Path(local["validation.tree"]))).encode())
    arguments = [f"--checkpoint={workdir}", f"--trials={trials}", f"--audio_root={settings['validation.tree']}"]
    arguments += ["--bootstrap=10", f"--cache={bucket}/pooled"]
    assert evaluate.main([*arguments, f"--output={report}"]) == 0
    assert f"plots are in {report}" in capsys.readouterr().out
    assert len(score_file.read(f"{report}/scores.tsv")[0]) == 80
    assert any(name.startswith("pooled-") for name in addresses.files_below(f"{bucket}/pooled"))
    embeddings = f"{bucket}/embeddings"
    assert embed.main([settings["validation.tree"], f"--checkpoint={workdir}", f"--output={embeddings}"]) == 0
    assert embeddings in (said := capsys.readouterr().out) and "disk-" not in said
    machine("d")
    assert embedding_folder.load(embeddings).array.shape == (24, training_runs.tiny.DIMS[-1])


def trial_list(tree: Path) -> str:
    files = (path for path in tree.rglob("*") if path.suffix in decoding.SUFFIXES)
    names = sorted(str(path.relative_to(tree)) for path in files)
    pairs = [(a, b) for a in names for b in names if a < b]
    chosen = np.random.default_rng(0).permutation(len(pairs))[:80]
    lines = [f"{int(a.split('/')[0] == b.split('/')[0])} {a} {b}" for a, b in (pairs[i] for i in chosen)]
    return "\n".join(lines) + "\n"


def test_a_tree_in_a_bucket_is_the_same_corpus(local, bucket, machine):
    source = in_bucket(local, bucket)["data.train"]
    here = open_corpus(local["data.train"], cache_dir=None, progress=False)
    index = f"{bucket}/indices"
    there = open_corpus(source, cache_dir=index, progress=False)
    assert there.digest == here.digest and there.name(3) == here.name(3)
    np.testing.assert_array_equal(there.read(5, 1000, 500), here.read(5, 1000, 500))
    machine("b")
    assert open_corpus(source, cache_dir=index, progress=False).digest == here.digest
    assert len({name.partition("/")[0] for name in addresses.files_below(index) if name[0] != "."}) == 1
    lines = [f"{source}/{here.name(i)} {here.speakers[here.labels[i]]}\n" for i in range(len(here))]
    addresses.write(f"{bucket}/list.txt", "".join(lines).encode())
    listed = open_corpus(f"{bucket}/list.txt", cache_dir=None, progress=False)
    np.testing.assert_array_equal(listed.read(5), here.read(5))
    addresses.remove(f"{source}/{here.name(5)}")
    try:
        assert there.removed(5) and "There is no audio file gs://" in refusal(there.read, 5)
        assert len(open_corpus(source, cache_dir=index, progress=False)) == len(here) - 1
    finally:
        addresses.upload(Path(local["data.train"]) / here.name(5), f"{source}/{here.name(5)}")


def test_weights_are_converted_in_a_bucket(bucket, machine, tmp_path, capsys):
    addresses.upload(checkpoint_files.save(tmp_path / "b0.pt", "v1_fc"), f"{bucket}/b0.pt")
    arguments = [f"--checkpoint={bucket}/b0.pt", f"--output={bucket}/weights/b0"]
    assert convert.main(arguments) == 0
    assert f"{bucket}/weights/b0" in capsys.readouterr().out
    machine("b")
    converted, original = (native.flat(open_model(f"{bucket}/{name}").network) for name in ("weights/b0", "b0.pt"))
    training_runs.same_bits(
        *({name: np.asarray(array) for name, array in arrays.items()} for arrays in (converted, original))
    )
    assert convert.main(arguments) == 1 and "exists already" in capsys.readouterr().err


def test_a_tfds_data_set_in_a_bucket(local, bucket, machine):
    pytest.importorskip("tensorflow_datasets")
    source = tfds.build(local["data.train"], f"{bucket}/tfds", "voices", cache_dir=None, progress=False)
    machine("b")
    there = open_corpus(source, cache_dir=None, data_dir=f"{bucket}/tfds", progress=False)
    here = open_corpus(local["data.train"], cache_dir=None, progress=False)
    assert there.digest == here.digest
    np.testing.assert_array_equal(there.read(5), here.read(5))


def test_compiled_programs_stay_in_a_bucket(bucket):
    """JAX itself writes there, when it is asked to."""
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", f"{bucket}/programs")
        compilation_cache.reset_cache()
        jax.jit(lambda x: x * 3 + os.getpid())(1.0).block_until_ready()
        assert addresses.files_below(f"{bucket}/programs")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
