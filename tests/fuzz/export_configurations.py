"""Exports small networks of random configurations in every format, and compares what comes back.

A failure is anything but equal embeddings, equal weights, or a refusal that names a setting.

    python tests/fuzz/export_configurations.py --count=300 --seed=1 --formats onnx torch

Configuration i depends on the seed and i alone.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path[:0] = [str(Path(__file__).parents[1] / "helpers"), str(Path(__file__).parents[2] / "benchmarks")]

import golden  # noqa: E402
import numpy as np  # noqa: E402
from random_model import random_model  # noqa: E402

import redimnet_jax as rj  # noqa: E402
from redimnet_jax.checkpoints import native, wespeaker  # noqa: E402
from redimnet_jax.errors import UserError  # noqa: E402
from redimnet_jax.models import config, config_spec  # noqa: E402

LIMIT = 1e-4
SAMPLES = 7919  # of the longest signal; every signal is embedded in the same shape, so that XLA compiles once
FLAGS = (False, True)
Embed = Callable[[np.ndarray, list[int]], np.ndarray]

# The values of every entry of model_config, by architecture; values that contradict each other are drawn again.
_BOTH: dict[str, Sequence[Any]] = {
    "F": (12, 24),
    "C": (2, 4, 8),
    "block_1d_type": config.BLOCKS_1D,
    "block_2d_type": config.BLOCKS_2D,
    "group_divisor": (None, 1, 2, 4),
    "out_channels": (None, 8, 24),
    "embed_dim": (5, 8),
    "hop_length": (100, 160, 241),
    "pooling_func": tuple(config.POOLING_HEADS),
    "global_context_att": FLAGS,
    "emb_bn": FLAGS,
    "feat_type": config.FEATURE_TYPES,
    "mrl_dims": (None, [2, 5], [3]),
    "return_all_outputs": FLAGS,
}
_HEADS = {
    "num_classes": (None, 3),
    "feat_agg_dropout": (0.0, 0.2),
    "head_activation": (None, *(f"nn.{name}()" for name in config.HEAD_ACTIVATIONS)),
}
SETTINGS: dict[str, dict[str, Sequence[Any]]] = {
    "redimnet": _BOTH | _HEADS | {"pool_bn": FLAGS, "class_dropout": (0.0, 0.2), "tf_optimized_arch": (False, None)},
    "redimnet2": _BOTH
    | _HEADS
    | {
        "pad_right_samples": (None, 0, 77),
        "before_pool_offset": (None, 0, 1, 3),
        "compress_tconvs": FLAGS,
        "return_2d_output": FLAGS,
        "use_freq_pos_enc": FLAGS,
        "dual_agg": FLAGS,
        "agg_gnorm": FLAGS,
        "causal": (False, None, "none"),
        "fm_weigthing_type": ("NC",),
        "spec_in_channels": (1,),
    },
}
STRIDES = {"redimnet": (1, 2, 3), "redimnet2": ([1, 1], [2, 1], [1, 2], [3, 1], [2, 3])}
STAGE: dict[str, Sequence[Any]] = {
    "blocks": (0, 1, 2),
    "conv_exp": (1, 0.5, 1.5, 2),
    "kernel_sizes": (None, [[3, 3]], [[3, 5], [1, 2]], [[2, 4]]),
    "att_block_red": (None, 1, 2, 3, 6),
}
SPEC: dict[str, Sequence[Any]] = {
    "sample_rate": (16000, 8000),
    "n_fft": (512, 400, 301),
    "win_length": (400, 301, 256, 80),
    "f_min": (0, 20),
    "f_max": (3800, 4000.0),
    "do_spec_aug": FLAGS,
    "norm_signal": FLAGS,
    "do_preemph": FLAGS,
    "spec_norm": ("mn", "mvn", "bn"),
    "freq_start_bin": (0, 2),
    "num_apply_spec_aug": (1, 2),
    "freq_mask_width": ([0, 3],),
    "time_mask_width": ([0, 4],),
    "eps": (1e-8, 1e-5),
}


def _wespeakers(rng: random.Random, arch: str) -> dict[str, Any]:
    """Return entries without which WeSpeaker's files have no place for a configuration."""
    entries: dict[str, Any] = {"mrl_dims": None, "pooling_func": rng.choice(("ASTP", "TSTP", "MQMHASTP"))}
    if arch == "redimnet2":
        return entries | {"feat_type": "tf", "spec_params": {"f_max": 4000.0}, "pad_right_samples": None}
    entries |= {"feat_type": "kaldi", "pool_bn": False, "emb_bn": False, "num_classes": None, "feat_agg_dropout": 0.0}
    entries |= {"block_1d_type": rng.choice(("fc", "att", "conv+att")), "block_2d_type": "basic_resnet"}
    return entries | {"spec_params": {"f_min": 20, "f_max": 8000}}


