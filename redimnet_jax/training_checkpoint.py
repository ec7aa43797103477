"""What an interrupted run goes on from: Orbax checkpoints of everything that decides its future.

`<workdir>/checkpoints/<step>/` holds the arrays (all variables of network and heads, optimizer, step) and a JSON
`progress` (position in the data, history, best and early-stop state, config, speaker map). The latest few are kept,
and the one with the best EER. The best model alone, for use, is in `<workdir>/best/` in the native format.
"""

import contextlib
import dataclasses
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from redimnet_jax import checkpoint
from redimnet_jax.errors import UserError
from redimnet_jax.model import SpeakerModel
from redimnet_jax.train_step import Arrays, TrainState

FOLDER = "checkpoints"


class TrainingCheckpoints:
    """The checkpoints of one workdir; saving is asynchronous, and a folder with a step's name is complete."""

    def __init__(self, workdir: Path, keep: int):
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

        self._ocp = ocp
        self.folder = workdir.absolute() / FOLDER
        best = policy.BestN(get_metric_fn=lambda m: -m["eer"], n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy([policy.LatestN(keep), best]),
        )
        # Orbax would do this in a thread, which fails with a traceback where the run ends at once.
        if jax.process_index() == 0 and self.folder.is_dir():
            for unfinished in ocp.utils.tmp_checkpoints(self.folder):
                shutil.rmtree(unfinished.get())
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, frozen: Arrays, progress: dict[str, Any], eer: float | None) -> None:
        """Saves in the background; `eer` is that of the validation of this very step, if there was one."""
        args, step = self._ocp.args, int(state.step)
        items = {"arrays": args.StandardSave(_tree(state, frozen)), "progress": args.JsonSave(progress)}
        with _readable_disk_errors(self.folder):
            if step in self._manager.all_steps():
                # Saved when the run was asked to stop before the validation of this step was complete.
                self.wait()
                self._manager.delete(step)
            self._manager.save(
                step, args=args.Composite(**items), metrics=None if eer is None else {"eer": eer}, force=True
            )

    def read_progress(self) -> dict[str, Any]:
        """The `progress` of the newest checkpoint."""
        args, step = self._ocp.args, self.latest()
        with self._readable_damage(step):
            return self._manager.restore(step, args=args.Composite(progress=args.JsonRestore()))["progress"]

    def restore(self, state: TrainState, frozen: Arrays) -> tuple[TrainState, Arrays]:
        """(state, frozen) of the newest checkpoint in the host's memory, with the shapes of the given ones."""
        args, step = self._ocp.args, self.latest()
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _tree(state, frozen))
        with self._readable_damage(step):
            tree = self._manager.restore(step, args=args.Composite(arrays=args.StandardRestore(abstract)))["arrays"]
        frozen = tree.pop("frozen")
        return TrainState(**tree), frozen

    def wait(self) -> None:
        """Returns when every save is on disk; raises what went wrong with one."""
        with _readable_disk_errors(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self._manager.close()

    @contextlib.contextmanager
    def _readable_damage(self, step: int | None) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds; the cause stays attached.
            raise UserError(
                f"The checkpoint {self.folder / str(step)} cannot be read; move it away to resume earlier."
            ) from error


def _tree(state: TrainState, frozen: Arrays) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)} | {"frozen": frozen}


@contextlib.contextmanager
def _readable_disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # TensorStore's, of a full disk too, are ValueErrors.
        raise UserError(
            f"{folder} cannot be written ({error}); free some space and start again to resume."
        ) from error


def save_best(model: SpeakerModel, workdir: Path, step: int) -> None:
    """Makes `<workdir>/best` the native checkpoint of `model`; at every moment it is a whole one, old or new."""
    link = workdir / checkpoint.BEST
    # Another name where a run that was killed had come this far, and the link may point there.
    names = (f"best-{step}" + ".again" * count for count in itertools.count())
    folder = next(workdir / name for name in names if not (workdir / name).exists())
    checkpoint.save(model, folder)
    with tempfile.TemporaryDirectory(dir=workdir) as scratch:
        new = Path(scratch) / checkpoint.BEST
        new.symlink_to(folder.name)
        new.rename(link)
    for other in workdir.glob("best-*"):
        if other.is_dir() and other != folder:
            shutil.rmtree(other)
