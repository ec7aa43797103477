"""Reader of the files that `torch.save` writes, without torch and without running anything that a file asks for.

A checkpoint is a pickle plus raw storages, in a zip file or, before PyTorch 1.6, one after the other in a plain file.
`torch_pickle` has the machine that runs the pickle.
Source of both formats: `_save` and `_legacy_save` in `torch/serialization.py` of PyTorch 2.13.
"""

import functools
import io
import pickle
import struct
import zipfile
import zlib
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from redimnet_jax.checkpoints.torch_pickle import NONSENSE, Budget, Machine, Refused, Storage, Walk, is_count, show
from redimnet_jax.errors import UserError

_MAX_ENTRIES = 100_000  # of a zip file: one a storage and a few more
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_HEAD = pickle.dumps(_LEGACY_MAGIC, 2)[2:]  # less the protocol number, which whoever saves may choose
_GIVE = "give a file that torch.save wrote, such as a released .pt"


def read(path: str | PathLike[str]) -> Any:
    """Return the object in a checkpoint, with its tensors and parameters as numpy arrays.

    Both formats of `torch.save` are read: the zip file, and the one from before PyTorch 1.6. The result is
    made of dict, OrderedDict, list, tuple, None, bool, int, float, str, bytes, numpy scalars, np.dtype (where
    torch had a dtype) and np.ndarray of the tensor's shape, strides and dtype (ml_dtypes.bfloat16 included),
    and of nothing else. Arrays may be read-only; tensors that shared a storage still do. `requires_grad`,
    hooks, and attributes of an OrderedDict (the `_metadata` of a state dict) are left out.

    Raises UserError when the file is missing, is damaged, is no checkpoint, or asks for anything else.
    """
    path = Path(path)
    try:
        return _read(path)
    except Refused as error:
        problem, advice = error.args
        raise UserError(f"{path} {problem}: {advice}.") from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}): check its name and permissions."
        ) from error
    except NONSENSE as error:
        reason = "".join(filter(str.isprintable, str(error)))[:300] or type(error).__name__
        raise UserError(f"{path} is damaged or cut short ({reason}): download or save it again.") from error


def _read(path: Path) -> Any:
    if not path.exists():
        raise Refused("does not exist", "check the name, or download the checkpoint first")
    if not path.is_file():
        raise Refused("is not a file", "give the checkpoint file itself")
    with path.open("rb") as file:
        head = file.read(64)
        if problem := _not_a_checkpoint(head):
            raise Refused(problem, _GIVE)
        zipped = head.startswith(b"PK")
        file.seek(0)
        value = _read_zip(path.read_bytes()) if zipped else _read_legacy(file, path.stat().st_size)
    Walk().measure(value)
    return value


def _not_a_checkpoint(head: bytes) -> str | None:
    """Return what is wrong with a file that starts like this, or None if it may be a checkpoint."""
    if not head:
        return "is empty"
    if head.startswith(b"PK") or (head.startswith(pickle.PROTO) and _LEGACY_HEAD in head):
        return None
    if head.startswith(pickle.PROTO):
        return "is a plain pickle, not a checkpoint"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "is a web page, not a checkpoint (an error page saved in place of a download?)"
    if head[8:10] == b'{"':
        return "is a safetensors file, not a checkpoint"
    return "is not a checkpoint"


def _check_little_endian(is_little: bool) -> None:
    if not is_little:
        raise Refused("was saved on a big-endian machine", "save it again on a little-endian one")


def _entries(data: bytes) -> dict[str, zipfile.ZipInfo]:
    # Counted before they are read: each takes a kilobyte of memory.
    if data.count(b"PK\x01\x02") > _MAX_ENTRIES:
        raise ValueError(f"it has more than {_MAX_ENTRIES:,} entries")
    archive: dict[str, zipfile.ZipInfo] = {}
    for entry in zipfile.ZipFile(io.BytesIO(data)).infolist():
        if archive.setdefault(entry.filename, entry) is not entry:
            raise ValueError(f"it has two entries {show(entry.filename)}")
    return archive


