"""Every setting of a network is exported or refused by its name.

`tests/fuzz/export_configurations.py` compares many more configurations, and all of them with `model.embed`.
"""

import dataclasses
import random

import export_configurations as sweep
import numpy as np
import pytest

from redimnet_jax.models import config
from redimnet_jax.models.config_entries import entry_names
from redimnet_jax.models.config_spec import SpecParams

FORMATS = ("onnx", "torch", "safetensors", "wespeaker")
CLASSES = {"redimnet": config.ReDimNetConfig, "redimnet2": config.ReDimNet2Config}


@pytest.mark.parametrize("arch", CLASSES)
def test_the_sweep_has_every_setting(arch):
    cls = CLASSES[arch]
    known = entry_names(cls) | cls.unused | cls.restricted.keys()
    assert sweep.SETTINGS[arch].keys() | {"stages_setup", "spec_params"} == known
    assert sweep.SPEC.keys() == entry_names(SpecParams)
    parts = {field.name for field in dataclasses.fields(config.Stage)}
    assert sweep.STAGE.keys() | {"freq_stride", "time_stride"} == parts


@pytest.mark.slow
@pytest.mark.parametrize("arch", CLASSES)
def test_every_value_of_every_setting(arch):
    first, *others = sweep.covering(arch, seed=0)
    assert list(sweep.failures(arch, first, FORMATS)) == []
    # Of these, padded and alone: XLA would take seconds for each to say more.
    for entries in others:
        assert list(sweep.failures(arch, entries, ["onnx"], reference=False)) == []


@pytest.mark.slow
@pytest.mark.parametrize("arch", CLASSES)
def test_what_wespeaker_has_comes_back(arch, tmp_path):
    rng = random.Random(0)
    entries = next(e for e in iter(lambda: sweep.draw(rng, arch), None) if sweep.wespeaker_has(arch, e))
    case = sweep.Case(arch, entries, reference=False)
    assert list(sweep.CHECKS["wespeaker"](case, tmp_path)) == []


def test_a_difference_is_found():
    arch = "redimnet"
    case = sweep.Case(arch, sweep.covering(arch, seed=0)[0], reference=False)
    case.expected = np.ones((3, 2))
    assert len(list(case.differences(lambda x, lengths: np.full((len(x), 2), 1.001), alone=True))) == 6
    assert list(case.differences(lambda x, lengths: np.ones((len(x), 2)), alone=True)) == []
    assert len(list(case.differences(lambda x, lengths: np.full((len(x), 2), np.nan), alone=False))) == 3
