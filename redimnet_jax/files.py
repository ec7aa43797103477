"""Files that appear whole or not at all."""

import errno
import os
import re
import shutil
import tempfile
from pathlib import Path

from redimnet_jax.errors import UserError


def reason(error: Exception) -> str:
    """The cause of a failed write in a few words; TensorStore puts the system's among many others."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
        if os.strerror(number) in str(error):
            return os.strerror(number)
    return getattr(error, "strerror", None) or " ".join(str(error).split()).rstrip(".").replace(". ", "; ")


def write(path: str | Path, data: bytes | str) -> Path:
    """Writes `data` (text as UTF-8) to `path`, over what was there; makes its folder; returns the path.

    Raises UserError when it cannot be written; what was there before then stays as it was.
    """
    path = Path(path)
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with open(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)
        os.replace(part, path)
        part = None
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); choose another output.") from error
    finally:
        if part is not None:
            os.unlink(part)
    return path


def remove_leftovers(folder: Path) -> None:
    """Removes the hidden files and folders with random ends that a killed process left in `folder`.

    Nobody else may be writing there.
    """
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.[a-z0-9_]{8}", path.name):
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            except OSError as error:
                raise UserError(f"{path} cannot be removed ({error.strerror}); remove it and start again.") from error
