"""A machine that runs the pickles of `torch.save` without running anything that they ask for.

A pickle is a small program. The machine knows only the instructions that `torch.save` writes (pickle protocols 2 to 5
of Python 3), and the only functions that it can call are those of `_FUNCTIONS`, which make plain data and nothing
else.
"""

# The machine of pickle's that can lose instructions has no type stubs.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false

import itertools
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

_DTYPES = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "float32", "float64"),
    )
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
_STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.storage.UntypedStorage": "uint8",
}
_NUMPY_CODES = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"])
_SCALARS = (str, int, float, bool, type(None))
_MAX_DEPTH = 64
# A tensor takes about 30 instructions: this is room for 20,000 of them, where the largest released file has 1,052
# and a training state with an optimizer's three times as many. They take less than a second.
_MAX_INSTRUCTIONS = 600_000
# Values are counted as often as they are met, since whoever walks through them meets them as often.
_MAX_VALUES = 1_000_000
_TEXT_OF_ONE = 16  # characters of a text that count as one value
# Tensors may share storages, and be larger than those by repeating them; in all they are at most this many times as
# large as the file, or as small as `_SMALL`.
_MAX_SHARING, _SMALL = 16, 1 << 24
_MAX_ARGUMENTS = 16  # of a call; no function here takes as many
_MAX_TUPLE_KEYS = 1_000  # Their hashes can be made to collide, so that a dict of many is slow.
_MAX_INTEGER = 1 << 64
_MAX_ENCODED = 16  # bytes of the longest numpy scalar: with no limit, copies of a long text fill the memory
# What the standard library, numpy and the checks below raise on bytes that make no sense.
NONSENSE = (
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError, NotImplementedError, MemoryError),
    *(EOFError, RecursionError, zlib.error, struct.error, pickle.UnpicklingError, zipfile.BadZipFile),
)


class Refused(Exception):
    """The file is not for this reader; the arguments are the problem and the advice."""


class Storage(NamedTuple):
    """The bytes behind one or more tensors."""

    raw: memoryview | np.ndarray
    dtype: np.dtype


class _Global(NamedTuple):
    """What a pickle gets for a class or function it names: it can be called but, a tuple, not changed."""

    name: str

    def __call__(self, *arguments: Any) -> Any:
        return _FUNCTIONS[self.name](*arguments)


def not_allowed(what: str) -> Refused:
    """Return the refusal of a file that asks for something other than tensors and plain data."""
    advice = "load it with torch from a copy you trust and torch.save only its state dict"
    return Refused(f"asks for {what}, which is refused as only tensors and plain data are read", advice)


class Budget:
    """What is left of the work and memory that a file of `size` bytes may ask for."""

    def __init__(self, size: int):
        self.instructions, self.tuple_keys = _MAX_INSTRUCTIONS, _MAX_TUPLE_KEYS
        self.stored = size
        self.tensors = max(_SMALL, _MAX_SHARING * size)

    def spend(self, what: str, amount: int, problem: str) -> None:
        """Take `amount` off the `what` that is left; raise ValueError with `problem` when there is less."""
        left = getattr(self, what) - amount
        if left < 0:
            raise ValueError(problem)
        setattr(self, what, left)


class _Instructions(dict[int, Callable[["Machine"], None]]):
    def __missing__(self, code: int) -> None:
        raise not_allowed(f"the pickle instruction {bytes([code])!r}")


class _Counted:
    """Instructions of which each is counted when it is looked up."""

    def __init__(self, instructions: _Instructions, budget: Budget):
        self._instructions, self._budget = instructions, budget

    def __getitem__(self, code: int) -> Callable[["Machine"], None]:
        self._budget.instructions -= 1
        if self._budget.instructions < 0:
            raise ValueError(f"it takes more than {_MAX_INSTRUCTIONS:,} instructions")
        return self._instructions[code]


