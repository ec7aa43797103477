"""From state dicts to networks: nothing missing, nothing left over, nothing at odds with the model_config."""

import dataclasses
import functools
import math
import pathlib

import checkpoint_files
import golden
import jax
import ml_dtypes
import numpy as np
import pytest
import torch_format
from flax import nnx
from refusals import refusal

from redimnet_jax import from_torch
from redimnet_jax.checkpoints import open as loading
from redimnet_jax.checkpoints import torch_mapping, torch_weights
from redimnet_jax.models import config as model_config
from redimnet_jax.models import size
from redimnet_jax.models.frontend import FRONT_ENDS
from redimnet_jax.models.network import SpeakerNetwork, without_values

BIAS, WEIGHT, WINDOW = "linear.bias", "linear.weight", "spec.torchfbank.2.spectrogram.window"
FILTERS = "spec.torchfbank.2.mel_scale.fb"


def build(layout: str, entries: dict) -> SpeakerNetwork:
    """A network without weights, from one random key: shapes are all that is made, and many keys take long."""
    config = model_config.parse("redimnet2" if layout == "redimnet2" else "redimnet", entries)
    return without_values(config)


def network(name: str) -> SpeakerNetwork:
    """The network of a golden case without weights."""
    return build(checkpoint_files.case(name).arch, checkpoint_files.case(name).model_config)


def changed(name: str = "v1_fc", config: dict | None = None, layout: str | None = None, **tensors):
    """A golden case as read, with other tensors (None: without that tensor) and entries."""
    case = checkpoint_files.case(name)
    state = {k: v for k, v in (checkpoint_files.state_dict(name) | tensors).items() if v is not None}
    entries = case.model_config | (config or {})
    return torch_weights.TorchCheckpoint(pathlib.Path(f"/weights/{name}.pt"), state, layout or case.arch, entries)


def filled(checkpoint, like: str = "v1_fc"):
    net = network(like)
    return net, torch_weights.fill(net, checkpoint)


@functools.cache
def blank(name: str) -> SpeakerNetwork:
    """A network for those tests that never fill it."""
    return network(name)


def refused_tensors(checkpoint) -> str:
    """What is said of the tensors of `checkpoint`, none of which went into the network."""
    name = checkpoint.path.stem
    same = checkpoint.model_config == checkpoint_files.case(name).model_config
    net = blank(name) if same else build(checkpoint.layout, checkpoint.model_config)
    text = refusal(torch_weights.fill, net, checkpoint)
    start = f"The tensors in {checkpoint.path}, read as {checkpoint.layout}, do not fit its model_config: "
    assert text.startswith(start)
    leaves = [leaf.get_value() for _, leaf in nnx.to_flat_state(nnx.state(net))]
    assert leaves and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    return text


def test_every_bad_tensor_is_listed_at_once():
    bias = checkpoint_files.state_dict("v1_fc")["backbone.stem.1.bias"].copy()
    bias[3] = np.nan
    text = refused_tensors(
        changed(
            **{
                "bn.weight": None,
                "bn.running_var": None,
                "head.weight": np.zeros(3, np.float32),
                "ema.decay": np.float32([0.9]),
                WEIGHT: np.zeros((33, 192), np.float32),
                BIAS: np.zeros((32, 1), np.float32),
                "backbone.stem.1.bias": bias,
                "backbone.stem.1.weight": np.full(8, -np.inf, np.float32),
                "backbone.stem.0.bias": np.ones(8, bool),
                FILTERS: checkpoint_files.state_dict("v1_fc")[FILTERS] * 1.1,
            }
        )
    )
    for part in (
        "2 missing (bn.weight, bn.running_var)",
        "2 unexpected (head.weight, ema.decay)",
        "2 misshapen (linear.weight is [33, 192], not [32, 192], linear.bias is [32, 1], not [32])",
        "1 not numbers (backbone.stem.0.bias)",
        "2 not finite (backbone.stem.1.weight, backbone.stem.1.bias)",
        f"1 at odds with the front end in model_config ({FILTERS})",
    ):
        assert part in text
    assert "--arch" in text


