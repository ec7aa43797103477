"""The native checkpoint: a folder with `checkpoint.json`, which a person can read, and `arrays/`, Orbax's.

It is written under another name and renamed when whole, so a folder of the wanted name is always complete.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from redimnet_jax import files
from redimnet_jax.errors import UserError, shown
from redimnet_jax.models import config as model_config
from redimnet_jax.models import size
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.models.speaker_model import Source, SpeakerModel

DESCRIPTION, ARRAYS = "checkpoint.json", "arrays"
BEST = "best"  # of a workdir: where its best model is
FORMAT = 1
_LARGEST_COMPRESSION = 64
_LARGEST_DESCRIPTION = 1 << 20  # bytes; a published model_config has less than 2,000


def flat(network: SpeakerNetwork) -> dict[str, jax.Array]:
    """Every variable of `network` by its path, such as `backbone.stages.0.patch.kernel`."""
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(network))}


def checksum(arrays: dict[str, jax.Array]) -> str:
    """SHA-256 of the names and bytes of `arrays`."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]))
    return digest.hexdigest()


def config_checksum(arch: str, entries: dict[str, Any]) -> str:
    """SHA-256 of what builds the network: most of it leaves no trace in the arrays (a hop, a sample rate)."""
    return hashlib.sha256(json.dumps([arch, entries], sort_keys=True).encode()).hexdigest()


def save(model: SpeakerModel, folder: str | Path) -> None:
    """Writes `model` to `folder`, which must not exist; all of it or nothing."""
    folder = Path(folder).absolute()
    # Of NumPy, since Orbax saves arrays of JAX's for all processes together.
    arrays = {name: np.asarray(array) for name, array in flat(model.network).items()}
    description = {
        "format": FORMAT,
        "tool": f"redimnet_jax {version('redimnet_jax')}",
        "arch": model.arch,
        "model_config": model.model_config,
        "source": dataclasses.asdict(model.source),
        "config_sha256": config_checksum(model.arch, model.model_config),
        "arrays_sha256": checksum(arrays),
    }
    try:
        with files.new_folder(folder) as part:
            check_room(folder.parent, arrays.values())
            with own_checkpointer() as checkpointer:
                checkpointer.save(part / ARRAYS, arrays)
            (part / DESCRIPTION).write_text(_readable(description), encoding="utf-8")
    except (UserError, ValueError) as error:  # TensorStore's, of a full disk too, are ValueErrors.
        full = os.strerror(errno.ENOSPC) in str(error)
        if isinstance(error, UserError) and not full:
            raise
        reason, advice = (os.strerror(errno.ENOSPC), "free some space") if full else (error, "choose another output")
        raise UserError(f"{folder} cannot be written ({reason}); {advice}.") from error


def check_room(folder: Path, arrays: Iterable[np.ndarray]) -> None:
    """Raises UserError when the disk of `folder` lacks room for a checkpoint of `arrays`.

    Where a disk fills up while Orbax writes, its threads print tracebacks.
    """
    wanted = 2 * sum(array.nbytes for array in arrays) + 2**20
    if shutil.disk_usage(folder).free < wanted:
        raise UserError(f"There is no room for {wanted / 1e6:.0f} MB in {folder}; free some space.")


def check_output(folder: str | Path) -> None:
    """Raises UserError when there is something at `folder` already."""
    files.check_new(folder)


def load(folder: str | Path, dtype: Any = jnp.float32) -> SpeakerModel:
    """The model in the native checkpoint `folder`, or the best one of the training run in the workdir `folder`.

    `dtype` bfloat16 makes the backbone compute in it.

    Raises UserError when the folder is none, is damaged, or was written by a newer version.
    """
    folder = Path(folder).absolute()
    while True:
        found = _resolved(folder)
        with _kept(found):
            try:
                return _load(found, dtype)
            except UserError:
                if found == _resolved(folder):
                    raise
                # The best model was replaced meanwhile.


def _resolved(folder: Path) -> Path:
    """Where the checkpoint in `folder`, or the best one in the workdir `folder`, is at this moment."""
    if not os.path.exists(folder / DESCRIPTION) and os.path.lexists(folder / BEST):
        folder = folder / BEST
    return folder.parent / os.readlink(folder) if os.path.islink(folder) else folder


@contextlib.contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """Keeps a training run from removing the checkpoint in `folder`, see `training_checkpoint.save_best`."""
    import fcntl

    with contextlib.ExitStack() as stack:
        # Without a file there is nothing to keep, and a file system may have no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(stack.enter_context(open(folder / DESCRIPTION, "rb")), fcntl.LOCK_SH)
        yield


