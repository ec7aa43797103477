"""Checksums of large files by block, so that damage is found without the whole file in memory, and where it is."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from redimnet_jax.errors import UserError

BLOCK = 1 << 24  # bytes


def of(path: Path) -> dict[str, Any]:
    """Return {"bytes", "block_bytes", "blake2b"}: a digest of 16 bytes, in hex, for every block of the file `path`.

    Raises OSError when the file cannot be read.
    """
    return {"bytes": path.stat().st_size, "block_bytes": BLOCK, "blake2b": list(_digests(path, BLOCK))}


def verify(path: Path, wanted: Mapping[str, Any], remedy: str) -> None:
    """Raise UserError, which ends with `remedy`, unless the file `path` is what `of` gave `wanted` for."""
    try:
        size, block, digests = (wanted[key] for key in ("bytes", "block_bytes", "blake2b"))
        found = path.stat().st_size
        if found != size:
            raise UserError(f"{path} has {found:,} bytes but had {size:,} when it was finished; {remedy}.")
        for number, digest in enumerate(_digests(path, block)):
            if digest != digests[number]:
                raise UserError(
                    f"{path} does not match its checksum in the bytes from {number * block:,} on; {remedy}."
                )
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); {remedy}.") from error
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"The checksums of {path} are malformed; {remedy}.") from error


def _digests(path: Path, block: int) -> Iterator[str]:
    with open(path, "rb") as file:
        while data := file.read(block):
            yield hashlib.blake2b(data, digest_size=16).hexdigest()