@pytest.mark.parametrize("name", golden.names())
def test_slots_are_in_the_published_order(name):
    case = checkpoint_files.case(name)
    assert list(torch_mapping.slots(blank(name), case.arch)) == [tensor for tensor, _ in case.manifest]


@pytest.mark.parametrize("name", ["v1_fc", "mrl", "v2_plain"])
def test_one_missing_tensor(name):
    last = list(checkpoint_files.state_dict(name))[-1]
    assert f": 1 missing ({last}); " in refused_tensors(changed(name, **{last: None}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_must_be_finite(value):
    array = checkpoint_files.state_dict("v1_fc")[WEIGHT].copy()
    array[0, 0] = value
    assert f": 1 not finite ({WEIGHT}); " in refused_tensors(changed(**{WEIGHT: array}))


@pytest.mark.filterwarnings("ignore:overflow")
def test_weights_must_fit_float32():
    assert f": 1 not finite ({BIAS}); " in refused_tensors(changed(**{BIAS: np.full(32, 1e300)}))


@pytest.mark.parametrize(
    ("spec_params", "tensors"),
    [
        ({"f_max": 7000}, [FILTERS]),
        ({"f_min": 60}, [FILTERS]),
        ({"sample_rate": 15200}, [FILTERS]),
    ],
)
def test_front_end_at_odds_with_the_config(spec_params, tensors):
    text = refused_tensors(changed(config={"spec_params": spec_params}))
    assert f": {len(tensors)} at odds with the front end in model_config ({', '.join(tensors)}); " in text


def test_front_end_tensors_at_odds_with_the_config():
    state = checkpoint_files.state_dict("v1_fc")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    assert f"1 at odds with the front end in model_config ({WINDOW})" in refused_tensors(changed(**{WINDOW: hann}))
    preemphasis = "spec.torchfbank.1.flipped_filter"
    text = refused_tensors(changed(**{preemphasis: np.float32([[[-0.95, 1.0]]])}))
    assert f"1 at odds with the front end in model_config ({preemphasis})" in text
    assert f"1 unexpected ({preemphasis})" in refused_tensors(changed(config={"spec_params": {"do_preemph": False}}))
    filled(changed(**{FILTERS: state[FILTERS] + np.float32(1e-4)}))  # rounding


def test_tf_kernels_at_odds_with_the_config():
    name = next(n for n in golden.names() if checkpoint_files.case(n).model_config.get("feat_type") == "tf")
    kernel = "spec.torchfbank.2.real_kernel_pt"
    text = refused_tensors(changed(name, **{kernel: checkpoint_files.state_dict(name)[kernel][::-1].copy()}))
    assert f"1 at odds with the front end in model_config ({kernel})" in text


def test_config_at_odds_with_the_tensors():
    text = refused_tensors(changed(config={"embed_dim": 48}))
    assert ": 2 misshapen (linear.weight is [32, 192], not [48, 192], linear.bias is [32], not [48]); " in text
    assert "missing (cls_head.2.weight, cls_head.2.bias)" in refused_tensors(changed(config={"num_classes": 7}))
    assert "missing (pool.linear1.weight, " in refused_tensors(changed(config={"pooling_func": "ASTP"}))


@pytest.mark.slow
@pytest.mark.parametrize("name", golden.names())
def test_every_variable_is_filled_by_one_tensor(name):
    net, checkpoint = blank(name), checkpoint_files.read(name)
    assert torch_weights.detect_layout(checkpoint.state_dict) == checkpoint.layout
    slots = torch_mapping.slots(net, checkpoint.layout)
    assert {key: list(slot.shape) for key, slot in slots.items()} == dict(checkpoint_files.case(name).manifest)
    variables = [id(v) for _, v in nnx.iter_graph(net) if isinstance(v, nnx.Variable)]
    mapped = [id(slot.variable) for slot in slots.values() if slot.variable is not None]
    assert len(mapped) == len(set(mapped)) and set(mapped) == set(variables)
    assert len(nnx.to_flat_state(nnx.state(net))) == len(set(variables))
    for key, slot in slots.items():
        if slot.variable is not None:
            moved = slot.convert(np.zeros(slot.shape, np.float32))
            assert moved.shape == tuple(slot.variable.shape), key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v1_fc", "v1_tstp", "v1_mhastp", "legacy", "v2_plain", "mrl"])
def test_report(name):
    net = network(name)
    report = torch_weights.fill(net, checkpoint_files.read(name))
    manifest = dict(checkpoint_files.case(name).manifest)
    assert report.layout == checkpoint_files.case(name).arch and report.left_over == 0
    assert report.tensors_read == len(manifest) and report.elements == sum(map(math.prod, manifest.values()))
    accounted = report.tensors_mapped + report.constants_checked + report.counters_dropped + report.left_over
    assert accounted == report.tensors_read
    assert report.counters_dropped == sum(key.endswith("num_batches_tracked") for key in manifest)
    assert report.tensors_mapped == len(nnx.to_flat_state(nnx.state(net)))
    buffers = ("num_batches_tracked", "running_mean", "running_var")
    parameters = {k: s for k, s in manifest.items() if not k.endswith(buffers) and ".torchfbank." not in k}
    assert report.parameters == sum(map(math.prod, parameters.values()))
    assert report.subnormals_flushed == 0


def test_no_order_is_lost_on_the_way():
    """Every element of every tensor stands in the network once."""
    for name in ("v1_fc", "v2_plain"):
        net, checkpoint = network(name), checkpoint_files.read(name)
        torch_weights.fill(net, checkpoint)
        for key, slot in torch_mapping.slots(net, checkpoint.layout).items():
            if slot.variable is not None:
                there, here = np.asarray(slot.variable.get_value()), checkpoint.state_dict[key]
                np.testing.assert_array_equal(np.sort(there, None), np.sort(here, None), err_msg=key)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_every_float_becomes_float32(dtype, tmp_path):
    state = checkpoint_files.state_dict("v1_fc")
    constants = ("num_batches_tracked", "window", "mel_scale.fb", "flipped_filter")
    cast = {k: v if k.endswith(constants) else v.astype(dtype) for k, v in state.items()}
    model = from_torch(checkpoint_files.save(tmp_path / "cast.pt", "v1_fc", state=cast))
    slots = torch_mapping.slots(model.network, "redimnet")
    for key, slot in slots.items():
        if slot.variable is not None:
            there = np.asarray(slot.variable.get_value())
            assert there.dtype == np.float32
            np.testing.assert_array_equal(there, slot.convert(cast[key].astype(np.float32)), err_msg=key)


def test_integers_are_numbers_too():
    net, report = filled(changed(**{BIAS: np.arange(32), "bn.bias": np.full(192, 3, np.uint8)}))
    assert net.linear.bias.get_value().dtype == np.float32 and report.left_over == 0
    np.testing.assert_array_equal(net.linear.bias.get_value(), np.arange(32))


def test_subnormals_are_flushed_and_counted():
    tiny = np.finfo(np.float32).tiny
    bias = np.zeros(32, np.float32)
    bias[:4] = [tiny / 2, -tiny / 4, tiny, -tiny]
    net, report = filled(changed(**{BIAS: bias, "bn.bias": np.full(192, 1e-42)}))
    assert report.subnormals_flushed == 2 + 192
    there = np.asarray(net.linear.bias.get_value())
    np.testing.assert_array_equal(there, np.where(np.arange(32) < 2, 0, bias))
    assert not np.asarray(net.bn.bias.get_value()).any()


def test_counters_of_any_value_are_dropped():
    key = "bn.num_batches_tracked"
    assert filled(changed(**{key: np.int64(2**40).reshape(())}))[1] == filled(checkpoint_files.read("v1_fc"))[1]


# Reading files


def read(path, content, **kwargs):
    return torch_weights.read_checkpoint(torch_format.save_zip(path, content), **kwargs)


@pytest.mark.parametrize("name", ["v1_fc", "legacy", "legacy_mfa", "v2_plain", "v2_dual", "mrl"])
def test_layout_is_detected(name, tmp_path):
    path = checkpoint_files.save(tmp_path / "x.pt", name)
    checkpoint = torch_weights.read_checkpoint(path)
    assert checkpoint.layout == checkpoint_files.case(name).arch and checkpoint.path == path
    assert checkpoint.model_config == checkpoint_files.case(name).model_config
    assert checkpoint.state_dict.keys() == checkpoint_files.state_dict(name).keys()


def test_arch_wins_over_detection(tmp_path):
    path = checkpoint_files.save(tmp_path / "v1.pt", "v1_fc")
    assert torch_weights.read_checkpoint(path, arch="redimnet_legacy").layout == "redimnet_legacy"
    assert "'stages_setup[0].stride' is 1" in refusal(from_torch, path, arch="redimnet2")
    assert "read as redimnet_legacy" in (text := refusal(from_torch, path, arch="redimnet_legacy"))
    assert "backbone.inputs_weights.0" in text
    config = checkpoint_files.case("v1_fc").model_config | {"mrl_dims": [32]}
    assert "read as redimnet_mrl" in refusal(from_torch, path, arch="redimnet_mrl", model_config=config)
    legacy = checkpoint_files.save(tmp_path / "legacy.pt", "legacy")
    assert "read as redimnet, " in (text := refusal(from_torch, legacy, arch="redimnet"))
    assert "unexpected (backbone.inputs_weights.0" in text
    assert "'bogus'; choose one of redimnet, redimnet_legacy, " in refusal(from_torch, path, arch="bogus")


def test_bare_state_dict(tmp_path):
    path = torch_format.save_zip(tmp_path / "bare.pt", checkpoint_files.state_dict("v1_fc"))
    assert (
        refusal(from_torch, path) == f"{path} holds no model_config; give it in a JSON file with --model_config=FILE."
    )
    model = from_torch(path, model_config=checkpoint_files.case("v1_fc").model_config)
    assert (model.arch, model.embed_dim, model.source.file) == ("redimnet", 32, "bare.pt")


def test_given_model_config_wins(tmp_path):
    path = checkpoint_files.save(tmp_path / "x.pt", "v1_fc")
    config = checkpoint_files.case("v1_fc").model_config | {"mrl_dims": [8, 32]}
    assert from_torch(path, model_config=config).mrl_dims == (8, 32)
    assert "2 misshapen (linear.weight" in refusal(from_torch, path, model_config=config | {"embed_dim": 33})


def test_best_of_the_wrapper(tmp_path):
    case = checkpoint_files.case("mrl")
    content = {
        "epoch": 17,
        "best_eer": np.float64(0.0123),
        "train_args": {"lr": 0.1, "dims": (64, 128)},
        "model_config": case.model_config | {"mrl_dims": tuple(case.model_config["mrl_dims"]), "C": np.int64(8)},
        "optimizer_state_dict": {
            "state": {0: {"step": np.float32(5).reshape(()), "exp_avg": np.zeros((3, 3), np.float32)}},
            "param_groups": [{"lr": 1e-3, "params": [0]}],
        },
        "model_state_dict": checkpoint_files.state_dict("mrl"),
    }
    checkpoint = read(tmp_path / "best.pt", content)
    assert checkpoint.layout == "redimnet_mrl" and checkpoint.model_config == case.model_config
    model, report = torch_weights.convert(checkpoint)
    assert (model.mrl_dims, model.embed_dim, report.left_over) == ((8, 16, 24, 32), 32, 0)


def test_defaults_of_the_wrapper(tmp_path):
    entries = {
        k: v for k, v in checkpoint_files.case("mrl").model_config.items() if k not in ("embed_dim", "mrl_dims")
    }
    path = checkpoint_files.save(tmp_path / "best.pt", "mrl", config=entries)
    assert "projection.linear.bias is [32], not [256]" in refusal(from_torch, path)


def test_module_prefix(tmp_path):
    state = checkpoint_files.state_dict("v1_fc")
    path = checkpoint_files.save(tmp_path / "x.pt", "v1_fc", state={f"module.{k}": v for k, v in state.items()})
    assert torch_weights.read_checkpoint(path).state_dict.keys() == state.keys()
    # A prefix on some names alone is no wrapper's.
    mixed = checkpoint_files.save(tmp_path / "y.pt", "v1_fc", state=state | {"module.bn.bias": state["bn.bias"]})
    assert "1 unexpected (module.bn.bias)" in refusal(from_torch, mixed)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1, 2], "holds a list, not a checkpoint"),
        (np.zeros(3, np.float32), "holds a ndarray, not a checkpoint"),
        ({}, "its state dict has no tensors"),
        ({"state_dict": {}, "model_config": {}}, "its state dict has no tensors"),
        ({"epoch": 3, "args": "x"}, "entries that are not tensors (epoch, args)"),
        ({"state_dict": {"a": np.zeros(3, np.float32), "b": 3.0}}, "entries that are not tensors (b)"),
        ({0: np.zeros(3, np.float32)}, "entries that are not tensors (0)"),
        ({"state_dict": {"a": np.zeros(3, np.float32)}, "model_config": "b2"}, "is a str; give one with"),
        ({"state_dict": {"a": np.zeros(3, np.float32)}}, "holds no model_config"),
    ],
)
def test_what_is_no_checkpoint(content, told, tmp_path):
    path = tmp_path / "x.pt"
    text = refusal(read, path, content)
    assert told in text and str(path) in text


