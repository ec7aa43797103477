"""The command `redimnet-jax` and its table of commands. A command is imported only when it runs."""

import importlib
import sys
from collections.abc import Sequence

from redimnet_jax.cli import supervisor
from redimnet_jax.cli.command import closes_quietly

# Command -> (module of this package, a line of help).
COMMANDS = {
    "train": ("train", "train a Matryoshka speaker embedding (also: python train.py)"),
    "eval": ("evaluate", "evaluate a checkpoint on verification trials (also: python eval.py)"),
    "convert": ("convert", "convert a PyTorch checkpoint (also: python convert_torch_weights.py)"),
    "export": ("export", "write a model in the format of another runtime or toolkit"),
    "embed": ("embed", "embed all utterances of a corpus"),
    "verify": ("verify", "decide whether two recordings are of one speaker"),
    "enrol": ("enrol", "enrol a speaker in a gallery"),
    "identify": ("identify", "find who of a gallery speaks in a recording"),
    "search": ("search", "find the utterances of a gallery that are nearest to a recording"),
    "gallery": ("gallery", "list, remove, import and export what a gallery holds"),
    "audit": ("audit", "find doubtful labels and duplicates in a corpus"),
    "rooms": ("rooms", "write artificial room impulse responses"),
    "tfds": ("tfds", "write a corpus to a TFDS data set"),
}


def help_text() -> str:
    """Return the help of `redimnet-jax`."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items())
    return (
        "usage: redimnet-jax COMMAND ...\n\nSpeaker verification with ReDimNet and Matryoshka embeddings.\n\n"
        f"{lines}\n\nRun `redimnet-jax COMMAND --help` for the options of a command.\n"
    )


@closes_quietly
def main(arguments: Sequence[str] | None = None) -> int:
    """Run `redimnet-jax` with its `arguments`, by default those of the process; return the exit code."""
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name in ("-h", "--help"):
        print(help_text(), end="")
        return 0
    if name not in COMMANDS:
        print(f"error: {name!r} is no command; see redimnet-jax --help.", file=sys.stderr)
        return 2
    if name == "train":
        supervisor.split(rest)
    return importlib.import_module(f"redimnet_jax.cli.{COMMANDS[name][0]}").main(rest)


def console() -> int:
    """Run the console command `redimnet-jax`; return the exit code."""
    return main()
