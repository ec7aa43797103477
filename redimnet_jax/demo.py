"""`make demo`: converts a small PyTorch checkpoint and embeds a signal with it."""

import tempfile
from pathlib import Path

import jax.numpy as jnp

from redimnet_jax import cli, load, signals

CHECKPOINT = Path(__file__).parents[1] / "tests" / "data" / "tiny.pt"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "tiny"
        code = cli.convert([f"--checkpoint={CHECKPOINT}", f"--output={output}"])
        if code:
            raise SystemExit(code)
        model = load(output)
    signal = signals.reference()
    whole = model.embed(signal)
    print(f"\nembedding of {len(signal) / model.sample_rate:g} s: {whole.shape[0]} dimensions")
    for dim in model.mrl_dims:
        # A prefix is cut first and normalised after: the same voice at another length of recording.
        score = jnp.dot(model.embed(signal, dim=dim), model.embed(signal[: len(signal) // 2], dim=dim))
        print(f"cosine of the signal and its first half, first {dim} dimensions: {score:.4f}")


if __name__ == "__main__":
    main()
