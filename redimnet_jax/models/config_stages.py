"""The `stages_setup` entry of a `model_config`: the stages of a backbone."""

import dataclasses
from typing import Any

from redimnet_jax.errors import UserError, shown
from redimnet_jax.models import config_entries as entries
from redimnet_jax.models.config_entries import MAX_BLOCKS, MAX_KERNEL_SIZE, MAX_KERNELS, MAX_STAGES, Check

_PARTS = ("stride", "blocks", "conv_exp", "kernel_sizes", "att_block_red")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: `blocks` 2-D blocks at `conv_exp` times the channels, then a 1-D block.

    Kernel sizes are (frequency, time). `att_block_red` divides the channels of the 1-D block; None leaves it out.
    """

    freq_stride: int
    time_stride: int
    blocks: int
    conv_exp: float
    kernel_sizes: tuple[tuple[int, int], ...] = ((3, 3),)
    att_block_red: int | None = None


def frequency_stride(name: str, value: Any) -> tuple[int, int]:
    """Check for the stride of ReDimNet, in frequency alone; return (frequency, time)."""
    if value not in (1, 2, 3):
        raise entries.wrong(name, value, "1, 2 or 3")
    return entries.integer()(name, value), 1


def stride_pair(name: str, value: Any) -> tuple[int, int]:
    """Check for the stride of ReDimNet2, (frequency, time)."""
    if not entries.is_sizes(value):
        raise entries.wrong(name, value, f"two positive integers up to {MAX_KERNEL_SIZE}, (frequency, time)")
    return value[0], value[1]


def _kernel_sizes(name: str, value: Any) -> tuple[tuple[int, int], ...]:
    sizes = [[3, 3]] if value is None else value
    if not entries.is_list(sizes) or not 1 <= len(sizes) <= MAX_KERNELS or not all(map(entries.is_sizes, sizes)):
        raise entries.wrong(
            name,
            value,
            f"a list of pairs (frequency, time) of positive integers, at most {MAX_KERNELS} and up to "
            f"{MAX_KERNEL_SIZE}",
        )
    return tuple((size[0], size[1]) for size in sizes)


def stages(stride: Check) -> Check:
    """Return the check for a list of stages, whose strides `stride` checks; it returns a tuple of Stage."""

    def check(name: str, value: Any) -> tuple[Stage, ...]:
        if not entries.is_list(value) or not value:
            raise UserError(f"model_config entry {name!r} must be a list of at least one stage; correct it.")
        if len(value) > MAX_STAGES:
            raise UserError(
                f"model_config entry {name!r} has {len(value):,} stages, more than {MAX_STAGES}; lower it."
            )
        return tuple(
            _stage(f"{name}[{index}]", f"{name!r}[{index}]", parts, stride) for index, parts in enumerate(value)
        )

    return check


def _stage(name: str, where: str, value: Any, stride: Check) -> Stage:
    if not entries.is_list(value) or len(value) != len(_PARTS):
        raise UserError(
            f"model_config entry {where} is {shown(value)} but must have five parts ({', '.join(_PARTS)}); "
            "correct it."
        )
    parts: dict[str, Any] = dict(zip(_PARTS, value, strict=True))

    def checked(part: str, check: Check) -> Any:
        return check(f"{name}.{part}", parts[part])

    freq_stride, time_stride = checked("stride", stride)
    return Stage(
        freq_stride,
        time_stride,
        blocks=checked("blocks", entries.integer(0, MAX_BLOCKS)),
        conv_exp=checked("conv_exp", entries.positive),
        kernel_sizes=checked("kernel_sizes", _kernel_sizes),
        att_block_red=checked("att_block_red", entries.optional(entries.integer())),
    )
