"""Bounds on the size of the network that a `model_config` asks for, checked before anything of it is built."""

import math

from redimnet_jax.errors import UserError
from redimnet_jax.models.config import ModelConfig, ReDimNet2Config


def check(config: ModelConfig, tensors: int, elements: int, where: str) -> None:
    """Raise UserError when a network of `config` would need far more than what a checkpoint holds.

    `tensors` and `elements` are the counts in the checkpoint at `where`. Building a network takes time by its blocks
    and memory by its widths, so nothing is built for numbers that its file cannot fill. Smaller differences are left
    to those who compare the shapes.
    """
    needed_tensors, needed_elements = minimum_size(config)
    # A network that is somewhat larger is built in a moment, and then the differences can be listed one by one.
    if needed_tensors > 2 * tensors + 500 or needed_elements > 16 * elements + 1_000_000:
        raise UserError(
            f"The model_config of {where} asks for at least {needed_tensors:,} tensors with {needed_elements:,} "
            f"numbers but there are {tensors:,} with {elements:,}; correct the model_config or use an intact file."
        )


def minimum_size(config: ModelConfig) -> tuple[int, int]:
    """Return lower bounds of (tensors, numbers in them) of a network of `config`, from its largest parts."""
    spec = config.spec_params
    bins = spec.n_fft // 2
    channels = config.C
    time_stride = 1
    tensors = 0
    elements = config.F * bins + spec.win_length * (bins if config.feat_type.startswith("tf") else 1)
    is_convnext = config.block_2d_type.startswith("convnext")
    for index, stage in enumerate(config.stages_setup):
        time_stride *= stage.time_stride
        channels *= stage.freq_stride
        inner = int(channels * stage.conv_exp)
        kernels = stage.kernel_sizes if is_convnext else ((3, 3),)
        taps = sum(map(math.prod, kernels)) if isinstance(config, ReDimNet2Config) else 9
        # Each block has as many filters as channels, of at least one channel each, and a product of all channels.
        tensors += 1 + stage.blocks * 6
        elements += index * config.channels + stage.freq_stride * time_stride * inner + stage.blocks * inner * taps
        if is_convnext:
            elements += stage.blocks * inner * inner
        if stage.att_block_red is not None:
            tensors += 6
            elements += 2 * config.channels * (config.channels // stage.att_block_red)
    elements += config.pooled_channels * config.embed_dim + config.embed_dim * (config.num_classes or 0)
    return tensors, elements
