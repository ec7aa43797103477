"""All steps of the augmentation, and how a configuration chooses them."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from redimnet_jax.data.augment.channel import Channel, Gain, LowPass
from redimnet_jax.data.augment.codec import Codec
from redimnet_jax.data.augment.draw import Drawn, parse_kinds
from redimnet_jax.data.augment.noise import Babble, GaussianNoise, Music, Noise, NoiseFolder, Speech
from redimnet_jax.data.augment.room import Reverberation
from redimnet_jax.data.augment.speed import Speed
from redimnet_jax.data.augment.step import Step
from redimnet_jax.errors import UserError

T = TypeVar("T")

# The steps by their key in a configuration, in the order in which they are applied: the room, the noise in it, the
# channel, the codec, the level.
STEPS: dict[str, type[Step]] = {
    "reverberation": Reverberation,
    "noise_folder": NoiseFolder,
    "noise": Noise,
    "music": Music,
    "speech": Speech,
    "babble": Babble,
    "gaussian_noise": GaussianNoise,
    "channel": Channel,
    "low_pass": LowPass,
    "codec": Codec,
    "gain": Gain,
}


def needs_folder(name: str) -> bool:
    """Return whether the step `name` reads a folder that must be given."""
    return any(
        entry.name == "folder" and entry.default is dataclasses.MISSING for entry in dataclasses.fields(STEPS[name])
    )


def from_config(
    config: Mapping[str, Mapping[str, Any]],
    *,
    p: float = 1.0,
    one_of: Sequence[str] = (),
    weights: Sequence[float] | None = None,
) -> tuple[Step, ...]:
    """Return the steps whose names in `STEPS` are keys of `config`, with its options, in the order of `STEPS`.

    With a `p` below 1 or with `one_of` they are one step, `Drawn`: `one_of` are its kinds, names joined with "+",
    and `weights` None draws them evenly. Raises UserError for an unknown step, kind or option, a bad value, and a
    folder that is missing or holds no audio.
    """
    unknown = [name for name in config if name not in STEPS]
    if unknown:
        raise UserError(f"There is no augmentation {unknown[0]!r}, only {', '.join(STEPS)}.")
    kinds = parse_kinds(one_of, [name for name in STEPS if name in config])
    named = tuple((name, _build(name, STEPS[name], config[name])) for name in STEPS if name in config)
    if not named or (p == 1 and not kinds):
        return tuple(step for _, step in named)
    shares = (1.0,) * len(kinds) if weights is None else tuple(weights)
    if len(shares) != len(kinds) or any(share < 0 for share in shares) or (kinds and not sum(shares) > 0):
        raise UserError(f"The weights of {', '.join(one_of)} are {shares}, so give one for each, with a sum above 0.")
    return (Drawn(p=p, steps=named, kinds=kinds, weights=shares),)


def speed_from_config(options: Mapping[str, Any] | None) -> Speed | None:
    """Return the speed perturbation with `options`; None without any. Raises UserError as `from_config` does."""
    return None if options is None else _build("speed", Speed, options)


def _build(name: str, cls: type[T], options: Mapping[str, Any]) -> T:
    known = {entry.name for entry in fields(cls) if entry.init}  # type: ignore[arg-type]  (T is a dataclass)
    unknown = [option for option in options if option not in known]
    if unknown:
        raise UserError(f"The augmentation {name} has no option {unknown[0]!r}, only {', '.join(sorted(known))}.")
    if name in STEPS and needs_folder(name) and not options.get("folder"):
        raise UserError(f"The augmentation {name} needs the option folder, a folder of audio files.")
    return cls(**options)
