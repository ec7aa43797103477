"""Every kind of file that the project reads, a small valid one of each, and how it is damaged and read."""

import dataclasses
import functools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import audio_files
import fuzz_mutations as mutations
import numpy as np
import tiny
import torch_format

from redimnet_jax import export, files, trials
from redimnet_jax.checkpoints import native, safetensors_file, torch_mapping, torch_weights, wespeaker
from redimnet_jax.data import audio, decoding, tree
from redimnet_jax.data import index as corpus_index
from redimnet_jax.data import speakers as speaker_table
from redimnet_jax.embedding import folder as embedding_folder
from redimnet_jax.evaluation import metadata, protocol, score_file, system_calibration
from redimnet_jax.models import config as model_config
from redimnet_jax.models import size
from redimnet_jax.models.network import without_values


@dataclasses.dataclass(frozen=True)
class Target:
    """`make` writes a mutant below a folder and returns its path, which `read` reads."""

    make: Callable[[random.Random, Path], Path]
    read: Callable[[Path], object]


@functools.cache
def _content() -> dict:
    # One random key for all weights: the shapes and names are what matters.
    network = without_values(model_config.parse("redimnet", tiny.CONFIG))
    slots = torch_mapping.slots(network, "redimnet")
    rng = np.random.default_rng(0)
    state = {
        name: slot.expected.reshape(slot.shape)
        if slot.expected is not None and slot.expected.size == np.prod(slot.shape)
        else rng.uniform(0.1, 1, slot.shape).astype(np.float32)
        for name, slot in slots.items()
    }
    return {"model_config": tiny.CONFIG, "state_dict": state, "epoch": 3, "args": {"lr": 0.1, "dims": (1, 2)}}


@functools.cache
def _small_content() -> dict:
    state = {"backbone.a": np.arange(6, dtype=np.float32).reshape(2, 3), "bn.b": np.array(7), "bn.c": np.zeros(3)}
    return {"state_dict": state, "model_config": tiny.CONFIG, "history": [1, 2.5, None, True, ("a", 3)]}


def _torch(save: Callable, change: Callable) -> Callable[[random.Random, Path], Path]:
    def make(rng: random.Random, folder: Path) -> Path:
        path = save(folder / "mutant.pt", _small_content())
        path.write_bytes(change(rng, path.read_bytes()))
        return path

    return make


def _torch_program(write: Callable, legacy: bool) -> Callable[[random.Random, Path], Path]:
    def make(rng: random.Random, folder: Path) -> Path:
        program, storages = torch_format.pickled(_small_content(), legacy=legacy, protocol=rng.choice((2, 4)))
        return write(folder / "mutant.pt", mutations.program_of(rng, program), storages)

    return make


def _torch_config(rng: random.Random, folder: Path) -> Path:
    config = json.loads(json.dumps(tiny.CONFIG))
    return torch_format.save_zip(
        folder / "mutant.pt", _content() | {"model_config": mutations.value_of(rng, config)}, protocol=4
    )


@functools.cache
def _safetensors() -> bytes:
    metadata = {"model_config": json.dumps(tiny.CONFIG)}
    return safetensors_file.dumps(_content()["state_dict"], metadata)


def _safetensors_header(rng: random.Random, folder: Path) -> Path:
    data = _safetensors()
    length = int.from_bytes(data[:8], "little")
    header = _json(mutations.value_of(rng, json.loads(data[8 : 8 + length])))
    claimed = rng.choice((len(header), len(header), len(header), rng.getrandbits(64), length))
    path = folder / "mutant.safetensors"
    path.write_bytes(claimed.to_bytes(8, "little") + header + data[8 + length :])
    return path


@functools.cache
def _wespeaker_files(folder: Path) -> tuple[bytes, dict]:
    path = folder / "whole" / "avg_model.pt"
    changes = {"feat_type": "kaldi", "pool_bn": False, "block_1d_type": "conv+att", "block_2d_type": "convnext_like"}
    export(tiny.model(**changes, spec_params={"f_max": 8000}), path, "wespeaker")
    return path.read_bytes(), wespeaker.parse(path.with_name("config.yaml").read_bytes(), "config.yaml")


