"""The console of a command: it shows what the package logs."""

import contextlib
import logging
import sys
from collections.abc import Iterator

from tqdm import tqdm


class ConsoleHandler(logging.Handler):
    """Writes messages to standard output as they are, above any progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message; errors of standard output, such as a closed pipe, are those of `print`."""
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


@contextlib.contextmanager
def showing_log() -> Iterator[None]:
    """Show the package's messages of level INFO and above during the block."""
    logger = logging.getLogger("redimnet_jax")
    level = logger.level
    propagate = logger.propagate
    handler = ConsoleHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # Other packages may install a handler at the root, which would show everything twice.
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = propagate
        logger.setLevel(level)
        logger.removeHandler(handler)
