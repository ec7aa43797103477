"""Reader and writer of safetensors files: a JSON header, then the bytes of the tensors.

Nothing in such a file can run. What a file claims about itself is checked before memory is taken for it; the tensors
that are read are views of the file.
Source: the format's description in the README of github.com/huggingface/safetensors.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from redimnet_jax import files
from redimnet_jax.errors import UserError, shown

SUFFIX = ".safetensors"
_METADATA = "__metadata__"
_MAX_HEADER = 1 << 23  # bytes; that of the largest network has 200,000
_MAX_RANK = 32
_DTYPES = {
    **{f"F{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BOOL": np.dtype(bool),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def is_one(path: Path) -> bool:
    """Return whether the name or the first bytes of the file at `path` are those of a safetensors file."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return path.suffix == SUFFIX or file.read(10)[8:] == b'{"'


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the tensors, read-only, and the metadata in a file; raise UserError for one that is damaged."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            if len(start) < 8:
                raise ValueError("it is too short for a header")
            (length,) = struct.unpack("<Q", start)
            data = path.stat().st_size - 8 - length
            if length > _MAX_HEADER or data < 0:
                raise ValueError(f"it claims a header of {length:,} bytes")
            header = files.parse_json(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no mapping")
        metadata = header.pop(_METADATA, {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata is not text")
        places = {name: _place(name, entry) for name, entry in header.items()}
        _check_places([(start, end) for _, _, start, end in places.values()], data)
        content = np.memmap(path, np.uint8, "r", offset=8 + length) if data else np.empty(0, np.uint8)
        tensors = {
            name: content[start:end].view(dtype).reshape(shape) for name, (dtype, shape, start, end) in places.items()
        }
        return tensors, metadata
    except ValueError as error:
        raise UserError(f"{path} is not an intact safetensors file ({error}); download or save it again.") from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}); check its name and permissions."
        ) from error


def _place(name: str, entry: Any) -> tuple[np.dtype, list[int], int, int]:
    """Return the dtype and shape of a tensor, and where its bytes start and end."""
    entry = entry if isinstance(entry, dict) else {}
    kind, shape, place = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise ValueError(f"tensor {shown(name)} has the dtype {shown(kind)}, which is unknown here")
    if not _are_counts(shape) or len(shape) > _MAX_RANK or not _are_counts(place) or len(place) != 2:
        raise ValueError(f"tensor {shown(name)} has no proper shape or place")
    start, end = place
    if end - start != math.prod(shape) * _DTYPES[kind].itemsize:
        raise ValueError(
            f"tensor {shown(name)} has {end - start:,} bytes, which its shape {shown(shape)} does not need"
        )
    return _DTYPES[kind], shape, start, end


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 1 << 63 for each in value)


def _check_places(places: list[tuple[int, int]], size: int) -> None:
    """Raise ValueError unless the tensors follow each other without holes and fill `size` bytes."""
    end = 0
    for start, stop in sorted(places):
        if start != end:
            raise ValueError("its tensors overlap, or leave holes")
        end = stop
    if end != size:
        raise ValueError(f"its tensors need {end:,} bytes where it has {size:,}")


def dumps(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Return the file of `tensors`, in their order in the header, and of `metadata`."""
    header: dict[str, Any] = {_METADATA: dict(metadata)} | dict.fromkeys(tensors)
    parts: list[bytes] = []
    end = 0
    # The widest first, so that every tensor is aligned.
    for name, array in sorted(tensors.items(), key=lambda item: -item[1].itemsize):
        dtype = array.dtype.newbyteorder("<")
        parts.append(array.astype(dtype).tobytes())
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _NAMES[dtype], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *parts])
