"""A graph under construction: nodes in the order of computation, and constants."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import helper, numpy_helper

Value = str | np.ndarray | float | int | Sequence[int]

_TINY = float(np.finfo(np.float32).tiny)


class Graph:
    """Nodes and constants of a graph; values of the graph are their names.

    A constant is float32, or int64 where it is made of integers. Subnormal numbers, which dead channels have and
    which slow a CPU down many times, become zero.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[Any, ...], str] = {}
        self._tensors: list[onnx.TensorProto] = []
        self._scopes: list[str] = []

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Begin the names of all nodes of the block with `name`."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def __call__(self, op: str, *inputs: Value, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node that applies `op` to `inputs`; return the name of its output, or a list of several."""
        name = "/".join([*self._scopes, f"{op}_{len(self.nodes)}"])
        names = [f"{name}:{index}" for index in range(outputs)] if outputs > 1 else [name]
        taken = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        self.nodes.append(helper.make_node(op, taken, names, name=name, **attributes))
        return names if outputs > 1 else name

    def constant(self, value: ArrayLike) -> str:
        """Return the name of a constant; equal ones are one."""
        array = np.asarray(value)
        if array.dtype.kind in "iu":
            array = array.astype(np.int64)
        elif array.dtype.kind == "f":
            array = array.astype(np.float32)
            array = np.where(np.abs(array) < _TINY, np.float32(0), array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = "/".join([*self._scopes, f"constant_{len(self._tensors)}"])
            self._constants[key] = name
            self._tensors.append(numpy_helper.from_array(array, name))
        return self._constants[key]

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """Reshape `x`; 0 keeps a size and -1 takes what is left."""
        return self("Reshape", x, tuple(shape))

    def transpose(self, x: str, order: Sequence[int]) -> str:
        """Return `x` with its axes in another order."""
        return self("Transpose", x, perm=list(order))

    def total(self, x: str, axes: Sequence[int]) -> str:
        """Return the sum over `axes`, which stay as axes of one."""
        return self("ReduceSum", x, tuple(axes), keepdims=1)

    def split(self, x: str, parts: int) -> list[str]:
        """Return `parts` equal parts of the channels, which are axis 1."""
        return [x] if parts == 1 else self("Split", x, outputs=parts, axis=1)

    def output(self, name: str, op: str, *inputs: Value) -> None:
        """Add a node whose output is the graph's output `name`."""
        self(op, *inputs)
        self.nodes[-1].output[0] = name

    def cut(self, x: str, axis: int, start: str | int, stop: str | int, step: int = 1) -> str:
        """Return a slice along `axis`; a bound is a number or the name of an int64 (1,)."""
        bounds = [bound if isinstance(bound, str) else (bound,) for bound in (start, stop)]
        return self("Slice", x, *bounds, (axis,), (step,))

    def proto(self, name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> onnx.GraphProto:
        """Return the graph with value infos for its `inputs` and `outputs`."""
        return helper.make_graph(self.nodes, name, inputs, outputs, initializer=self._tensors)
