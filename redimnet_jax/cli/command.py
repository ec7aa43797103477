"""What all commands share: an error a user can mend is one sentence and exit code 1, a wrong flag exit code 2."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from redimnet_jax import local_paths, names
from redimnet_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, and which refuses addresses in place of paths."""

    def parse_args(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        args = super().parse_args(arguments)
        try:
            for name, value in vars(args).items():
                local_paths.check_all({name: value}, "--")
        except UserError as error:
            self.error(str(error))
        return args

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message.strip().removesuffix('.')}; see {self.prog} --help.\n")


def run(command: Callable[[], None]) -> int:
    """Runs `command`; returns the exit code and reports a UserError or Ctrl-C on standard error."""
    names.show_any()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            # A second one ends the process without a traceback.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        print("Interrupted.", file=sys.stderr)
        return 130
    return 0


def leave(code: int, sentence: str) -> NoReturn:
    """Ends the process at once, from any thread and from a signal handler, with `sentence` as its last line.

    Nothing is cleaned up: what is written at this moment is lost, what was written whole before stays.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (RuntimeError, ValueError, OSError):
            continue  # The main thread is just writing, or nobody reads any more.
    try:
        os.write(1 if code == 0 else 2, f"{sentence}\n".encode(errors="backslashreplace"))
    except OSError:
        os._exit(code)
    os._exit(code)
