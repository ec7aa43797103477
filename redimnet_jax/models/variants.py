"""The published variants by name: (architecture, model_config).

b2 and b5 reproduce the tensor and element counts of the released files. b0, b1, b3 and b6 come from a public recipe
and are unconfirmed, and so are those of ReDimNet2. A network is always built from the model_config in its checkpoint,
never from this table, which serves training from random weights and benchmarks.
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
_V2 = {
    "F": 72,
    "causal": "none",
    "hop_length": 160,
    "feat_type": "tf",
    "spec_params": {"do_preemph": True, "do_spec_aug": False, "norm_signal": True},
}
_K = [[3, 3]]
_V2_SMALL = [
    [[1, 1], 2, 2, _K, 36],
    [[2, 1], 3, 1, _K, 36],
    [[1, 2], 4, 1, _K, 36],
    [[2, 1], 5, 1, _K, 36],
    [[1, 2], 4, 1, _K, 18],
    [[2, 1], 3, 1, _K, 18],
]

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
    "redimnet2-b0": ("redimnet2", _V2 | {"C": 12, "out_channels": 64, "stages_setup": _V2_SMALL}),
    "redimnet2-b3": (
        "redimnet2",
        _V2
        | {
            "C": 24,
            "out_channels": 64,
            "return_2d_output": True,
            "agg_gnorm": True,
            "stages_setup": _V2_SMALL,
        },
    ),
    "redimnet2-b6": (
        "redimnet2",
        _V2
        | {
            "C": 64,
            "out_channels": 224,
            "return_2d_output": True,
            "agg_gnorm": True,
            "dual_agg": True,
            "stages_setup": [
                [[1, 1], 3, 3, _K, 64],
                [[2, 1], 4, 2, _K, 64],
                [[1, 2], 5, 2, _K, 48],
                [[2, 1], 5, 1, _K, 48],
                [[1, 2], 4, 0.75, _K, 32],
                [[2, 1], 3, 0.5, _K, 24],
            ],
        },
    ),
}