def _load(folder: Path, dtype: Any) -> SpeakerModel:
    description = _description(folder)
    config = model_config.parse(description["arch"], description["model_config"])
    arrays = _read_arrays(folder / ARRAYS)
    if checksum(arrays) != description["arrays_sha256"]:
        raise UserError(f"The arrays in {folder / ARRAYS} do not match their checksum; convert the checkpoint again.")
    size.check(config, len(arrays), sum(x.size for x in arrays.values()), str(folder / ARRAYS))
    network = nnx.eval_shape(lambda: SpeakerNetwork(config, dtype=dtype, rngs=nnx.Rngs(0)))
    if _forms(arrays) != _forms(flat(network)):
        raise UserError(
            f"The arrays in {folder / ARRAYS} do not fit the model_config in {folder / DESCRIPTION}; "
            "convert the checkpoint again."
        )
    if config_checksum(description["arch"], description["model_config"]) != description["config_sha256"]:
        raise UserError(
            f"The model_config in {folder / DESCRIPTION} was changed after it was written; "
            "convert the checkpoint again."
        )
    fill(network, arrays)
    return SpeakerModel(network, description["model_config"], Source(**description["source"]))


def _forms(arrays: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


def _read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Reads every array in `folder` by its name; UserError when one cannot be, or claims more than it can hold."""
    import orbax.checkpoint as ocp

    with own_checkpointer() as checkpointer:
        try:
            found = checkpointer.metadata(folder).item_metadata.tree
            # What is compressed may be small; weights hardly are, so this much smaller is a lie about the shape.
            stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            claimed = sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in found.values())
            if claimed > _LARGEST_COMPRESSION * stored:
                raise ValueError(f"{stored:,} bytes are said to hold arrays of {claimed:,}")
            wanted = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in found}
            arrays = checkpointer.restore(folder, restore_args=wanted)
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("it holds something other than arrays")
            return arrays
        except Exception as error:  # Orbax and TensorStore raise many kinds; the cause stays attached.
            raise UserError(f"The arrays in {folder} cannot be read; convert the checkpoint again.") from error


def own_checkpointer() -> Any:
    """Orbax's, for this process alone: it waits for no other one."""
    import orbax.checkpoint as ocp

    _keep_threads_quiet()
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process{index}"
    )
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


@functools.cache
def _keep_threads_quiet() -> None:
    """Keeps Orbax's threads from printing tracebacks of an error that the caller gets as well."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        # TensorStore tells an event loop of what is cancelled that ended with the first error.
        if not (unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"):
            before(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("absl").addFilter(lambda record: "_SignalingThread.run() raised" not in record.getMessage())


def fill(network: SpeakerNetwork, arrays: dict[str, Any]) -> None:
    """Sets every variable of `network` from `arrays` by path."""
    for path, variable in nnx.iter_graph(network):
        if isinstance(variable, nnx.Variable):
            variable.set_value(jnp.asarray(arrays[".".join(map(str, path))]))


def _readable(description: dict[str, Any]) -> str:
    """Indented JSON with each list of numbers, or of such lists, on one line."""
    text = json.dumps(description, indent=2)
    # Only between line ends, which no text has, so that brackets in a file's name stay as they are.
    inner = re.compile(r"\[\n\s*([^\[\]{}]*?)\n\s*\]")
    while inner.search(text):
        # Other characters stand for the brackets of lists that are done, so that those around them come next.
        text = inner.sub(lambda match: "\x00" + re.sub(r"\n\s*", " ", match[1]) + "\x01", text)
    return text.replace("\x00", "[").replace("\x01", "]") + "\n"


def _description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if os.path.isfile(folder):
        raise UserError(f"{folder} is a file, not a native checkpoint; open a .pt with from_torch.")
    try:
        if path.stat().st_size > _LARGEST_DESCRIPTION:
            raise ValueError(f"it is larger than {_LARGEST_DESCRIPTION:,} bytes")
        entries = files.parse_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{folder} is no native checkpoint: it has no {DESCRIPTION}; check the path.") from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}); check its name and permissions."
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); convert the checkpoint again.") from error
    if not isinstance(entries, dict):
        raise UserError(f"{path} is damaged (it holds no entries); convert the checkpoint again.")
    found = entries.get("format")
    if isinstance(found, int) and found != FORMAT:
        raise UserError(f"{path} has format {shown(found)}, not {FORMAT}; update redimnet_jax.")
    kinds = {"format": int, "arch": str, "model_config": dict, "source": dict}
    kinds |= {"config_sha256": str, "arrays_sha256": str}
    wrong = [key for key, kind in kinds.items() if not isinstance(entries.get(key), kind)]
    if not wrong and not _is_source(entries["source"]):
        wrong = ["source"]
    if wrong:
        raise UserError(f"{path} is damaged (missing or wrong: {', '.join(wrong)}); convert the checkpoint again.")
    return entries


def _is_source(entries: dict[str, Any]) -> bool:
    if entries.keys() != {field.name for field in dataclasses.fields(Source)}:
        return False
    return all(isinstance(value, str) or (value is None and name == "licence") for name, value in entries.items())
