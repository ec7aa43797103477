"""Writer of the zip file that `torch.save` writes, without torch.

`torch.load(weights_only=True)` opens it, and `torch_file` reads it back.
Source of the format: `_save` in `torch/serialization.py` of PyTorch 2.13.
"""

# The pickler that can learn types has no type stubs.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from typing import Any, BinaryIO, NamedTuple

import numpy as np

_STORAGES = {"float32": "FloatStorage", "int64": "LongStorage"}
_TOP = "archive/"
_ALIGNMENT = 64  # bytes; of the storages in the file, for torch.load(mmap=True)


class _Global(NamedTuple):
    """A class or function of a module that need not be installed here."""

    module: str
    name: str

    def __call__(self) -> None:
        """Do nothing: the pickler only asks whether it could be called."""


class _Storage(NamedTuple):
    """The memory of one tensor, which the pickle names by its key."""

    kind: str
    key: int
    size: int


class _Pickler(pickle._Pickler):
    """Pickles arrays as tensors of PyTorch, each with a storage of its own, which it appends to `storages`."""

    dispatch = dict(pickle._Pickler.dispatch)

    def __init__(self, file: BinaryIO):
        super().__init__(file, 2)
        self.storages: list[np.ndarray] = []

    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        if type(obj) is not _Storage:
            return None
        return "storage", _Global("torch", obj.kind), str(obj.key), "cpu", obj.size

    def _save_global(self, obj: _Global) -> None:
        self.write(f"c{obj.module}\n{obj.name}\n".encode())

    def _save_array(self, array: np.ndarray) -> None:
        storage = _Storage(_STORAGES[array.dtype.name], len(self.storages), array.size)
        self.storages.append(array)
        stride = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
        rebuild = _Global("torch._utils", "_rebuild_tensor_v2")
        self.save_reduce(rebuild, (storage, 0, array.shape, stride, False, OrderedDict()))

    dispatch[_Global] = _save_global
    dispatch[np.ndarray] = _save_array


def dumps(content: Any) -> bytes:
    """Return the file of `content`: plain data, and float32 and int64 arrays, which become tensors on the CPU."""
    program = io.BytesIO()
    pickler = _Pickler(program)
    pickler.dump(content)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", program.getvalue())
        _add(archive, "byteorder", b"little")
        for key, array in enumerate(pickler.storages):
            _add(archive, f"data/{key}", array.astype(array.dtype.newbyteorder("<")).tobytes())
        _add(archive, "version", b"3\n")
    return file.getvalue()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    # Without a time in it, the same content gives the same bytes.
    entry = zipfile.ZipInfo(_TOP + name)
    header = archive.start_dir + 30 + len(entry.filename) + 4
    padding = -header % _ALIGNMENT
    entry.extra = b"FB" + padding.to_bytes(2, "little") + bytes(padding)
    archive.writestr(entry, data)
