"""Golden cases: outputs of the public PyTorch code on synthetic audio and made-up weights.

Neither audio nor weights are stored. `audio` and `weights` make them from seeds, and
`make_goldens.py` writes what the public code computes from them to `goldens/`.
"""

import dataclasses
import json
import pathlib
import zlib

import numpy as np

# Largest relative L2 errors of log-mel features, pooled features, embeddings and feature maps.
MEL = 1e-5
POOLED = 5e-5
EMBEDDING = 5e-5
MAPS = 5e-5


def relative(ours, theirs) -> float:
    theirs = np.asarray(theirs, np.float64)
    return float(np.linalg.norm(np.asarray(ours, np.float64) - theirs) / np.linalg.norm(theirs))


FOLDER = pathlib.Path(__file__).parent / "goldens"
RATE = 16000


def audio(seed: int, batch: int, samples: int) -> np.ndarray:
    """Speech-like signals at 16 kHz, float32 (batch, samples), on 16-bit steps.

    Each row has gliding harmonics shaped by three moving formants, syllables and a noise floor.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    time = np.arange(samples) / RATE

    def wave(low: float, high: float) -> np.ndarray:
        return np.sin(2 * np.pi * (rng.uniform(low, high) * time + rng.uniform()))

    rows = []
    for _ in range(batch):
        pitch = rng.uniform(90, 250) * (1 + 0.04 * wave(4, 6) + 0.1 * wave(0.3, 0.8))
        formants = [centre * (1 + 0.25 * wave(1, 3)) for centre in (500, 1500, 2700)]
        phase = 2 * np.pi * np.cumsum(pitch) / RATE
        voice = np.zeros(samples)
        for k in range(1, 33):
            gains = [np.exp(-(((k * pitch - formant) / 300) ** 2)) for formant in formants]
            voice += (0.05 + sum(gains)) / k * np.sin(k * phase)
        voice *= 0.02 + np.maximum(wave(3, 5), 0)
        noise = rng.standard_normal(samples)
        rows.append(0.5 * voice / np.abs(voice).max() + 0.005 * noise)
    return (np.round(np.stack(rows) * 2**15) / 2**15).astype(np.float32)


def weights(manifest: list, seed: int, constants: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict for `manifest`, a list of [name, shape]; `constants` win where given."""
    return {name: constants[name] if name in constants else _tensor(name, shape, seed) for name, shape in manifest}


def _tensor(name: str, shape: list[int], seed: int) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64([zlib.crc32(name.encode()), seed]))
    if name.endswith("num_batches_tracked"):
        return np.full(shape, 100, np.int64)
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    values = rng.standard_normal(shape)
    if name.endswith("running_mean"):
        values = 0.2 * values
    elif name.endswith(".w") or "inputs_weights" in name:
        pass
    elif name.endswith("bias"):
        values = 0.1 * values
    elif len(shape) == 1:
        values = 1 + 0.2 * values
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Case:
    """One golden case. `audio` lists the arguments of `audio` for batches 0 and 1.

    `train`, where present, describes one training step: audio, labels, margin, scale, grad_names
    and running_names.
    """

    name: str
    arch: str
    model_config: dict
    seed: int
    audio: list[list[int]]
    manifest: list
    arrays: dict[str, np.ndarray]
    train: dict | None = None

    @property
    def constants(self) -> dict[str, np.ndarray]:
        """The stored front-end buffers; the large kernels have only samples in `arrays`."""
        prefix = "constant:"
        return {key[len(prefix) :]: value for key, value in self.arrays.items() if key.startswith(prefix)}


def names() -> list[str]:
    """The names of all cases."""
    return sorted(path.stem for path in FOLDER.glob("*.json") if path.stem != "frontends")


def arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of `goldens/<name>.npz`."""
    with np.load(FOLDER / f"{name}.npz") as data:
        return dict(data)


def load(name: str) -> Case:
    """One case by name."""
    return Case(name=name, arrays=arrays(name), **json.loads((FOLDER / f"{name}.json").read_text()))