class Machine(pickle._Unpickler):
    """Runs the next pickle in a file as far as it keeps to the few instructions at the end of this class.

    `storage(dtype, key, count)`, or `storage(dtype, key, count, view)` in the old format, finds the bytes.
    The base is the one of pickle's two machines that can lose instructions, and whose memo cannot be made
    to fill the memory.
    """

    def __init__(self, file: BinaryIO, storage: Callable[..., Storage], budget: Budget):
        super().__init__(file)
        self._storage, self._budget = storage, budget
        self.dispatch = _Counted(self.dispatch, budget)

    def find_class(self, module: str, name: str) -> _Global | np.dtype:
        full = f"{module}.{name}"
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if full not in _STORAGES and full not in _FUNCTIONS:
            raise not_allowed(show(full))
        return _Global(full)

    def persistent_load(self, pid: Any) -> Storage:
        if type(pid) is not tuple or not 5 <= len(pid) <= 6 or type(pid[0]) is not str or pid[0] != "storage":
            raise ValueError("it refers to something other than a storage")
        kind, key, _location, count, *view = pid[1:]
        if type(kind) is not _Global or kind.name not in _STORAGES or type(key) is not str or not is_count(count):
            raise ValueError("it refers to a storage of no known type, name or size")
        return self._storage(_DTYPES[_STORAGES[kind.name]], key, count, *view)

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not _Global or type(arguments) is not tuple:
            raise ValueError("it calls something that is no function")
        try:
            if len(arguments) > _MAX_ARGUMENTS:
                raise ValueError(f"a call has {len(arguments):,} arguments")
            value = function(*arguments)
            if isinstance(value, np.ndarray):
                self._budget.spend("tensors", value.nbytes, "a tensor is too large for the file that holds it")
        except NONSENSE as error:
            near = next((text for text in reversed(self.stack) if type(text) is str), "the beginning")
            raise ValueError(f"near {show(near)}: {error}") from error
        self.append(value)

    def load_build(self) -> None:
        """Change nothing: of the states in a checkpoint, only the byte order of a numpy type matters."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, np.dtype):
            order = state[1] if type(state) is tuple and len(state) > 1 else None
            if type(order) is not str or order not in ("<", "|"):
                raise not_allowed("a numpy number that is not little-endian")
        elif type(target) is not OrderedDict:
            raise not_allowed("a new state for something other than a dict")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, OrderedDict):
            raise ValueError("an item assignment is to something other than a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is tuple:
                self._budget.spend("tuple_keys", 1, f"it has more than {_MAX_TUPLE_KEYS:,} keys that are tuples")
            # Simple keys only: Python crashes when it hashes a deep tuple.
            if not (all(map(_is_simple, key)) if type(key) is tuple and len(key) <= 8 else _is_simple(key)):
                raise ValueError("a dict has a key that is neither text nor number")
            target[key] = value

    _INHERITED = (
        "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE "
        "SHORT_BINUNICODE BINBYTES SHORT_BINBYTES EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND "
        "APPENDS EMPTY_DICT GLOBAL STACK_GLOBAL BINPERSID BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE"
    )
    dispatch = _Instructions(
        {code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, n)[0] for n in _INHERITED.split())}
    )
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems


def show(text: str) -> str:
    """Return a name from the file as it may stand in a message."""
    return repr(text[:80])  # a hostile name may be long, or hold line ends and terminal codes


def _is_simple(value: Any) -> bool:
    # Larger integers can be made to collide, so that a dict of many is slow.
    return type(value) in _SCALARS and (type(value) is not int or -_MAX_INTEGER < value < _MAX_INTEGER)


def is_count(number: Any) -> bool:
    """Return whether `number` can be a number of elements or an offset."""
    return type(number) is int and 0 <= number < _MAX_INTEGER


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, *more: Any, dtype: np.dtype | None = None
) -> np.ndarray:
    if any(more[2:]):  # after requires_grad and the hooks
        raise not_allowed("a tensor that is a negated or conjugated view of its storage")
    if type(storage) is not Storage or type(size) is not tuple or type(stride) is not tuple:
        raise ValueError("a tensor lacks its storage, size or stride")
    if not len(size) == len(stride) <= 64 or not all(map(is_count, (offset, *size, *stride))):
        raise ValueError("a tensor has an impossible offset, size or stride")
    dtype = dtype or storage.dtype
    end = offset + (1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if all(size) else 0)
    if end * dtype.itemsize > len(storage.raw):
        raise ValueError(f"a tensor of size {size} and stride {stride} reaches beyond its storage")
    steps = [s * dtype.itemsize for s in stride] if all(size) else None
    return np.ndarray(size, dtype, storage.raw, offset * dtype.itemsize, steps)


def _tensor_v3(*arguments: Any) -> np.ndarray:
    *start, dtype = arguments[:7]
    if not isinstance(dtype, np.dtype):
        raise ValueError("a tensor has no dtype")
    return _tensor(*start, *arguments[7:], dtype=dtype)


def _size(size: Any) -> tuple[int, ...]:
    if type(size) is not tuple or len(size) > 64 or not all(map(is_count, size)):
        raise ValueError("a torch.Size holds something other than sizes")
    return size


def _numpy_dtype(code: Any, _align: Any, _copy: Any) -> np.dtype:
    if type(code) is not str or code not in _NUMPY_CODES:
        raise not_allowed("a numpy type other than plain numbers")
    return np.dtype(code).newbyteorder("<")


def _numpy_scalar(dtype: Any, raw: Any) -> np.generic:
    if not isinstance(dtype, np.dtype) or type(raw) is not bytes or len(raw) != dtype.itemsize:
        raise ValueError("a numpy number lacks its type or bytes")
    return np.frombuffer(raw, dtype)[0]


def _encode(text: Any, encoding: Any) -> bytes:
    """Return the bytes of a numpy scalar, as protocol 2 writes them."""
    if type(text) is not str or len(text) > _MAX_ENCODED or type(encoding) is not str or encoding != "latin1":
        raise not_allowed("bytes other than those of a number")
    return text.encode("latin1")


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda: OrderedDict(),  # of nothing: a list could be copied without end
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda tensor, _requires_grad, _hooks: tensor,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy.dtype": _numpy_dtype,
    "_codecs.encode": _encode,
}


class Walk:
    """Measures what was read, once for each container, however often the container is shared."""

    def __init__(self) -> None:
        self._measured: dict[int, tuple[int, int]] = {}

    def measure(self, value: Any, above: int = 0) -> tuple[int, int]:
        """Return (levels of containers in `value`, values in it).

        Refuses loops, deep nesting, what is not plain data, and more values than a walk meets in a second.
        """
        if type(value) in (str, bytes):
            return 0, 1 + len(value) // _TEXT_OF_ONE
        if type(value) in _SCALARS or isinstance(value, (np.ndarray, np.generic, np.dtype)):
            return 0, 1
        if type(value) not in (dict, OrderedDict, list, tuple):
            raise ValueError("it holds a storage or function that belongs to no tensor")
        too_deep = ValueError(f"it is nested deeper than {_MAX_DEPTH} levels")
        if above >= _MAX_DEPTH:
            raise too_deep
        if id(value) not in self._measured:
            self._measured[id(value)] = _MAX_DEPTH, 0  # met again while this stands, it contains itself
            self._measured[id(value)] = self._inside(value, above)
        depth, count = self._measured[id(value)]
        if depth > _MAX_DEPTH:
            raise too_deep
        return depth, count

    def _inside(self, value: dict | list | tuple, above: int) -> tuple[int, int]:
        depth, count = 0, 1
        for part in itertools.chain(value, value.values()) if isinstance(value, dict) else value:
            levels, values = self.measure(part, above + 1)
            depth, count = max(depth, levels), count + values
            if count > _MAX_VALUES:
                raise ValueError(f"it holds more than {_MAX_VALUES:,} values")
        return 1 + depth, count