def _read_zip(data: bytes) -> Any:
    archive, budget = _entries(data), Budget(len(data))
    tops = [n.removesuffix("data.pkl") for n in archive if n.count("/") == 1 and n.endswith("/data.pkl")]
    if len(tops) != 1:
        raise Refused("is a zip file but not a checkpoint", _GIVE)
    top = tops[0]
    if any(name == top + "constants.pkl" or name.startswith(top + "code/") for name in archive):
        advice = "load it with torch.jit.load and torch.save its state_dict()"
        raise Refused("is a TorchScript archive, not a checkpoint", advice)

    @functools.cache  # many tensors may share a storage
    def content(name: str) -> memoryview:
        if top + name not in archive:
            raise ValueError(f"it has no {show(name)}")
        entry = archive[top + name]
        budget.spend("stored", entry.file_size, "its entries are larger than the file, or overlap")
        return _stored(data, entry)

    def storage(dtype: np.dtype, key: str, count: int) -> Storage:
        raw = content(f"data/{key}")
        if len(raw) != count * dtype.itemsize:
            raise ValueError(f"storage {show(key)} has {len(raw)} bytes in place of {count} x {dtype}")
        return Storage(raw, dtype)

    if top + "byteorder" in archive:
        _check_little_endian(content("byteorder") == b"little")
    return Machine(io.BytesIO(content("data.pkl")), storage, budget).load()


def _stored(data: bytes, entry: zipfile.ZipInfo) -> memoryview:
    """Return a view of one zip entry; refusing compressed ones rules out zip bombs."""
    name = show(entry.filename)
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise ValueError(f"{name} is compressed or encrypted, as torch.save never does")
    header = data[entry.header_offset : entry.header_offset + 30] if entry.header_offset >= 0 else b""
    if not header.startswith(b"PK\x03\x04"):
        raise ValueError(f"{name} has no header")
    start = entry.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26))
    raw = memoryview(data)[start : start + entry.file_size]  # if too short, its reader will notice
    if entry.CRC and zlib.crc32(raw) != entry.CRC:  # torch.save writes 0 when told not to compute it
        raise ValueError(f"{name} has a wrong checksum")
    return raw


def _read_legacy(file: io.BufferedReader, file_size: int) -> Any:
    storages: dict[str, Storage] = {}
    budget = Budget(file_size)

    def storage(dtype: np.dtype, key: str, count: int, view: Any) -> Storage:
        # The bytes come after the objects, so tensors are made over memory that is filled at the end.
        size = count * dtype.itemsize
        if key not in storages:
            budget.spend("stored", size, f"storage {show(key)} is larger than the file")
            storages[key] = Storage(np.empty(size, np.uint8), dtype)
        raw = storages[key].raw
        if len(raw) != size:
            raise ValueError(f"storage {show(key)} has two sizes")
        if view is not None:
            if type(view) is not tuple or len(view) != 3:
                raise ValueError(f"storage {show(key)} has no proper view")
            _, offset, length = view
            if not (is_count(offset) and is_count(length) and offset + length <= count):
                raise ValueError(f"storage {show(key)} has a view beyond its end")
            raw = raw[offset * dtype.itemsize :][: length * dtype.itemsize]
        return Storage(raw, dtype)

    magic, version, system = (Machine(file, storage, budget).load() for _ in range(3))
    # The types first: to compare a tensor or nested lists may take all memory.
    known = type(magic) is type(version) is int and type(system) is dict
    if not known or (magic, version) != (_LEGACY_MAGIC, 1001):
        raise ValueError("it is of an unknown version of the old format")
    _check_little_endian(system.get("little_endian") is True)
    value, keys = (Machine(file, storage, budget).load() for _ in range(2))
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages):
        raise ValueError("its list of storages does not match its tensors")
    for key in keys:
        raw: Any = storages[key].raw
        dtype = storages[key].dtype
        (count,) = struct.unpack("<q", file.read(8))
        if count * dtype.itemsize != len(raw) or file.readinto(raw) != len(raw):
            raise ValueError(f"storage {show(key)} is not as long as it should be")
    return value
