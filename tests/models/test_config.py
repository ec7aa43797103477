"""What a `model_config` may hold, and that every mistake in one is named."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from redimnet_jax.errors import UserError
from redimnet_jax.models import config as model_config
from redimnet_jax.models.config_spec import SpecParams
from redimnet_jax.models.network import without_values


def refusal(arch: str = "redimnet", **entries) -> str:
    """The one sentence with which `entries` are refused."""
    with pytest.raises(UserError) as caught:
        model_config.parse(arch, entries)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and ". " not in text
    return text


def stage(**parts) -> list:
    names = {"stride": 1, "blocks": 1, "conv_exp": 1, "kernel_sizes": [[3, 3]], "att_block_red": 12}
    assert parts.keys() <= names.keys()
    return [list((names | parts).values())]


def test_defaults_of_redimnet():
    config = model_config.parse("redimnet", {})
    assert (config.arch, config.F, config.C, config.channels) == ("redimnet", 72, 16, 1152)
    assert (config.hop_length, config.embed_dim, config.group_divisor) == (160, 192, 4)
    assert (config.block_1d_type, config.block_2d_type) == ("att", "convnext_like")
    assert (config.pooling_func, config.feat_type, config.global_context_att) == ("ASTP", "pt", False)
    assert (config.out_channels, config.num_classes, config.mrl_dims) == (None, None, None)
    assert [s.freq_stride for s in config.stages_setup] == [1, 2, 1, 2, 1, 2] and config.time_stride == 1
    assert [s.att_block_red for s in config.stages_setup] == [12, 12, 12, 8, 8, 4]
    assert config.spec_params == SpecParams(freq_mask_width=(0, 6), time_mask_width=(0, 8))
    assert (
        config.spec_params.n_fft,
        config.spec_params.win_length,
        config.spec_params.f_min,
        config.spec_params.f_max,
    ) == (512, 400, 20, 7600)


def test_defaults_of_redimnet2():
    config = model_config.parse("redimnet2", {})
    assert (config.F, config.C, config.group_divisor, config.hop_length) == (72, 24, 1, 160)
    assert (config.block_1d_type, config.block_2d_type) == ("conv+att", "basic_resnet")
    assert config.compress_tconvs and config.global_context_att and not config.dual_agg
    assert [(s.freq_stride, s.time_stride) for s in config.stages_setup] == [
        (1, 1),
        (2, 1),
        (1, 2),
        (2, 1),
        (1, 2),
        (2, 1),
    ]
    assert (config.pad_right_samples, config.before_pool_offset, config.time_stride) == (0, 0, 4)


def test_what_both_architectures_take():
    assert model_config.parse("redimnet", {"group_divisor": None}).group_divisor is None
    assert model_config.parse("redimnet", {"mrl_dims": [64, 192]}).mrl_dims == (64, 192)
    assert model_config.parse("redimnet", {"mrl_dims": [64]}).mrl_dims == (64, 192)
    for written, name in (("nn.Tanh()", "Tanh"), ("torch.nn.ReLU()", "ReLU"), (None, None)):
        assert model_config.parse("redimnet", {"head_activation": written}).head_activation == name
    for causal in ("none", None, False):
        model_config.parse("redimnet2", {"causal": causal})
    tf = model_config.parse("redimnet", {"feat_type": "tf", "spec_params": {"eps": 1e-6}})
    assert tf.spec_params.eps == 1e-6


def test_unknown_architecture():
    with pytest.raises(UserError, match="'redimnet3'; choose one of redimnet, redimnet2"):
        model_config.parse("redimnet3", {})


def test_unknown_entries_are_all_named():
    text = refusal(embed_dims=3, Hop=2)
    assert "unknown entries for redimnet: 'Hop', 'embed_dims'" in text and "embed_dim," in text
    assert "'dual_agg'" in refusal(dual_agg=True)
    assert "for redimnet2: 'class_dropout'" in refusal("redimnet2", class_dropout=0.1)


@pytest.mark.parametrize(
    ("feat_type", "entries", "named"),
    [
        ("pt", {"nfft": 512}, "'nfft'"),
        ("pt", {"eps": 1e-6}, "'eps'"),
        ("pt_mel", {"eps": 1e-6}, "'eps'"),
        ("tf", {"spec_norm": "mn"}, "'spec_norm'"),
        ("tf_mel", {"num_apply_spec_aug": 1, "spec_norm": "mn"}, "'num_apply_spec_aug', 'spec_norm'"),
    ],
)
def test_unknown_spec_params(feat_type, entries, named):
    text = refusal(feat_type=feat_type, spec_params=entries)
    assert f"'spec_params' has unknown entries for feat_type {feat_type!r}: {named};" in text


@pytest.mark.parametrize(
    ("key", "values", "wanted"),
    [
        ("F", [True, "72", 0, -1, 72.0, None], "an integer of at least 1"),
        ("C", [False, [16]], "an integer of at least 1"),
        ("embed_dim", ["192", 0], "an integer of at least 1"),
        ("hop_length", [0, 1e2], "an integer of at least 1"),
        ("num_classes", [0, "5", True], "an integer of at least 1"),
        ("out_channels", [0, 1.5], "an integer of at least 1"),
        ("group_divisor", [0, -4, "4"], "an integer of at least 1"),
        ("class_dropout", [1.0, -0.1, 7], "a rate of at least 0 and below 1"),
        ("class_dropout", [float("nan"), float("inf"), "0.1", True], "a number"),
        ("feat_agg_dropout", [None], "a number"),
        ("emb_bn", [1, "true", None], "true or false"),
        ("global_context_att", [0], "true or false"),
        ("block_1d_type", ["lstm", None, ["att"]], "one of fc, conv, att, conv+att"),
        ("block_2d_type", ["transformer", 2], "one of convnext_like, "),
        ("pooling_func", ["TSTP_var", "astp"], "one of TAP, TMAP, "),
        ("feat_type", ["tf_spec", "wav"], "one of pt, pt_mel, tf, tf_mel"),
        ("spec_params", [None, [], "mn"], "a mapping"),
    ],
)
def test_wrong_kinds(key, values, wanted):
    for value in values:
        assert f"{key!r} is {value!r} but must be {wanted}" in refusal(**{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("return_2d_output", 1),
        ("dual_agg", None),
        ("agg_gnorm", "yes"),
        ("compress_tconvs", 0),
        ("use_freq_pos_enc", []),
        ("pad_right_samples", -1),
        ("before_pool_offset", True),
    ],
)
def test_wrong_kinds_of_redimnet2(key, value):
    assert f"{key!r} is {value!r} but must be " in refusal("redimnet2", **{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sample_rate", 16000.0),
        ("n_fft", 0),
        ("win_length", "400"),
        ("win_length", 1),
        ("f_min", None),
        ("f_max", float("nan")),
        ("do_preemph", 1),
        ("norm_signal", "no"),
        ("do_spec_aug", None),
        ("spec_norm", "in"),
        ("freq_mask_width", [6, 0]),
        ("time_mask_width", 8),
        ("freq_start_bin", -1),
        ("num_apply_spec_aug", 0),
    ],
)
def test_wrong_kinds_in_spec_params(key, value):
    assert f"{key!r} is {value!r} but must be " in refusal(spec_params={key: value})


@pytest.mark.parametrize("eps", [0, -1e-8, float("nan"), "small"])
def test_eps_must_be_positive(eps):
    assert "'eps' is " in refusal(feat_type="tf", spec_params={"eps": eps})


def test_frequencies_and_windows_that_do_not_fit():
    text = refusal(spec_params={"f_max": 8001})
    assert "f_min 20 and f_max 8001 Hz" in text and "8000, half the sample rate" in text
    assert "f_max 7600" in refusal(spec_params={"sample_rate": 8000})
    assert "f_min 7700" in refusal(spec_params={"f_min": 7700})
    assert "f_min -1" in refusal(spec_params={"f_min": -1})
    assert "win_length 513, longer than n_fft 512" in refusal(spec_params={"win_length": 513})


@pytest.mark.parametrize(
    ("arch", "key", "value", "why"),
    [
        ("redimnet", "tf_optimized_arch", True, "never published"),
        ("redimnet2", "causal", "full", "never published"),
        ("redimnet2", "causal", True, "never published"),
        ("redimnet2", "fm_weigthing_type", "N", "only 'NC'"),
        ("redimnet2", "spec_in_channels", 2, "set it to 1"),
    ],
)
def test_what_the_published_code_cannot_run(arch, key, value, why):
    text = refusal(arch, **{key: value})
    assert f"{key!r} is {value!r}, which the published code cannot run" in text and why in text


@pytest.mark.parametrize(
    "text", ["__import__('os')", "nn.ReLU", "nn.ReLU()\n", "nn.Softplus()", "nn.Tanh(); x", "", 3, ["nn.Tanh()"]]
)
def test_head_activation_is_never_evaluated(text):
    refused = refusal(head_activation=text)
    assert f"'head_activation' is {text!r}" in refused and "never evaluated" in refused and "'nn.Tanh()'" in refused


@pytest.mark.parametrize("dims", [[64, 32], [64, 64], [], [0, 64], [-8, 64], "64", 64, [True, 64], [32.0], [[32]]])
def test_mrl_dims_must_increase(dims):
    assert f"'mrl_dims' is {dims!r} but must be increasing" in refusal(mrl_dims=dims)


def test_mrl_dims_beyond_the_embedding():
    assert "'mrl_dims' ends at 256, beyond embed_dim 192" in refusal(mrl_dims=[64, 256])


@pytest.mark.parametrize("setup", [[], None, "12", 5, {}])
def test_no_stages(setup):
    assert "'stages_setup' must be a list of at least one stage" in refusal(stages_setup=setup)


@pytest.mark.parametrize("entry", [[1, 2, 1, [[3, 3]]], [1, 2, 1, [[3, 3]], 12, 1], 5, "12345", None])
def test_stages_have_five_parts(entry):
    assert "'stages_setup'[1] is " in (text := refusal(stages_setup=[*stage(), entry])) and "five parts" in text


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("stride", [4, 0, True, "1", [1, 1]]),
        ("blocks", [-1, 1.0, None]),
        ("conv_exp", [0, -1, "1", float("nan"), float("inf"), True]),
        ("kernel_sizes", [[], 3, [3, 3], [[3]], [[3, 3, 3]], [[0, 3]], [[3, -1]], [["3", 3]], "33"]),
        ("att_block_red", [0, -1, 1.5, "12"]),
    ],
)
def test_parts_of_a_stage(part, values):
    for value in values:
        text = refusal(stages_setup=stage(**{part: value}))
        assert f"'stages_setup[0].{part}' is {value!r} but must be " in text


@pytest.mark.parametrize("stride", [2, [2], [2, 0], [2, 1, 1], [True, 1], "21"])
def test_strides_of_redimnet2_are_pairs(stride):
    text = refusal("redimnet2", stages_setup=stage(stride=stride))
    assert f"'stages_setup[0].stride' is {stride!r} but must be two positive integers" in text


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        (
            {"F": 9, "stages_setup": stage(stride=2, att_block_red=None)},
            "'stages_setup'[0] divides 9 frequencies by 2",
        ),
        ({"group_divisor": 5}, "'stages_setup'[0] has 16 channels that group_divisor 5 cannot group"),
        ({"C": 2}, "'stages_setup'[0] has 2 channels that group_divisor 4 cannot group"),
        ({"stages_setup": stage(conv_exp=0.01)}, "conv_exp 0.01, which leaves none of 16 channels"),
        (
            {"C": 9, "group_divisor": 4, "stages_setup": stage(conv_exp=1.34, att_block_red=None)},
            "squeezes 12 channels into 9, which group_divisor 4",
        ),
        ({"stages_setup": stage(att_block_red=10)}, "'stages_setup'[0] has att_block_red 10, so 115 channels"),
        ({"F": 71}, "att_block_red 12, so 94 channels for 4 heads"),
        ({"stages_setup": stage(att_block_red=2000), "block_1d_type": "fc"}, "att_block_red 2000, so 0 channels"),
        ({"out_channels": 5, "pooling_func": "MHASTP"}, "MHASTP splits 5 channels into 2 heads"),
    ],
)
def test_stages_that_cannot_build(entries, why):
    text = refusal(**entries)
    assert text.startswith("model_config cannot build a network: ") and why in text


CHOICES = {
    "F": [8, 12],
    "C": [4, 6, 8],
    "hop_length": [160, 161, 500],
    "block_1d_type": model_config.BLOCKS_1D,
    "block_2d_type": model_config.BLOCKS_2D,
    "group_divisor": [None, 1, 2, 3, 4],
    "pooling_func": sorted(model_config.POOLING_HEADS),
    "global_context_att": [True, False],
    "out_channels": [None, 5, 8],
    "feat_type": ["pt", "tf"],
    "spec_params": [{}, {"n_fft": 256, "win_length": 2}, {"n_fft": 511, "norm_signal": True}],
}
CHOICES_2 = {
    **{
        k: [True, False] for k in ("compress_tconvs", "return_2d_output", "use_freq_pos_enc", "dual_agg", "agg_gnorm")
    },
    "pad_right_samples": [None, 300],
    "before_pool_offset": [None, 3],
}


def configurations(two: bool):
    strides = st.tuples(st.sampled_from([1, 2]), st.sampled_from([1, 2, 3])) if two else st.sampled_from([1, 2, 3])
    parts = (
        strides,
        st.sampled_from([0, 1]),
        st.sampled_from([0.5, 1, 1.25, 2]),
        st.sampled_from([[[3, 3]], [[7, 1], [2, 2]], None]),
        st.sampled_from([None, 1, 2, 6]),
    )
    choices = CHOICES | (CHOICES_2 if two else {})
    entries = {key: st.sampled_from(values) for key, values in choices.items()}
    return st.fixed_dictionaries(entries | {"stages_setup": st.lists(st.tuples(*parts), min_size=1, max_size=2)})


@pytest.mark.slow
@pytest.mark.parametrize("arch", model_config.ARCHITECTURES)
@given(st.data())
@settings(max_examples=6)
def test_what_passes_builds_and_runs_from_its_shortest_signal_on(arch, data):
    entries = data.draw(configurations(arch == "redimnet2")) | {"embed_dim": 8}
    try:
        config = model_config.parse(arch, entries)
    except UserError as error:
        assert re.match("model_config cannot build a network: ", str(error))
        return
    graph, state = nnx.split(without_values(config))
    shortest = jax.ShapeDtypeStruct((2, nnx.merge(graph, state).min_samples), jnp.float32)
    lengths = jax.ShapeDtypeStruct((2,), jnp.int32)
    run = jax.eval_shape(lambda s, x, n: nnx.merge(graph, s)(x, n), state, shortest, lengths)
    assert run.shape == (2, 8)
