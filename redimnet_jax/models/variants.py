"""The published variants by name: (architecture, model_config).

b2 and b5 reproduce the tensor and element counts of the released files, and the seven of ReDimNet2 are those in its
released files. b0, b1, b3 and b6 come from a public recipe and are unconfirmed. A network is always built from the
model_config in its checkpoint, never from this table, which serves training from random weights and benchmarks.
"""

from typing import Any

_V1 = {
    "F": 72,
    "block_1d_type": "conv+att",
    "hop_length": 240,
    "pooling_func": "ASTP",
    "global_context_att": True,
    "embed_dim": 192,
}
# What the seven of ReDimNet2 have in common. The stages of b3 are the defaults.
_V2 = {
    "F": 72,
    "causal": "none",
    "hop_length": 160,
    "feat_type": "tf",
    "spec_params": {"do_preemph": True, "do_spec_aug": False, "norm_signal": True},
    "block_1d_type": "conv+att",
    "block_2d_type": "basic_resnet",
    "group_divisor": 1,
    "compress_tconvs": True,
    "agg_gnorm": True,
    "fm_weigthing_type": "NC",
    "return_2d_output": True,
    "spec_in_channels": 1,
    "pooling_func": "ASTP",
    "global_context_att": True,
    "embed_dim": 192,
    "emb_bn": False,
}
_K = [[3, 3]]
_STRIDES = ([1, 1], [2, 1], [1, 2], [2, 1], [1, 2], [2, 1])


def _v2_stages(blocks: list[int], expansions: list[float], reductions: list[int]) -> list[list[Any]]:
    stages = zip(_STRIDES, blocks, expansions, reductions, strict=True)
    return [[strides, count, expansion, _K, reduction] for strides, count, expansion, reduction in stages]


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "b0": (
        "redimnet",
        _V1
        | {
            "F": 60,
            "C": 10,
            "block_2d_type": "basic_resnet",
            "group_divisor": 1,
            "stages_setup": [
                [1, 2, 1, _K, 30],
                [2, 3, 2, _K, 30],
                [1, 3, 3, _K, 30],
                [2, 4, 2, _K, 10],
                [1, 3, 1, _K, 10],
            ],
        },
    ),
    "b1": (
        "redimnet",
        _V1
        | {
            "C": 12,
            "block_2d_type": "convnext_like",
            "group_divisor": 8,
            "stages_setup": [
                [1, 2, 1, _K, None],
                [2, 3, 1, _K, None],
                [3, 4, 1, _K, 12],
                [2, 5, 1, _K, 12],
                [2, 3, 1, _K, 8],
            ],
        },
    ),
    "b2": (
        "redimnet",
        _V1
        | {
            "C": 16,
            "block_2d_type": "convnext_like",
            "group_divisor": 4,
            "stages_setup": [
                [1, 2, 1, _K, 12],
                [2, 2, 1, _K, 12],
                [1, 3, 1, _K, 12],
                [3, 4, 1, _K, 8],
                [1, 4, 1, _K, 8],
                [2, 4, 1, _K, 4],
            ],
        },
    ),
    "b3": (
        "redimnet",
        _V1
        | {
            "C": 16,
            "block_2d_type": "basic_resnet_fwse",
            "group_divisor": 1,
            "stages_setup": [
                [1, 6, 4, _K, 32],
                [2, 6, 2, _K, 32],
                [1, 8, 2, _K, 32],
                [2, 10, 2, _K, 16],
                [1, 10, 1, _K, 16],
                [2, 8, 1, _K, 16],
            ],
        },
    ),
    "b5": (
        "redimnet",
        _V1
        | {
            "C": 32,
            "block_2d_type": "basic_resnet_fwse",
            "group_divisor": 16,
            "stages_setup": [
                [1, 4, 2, _K, 48],
                [2, 4, 2, _K, 48],
                [1, 6, 2, _K, 48],
                [2, 6, 1, _K, 32],
                [1, 8, 1, _K, 24],
                [2, 4, 1, _K, 16],
            ],
        },
    ),
    "b6": (
        "redimnet",
        _V1
        | {
            "C": 32,
            "block_2d_type": "basic_resnet",
            "group_divisor": 32,
            "stages_setup": [
                [1, 4, 4, _K, 32],
                [2, 6, 2, _K, 32],
                [1, 6, 2, _K, 24],
                [3, 8, 1, _K, 24],
                [1, 8, 1, _K, 16],
                [2, 8, 1, _K, 16],
            ],
        },
    ),
    "redimnet2-b0": (
        "redimnet2",
        _V2
        | {
            "C": 12,
            "out_channels": 64,
            "stages_setup": _v2_stages([2, 3, 4, 5, 4, 3], [2, 1, 1, 1, 1, 1], [36, 36, 36, 36, 18, 18]),
        },
    ),
    "redimnet2-b1": (
        "redimnet2",
        _V2
        | {
            "C": 16,
            "stages_setup": _v2_stages([2, 3, 4, 5, 4, 3], [2, 1, 1, 1, 1, 1], [32, 32, 32, 32, 16, 16]),
        },
    ),
    "redimnet2-b2": (
        "redimnet2",
        _V2
        | {
            "C": 20,
            "stages_setup": [
                [[1, 1], 2, 2, [[3, 5]], 40],
                [[2, 1], 3, 1, [[3, 5]], 30],
                [[1, 2], 4, 1, [[3, 5]], 30],
                [[3, 1], 5, 1, [[3, 5]], 20],
                [[1, 2], 4, 1, [[3, 7]], 20],
                [[2, 1], 3, 1, [[3, 7]], 10],
            ],
        },
    ),
    "redimnet2-b3": ("redimnet2", _V2 | {"C": 24}),
    "redimnet2-b4": (
        "redimnet2",
        _V2 | {"C": 32, "stages_setup": _v2_stages([2, 3, 4, 5, 4, 3], [4, 3, 2, 1, 1, 1], [24] * 6)},
    ),
    "redimnet2-b5": (
        "redimnet2",
        _V2
        | {
            "C": 48,
            "out_channels": 256,
            "stages_setup": _v2_stages([2, 3, 4, 5, 4, 3], [4, 3, 2, 1, 1, 1], [48, 48, 48, 48, 32, 32]),
        },
    ),
    "redimnet2-b6": (
        "redimnet2",
        _V2
        | {
            "C": 64,
            "out_channels": 224,
            "stages_setup": _v2_stages([3, 4, 5, 5, 4, 3], [3, 2, 2, 1, 0.75, 0.5], [64, 64, 48, 48, 32, 24]),
        },
    ),
}
