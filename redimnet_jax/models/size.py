"""How large a network its model_config asks for, told before anything of it is built."""

import math

from redimnet_jax.errors import UserError
from redimnet_jax.models.config import ModelConfig, pooled_channels


def check(config: ModelConfig, tensors: int, elements: int, where: str) -> None:
    """Raises UserError when a network of `config` would need far more than what a checkpoint holds.

    `tensors` and `elements` are how many the checkpoint at `where` has. To build a network takes time by its blocks
    and memory by its widths, so nothing is built for numbers that its file cannot fill. What differs by less is left
    to those who compare the shapes.
    """
    needed_tensors, needed_elements = _least_size(config)
    # Some more is built in a moment, and then the differences can be listed one by one.
    if needed_tensors > 2 * tensors + 500 or needed_elements > 16 * elements + 1_000_000:
        raise UserError(
            f"The model_config of {where} asks for at least {needed_tensors:,} tensors with {needed_elements:,} "
            f"numbers but there are {tensors:,} with {elements:,}; correct the model_config or use an intact file."
        )


def _least_size(config: ModelConfig) -> tuple[int, int]:
    """Counts (tensors, numbers in them) that a network of `config` has at least: its largest parts are counted."""
    bins, c, stride = config.spec.n_fft // 2, config.C, 1
    tensors, elements = (
        0,
        config.F * bins + config.spec.win_length * (bins if config.feat_type.startswith("tf") else 1),
    )
    for index, stage in enumerate(config.stages):
        stride *= stage.time_stride
        c *= stage.freq_stride
        inner = int(c * stage.conv_exp)
        kernels = stage.kernel_sizes if config.block_2d_type.startswith("convnext") else ((3, 3),)
        taps = sum(math.prod(kernel) for kernel in kernels) if config.arch == "redimnet2" else 9
        # Each block has as many filters as channels, of at least one channel each, and a product of all channels.
        tensors += 1 + stage.blocks * 6
        elements += index * config.channels + stage.freq_stride * stride * inner + stage.blocks * inner * taps
        if config.block_2d_type.startswith("convnext"):
            elements += stage.blocks * inner * inner
        if stage.att_block_red is not None:
            tensors += 6
            elements += 2 * config.channels * (config.channels // stage.att_block_red)
    elements += pooled_channels(config) * config.embed_dim + config.embed_dim * (config.num_classes or 0)
    return tensors, elements
