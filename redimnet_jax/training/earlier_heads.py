"""Heads that start at the prototypes of an earlier run, class by class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from redimnet_jax.errors import UserError, some_of
from redimnet_jax.losses.heads import Heads
from redimnet_jax.training.saved_run import open_run


def take_over(heads: Heads, classes: Sequence[str], workdir: str | Path) -> int:
    """Start `heads` at the parameters of the newest checkpoint in the workdir of an earlier run; return its classes.

    `classes` are the names of the classes of `heads`, in their order. Each takes the prototype of the class of that
    name: a run without changed speeds takes those of the speakers as they are, wherever they stand in a run with
    changed speeds. Raises UserError when the run has no class of a name, or other heads.
    """
    run = open_run(workdir)
    row = {name: index for index, name in enumerate(run.speakers)}
    missing = [name for name in classes if name not in row]
    if missing:
        raise UserError(
            f"The run {workdir}, whose prototypes heads.init asks for, has no class for {len(missing):,} of the "
            f"{len(classes):,} classes of this run, {some_of(missing)}; train on speakers of that run, or set "
            "heads.init to 'means'."
        )
    try:
        heads.start_at_rows(run.heads, np.array([row[name] for name in classes]))
    except UserError as error:
        raise UserError(
            f"The run {workdir}, whose prototypes heads.init asks for, has other heads: {error}"
        ) from error
    return len(run.speakers)
