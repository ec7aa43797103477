"""A training run: from settings and a workdir to the best model by the EER of unseen speakers.

The workdir holds `config.json`, `checkpoints/` (from which an interrupted run resumes), `best/` (the best model,
native), `scores/` (of the validations that were the best so far), `index/` (of the audio), `events/` (TensorBoard),
`unreadable.txt` (training recordings that could not be read, if any), and at the end `results.json`, `results.md` and
plots; with `averaging.last` also `epochs/`, the last epochs' models, and `averaged/`, their mean.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from redimnet_jax import files, hosts, local_paths, locks
from redimnet_jax.errors import UserError
from redimnet_jax.models.blocks import Execution
from redimnet_jax.settings import to_config_dict
from redimnet_jax.training import averaging, monitoring
from redimnet_jax.training import config as train_config
from redimnet_jax.training.assembly import Assembly
from redimnet_jax.training.checkpoints import ModelDescription, TrainingCheckpoints
from redimnet_jax.training.data import check_sources, open_data
from redimnet_jax.training.settings import Settings
from redimnet_jax.training.start import check_what_trains, open_teacher, starting_model

# Folders of a workdir where a killed run may have left incomplete files; others clean their own.
LEFTOVERS = ("index", monitoring.SCORES, averaging.SNAPSHOTS)


def train(settings: Settings | ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Train, or resume training, in `workdir`; return the results of the best model (see `results.error_rates`).

    `settings` may be a ConfigDict, such as `config.default()` with changes. Raise UserError for what the user can
    mend, before any long work where that can be known, and Preempted after a SIGTERM, when everything is saved.
    """
    checked, path = _checked_start(settings, workdir)
    with _only_run(path):
        _check_folders(checked, path)
        return _train(checked, path)


def _checked_start(settings: Settings | ConfigDict, workdir: str | Path) -> tuple[Settings, Path]:
    """Return the settings and the absolute workdir, after the checks that need no look at any file."""
    config = to_config_dict(settings) if isinstance(settings, Settings) else settings
    local_paths.check(workdir, "The workdir")
    local_paths.check_all(config.to_dict(), "config.")
    digest = hashlib.sha256(config.to_json_best_effort(sort_keys=True).encode()).hexdigest()
    hosts.check_same(digest, "The config of process {which} is not that of process 0; give all processes the same.")
    with hosts.failing_together():
        checked = train_config.check(config, jax.device_count())
        check_sources(checked)
        return checked, Path(workdir).absolute()


@contextlib.contextmanager
def _only_run(workdir: Path) -> Iterator[None]:
    """Make the workdir, and keep every other run out of it during the block."""
    with contextlib.ExitStack() as stack:
        with hosts.failing_together():
            if jax.process_index() == 0:
                try:
                    stack.enter_context(locks.locked(workdir))
                except UserError as error:
                    raise UserError(f"The workdir {error}") from error
        yield


def _check_folders(settings: Settings, workdir: Path) -> None:
    """Raise UserError on every process unless all see the same folders that the run writes."""
    hosts.check_common_folder(workdir, "the workdir")
    if settings.cache.crops and settings.cache.folder:
        folder = Path(settings.cache.folder)
        with hosts.failing_together():
            if jax.process_index() == 0:
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise UserError(
                        f"cache.folder {folder} cannot be made ({error.strerror}); choose another one."
                    ) from error
        hosts.check_common_folder(folder, "cache.folder")


def _train(settings: Settings, workdir: Path) -> dict[str, Any]:
    """Train in a workdir that no other run uses; see `train`."""
    # JAX adds its options to the class at run time.
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        # A run that resumes then does not compile again.
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(contextlib.closing(TrainingCheckpoints(workdir, settings.checkpoint.keep)))
        saved = None if checkpoints.latest() is None else checkpoints.read_progress()
        with hosts.failing_together():
            if saved is None:
                model = starting_model(settings)
            else:
                train_config.check_resume(settings, saved["config"], workdir)
                model = ModelDescription.from_json(saved["model"]).empty_model(jnp.dtype(settings.dtype))
            check_what_trains(settings, model)
            # A TPU's compiler takes minutes for a step on all blocks one by one.
            scan = jax.default_backend() == "tpu"
            model.network.backbone.execution = Execution(remat=settings.remat, scan=scan)
            teacher = open_teacher(settings)
            data = open_data(settings, workdir, saved and saved.get("corpora"))
        if jax.process_index() == 0:
            for folder in (workdir, *(workdir / name for name in LEFTOVERS)):
                files.remove_leftovers(folder)
        run = Assembly(settings, workdir, data, checkpoints, stack)
        return run.complete(model, teacher, saved)
