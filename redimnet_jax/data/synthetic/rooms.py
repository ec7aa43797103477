"""Artificial room impulse responses, for reverberation where no recorded ones are at hand.

A room is a direct path followed by noise that decays exponentially (Polack's model; Habets, "Single- and
Multi-Microphone Speech Dereverberation using Spectral Enhancement", 2007, section 2.3), high frequencies faster than
low ones, with the ratio of direct to reverberant energy falling with the distance.

    python -m redimnet_jax.data.synthetic.rooms --output=rooms --count=300
"""

import argparse
import io
import sys
from pathlib import Path

import numpy as np

from redimnet_jax import files
from redimnet_jax.cli.command import run
from redimnet_jax.data.audio import SAMPLE_RATE

LONGEST, SHORTEST = 0.8, 0.15  # reverberation times, seconds


def impulse_response(rng: np.random.Generator) -> np.ndarray:
    """A random room's response at 16 kHz, float32 (samples,), the direct path first and of height one."""
    reverberation_time = rng.uniform(SHORTEST, LONGEST)
    samples = round(reverberation_time * SAMPLE_RATE)
    time = np.arange(samples) / SAMPLE_RATE
    tail = np.zeros(samples)
    # Two bands: walls swallow high frequencies in about half the time.
    noise = np.fft.rfft(rng.standard_normal(samples))
    low = 1.0 / (1.0 + (np.fft.rfftfreq(samples, 1 / SAMPLE_RATE) / rng.uniform(1500.0, 4000.0)) ** 2)
    for weight, duration in ((low, reverberation_time), (1.0 - low, rng.uniform(0.4, 0.8) * reverberation_time)):
        # -60 dB of energy after the reverberation time.
        tail += np.fft.irfft(noise * weight, samples) * np.exp(-3.0 * np.log(10.0) * time / duration)
    first_reflection = round(rng.uniform(0.001, 0.01) * SAMPLE_RATE)
    tail[:first_reflection] = 0.0
    direct_to_reverberant = rng.uniform(-3.0, 12.0)  # dB
    tail *= np.sqrt(10.0 ** (-direct_to_reverberant / 10.0) / np.sum(np.square(tail)))
    tail[0] = 1.0
    return tail.astype(np.float32)


def write_rooms(folder: str | Path, count: int, seed: int = 0) -> Path:
    """Writes `count` responses to `folder`, which must not exist, as float WAV; returns the folder."""
    import soundfile

    folder = Path(folder)
    with files.new_folder(folder) as part:
        for number in range(count):
            response = impulse_response(np.random.default_rng([seed, number]))
            file = io.BytesIO()  # An error of libsndfile's would not say that the disk is full.
            soundfile.write(file, response, SAMPLE_RATE, format="WAV", subtype="FLOAT")
            (part / f"room{number:04d}.wav").write_bytes(file.getvalue())
    return folder


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m redimnet_jax.data.synthetic.rooms", description="Write artificial room responses."
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="a folder that does not exist yet")
    parser.add_argument("--count", type=int, default=300, help="number of rooms (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args(arguments)
    return run(lambda: write_rooms(args.output, args.count, args.seed))


if __name__ == "__main__":
    sys.exit(main())