def draw(rng: random.Random, arch: str) -> dict[str, Any]:
    """Return a random model_config that `arch` can have."""
    while True:
        # Some entries are absent, as they are in published files.
        entries = {name: rng.choice(values) for name, values in SETTINGS[arch].items() if rng.random() < 0.8}
        entries |= {"F": rng.choice(_BOTH["F"]), "C": rng.choice(_BOTH["C"]), "embed_dim": rng.choice((5, 8))}
        entries["stages_setup"] = [
            [rng.choice(STRIDES[arch]), *map(rng.choice, STAGE.values())] for _ in range(rng.choice((1, 2)))
        ]
        lacking = config_spec.ABSENT[entries.get("feat_type", "pt").partition("_")[0]]
        entries["spec_params"] = {
            name: rng.choice(values) for name, values in SPEC.items() if name not in lacking and rng.random() < 0.8
        } | {"f_max": rng.choice(SPEC["f_max"])}
        if rng.random() < 0.2:
            entries |= _wespeakers(rng, arch)
        try:
            config.parse(arch, entries)
        except UserError:
            continue
        return entries


def values_of(arch: str, entries: dict[str, Any]) -> set[str]:
    """Return every (entry, value) of a model_config, of its stages and of its front end, as text."""
    pairs = [(name, value) for name, value in entries.items() if name not in ("stages_setup", "spec_params")]
    pairs += list(entries["spec_params"].items())
    pairs += [pair for _, *parts in entries["stages_setup"] for pair in zip(STAGE, parts, strict=True)]
    pairs += [("stride", stage[0]) for stage in entries["stages_setup"]]
    return {f"{arch} {name} {value}" for name, value in pairs}


def all_values(arch: str) -> set[str]:
    """Return what `values_of` all configurations of `arch` together can be."""
    tables = (SETTINGS[arch], STAGE, SPEC, {"stride": STRIDES[arch]})
    return {f"{arch} {name} {value}" for table in tables for name, values in table.items() for value in values}


def covering(arch: str, seed: int, tries: int = 40) -> list[dict[str, Any]]:
    """Return a few configurations that have every value of every setting of `arch` among them."""
    rng = random.Random(seed)
    left, chosen = all_values(arch), []
    while left:
        best = max((draw(rng, arch) for _ in range(tries)), key=lambda entries: len(left & values_of(arch, entries)))
        left -= values_of(arch, best)
        chosen.append(best)
    return chosen


def wespeaker_has(arch: str, entries: dict[str, Any]) -> bool:
    """Return whether WeSpeaker's files have a place for the configuration."""
    try:
        wespeaker.document(config.parse(arch, entries))
    except UserError:
        return False
    return True