def _wespeaker(rng: random.Random, folder: Path) -> Path:
    data, config = _wespeaker_files(folder)
    (folder / "avg_model.pt").write_bytes(data)
    path = folder / "config.yaml"
    text = _json(mutations.value_of(rng, config))  # JSON is YAML.
    path.write_bytes(mutations.bytes_of(rng, text) if rng.random() < 0.3 else text)
    return path


def _read_torch(path: Path) -> None:
    found = torch_weights.read_checkpoint(path)
    config = model_config.parse("redimnet", found.model_config)
    size.check(config, len(found.state_dict), sum(x.size for x in found.state_dict.values()), str(path))
    torch_weights.convert(found)


@functools.cache
def _native(folder: Path) -> Path:
    path = folder / "native"
    native.save(tiny.model(), path)
    return path


def _native_description(rng: random.Random, folder: Path) -> Path:
    path = folder / "mutant"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(_native(folder), path)
    about = json.loads((path / native.DESCRIPTION).read_text())
    part = rng.choice(("model_config", None))
    if part:
        about[part] = mutations.value_of(rng, about[part])
        # Whoever changes a file can change its checksum.
        about["config_sha256"] = native.config_checksum(about["arch"], about[part])
    else:
        about = mutations.value_of(rng, about)
    text = _json(about)
    (path / native.DESCRIPTION).write_bytes(mutations.bytes_of(rng, text) if rng.random() < 0.2 else text)
    return path


def _native_arrays(rng: random.Random, folder: Path) -> Path:
    path = folder / "mutant"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(_native(folder), path)
    inside = rng.choice(sorted(file for file in (path / native.ARRAYS).rglob("*") if file.is_file()))
    inside.write_bytes(mutations.bytes_of(rng, inside.read_bytes()))
    return path