def test_config_entries_that_are_tensors(tmp_path):
    config = checkpoint_files.case("v1_fc").model_config | {
        "mrl_dims": np.int64([8, 32]),
        "C": np.float32([[1, 2], [3, 4]]),
    }
    path = checkpoint_files.save(tmp_path / "x.pt", "v1_fc", config=config)
    assert torch_weights.read_checkpoint(path).model_config["mrl_dims"] == [8, 32]
    assert "'C' is [[1.0, 2.0], [3.0, 4.0]] but must be an integer" in refusal(from_torch, path)


def test_dtype_is_that_of_the_backbone(tmp_path):
    model = from_torch(checkpoint_files.save(tmp_path / "x.pt", "v1_fc"), dtype=ml_dtypes.bfloat16)
    assert model.network.dtype == ml_dtypes.bfloat16
    assert {leaf.get_value().dtype.name for _, leaf in nnx.to_flat_state(nnx.state(model.network))} == {"float32"}


def test_constants_in_the_network_are_those_of_the_file():
    case = checkpoint_files.case("v1_fc")
    net, _ = filled(checkpoint_files.read("v1_fc"))
    np.testing.assert_array_equal(net.frontend.window.get_value(), case.constants[WINDOW])
    np.testing.assert_array_equal(net.frontend.filter_bank.get_value(), case.constants[FILTERS])
    derived = FRONT_ENDS["pt"](net.config.F, net.config.hop_length, net.config.spec_params)
    assert np.abs(derived.filter_bank.get_value() - case.constants[FILTERS]).max() < torch_weights.CONSTANT_TOLERANCE


