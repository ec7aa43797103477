"""Regenerates tests/goldens with the public PyTorch implementations.

    python tests/helpers/make_goldens.py --redimnet=CHECKOUT --redimnet2=CHECKOUT [--only=NAME]

The stored goldens come from https://github.com/IDRnD/ReDimNet at c994fce (and, for the key layout
before November 2024, at b873c31, the parent of ceeb132) and from
https://github.com/PalabraAI/redimnet2 at ffe8f27, with torch 2.13.0 and torchaudio 2.11.0 on a CPU.
"""

import argparse
import importlib.util
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import types
import zlib

import golden
import numpy as np
import torch
import torch.nn.functional as F

LEGACY_COMMIT = "b873c31"
AUDIO = [[1, 2, 16000], [2, 1, 11777]]
TRAIN = {"audio": [3, 6, 16000], "labels": [0, 1, 2, 3, 4, 0], "margin": 0.2, "scale": 30.0}

K3 = [[3, 3]]
V1 = {
    "F": 24,
    "C": 8,
    "embed_dim": 32,
    "hop_length": 240,
    "stages_setup": [[1, 1, 1, K3, None], [2, 1, 2, K3, 8], [3, 1, 1, K3, 6]],
    "block_1d_type": "conv+att",
    "block_2d_type": "convnext_like",
    "group_divisor": 4,
    "pooling_func": "ASTP",
    "global_context_att": True,
    "out_channels": None,
}
V2 = V1 | {
    "hop_length": 160,
    "stages_setup": [
        [[1, 1], 1, 2, K3, None],
        [[2, 1], 1, 1, K3, 8],
        [[1, 2], 1, 0.75, K3, 6],
        [[3, 2], 1, 0.5, K3, 12],
    ],
    "causal": "none",
}
ARCHS = {
    "v1": ("redimnet", V1),
    "v2": ("redimnet2", V2),
    "legacy": ("redimnet_legacy", V1),
    "mrl": ("redimnet_mrl", V1),
}
# What each case changes in the configuration of its architecture, named by the first word.
CASES = {
    "v1_base": {},
    "v1_fc": {
        "block_1d_type": "fc",
        "block_2d_type": "convnext_like_relu",
        "group_divisor": 1,
        "pooling_func": "TAP",
        "feat_type": "pt_mel",
        "hop_length": 160,
        "stages_setup": [[1, 2, 1, [[7, 1]], 7], [2, 1, 2, K3, None], [1, 1, 1, K3, 7]],
    },
    "v1_conv": {
        "block_1d_type": "conv",
        "block_2d_type": "basic_resnet",
        "group_divisor": 8,
        "pooling_func": "TMAP",
        "spec_params": {"norm_signal": True},
    },
    "v1_att": {
        "block_1d_type": "att",
        "block_2d_type": "basic_resnet_fwse",
        "group_divisor": None,
        "pooling_func": "TSDP",
        "spec_params": {"do_preemph": False, "spec_norm": "mvn"},
    },
    "v1_mfa": {
        "out_channels": 40,
        "global_context_att": False,
        "stages_setup": [[1, 1, 1.5, K3, 8], [2, 1, 0.5, K3, 8], [3, 1, 0.75, K3, None]],
    },
    "v1_ungrouped": {
        "group_divisor": None,
        "block_1d_type": "fc",
        "stages_setup": [[2, 1, 1.25, K3, 8], [1, 1, 0.5, K3, None]],
    },
    "v1_tstp": {
        "block_1d_type": "fc",
        "pooling_func": "TSTP",
        "emb_bn": True,
        "num_classes": 11,
        "spec_params": {"spec_norm": "bn"},
    },
    "v1_tanh": {
        "block_1d_type": "fc",
        "global_context_att": False,
        "num_classes": 11,
        "head_activation": "nn.Tanh()",
        "class_dropout": 0.2,
        "feat_agg_dropout": 0.1,
        "spec_params": {"do_spec_aug": True, "freq_mask_width": [0, 6], "time_mask_width": [0, 8]},
    },
    "v1_mhastp": {
        "block_1d_type": "att",
        "block_2d_type": "basic_resnet",
        "group_divisor": 1,
        "pooling_func": "MHASTP",
        "feat_type": "tf",
        "stages_setup": [[3, 1, 2, K3, None], [2, 2, 1, K3, 6]],
    },
    "v1_mqmhastp": {
        "block_1d_type": "fc",
        "pooling_func": "MQMHASTP",
        "feat_type": "tf_mel",
        "spec_params": {
            "norm_signal": True,
            "do_preemph": False,
            "eps": 1e-3,
            "win_length": 320,
            "f_min": 50,
            "f_max": 7000,
        },
    },
    "v1_wide": {
        "block_1d_type": "fc",
        "hop_length": 160,
        "spec_params": {
            "norm_signal": True,
            "do_preemph": False,
            "n_fft": 1024,
            "win_length": 640,
            "f_min": 50,
            "f_max": 7000,
        },
    },
    "v1_relu": {
        "block_1d_type": "relu",
        "block_2d_type": "convnext_like_relu",
        "stages_setup": [[2, 1, 2, K3, None], [1, 1, 1.5, K3, None]],
    },
    "v1_all_outputs": {"block_1d_type": "fc", "stages_setup": [[2, 1, 1, K3, 8]], "return_all_outputs": True},
    "v1_spec": {
        "block_1d_type": "fc",
        "feat_type": "tf_spec",
        "spec_params": {"n_fft": 96, "win_length": 80, "window": "hann"},
    },
    "v1_spec_mel": {
        "block_1d_type": "fc",
        "feat_type": "tf_spec",
        "spec_params": {
            "mode": "melbanks",
            "n_mels": 72,
            "hop_length": 120,
            "pool_freqs": [3, 2],
            "norm_signal": True,
        },
    },
    "legacy": {},
    "legacy_mfa": {
        "block_1d_type": "att",
        "block_2d_type": "basic_resnet_fwse",
        "out_channels": 40,
        "global_context_att": False,
        "emb_bn": True,
    },
    "v2_base": {
        "block_2d_type": "basic_resnet",
        "group_divisor": 1,
        "out_channels": 20,
        "feat_type": "tf",
        "spec_params": {"norm_signal": True},
    },
    "v2_plain": {
        "compress_tconvs": False,
        "hop_length": 240,
        "stages_setup": [[[1, 3], 1, 1, K3, 8], [[3, 1], 2, 1.5, K3, None], [[2, 2], 1, 1, K3, 6]],
    },
    "v2_head_2d": {"block_1d_type": "fc", "return_2d_output": True, "out_channels": 5, "agg_gnorm": True},
    "v2_output_2d": {
        "block_1d_type": "fc",
        "block_2d_type": "basic_resnet",
        "return_2d_output": True,
        "pooling_func": "MHASTP",
        "global_context_att": False,
    },
    "v2_dual": {
        "block_2d_type": "basic_resnet",
        "group_divisor": 1,
        "dual_agg": True,
        "agg_gnorm": True,
        "out_channels": 6,
        "return_2d_output": True,
        "feat_type": "tf",
    },
    "v2_all_outputs": {
        "block_1d_type": "fc",
        "dual_agg": True,
        "compress_tconvs": False,
        "return_all_outputs": True,
    },
    "v2_offset": {
        "block_1d_type": "att",
        "block_2d_type": "basic_resnet_fwse",
        "group_divisor": None,
        "pad_right_samples": 800,
        "before_pool_offset": 3,
        "num_classes": 11,
    },
    "v2_kernels": {
        "block_1d_type": "conv",
        "pooling_func": "TSTP",
        "emb_bn": True,
        "stages_setup": [
            [[1, 1], 1, 1, [[3, 3], [5, 5]], None],
            [[2, 1], 1, 0.5, [[7, 1]], 8],
            [[1, 2], 1, 1, [[2, 4]], None],
        ],
    },
    "v2_freq_enc": {
        "block_1d_type": "fc",
        "block_2d_type": "convnext_like_relu",
        "pooling_func": "MQMHASTP",
        "use_freq_pos_enc": True,
    },
    "mrl": {
        "global_context_att": False,
        "out_channels": 40,
        "feat_type": "pt",
        "hop_length": 160,
        "mrl_dims": [8, 16, 24, 32],
    },
    "v1_train_convnext": {},
    "v1_train_resnet": {
        "block_1d_type": "att",
        "block_2d_type": "basic_resnet_fwse",
        "emb_bn": True,
        "spec_params": {"spec_norm": "bn"},
    },
    "v2_train": {
        "block_1d_type": "att",
        "block_2d_type": "basic_resnet",
        "group_divisor": 1,
        "dual_agg": True,
        "agg_gnorm": True,
    },
}
LENGTHS = [257, 400, 401, 799, 4001, 16000]
FRONTENDS = {
    "pt160": ("MelBanks", {"n_mels": 72, "hop_length": 160}, LENGTHS),
    "pt240": ("MelBanks", {"n_mels": 72, "hop_length": 240}, LENGTHS),
    "tf160": ("TFMelBanks", {"n_mels": 72, "hop_length": 160}, LENGTHS),
    "tf240": ("TFMelBanks", {"n_mels": 72, "hop_length": 240}, LENGTHS),
    "pt_wide": (
        "MelBanks",
        {"n_mels": 80, "n_fft": 1024, "win_length": 639, "f_min": 50, "f_max": 7000, "spec_norm": "mvn"},
        [799, 4001],
    ),
    "tf_wide": (
        "TFMelBanks",
        {"n_mels": 80, "n_fft": 1024, "win_length": 639, "f_min": 50, "f_max": 7000, "eps": 1e-5},
        [799, 4001],
    ),
    "pt_odd": ("MelBanks", {"n_mels": 24, "n_fft": 401, "hop_length": 161, "norm_signal": True}, [401, 4001]),
    "tf_odd": (
        "TFMelBanks",
        {"n_mels": 24, "n_fft": 401, "hop_length": 161, "norm_signal": True},
        [401, 4001],
    ),
    "kaldi160": ("Kaldi", {"n_mels": 72, "hop_length": 160, "f_max": 8000}, LENGTHS[1:]),
    "kaldi_wide": (
        "Kaldi",
        {"n_mels": 80, "n_fft": 1024, "win_length": 640, "hop_length": 240, "f_min": 50, "f_max": 7000},
        [799, 4001],
    ),
}


