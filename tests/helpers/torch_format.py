"""Write checkpoints as `torch.save` does, without torch, so that the reader can be tested without it.

Checked once against PyTorch 2.13: `torch.load(weights_only=True)` reads what both functions write.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


class Global:
    """Stands for a class or function of a module that need not exist here."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def __call__(self) -> None:
        """Never called: `pickle.save_reduce` only wants to see that it could be."""


class Call:
    """An object that is pickled as `function(*arguments)`, followed by BUILD if there is a state."""

    def __init__(self, function: Any, arguments: tuple[Any, ...], state: Any = None):
        self.function, self.arguments, self.state = function, arguments, state


class Storage:
    """The memory of a root array; `count`, `key` and the old format's `view` may lie."""

    def __init__(self, root: np.ndarray):
        self.root = root
        self.count: Any = root.size
        self.key: str | None = None
        self.view: tuple[Any, ...] | None = None


def parameter(data: np.ndarray) -> Call:
    """What stands for a torch.nn.Parameter."""
    return Call(Global("torch._utils", "_rebuild_parameter"), (data, True, OrderedDict()))


def tensor(storage: Storage, offset: Any, size: Any, stride: Any) -> Call:
    """What stands for a tensor; an array does the same with values that are right."""
    arguments = (storage, offset, size, stride, False, OrderedDict())
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments)


class _Pickler(pickle._Pickler):
    dispatch = dict(pickle._Pickler.dispatch)

    def __init__(self, file: io.BytesIO, legacy: bool, protocol: int):
        super().__init__(file, protocol)
        self.legacy = legacy
        self.storages: dict[int, tuple[str, np.ndarray]] = {}

    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        if not isinstance(obj, Storage):
            return None
        key, _ = self.storages.setdefault(id(obj.root), (str(len(self.storages)), obj.root))
        kind = Global("torch", STORAGES[obj.root.dtype.name])
        return ("storage", kind, obj.key or key, "cpu", obj.count) + ((obj.view,) if self.legacy else ())

    def save_named(self, obj: Global) -> None:
        self.write(f"c{obj.module}\n{obj.name}\n".encode())

    def save_call(self, obj: Call) -> None:
        self.save_reduce(obj.function, obj.arguments, obj.state)

    def save_array(self, obj: np.ndarray) -> None:
        root = obj
        while isinstance(root.base, np.ndarray):
            root = root.base
        offset = obj.__array_interface__["data"][0] - root.__array_interface__["data"][0] if obj.size else 0
        strides = tuple(step // obj.itemsize for step in obj.strides)
        self.save_call(tensor(Storage(root), offset // obj.itemsize, obj.shape, strides))

    dispatch[Global] = save_named
    dispatch[Call] = save_call
    dispatch[np.ndarray] = save_array


def pickled(obj: Any, legacy: bool = False, protocol: int = 2) -> tuple[bytes, dict[str, np.ndarray]]:
    """The pickle of `obj` and the storages it refers to, by key."""
    file = io.BytesIO()
    pickler = _Pickler(file, legacy, protocol)
    pickler.dump(obj)
    return file.getvalue(), dict(pickler.storages.values())


def write_zip(
    path: Path,
    program: bytes,
    storages: dict[str, np.ndarray] | None = None,
    *,
    extra: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Write a zip checkpoint around any pickle, hostile ones included."""
    entries = {"data.pkl": program, "byteorder": b"little", "version": b"3\n"}
    entries |= {f"data/{key}": array.tobytes("A") for key, array in (storages or {}).items()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in (entries | (extra or {})).items():
            # Without a time in it, the same content gives the same bytes.
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content, compression)
    return path


def write_legacy(
    path: Path, program: bytes, storages: dict[str, np.ndarray] | None = None, *, little_endian: bool = True
) -> Path:
    """Write a checkpoint of before PyTorch 1.6 around any pickle, hostile ones included."""
    system = {
        "protocol_version": 1001,
        "little_endian": little_endian,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
    items = sorted((storages or {}).items())
    tail = [struct.pack("<q", array.size) + array.tobytes("A") for _, array in items]
    path.write_bytes(b"".join([*head, program, pickle.dumps([key for key, _ in items], 2), *tail]))
    return path


def save_zip(path: Path, obj: Any, protocol: int = 2) -> Path:
    """Write `obj`, with numpy arrays in place of tensors, in the zip format."""
    return write_zip(path, *pickled(obj, protocol=protocol))


def save_legacy(path: Path, obj: Any, protocol: int = 2) -> Path:
    """Write `obj`, with numpy arrays in place of tensors, in the format of before PyTorch 1.6."""
    return write_legacy(path, *pickled(obj, legacy=True, protocol=protocol))