class Case:
    """A model, signals, and what `model.embed` gives for each of them alone, or None without the `reference`.

    XLA takes seconds to compile the reference; an export takes a tenth of one.
    """

    def __init__(self, arch: str, entries: dict[str, Any], reference: bool = True):
        self.model = random_model(arch, entries)
        self.lengths = [self.model.min_samples, 5003, SAMPLES]
        signals = [golden.audio(seed, 1, length)[0] for seed, length in enumerate(self.lengths)]
        self.batch = np.random.default_rng(0).normal(0, 1, (len(signals), SAMPLES)).astype(np.float32)
        for row, signal in zip(self.batch, signals, strict=True):
            row[: len(signal)] = signal
        self.expected = np.concatenate([self._reference(*each) for each in self.rows()]) if reference else None

    def _reference(self, row: np.ndarray, length: int) -> np.ndarray:
        return np.asarray(self.model.embed(row, [length], normalize=False, sample_rate=self.model.sample_rate))

    def rows(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yield every signal as a padded batch of one, with its length."""
        return zip(np.split(self.batch, len(self.batch)), self.lengths, strict=True)

    def differences(self, embed: Embed, alone: bool) -> Iterator[str]:
        """Yield a line for each signal whose embedding by `embed` differs, in the batch and (with `alone`) alone."""
        results = {}
        if alone:
            results["alone"] = np.concatenate([embed(row[:, :length], [length]) for row, length in self.rows()])
        results["in a batch"] = embed(self.batch, self.lengths)
        expected = results["alone"] if self.expected is None else self.expected
        for where, found in results.items():
            for length, ours, theirs in zip(self.lengths, found, expected, strict=True):
                error = golden.relative(ours, theirs)
                if not error < LIMIT:
                    yield f"{length} samples {where}: relative error {error:.1e}"


def onnx(case: Case, folder: Path) -> Iterator[str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    rj.export(case.model, folder / "model.onnx", "onnx", normalize=False)
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])

    def embed(waveforms: np.ndarray, lengths: list[int]) -> np.ndarray:
        return session.run(None, {"waveforms": waveforms, "lengths": np.array(lengths, np.int64)})[0]

    return case.differences(embed, alone=True)


def stablehlo(case: Case, folder: Path) -> Iterator[str]:
    import jax
    from jax import export

    rj.export(case.model, folder / "model.stablehlo", "stablehlo", normalize=False)
    call = jax.jit(export.deserialize(bytearray((folder / "model.stablehlo").read_bytes())).call)
    return case.differences(lambda x, lengths: np.asarray(call(x, np.array(lengths, np.int32))), alone=False)


def weights(format: str) -> Callable[[Case, Path], Iterator[str]]:
    def check(case: Case, folder: Path) -> Iterator[str]:
        path = folder / ("model.safetensors" if format == "safetensors" else "model.pt")
        rj.export(case.model, path, format)
        back = rj.load(path) if format == "safetensors" else rj.from_torch(path)
        ours, theirs = (native.flat(each.network) for each in (case.model, back))
        if ours.keys() != theirs.keys():
            yield f"other variables came back: {sorted(ours.keys() ^ theirs.keys())}"
        elif native.checksum(ours) != native.checksum(theirs):
            changed = [name for name in ours if not np.array_equal(ours[name], theirs[name])]
            yield f"other values came back: {changed}"
        if format != "wespeaker" and back.network.config != case.model.network.config:
            yield "another configuration came back"

    return check


CHECKS: dict[str, Callable[[Case, Path], Iterator[str]]] = {
    "onnx": onnx,
    "stablehlo": stablehlo,
    **{name: weights(name) for name in ("torch", "safetensors", "wespeaker")},
}
REFUSING = ("torch", "wespeaker")


def failures(arch: str, entries: dict[str, Any], formats: Sequence[str], reference: bool = True) -> Iterator[str]:
    """Yield what is wrong with the exports of a configuration; without `reference`, nothing asks `model.embed`."""
    case = Case(arch, entries, reference)
    for format in formats:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = list(CHECKS[format](case, Path(folder)))
            except UserError as error:
                text = str(error)
                named = any(name in text for name in (*SETTINGS[arch], *SPEC))
                found = [] if format in REFUSING and named and text.endswith(".") else [f"refused: {text}"]
            except Exception as error:
                found = [f"{type(error).__name__}: {error}\n{''.join(traceback.format_tb(error.__traceback__)[-3:])}"]
            yield from (f"{format}: {line}" for line in found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="+", choices=CHECKS, default=list(CHECKS))
    args = parser.parse_args()
    failed, started = 0, time.perf_counter()
    for index in range(args.count):
        arch = config.ARCHITECTURES[index % 2]
        entries = draw(random.Random(f"{args.seed} {index}"), arch)
        found = list(failures(arch, entries, args.formats))
        for line in found:
            print(f"{index} {line}", flush=True)
        if found:
            failed += 1
            print(f"  {arch} {json.dumps(entries)}", flush=True)
    print(f"{args.count} configurations, {failed} failed, {time.perf_counter() - started:.0f} s")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
