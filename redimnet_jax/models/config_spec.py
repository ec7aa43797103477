"""The `spec_params` entry of a `model_config`: the front end's settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from redimnet_jax.errors import UserError, shown
from redimnet_jax.models import config_entries as entries
from redimnet_jax.models.config_entries import entry

# Each front end lacks some settings of the others.
ABSENT = {
    "pt": {"eps"},
    "tf": {"spec_norm", "num_apply_spec_aug"},
    "kaldi": {"spec_norm", "num_apply_spec_aug", "eps", "norm_signal", "do_preemph"},
}


@dataclasses.dataclass(frozen=True)
class SpecParams:
    """Settings of the front end, with the defaults of the published constructors. Frequencies are in Hz.

    `spec_norm` and `num_apply_spec_aug` belong to `pt` alone and `eps` to `tf` alone; `kaldi` has no `norm_signal`,
    and its pre-emphasis is no choice.
    """

    sample_rate: int = entry(16000, entries.integer())
    n_fft: int = entry(512, entries.integer(maximum=entries.MAX_FFT))
    win_length: int = entry(400, entries.integer(2, entries.MAX_FFT))
    f_min: float = entry(20, entries.number)
    f_max: float = entry(7600, entries.number)
    do_spec_aug: bool = entry(False, entries.boolean)
    norm_signal: bool = entry(False, entries.boolean)
    do_preemph: bool = entry(True, entries.boolean)
    spec_norm: str = entry("mn", entries.choice(("mn", "mvn", "bn")))
    freq_start_bin: int = entry(0, entries.integer(0))
    num_apply_spec_aug: int = entry(1, entries.integer(maximum=entries.MAX_BLOCKS))
    freq_mask_width: tuple[int, int] = entry((0, 8), entries.integer_range)
    time_mask_width: tuple[int, int] = entry((0, 10), entries.integer_range)
    eps: float = entry(1e-8, entries.eps)


def parse(feat_type: str, value: Any) -> SpecParams:
    """Return the settings in `value`, a mapping, for the front end `feat_type`.

    Raises UserError when an entry is unknown to that front end or of the wrong kind, or when entries contradict
    each other.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"model_config entry 'spec_params' is {shown(value)} but must be a mapping; correct it.")
    known = entries.entry_names(SpecParams) - ABSENT[feat_type.partition("_")[0]]
    where = f"model_config entry 'spec_params' has unknown entries for feat_type {feat_type!r}"
    entries.refuse_unknown(value, known, where)
    params = SpecParams(**entries.check_fields(SpecParams, value))
    if not 0 <= params.f_min < params.f_max <= params.sample_rate / 2:
        raise UserError(
            f"spec_params has f_min {params.f_min} and f_max {params.f_max} Hz but needs 0 <= f_min < f_max <= "
            f"{params.sample_rate / 2:g}, half the sample rate; correct them."
        )
    if params.win_length > params.n_fft:
        raise UserError(
            f"spec_params has win_length {params.win_length}, longer than n_fft {params.n_fft}; correct them."
        )
    return params
