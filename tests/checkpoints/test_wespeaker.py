"""WeSpeaker's configuration and names, to and from ours."""

import functools

import pytest
import tiny
import torch_format
import yaml
from flax import nnx
from refusals import refusal

from redimnet_jax import export, from_torch
from redimnet_jax.checkpoints import native, torch_file, torch_mapping, torch_weights, wespeaker
from redimnet_jax.models import config as model_config
from redimnet_jax.models.network import SpeakerNetwork, without_values

KALDI = {"feat_type": "kaldi", "pool_bn": False, "block_1d_type": "conv+att", "block_2d_type": "convnext_like"}
KALDI |= {"spec_params": {"f_max": 8000}}
TF = {"F": 16, "C": 4, "embed_dim": 8, "feat_type": "tf", "stages_setup": [[[2, 2], 1, 1, [[3, 3]], None]]}
FBANK = {"num_mel_bins": 72, "frame_shift": 10, "frame_length": 25, "dither": 1.0}
TFMEL = {"n_mels": 72, "hop_length": 160, "win_length": 400, "n_fft": 512, "f_min": 20, "f_max": 7600}
TFMEL |= {"do_preemph": True, "norm_signal": True, "do_spec_aug": False, "eps": 1e-8}
# The tensors and parameters of WeSpeaker's models at dfa7419, built by their names.
PUBLISHED = {
    "ReDimNetB0": (583, 60),
    "ReDimNetB1": (353, 72),
    "ReDimNetB2": (548, 72),
    "ReDimNetB3": (1373, 72),
    "ReDimNetB5": (1044, 72),
    "ReDimNet2B0": (731, 72),
    "ReDimNet2B4": (743, 72),
    "ReDimNet2B6": (807, 72),
}


def recipe(name: str, mels: int = 72) -> dict:
    """The part of a recipe's configuration that says what the model and its features are."""
    arguments = {"feat_dim": mels, "embed_dim": 192, "pooling_func": "ASTP"}
    if name.startswith("ReDimNet2"):
        data = {"frontend": "tfmel", "tfmel_args": TFMEL | {"n_mels": mels}, "resample_rate": 16000, "cmvn": False}
    else:
        arguments["two_emb_layer"] = False
        data = {"fbank_args": FBANK | {"num_mel_bins": mels}, "resample_rate": 16000, "spec_aug": False}
    return {"model": name, "model_args": arguments, "dataset_args": data, "optimizer": "SGD"}


def entries(config: dict) -> dict:
    layout = "wespeaker_redimnet2" if config["model"].startswith("ReDimNet2") else "wespeaker_redimnet"
    return wespeaker.entries(config, layout, "config.yaml")


def network(arch: str, given: dict) -> SpeakerNetwork:
    config = model_config.parse(arch, given)
    return without_values(config)