# Names that wrappers give, and half precision


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module.module.", "model.", "_orig_mod.module.", "net.encoder.", "a.b.c.d."]
)
@pytest.mark.parametrize("name", ["v1_fc", "mrl"])
def test_prefixes_of_wrappers(name, prefix):
    state = checkpoint_files.state_dict(name)
    found, removed = torch_weights.unwrapped({f"{prefix}{key}": value for key, value in state.items()})
    assert found.keys() == state.keys() and removed == prefix
    assert torch_weights.unwrapped(state) == (state, "")


def test_wrappers_within_names():
    state = checkpoint_files.state_dict("v1_fc")
    wrapped = {key.replace("backbone.", "backbone._orig_mod.module."): value for key, value in state.items()}
    found, removed = torch_weights.unwrapped({f"model.{key}": value for key, value in wrapped.items()})
    assert found.keys() == state.keys() and removed == "model._orig_mod.module."


def test_nothing_is_removed_from_names_of_others():
    state = {"model.a.weight": np.zeros(3), "model.b.weight": np.zeros(3)}
    assert torch_weights.unwrapped(state) == (state, "")
    # A name of the loss beside those of the model: no wrapper has put the prefix there.
    mixed = {f"model.{key}": value for key, value in checkpoint_files.state_dict("v1_fc").items()} | {
        "loss.w": np.zeros(3)
    }
    assert torch_weights.unwrapped(mixed) == (mixed, "")


