"""The native checkpoint: a folder with `checkpoint.json`, which a person can read, and `arrays/`, which Orbax writes.

It is written under a temporary name and renamed when complete, so a folder of the final name is always complete.
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
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from redimnet_jax import addresses, buckets, files
from redimnet_jax.errors import UserError, shown
from redimnet_jax.models import config as model_config
from redimnet_jax.models import size
from redimnet_jax.models.network import SpeakerNetwork, without_values
from redimnet_jax.models.speaker_model import Source, SpeakerModel
from redimnet_jax.names import one_line
from redimnet_jax.version import VERSION

DESCRIPTION = "checkpoint.json"
ARRAYS = "arrays"
BEST = "best"  # the link to the best model in a workdir
FORMAT = 1
_MAX_COMPRESSION = 64
_MAX_REPLACEMENTS = 10
_MAX_DESCRIPTION = 1 << 20  # bytes; a published model_config has less than 2,000


def _stored_name(path: Iterable[Any]) -> str:
    """Return the name under which checkpoints store the variable at `path` of a network.

    Checkpoints keep a misspelt name of the published code, so that those written before it was corrected here open,
    and checksums stay.
    """
    return ".".join("exitation" if part == "excitation" else str(part) for part in path)


def flat(network: SpeakerNetwork) -> dict[str, jax.Array]:
    """Return every variable of `network` by its stored name, such as `backbone.stages.0.patch.kernel`."""
    return {_stored_name(path): leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(network))}


def checksum(arrays: Mapping[str, jax.Array | np.ndarray]) -> str:
    """Return the SHA-256 of the names and bytes of `arrays`."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def config_checksum(arch: str, entries: dict[str, Any]) -> str:
    """Return the SHA-256 of the configuration, much of which leaves no trace in the arrays (a hop, a sample rate)."""
    return hashlib.sha256(json.dumps([arch, entries], sort_keys=True).encode()).hexdigest()


def save(model: SpeakerModel, folder: str | Path) -> None:
    """Write `model` to `folder`, which must not exist; all of it or nothing.

    Raises UserError when the folder exists or cannot be written.
    """
    folder = Path(folder).absolute()
    _check_path(folder)
    # Orbax would save JAX arrays for all processes together.
    arrays = {name: np.asarray(array) for name, array in flat(model.network).items()}
    description = describe(model)
    try:
        with files.new_folder(folder) as part:
            check_room(folder.parent, arrays.values())
            with own_checkpointer() as checkpointer:
                checkpointer.save(part / ARRAYS, arrays)
            (part / DESCRIPTION).write_text(_to_json(description) + "\n", encoding="utf-8")
    except (UserError, ValueError) as error:  # TensorStore's, of a full disk too, are ValueErrors.
        full = os.strerror(errno.ENOSPC) in str(error)
        if isinstance(error, UserError) and not full:
            raise
        reason, advice = (os.strerror(errno.ENOSPC), "free some space") if full else (error, "choose another output")
        raise UserError(f"{folder} cannot be written ({reason}); {advice}.") from error


def describe(model: SpeakerModel) -> dict[str, Any]:
    """Return what a checkpoint of `model` says about itself; `checked` reads it back."""
    return {
        "format": FORMAT,
        "tool": f"redimnet_jax {VERSION}",
        "arch": model.arch,
        "model_config": model.model_config,
        "source": dataclasses.asdict(model.source),
        "config_sha256": config_checksum(model.arch, model.model_config),
        "arrays_sha256": checksum(flat(model.network)),
    }


def check_room(folder: Path, arrays: Iterable[np.ndarray]) -> None:
    """Raise UserError when the disk of `folder` lacks room for a checkpoint of `arrays`.

    Where a disk fills up while Orbax writes, its threads print tracebacks.
    """
    needed = 2 * sum(array.nbytes for array in arrays) + 2**20
    if shutil.disk_usage(folder).free < needed:
        raise UserError(f"There is no room for {needed / 1e6:.0f} MB in {folder}; free some space.")


def check_output(folder: str | Path) -> None:
    """Raise UserError when there is something at `folder` already."""
    files.check_new(folder)


