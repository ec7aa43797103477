"""The parts that all commands share: exit codes, error sentences, signals, logging, and common options.

An error that the user can mend is one sentence and exit code 1; a wrong flag is one sentence and exit code 2. Ctrl-C
ends a command with exit code 130, SIGTERM with 143, and a closed output, as in `... | head`, with 141.
"""

import argparse
import contextlib
import functools
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

from redimnet_jax import buckets, names
from redimnet_jax.errors import ArgumentError, UserError

INTERRUPTED = 130
PIPE_CLOSED = 141
TERMINATED = 143

T = TypeVar("T")
Main = Callable[..., int]


class Parser(argparse.ArgumentParser):
    """A parser that reports errors in one sentence."""

    def error(self, message: str) -> NoReturn:
        sentence = names.one_line(message.strip().removesuffix("."))
        self.exit(2, f"error: {sentence}; see {self.prog} --help.\n")

    def flags(self) -> dict[str, str]:
        """Return the flag of every argument, by the name that the library has for the argument."""
        return {action.dest: action.option_strings[0] for action in self._actions if action.option_strings}

    def settings(self, make: Callable[..., T], arguments: Mapping[str, Any]) -> T:
        """Return `make(**arguments)`; report an ArgumentError as a wrong flag."""
        try:
            return make(**arguments)
        except ArgumentError as error:
            self.error(str(error.renamed(self.flags())))


def add_checkpoint(options: argparse._ActionsContainer) -> None:
    """Add the option that names the model to a parser or to a group of its options."""
    options.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="PATH",
        help="native checkpoint, workdir of a run, or PyTorch file (.pt)",
    )


def embedding_options(crops: str) -> argparse.ArgumentParser:
    """Return a parent parser with the options of commands that embed; `crops` is the default of --crops in words."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("embeddings")
    add_checkpoint(group)
    group.add_argument("--data_dir", type=Path, metavar="DIR", help="folder of the TFDS data sets")
    group.add_argument(
        "--crop_seconds", type=float, metavar="S", help="embed crops of this length instead of whole utterances"
    )
    group.add_argument("--crops", type=int, metavar="N", help=f"crops per utterance (default: {crops})")
    group.add_argument(
        "--max_seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="use only the first S seconds of longer utterances (default: %(default)s)",
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="arithmetic of the network (default: %(default)s)",
    )
    group.add_argument(
        "--batch_seconds",
        type=float,
        default=240.0,
        metavar="S",
        help="seconds of audio per batch on each device; lower it to save memory (default: %(default)s)",
    )
    return parser


def speech_options() -> argparse.ArgumentParser:
    """Return a parent parser with the options of commands that can leave out what is not speech."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("speech detection")
    group.add_argument("--speech_only", action="store_true", help="use only the speech of each recording")
    group.add_argument(
        "--min_speech", type=float, metavar="S", help="least seconds of speech in a recording (default: 0.5)"
    )
    return parser


class Terminated(BaseException):
    """SIGTERM arrived; the stack unwinds, so that files which are being written are removed."""


def run(command: Callable[[], None], flags: Mapping[str, str] | None = None) -> int:
    """Run `command` and return the exit code; report errors that users can mend, and signals, on standard error.

    `flags` maps the names of arguments in an ArgumentError to the flags that the user gave.
    """
    names.show_any()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with logged(), _terminable():
            command()
    except UserError as error:
        known = error.renamed(flags) if flags and isinstance(error, ArgumentError) else error
        print(f"error: {names.one_line(buckets.readable(str(known)))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            # A second Ctrl-C ends the process without a traceback.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except Terminated:
        print("Stopped by SIGTERM.", file=sys.stderr)
        return TERMINATED
    return 0


def closes_quietly(main: Main) -> Main:
    """Wrap the `main` function of a command, so that it ends without a traceback when nobody reads its output."""

    @functools.wraps(main)
    def wrapped(*arguments: Any) -> int:
        names.show_any()
        try:
            try:
                return main(*arguments)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            _discard_output()
            return PIPE_CLOSED

    return wrapped


def say(text: str) -> None:
    """Print `text`, with addresses in place of their local copies."""
    print(buckets.readable(text))


@contextlib.contextmanager
def logged() -> Iterator[None]:
    """Print what the library logs during the block: information on standard output, warnings on standard error.

    Within another such block nothing changes.
    """
    logger = logging.getLogger("redimnet_jax")
    if any(isinstance(each, _Printer) for each in logger.handlers):
        yield
        return
    handler = _Printer()
    level = logger.level
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _Printer(logging.Handler):
    """Prints records as plain lines above any progress bar; the level, in lower case, precedes warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        message = buckets.readable(record.getMessage())
        if record.levelno < logging.WARNING:
            tqdm.write(message, file=sys.stdout)
            sys.stdout.flush()
        else:
            tqdm.write(f"{record.levelname.lower()}: {names.one_line(message)}", file=sys.stderr)
            sys.stderr.flush()


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Raise Terminated on the first SIGTERM during the block, unless SIGTERM is handled or ignored already."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # A second one ends the process at once.
        raise Terminated

    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    try:
        signal.signal(signal.SIGTERM, stop)
    except ValueError:  # Only the main thread may set handlers.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _discard_output() -> None:
    """Send what is buffered for a closed output nowhere; the interpreter would raise an error for it at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):
                os.dup2(null, stream.fileno())
    os.close(null)


def leave(code: int, sentence: str) -> NoReturn:
    """End the process at once, from any thread and from a signal handler, with `sentence` as its last line.

    Nothing is cleaned up: a file that is being written at this moment is lost, complete files stay.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (RuntimeError, ValueError, OSError):
            continue  # The main thread is writing at this moment, or nobody reads any more.
    try:
        os.write(1 if code == 0 else 2, f"{sentence}\n".encode(errors="backslashreplace"))
    except OSError:
        os._exit(code)
    os._exit(code)