def test_the_prefix_is_reported(tmp_path):
    state = {f"_orig_mod.{key}": value for key, value in checkpoint_files.state_dict("v1_fc").items()}
    path = checkpoint_files.save(tmp_path / "x.ckpt", "v1_fc", state=state)
    _, report = torch_weights.convert(torch_weights.read_checkpoint(path))
    assert report.prefix_removed == "_orig_mod."


def test_errors_name_a_few_tensors(tmp_path):
    state = {f"other{key}": value for key, value in checkpoint_files.state_dict("v1_fc").items()}
    text = refusal(from_torch, checkpoint_files.save(tmp_path / "x.pt", "v1_fc", state=state))
    assert len(text) < 1500 + len(str(tmp_path)) and " more)" in text


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_state_dicts_of_half_precision(dtype):
    checkpoint = checkpoint_files.read("v1_fc")
    half = {
        key: value.astype(dtype) if value.dtype.kind == "f" else value for key, value in checkpoint.state_dict.items()
    }
    net, _ = filled(dataclasses.replace(checkpoint, state_dict=half))
    exact = FRONT_ENDS[net.config.feat_type](net.config.F, net.config.hop_length, net.config.spec_params)
    np.testing.assert_array_equal(net.frontend.filter_bank.get_value(), exact.filter_bank.get_value())
    wrong = half | {FILTERS: (half[FILTERS].astype(np.float32) * 1.05).astype(dtype)}
    assert "at odds with the front end" in refused_tensors(dataclasses.replace(checkpoint, state_dict=wrong))