def load(folder: str | Path, dtype: Any = jnp.float32) -> SpeakerModel:
    """Return the model in the native checkpoint `folder`, or the best model of the run in the workdir `folder`.

    The folder may be at an address. The backbone computes in `dtype`. Raises UserError when the folder is no
    checkpoint, is damaged, or was written by a newer version.
    """
    if (address := addresses.of(folder)) is not None:
        folder = _staged(address)
    folder = Path(folder).absolute()
    _check_path(folder)
    for _ in range(_MAX_REPLACEMENTS):
        checkpoint = _resolved(folder)
        with _kept(checkpoint):
            try:
                return _load(checkpoint, dtype)
            except UserError:
                if checkpoint == _resolved(folder):
                    raise
                # A training run has replaced its best model in the meantime.
    raise UserError(f"{folder} was replaced {_MAX_REPLACEMENTS} times while it was read; load it again.")


def _staged(address: str) -> Path:
    """Return a local copy of the checkpoint at an address, or of the best one of the workdir there."""
    if not addresses.is_file(f"{address}/{DESCRIPTION}"):
        best = f"{address}/{BEST}"
        # Another program that copied the workdir may have made a folder of the link.
        if buckets.link_target(best) is not None or addresses.is_file(f"{best}/{DESCRIPTION}"):
            address = best
    return buckets.staged(address)


def _check_path(folder: Path) -> None:
    """Raise UserError for a path that is not UTF-8."""
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"The path {one_line(str(folder))} of the checkpoint is not UTF-8, which Orbax cannot open; rename it."
        ) from error


def _resolved(folder: Path) -> Path:
    """Return the present folder of the checkpoint in `folder`, or of the best one in the workdir `folder`."""
    if not os.path.exists(folder / DESCRIPTION) and os.path.lexists(folder / BEST):
        folder = folder / BEST
    return folder.parent / os.readlink(folder) if os.path.islink(folder) else folder


@contextlib.contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """Keep a training run (`training.run_checkpoints.save_best`) from removing the checkpoint in `folder`."""
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
    network = without_values(config, dtype)
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
    return SpeakerModel(network, description["model_config"], Source(**description["source"]), folder)


def _forms(arrays: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


def _read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Return every array in `folder` by its name.

    Raises UserError when one cannot be read, or claims more bytes than the folder can hold.
    """
    import orbax.checkpoint as ocp

    with own_checkpointer() as checkpointer:
        try:
            metadata = checkpointer.metadata(folder).item_metadata.tree
            # What is compressed may be small; weights hardly are, so this much smaller is a lie about the shape.
            stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            claimed = sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in metadata.values())
            if claimed > _MAX_COMPRESSION * stored:
                raise ValueError(f"{stored:,} bytes are said to hold arrays of {claimed:,}")
            restore_args = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in metadata}
            arrays = checkpointer.restore(folder, restore_args=restore_args)
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("it holds something other than arrays")
            return arrays
        except Exception as error:  # Orbax and TensorStore raise many kinds; the cause stays attached.
            raise UserError(f"The arrays in {folder} cannot be read; convert the checkpoint again.") from error


def own_checkpointer() -> Any:
    """Return a checkpointer of Orbax that waits for no other process."""
    import orbax.checkpoint as ocp

    _keep_threads_quiet()
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process{index}"
    )
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


@functools.cache
def _keep_threads_quiet() -> None:
    """Keep Orbax's threads from printing tracebacks of an error that the caller gets as well."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        # TensorStore tells an event loop of what is cancelled that ended with the first error.
        if not (unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"):
            before(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("absl").addFilter(lambda record: "_SignalingThread.run() raised" not in record.getMessage())


def fill(network: SpeakerNetwork, arrays: dict[str, Any]) -> None:
    """Set every variable of `network` from `arrays`, which have the names of `flat`."""
    for path, variable in nnx.iter_graph(network):
        if isinstance(variable, nnx.Variable):
            variable.set_value(jax.device_put(arrays[_stored_name(path)]))


def _to_json(value: Any, indent: str = "") -> str:
    """Return JSON with every entry of a mapping on a line of its own, and lists on one line."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value)
    deeper = f"{indent}  "
    lines = [f"{deeper}{json.dumps(key)}: {_to_json(item, deeper)}" for key, item in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def _description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if os.path.isfile(folder):
        raise UserError(f"{folder} is a file, not a native checkpoint; open a .pt with from_torch.")
    try:
        if path.stat().st_size > _MAX_DESCRIPTION:
            raise ValueError(f"it is larger than {_MAX_DESCRIPTION:,} bytes")
        entries = files.parse_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{folder} is no native checkpoint: it has no {DESCRIPTION}; check the path.") from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}); check its name and permissions."
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); convert the checkpoint again.") from error
    return checked(entries, path)


def checked(entries: Any, path: Path) -> dict[str, Any]:
    """Return `entries`, of the file `path`, if they are what `describe` gives; raise UserError otherwise."""
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