@functools.cache
def model(arch: str = "redimnet"):
    if arch == "redimnet":
        return tiny.model(**KALDI)
    built = SpeakerNetwork(model_config.parse("redimnet2", TF), rngs=nnx.Rngs(0))
    return tiny.SpeakerModel(built, TF, tiny.Source("tiny", "", "redimnet2"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_name_gives_the_published_tensors(name):
    tensors, mels = PUBLISHED[name]
    arch = "redimnet2" if name.startswith("ReDimNet2") else "redimnet"
    found = torch_mapping.slots(network(arch, entries(recipe(name, mels))), f"wespeaker_{arch}")
    assert len(found) == tensors


def test_features_are_those_of_the_recipe():
    kaldi = model_config.parse("redimnet", entries(recipe("ReDimNetB2")))
    assert (kaldi.feat_type, kaldi.hop_length, kaldi.F, kaldi.pool_bn) == ("kaldi", 160, 72, False)
    spec = kaldi.spec_params
    assert (spec.win_length, spec.n_fft, spec.f_min, spec.f_max) == (400, 512, 20, 8000)
    tf = model_config.parse("redimnet2", entries(recipe("ReDimNet2B6")))
    assert (tf.feat_type, tf.spec_params.norm_signal, tf.pooled_channels) == ("tf", True, 9 * 224)


@pytest.mark.parametrize("arch", ["redimnet", "redimnet2"])
def test_round_trip_to_the_bit(tmp_path, arch):
    exported = tmp_path / "avg_model.pt"
    export(model(arch), exported, "wespeaker")
    back = from_torch(exported)
    assert back.source.layout == f"wespeaker_{arch}" and back.arch == arch
    assert native.checksum(native.flat(back.network)) == native.checksum(native.flat(model(arch).network))
    assert back.network.config == model(arch).network.config
    # And from there once more: the same file, to the byte.
    again = tmp_path / "again" / "avg_model.pt"
    export(back, again, "wespeaker")
    assert again.read_bytes() == exported.read_bytes()
    assert (tmp_path / "again" / "config.yaml").read_bytes() == (tmp_path / "config.yaml").read_bytes()


def test_the_classifier_is_left_over_and_the_configuration_may_lie_elsewhere(tmp_path):
    export(model(), tmp_path / "avg_model.pt", "wespeaker")
    state = torch_file.read(tmp_path / "avg_model.pt")
    config = wespeaker.parse((tmp_path / "config.yaml").read_bytes(), "config.yaml")
    classifier = {"projection.weight": state["seg_1.weight"], "projection.bias": state["seg_1.bias"]}
    (tmp_path / "other").mkdir()
    path = torch_format.save_zip(tmp_path / "other" / "model_5.pt", state | classifier)
    assert "--model_config" in refusal(from_torch, path)
    _, report = torch_weights.convert(torch_weights.read_checkpoint(path, model_config=config))
    assert (report.layout, report.left_over) == ("wespeaker_redimnet", 2)


@pytest.mark.parametrize(
    ("section", "change", "named"),
    [
        (None, {"model": "ResNet34"}, "model 'ResNet34'"),
        (None, {"model": "ReDimNet2B6"}, "model 'ReDimNet2B6'"),
        (None, {"model_args": None}, "it has no model_args"),
        ("model_args", {"two_emb_layer": True}, "model_args.two_emb_layer True"),
        ("model_args", {"feat_dim": [72]}, "model_args.feat_dim [72]"),
        ("model_args", {"depth": 3}, "unknown model_args ('depth')"),
        ("dataset_args", {"frontend": "s3prl"}, "dataset_args.frontend 's3prl'"),
        ("dataset_args", {"cmvn": False}, "dataset_args.cmvn False"),
        ("dataset_args", {"cmvn_args": {"norm_var": True}}, "norm_var True"),
        ("dataset_args", {"cmvn_args": 3}, "dataset_args.cmvn_args 3"),
        ("dataset_args", {"fbank_args": FBANK | {"num_mel_bins": 80}}, "num_mel_bins 80"),
        ("dataset_args", {"fbank_args": FBANK | {"frame_shift": "x"}}, "frame_shift 'x'"),
        ("dataset_args", {"fbank_args": FBANK | {"frame_length": [25] * 9}}, "frame_length [25, 25,"),
        ("dataset_args", {"fbank_args": FBANK | {"frame_length": float("inf")}}, "frame_length inf"),
        ("dataset_args", {"resample_rate": "16000"}, "resample_rate '16000'"),
    ],
)
def test_a_configuration_that_cannot_be_converted_is_refused_by_name(section, change, named):
    config = recipe("ReDimNetB2")
    if section is None:
        config |= change
    else:
        config[section] = config[section] | change
    text = refusal(wespeaker.entries, config, "wespeaker_redimnet", "exp/config.yaml")
    assert text.startswith("exp/config.yaml ") and named in text


@pytest.mark.parametrize(
    "text",
    [
        b"!!python/object/apply:os.system ['true']",
        b"a: &a [1]\nb: {<<: *a}",
        b"[" * 5000,
        b"a: [1, 2",
        b"\xff\xfe\x00",
        b"a: 2024-13-45",
        b"x" * 70_000,
        b"- 1",
        b"",
    ],
)
def test_hostile_yaml_is_refused_in_a_sentence(text):
    def read() -> None:
        wespeaker.entries(wespeaker.parse(text, "config.yaml"), "wespeaker_redimnet", "config.yaml")

    assert "config.yaml is not a configuration of WeSpeaker" in refusal(read)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mrl_dims": [4, 8]}, "mrl_dims (4, 8)"),
        ({"num_classes": 5}, "num_classes 5"),
        ({"pool_bn": True}, "pool_bn True"),
        ({"block_1d_type": "conv"}, "block_1d_type 'conv'"),
        ({"block_2d_type": "convnext_like_relu"}, "block_2d_type 'convnext_like_relu'"),
        ({"pooling_func": "TMAP"}, "pooling_func 'TMAP'"),
        ({"spec_params": {"f_max": 7600}}, "spec_params.f_max 7600"),
        ({"feat_type": "pt"}, "feat_type 'pt'"),
    ],
)
def test_what_wespeaker_lacks_is_refused_by_name(changes, named):
    config = model_config.parse("redimnet", tiny.CONFIG | KALDI | changes)
    assert named in refusal(wespeaker.document, config)


def test_one_prefix_can_be_exported(tmp_path):
    export(tiny.model(**KALDI, mrl_dims=[4, 8]), tmp_path / "avg_model.pt", "wespeaker", dim=4)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["model_args"]["embed_dim"] == 4
    assert from_torch(tmp_path / "avg_model.pt").embed_dim == 4


def test_another_configuration_is_not_overwritten(tmp_path):
    (tmp_path / "config.yaml").write_text("mine")
    assert "config.yaml exists already" in refusal(export, model(), tmp_path / "avg_model.pt", "wespeaker")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