class Matryoshka(torch.nn.Module):
    """A ReDimNetWrap whose last two layers live in `projection`, and the rest in `backbone`."""

    def __init__(self, wrap: torch.nn.Module):
        super().__init__()
        self.backbone = wrap
        self.projection = torch.nn.Sequential()
        self.projection.bn, self.projection.linear = wrap.bn, wrap.linear
        del wrap.bn, wrap.linear

    def forward(self, x):
        wrap = self.backbone
        return self.projection(wrap.pool(wrap.backbone(wrap.spec(x).unsqueeze(1))))


def legacy_module(checkout: str) -> types.ModuleType:
    """The single-file implementation before November 2024, from the checkout's history."""
    command = ["git", "-C", checkout, "show", f"{LEGACY_COMMIT}:redimnet.py"]
    source = subprocess.run(command, check=True, capture_output=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "redimnet_legacy.py")
        path.write_bytes(source)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
    return module


def build(arch: str, config: dict, checkout: str) -> torch.nn.Module:
    """The public model of one architecture."""
    if arch == "redimnet2":
        return importlib.import_module("redimnet2").ReDimNet2Wrap(**config)
    if arch == "redimnet_legacy":
        return legacy_module(checkout).ReDimNetWrap(**config)
    wrap = importlib.import_module("redimnet.model").ReDimNetWrap
    if arch == "redimnet_mrl":
        return Matryoshka(wrap(**{key: value for key, value in config.items() if key != "mrl_dims"}))
    return wrap(**config)