def _json(value: object) -> bytes:
    def text(value: object) -> str:
        # As json.dumps, which refuses integers of too many digits; a file may hold them.
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(str(k))}: {text(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(text, value)) + "]"
        if type(value) is int and value.bit_length() > 1000:
            return ("-" if value < 0 else "") + "1" + "0" * 5000
        return json.dumps(value)

    return text(value).encode()


def _json_file(value: object) -> Callable[[random.Random, Path], Path]:
    def make(rng: random.Random, folder: Path) -> Path:
        data = _json(mutations.value_of(rng, value))
        kind = rng.random()
        if kind < 0.2:
            data = mutations.bytes_of(rng, data)
        elif kind < 0.25:
            data = b'{"dims": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
        path = folder / "mutant.json"
        path.write_bytes(data)
        return path

    return make


def _bytes(name: str, data: bytes, change: Callable = mutations.bytes_of) -> Callable[[random.Random, Path], Path]:
    def make(rng: random.Random, folder: Path) -> Path:
        path = folder / name
        path.write_bytes(change(rng, data))
        return path

    return make


def _audio(suffix: str) -> Callable[[random.Random, Path], Path]:
    @functools.cache
    def whole(folder: Path) -> bytes:
        path = audio_files.write(folder / f"whole{suffix}", audio_files.voice(8000), 16000)
        return path.read_bytes()

    def make(rng: random.Random, folder: Path) -> Path:
        return _bytes(f"mutant{suffix}", whole(folder))(rng, folder)

    return make


def _read_audio(path: Path) -> None:
    samples = audio.duration(path)
    audio.read(path, max(0, samples - 800), 800)
    audio.read(path, 1000, 500)
    audio.read(path)


def _index(rng: random.Random, folder: Path) -> Path:
    path = folder / "index"
    shutil.rmtree(path, ignore_errors=True)
    entries = corpus_index.Entries(["a/x.wav", "b/s/y.wav"], ["a", "b"], np.array([9000, 8000]))
    index, _ = corpus_index.build(entries, 0.1)
    corpus_index.save(index, {"digest": index.digest()}, path)
    inside = rng.choice(sorted(path.iterdir()))
    if inside.suffix == ".json" and rng.random() < 0.8:
        inside.write_bytes(_json(mutations.value_of(rng, json.loads(inside.read_bytes()))))
    else:
        inside.write_bytes(mutations.bytes_of(rng, inside.read_bytes()))
    return path


_WANTED = {"checkpoint": "sha", "corpus": {"digest": "d", "utterances": 3}, "dim": None, "windows": {"crops": 1}}


def _embeddings(rng: random.Random, folder: Path) -> Path:
    path = _json_file(_WANTED)(rng, folder)
    path.replace(folder / embedding_folder.DESCRIPTION)
    return folder


TRIALS = b"1 a/x.wav a/y.wav\n0 a/x.wav b/z.wav\n1 b/z.wav b/w.wav\n"
SCORES = b"label\tleft\tright\t8\t16\n1\ta/x.wav\ta/y.wav\t0.5\t0.25\n0\ta/x.wav\tb/z.wav\t-0.1\t0.125\n"
SEXES = b"id\tname\tgender\nid1\tx\tm\nid2\ty\tf\n"
_CURVE = {
    "thresholds": [-2.0, 3.0],
    "far": [1.0, 0.0],
    "frr": [0.0, 1.0],
    "far_ci95": [[1.0, 1.0], [0.0, 0.0]],
    "frr_ci95": [[0.0, 0.0], [1.0, 1.0]],
    "targets": 4,
    "nontargets": 5,
    "speakers": 3,
    "description": "9 trials",
}
_CALIBRATION = {
    "dims": {
        "8": {
            "calibration": {"scale": 2.0, "offset": -1.0, "weights": {"duration": [0.1, 0.2]}},
            "threshold": 0.5,
            "limits": {"duration": [1.0, 9.0]},
            "fitted": _CURVE,
            "judged": None,
        }
    },
    "system": {"checkpoint": "x"},
    "trials": {"from": "list", "digest": "d", "speakers": ["a", "b"]},
}
_text = mutations.text_of

TARGETS: dict[str, Target] = {
    "checkpoint zip": Target(_torch(torch_format.save_zip, mutations.bytes_of), _read_torch),
    "checkpoint legacy": Target(_torch(torch_format.save_legacy, mutations.bytes_of), _read_torch),
    "checkpoint zip program": Target(_torch_program(torch_format.write_zip, False), _read_torch),
    "checkpoint legacy program": Target(_torch_program(torch_format.write_legacy, True), _read_torch),
    "checkpoint model_config": Target(_torch_config, _read_torch),
    "safetensors": Target(lambda rng, folder: _bytes("mutant.safetensors", _safetensors())(rng, folder), _read_torch),
    "safetensors header": Target(_safetensors_header, _read_torch),
    "wespeaker configuration": Target(
        _wespeaker, lambda path: torch_weights.from_torch(path.with_name("avg_model.pt"))
    ),
    "native description": Target(_native_description, native.load),
    "native arrays": Target(_native_arrays, native.load),
    **{f"audio {suffix}": Target(_audio(suffix), _read_audio) for suffix in sorted(decoding.SUFFIXES)},
    "trials": Target(_bytes("mutant.txt", TRIALS, _text), trials.read),
    "corpus list": Target(
        _bytes("mutant.txt", b"a/x.wav a\na/y.wav a\nb/z.wav b\n", _text),
        lambda path: tree.FileList(path, path.parent).entries(1, False),
    ),
    "metadata": Target(_bytes("mutant.tsv", b"speaker\tsex\tage\na\tf\t30\nb\tm\t\n", _text), metadata.read),
    "enrolment list": Target(_bytes("mutant.txt", b"m1 a/x.wav a/y.wav\nm2 b/z.wav\n", _text), protocol.read_models),
    "scores": Target(
        _bytes("scores.tsv", SCORES.replace(b"\t", b" "), lambda r, d: _text(r, d).replace(b" ", b"\t")),
        score_file.read,
    ),
    "speaker table": Target(
        _bytes("meta.csv", SEXES.replace(b"\t", b" "), lambda r, d: _text(r, d).replace(b" ", b"\t")),
        speaker_table.read_sexes,
    ),
    "calibration": Target(_json_file(_CALIBRATION), system_calibration.load),
    "index": Target(_index, corpus_index.load),
    "embeddings description": Target(_embeddings, lambda folder: embedding_folder.check(folder, _WANTED)),
    "json": Target(_json_file(_CALIBRATION), lambda path: _parsed(path)),
}


def _parsed(path: Path) -> None:
    try:
        files.parse_json(path.read_bytes())
    except ValueError as error:
        assert "\n" not in str(error)