# Absurd configurations


@pytest.mark.parametrize(
    "entries",
    [
        {"embed_dim": 900_000},
        {"num_classes": 1_000_000},
        {"F": 72_000, "stages_setup": [[1, 1, 1, [[3, 3]], 7]]},
        {"spec_params": {"n_fft": 65536, "win_length": 65536}, "F": 700_000, "stages_setup": [[1, 1, 1, None, 7]]},
        {"C": 1_000_000, "group_divisor": None, "stages_setup": [[1, 1, 1, None, None]]},
        {"stages_setup": [[1, 990, 1, None, None]]},
        {"stages_setup": [[1, 1, 1, None, None]] * 60, "C": 100_000, "group_divisor": None},
    ],
)
def test_a_network_far_larger_than_its_file_is_never_built(tmp_path, entries, monkeypatch):
    monkeypatch.setattr(torch_weights, "SpeakerNetwork", None)
    path = checkpoint_files.save(
        tmp_path / "x.pt", "v1_fc", config=checkpoint_files.case("v1_fc").model_config | entries
    )
    assert "asks for at least" in refusal(from_torch, path)


@pytest.mark.slow
@pytest.mark.parametrize("name", golden.names())
def test_no_network_is_thought_larger_than_it_is(name):
    state, config = checkpoint_files.state_dict(name), network(name).config
    tensors, elements = size.minimum_size(config)
    assert tensors <= len(state) and elements <= sum(array.size for array in state.values())


def test_a_model_config_that_is_no_config(tmp_path):
    config = checkpoint_files.case("v1_fc").model_config
    path = checkpoint_files.save(tmp_path / "x.pt", "v1_fc", config=config | {"F": np.zeros(20_000)})
    assert "more than 10,000 values" in refusal(from_torch, path)
    for value in (1e308, 10**600, "x" * 5000, [[1] * 50] * 50):
        path = checkpoint_files.save(
            tmp_path / "x.pt", "v1_fc", config=config | {"stages_setup": [[1, 1, value, None, 7]]}
        )
        assert len(refusal(from_torch, path)) < 500 + len(str(tmp_path))


def test_lightning_without_a_model_config(tmp_path):
    content = {"state_dict": checkpoint_files.state_dict("v1_fc"), "hyper_parameters": {"lr": 0.1}, "epoch": 3}
    text = refusal(from_torch, torch_format.save_zip(tmp_path / "x.ckpt", content))
    assert "holds no model_config (hyper_parameters, which Lightning writes, are none); give it in a JSON" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.pt", "x.PT", "x.ckpt", "x.bin", "x.pth.tar", "x.pth", "x"])
def test_a_file_is_known_by_its_content(tmp_path, name):
    assert loading.open_model(checkpoint_files.save(tmp_path / name, "v1_fc")).source.file == name