def constants(module: torch.nn.Module, prefix: str) -> dict[str, np.ndarray]:
    """The fixed buffers of a front end, named as in the state dict of the whole model."""
    learned = ("running_mean", "running_var", "num_batches_tracked")
    buffers = module.named_buffers(prefix)
    return {name: buffer.numpy() for name, buffer in buffers if not name.endswith(learned)}


def stored(values: dict[str, np.ndarray], prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays kept of constants: all values, but only samples of the Fourier kernels."""
    arrays = {}
    for name, value in values.items():
        sampled = name.endswith("_kernel_pt")
        kind = "constant_sample" if sampled else "constant"
        arrays[f"{prefix}{kind}:{name}"] = value.ravel()[::97] if sampled else value
    return arrays


def rows(x: torch.Tensor) -> np.ndarray:
    """The first utterance as (channels, frames), whether or not it has a channel axis."""
    return x[0].reshape(-1, x.shape[-1]).numpy()


def evaluate(model: torch.nn.Module, audio: np.ndarray, batch: int) -> dict[str, np.ndarray]:
    """The output and intermediate values of one batch in evaluation mode."""
    wrap = model.backbone if isinstance(model, Matryoshka) else model
    net = wrap.backbone
    seen = {}

    def keep(module, name):
        return module.register_forward_hook(lambda _, args, output: seen.update({name: output}))

    hooks = [keep(wrap.spec, "mel"), keep(wrap.pool, "pooled"), keep(net, "backbone"), keep(net.stem, "stem")]
    if type(net).__name__ == "ReDimNet2":
        hooks.append(
            net.fin_wght1d.register_forward_pre_hook(
                lambda _, args: seen.update({f"map{k}_": x for k, x in enumerate(args[0])})
            )
        )
    else:
        hooks += [keep(getattr(net, f"stage{k}"), f"stage{k}_") for k in range(net.num_stages)]
    model.eval()
    with torch.no_grad():
        embedding = model(torch.from_numpy(audio))
    for hook in hooks:
        hook.remove()

    def whole(x):
        return x[0] if isinstance(x, tuple) else x

    arrays = {
        f"embedding{batch}": whole(embedding).numpy(),
        f"mel{batch}": rows(seen.pop("mel")),
        f"pooled{batch}": seen.pop("pooled").numpy(),
    }
    if seen["stem"].ndim == 4:
        seen["stem"] = seen["stem"].transpose(1, 2)
    for name, x in seen.items():
        arrays[f"{name}{batch}"] = rows(whole(x))[::29, ::7]
    return arrays


def train(model: torch.nn.Module) -> tuple[dict, dict[str, np.ndarray]]:
    """The description and the arrays of one step of AAM-Softmax in training mode."""
    margin, scale, labels = TRAIN["margin"], TRAIN["scale"], torch.tensor(TRAIN["labels"])
    model.train()
    embedding = model(torch.from_numpy(golden.audio(*TRAIN["audio"])))
    rng = np.random.Generator(np.random.PCG64(4))
    start = rng.standard_normal((5, embedding.shape[1])).astype(np.float32)
    prototypes = torch.tensor(start, requires_grad=True)

    cosine = F.normalize(embedding) @ F.normalize(prototypes).T
    sine = torch.sqrt(1 - cosine**2)
    moved = torch.where(
        cosine > math.cos(math.pi - margin),
        cosine * math.cos(margin) - sine * math.sin(margin),
        cosine - math.sin(math.pi - margin) * margin,
    )
    target = F.one_hot(labels, 5).bool()
    loss = F.cross_entropy(scale * torch.where(target, moved, cosine), labels)
    loss.backward()

    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    running = {name: x for name, x in model.named_buffers() if name.endswith(("running_mean", "running_var"))}
    arrays = {
        "train_loss": loss.detach().numpy(),
        "train_embedding": embedding.detach().numpy(),
        "train_prototypes": start,
        "train_prototype_grad": prototypes.grad.numpy(),
        "train_grad_norms": torch.stack([x.norm() for x in gradients.values()]).numpy(),
        "train_running_l2": torch.stack([x.norm() for x in running.values()]).numpy(),
    }
    return TRAIN | {"grad_names": list(gradients), "running_names": list(running)}, arrays


def make_case(name: str, checkout: str) -> tuple[dict, dict[str, np.ndarray]]:
    """The description and the arrays of one case."""
    arch, config = ARCHS[name.split("_")[0]]
    config = config | CASES[name]
    model = build(arch, config, checkout)
    mrl = arch == "redimnet_mrl"
    fixed = constants(model.backbone.spec if mrl else model.spec, "backbone.spec" if mrl else "spec")
    case = {
        "arch": arch,
        "model_config": config,
        "seed": zlib.crc32(name.encode()) % 10000,
        "audio": AUDIO,
        "manifest": [[key, list(x.shape)] for key, x in model.state_dict().items()],
    }
    state = golden.weights(case["manifest"], case["seed"], fixed)
    model.load_state_dict({key: torch.from_numpy(x) for key, x in state.items()})
    arrays = stored(fixed)
    for batch, arguments in enumerate(AUDIO):
        arrays |= evaluate(model, golden.audio(*arguments), batch)
    if "train" in name:
        case["train"], extra = train(model)
        arrays |= extra
    return case, arrays


def make_frontends() -> tuple[dict, dict[str, np.ndarray]]:
    """The public front ends alone, on the first samples of one signal."""
    arguments = [5, 1, max(LENGTHS)]
    signal = torch.from_numpy(golden.audio(*arguments))
    description, arrays = {"audio": arguments}, {}
    for name, (kind, options, lengths) in FRONTENDS.items():
        description[name] = {"kind": kind, "options": options, "lengths": lengths}
        if kind == "Kaldi":
            arrays |= {f"{name}:{length}": kaldi(signal[:, :length], options) for length in lengths}
            continue
        layers = importlib.import_module(f"redimnet.layers.features{'_tf' if kind.startswith('TF') else ''}")
        module = getattr(layers, kind)(**options).eval()
        arrays |= stored(constants(module, ""), f"{name}:")
        for length in lengths:
            arrays[f"{name}:{length}"] = rows(module(signal[:, :length]))
    return description, arrays


def kaldi(signal: torch.Tensor, options: dict) -> np.ndarray:
    """The features that WeSpeaker computes before its ReDimNet, (mels, frames): `compute_fbank` and `apply_cmvn`."""
    from torchaudio.compliance.kaldi import fbank

    features = fbank(
        signal * (1 << 15),
        num_mel_bins=options["n_mels"],
        frame_length=options.get("win_length", 400) / 16,
        frame_shift=options["hop_length"] / 16,
        low_freq=options.get("f_min", 20),
        high_freq=options["f_max"],
        dither=0.0,
        window_type="hamming",
        use_energy=False,
    )
    return (features - features.mean(dim=0)).T.numpy()


def write(name: str, description: dict, arrays: dict[str, np.ndarray]) -> None:
    """One golden: a JSON file with a line for each key, and an NPZ file."""
    assert all(np.isfinite(x).all() for x in arrays.values()), name
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in description.items()]
    (golden.FOLDER / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    np.savez_compressed(golden.FOLDER / f"{name}.npz", **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--redimnet", required=True, help="checkout of IDRnD/ReDimNet")
    parser.add_argument("--redimnet2", required=True, help="checkout of PalabraAI/redimnet2")
    parser.add_argument("--only", help="one case, or frontends")
    flags = parser.parse_args()
    sys.path[:0] = [flags.redimnet, flags.redimnet2]
    torch.set_num_threads(1)
    golden.FOLDER.mkdir(exist_ok=True)
    for name in [*CASES, "frontends"]:
        if flags.only in (None, name):
            made = make_frontends() if name == "frontends" else make_case(name, flags.redimnet)
            write(name, *made)


if __name__ == "__main__":
    main()
