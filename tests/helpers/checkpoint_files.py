"""Golden cases as the `.pt` files and networks that the tests open."""

import functools
import pathlib

import golden
import jax.numpy as jnp
import numpy as np
import torch_format

from redimnet_jax.checkpoints import torch_weights
from redimnet_jax.models import config as model_config
from redimnet_jax.models.frontend import FRONT_ENDS
from redimnet_jax.models.network import SpeakerNetwork, without_values


@functools.cache
def case(name: str) -> golden.Case:
    return golden.load(name)


def tf_kernels(config: dict) -> dict[str, np.ndarray]:
    """The front end's DFT kernels in the checkpoint's layout: too large to be stored with each case."""
    parsed = model_config.parse("redimnet2" if "causal" in config else "redimnet", config)
    frontend = FRONT_ENDS[parsed.feat_type](parsed.F, parsed.hop_length, parsed.spec_params)
    return {
        f"spec.torchfbank.2.{name}": np.asarray(kernel[...]).T[:, None]
        for name, kernel in (("real_kernel_pt", frontend.real_kernel), ("image_kernel_pt", frontend.imag_kernel))
    }


@functools.cache
def state_dict(name: str) -> dict[str, np.ndarray]:
    """The weights of a golden case, by their names in the checkpoint."""
    c = case(name)
    constants = dict(c.constants)
    if c.model_config.get("feat_type", "pt").startswith("tf"):
        constants |= tf_kernels(c.model_config)
    return golden.weights(c.manifest, c.seed, constants)


def save(path: pathlib.Path, name: str, state: dict | None = None, config: dict | None = None) -> pathlib.Path:
    """Writes a golden case as its publisher would; `state` and `config` replace its own."""
    c = case(name)
    key = "model_state_dict" if c.arch == "redimnet_mrl" else "state_dict"
    content = {"model_config": c.model_config if config is None else config}
    torch_format.save_zip(path, content | {key: state_dict(name) if state is None else state})
    return path


def network(name: str, dtype=jnp.float32) -> SpeakerNetwork:
    """The network of a golden case, with its weights."""
    c = case(name)
    arch = "redimnet2" if c.arch == "redimnet2" else "redimnet"
    config = model_config.parse(arch, c.model_config)
    net = without_values(config, dtype)
    torch_weights.fill(net, read(name))
    return net


def read(name: str) -> torch_weights.TorchCheckpoint:
    """A golden case as read from a file, without one."""
    c = case(name)
    return torch_weights.TorchCheckpoint(pathlib.Path(f"{name}.pt"), state_dict(name), c.arch, c.model_config)
