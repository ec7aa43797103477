"""Random changes to training waveforms, each of which is switched on separately.

A step is a frozen dataclass that maps (waveform float32 (samples,) at 16 kHz, generator) to a waveform of the same
shape and type; with probability 1 - p it changes nothing. What a step does depends on the generator alone.
"""

from redimnet_jax.data.augment.channel import Channel, Gain, LowPass
from redimnet_jax.data.augment.codec import Codec
from redimnet_jax.data.augment.draw import Drawn
from redimnet_jax.data.augment.noise import Babble, GaussianNoise, Music, Noise, NoiseFolder, Speech
from redimnet_jax.data.augment.room import Reverberation
from redimnet_jax.data.augment.speed import Speed
from redimnet_jax.data.augment.step import Step, apply
from redimnet_jax.data.augment.steps import STEPS, from_config, needs_folder, speed_from_config

__all__ = [
    "STEPS",
    "Babble",
    "Channel",
    "Codec",
    "Drawn",
    "Gain",
    "GaussianNoise",
    "LowPass",
    "Music",
    "Noise",
    "NoiseFolder",
    "Reverberation",
    "Speech",
    "Speed",
    "Step",
    "apply",
    "from_config",
    "needs_folder",
    "speed_from_config",
]
