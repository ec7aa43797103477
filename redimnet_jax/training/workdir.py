"""The folder of a run: one run at a time is in it, all its processes see it, and it may mirror one in a bucket."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from redimnet_jax import addresses, buckets, hosts, locks
from redimnet_jax.buckets import Layout, Mirror
from redimnet_jax.checkpoints import native
from redimnet_jax.errors import UserError
from redimnet_jax.training import averaging, monitoring
from redimnet_jax.training.run_checkpoints import FOLDER as CHECKPOINTS

# Programs that JAX compiled, so that a run that resumes does not compile again.
COMPILED = "compiled"
FEATURES = "features"
SYNTHETIC = "synthetic"

LAYOUT = Layout(
    whole=(
        f"{CHECKPOINTS}/*",
        f"{native.BEST}-*",
        averaging.AVERAGED,
        f"{averaging.SNAPSHOTS}/*",
        "index/index-*",
    ),
    apart=(f"{COMPILED}/*", f"{monitoring.SCORES}/*"),
    # Features have a mirror of their own, and synthetic voices are made anew in no time.
    skipped=(FEATURES, SYNTHETIC),
)


@contextlib.contextmanager
def opened(workdir: str | Path) -> Iterator[Mirror]:
    """Give all processes the workdir, which is made if needed, and keep every other run out of it during the block.

    Raise UserError on every process where another run is in it, and where processes see different folders.
    """
    with buckets.writing_together(addresses.absolute(workdir), LAYOUT) as mirror, contextlib.ExitStack() as stack:
        with hosts.failing_together():
            if jax.process_index() == 0:
                try:
                    stack.enter_context(locks.locked(mirror.local))
                except UserError as error:
                    raise UserError(f"The workdir {error}") from error
        if mirror.address is None:
            hosts.check_common_folder(mirror.local, "the workdir")
        yield mirror


def features_folder(mirror: Mirror) -> Path:
    """Return the folder, or address, of the features of a run that it does not share with others."""
    return Path(mirror.address or mirror.local) / FEATURES
