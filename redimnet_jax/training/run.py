"""A training run: from settings and a workdir to the best model by the EER of unseen speakers.

The workdir, a path or an address, holds `config.json`, `checkpoints/` (from which an interrupted run resumes),
`best/` (the best model, native), `scores/` (of the validations that were the best so far), `index/` (of the audio),
`events/` (TensorBoard), `time.json` (where its time went), `unreadable.txt` (training recordings that could not be
read, if any), and at the end `results.json`, `results.md` and plots; with `averaging.last` also `epochs/`, the last
epochs' models, and `averaged/`, their mean.
"""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from redimnet_jax import addresses, files, hosts
from redimnet_jax.buckets import Mirror
from redimnet_jax.errors import UserError
from redimnet_jax.models.blocks import Execution
from redimnet_jax.settings import to_config_dict
from redimnet_jax.training import averaging, monitoring
from redimnet_jax.training import config as train_config
from redimnet_jax.training.assembly import Assembly
from redimnet_jax.training.data import check_sources, open_data
from redimnet_jax.training.run_checkpoints import ModelDescription, TrainingCheckpoints
from redimnet_jax.training.run_time import Clock
from redimnet_jax.training.settings import Settings
from redimnet_jax.training.start import check_what_trains, open_teacher, starting_model
from redimnet_jax.training.workdir import COMPILED, opened

# Folders of a workdir where a killed run may have left incomplete files; others clean their own.
LEFTOVERS = ("index", monitoring.SCORES, averaging.SNAPSHOTS)


def train(settings: Settings | ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Train, or resume training, in `workdir`; return the results of the best model (see `results.error_rates`).

    `settings` may be a ConfigDict, such as `config.default()` with changes. Raise UserError for what the user can
    mend, before any long work where that can be known, and Preempted after a SIGTERM, when everything is saved.
    """
    checked = _checked_start(settings)
    with opened(workdir) as mirror:
        _check_cache_folder(checked)
        return _train(checked, mirror)


def _checked_start(settings: Settings | ConfigDict) -> Settings:
    """Return the settings after the checks that need no look at any file."""
    config = to_config_dict(settings) if isinstance(settings, Settings) else settings
    digest = hashlib.sha256(config.to_json_best_effort(sort_keys=True).encode()).hexdigest()
    hosts.check_same(digest, "The config of process {which} is not that of process 0; give all processes the same.")
    with hosts.failing_together():
        checked = train_config.check(config, jax.device_count())
        check_sources(checked)
        return checked


def _check_cache_folder(settings: Settings) -> None:
    """Raise UserError on every process unless all see the same `cache.folder`, which may be in a bucket."""
    if settings.cache.crops and settings.cache.folder and not addresses.of(settings.cache.folder):
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


def _train(settings: Settings, mirror: Mirror) -> dict[str, Any]:
    """Train in a workdir that no other run uses; see `train`."""
    workdir = mirror.local
    clock = Clock()
    # JAX adds its options to the class at run time.
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(workdir / COMPILED))
    with contextlib.ExitStack() as stack:
        stack.enter_context(clock.noting_compilations())
        checkpoints = stack.enter_context(
            contextlib.closing(TrainingCheckpoints(workdir, settings.checkpoint.keep, mirror.commit))
        )
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
        run = Assembly(settings, mirror, data, checkpoints, stack, clock)
        return run.complete(model, teacher, saved)
