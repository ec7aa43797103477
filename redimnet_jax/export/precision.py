"""ONNX models in float16, and in int8 by the quantisation of onnxruntime.

The front end, sums over time, the pooling and the embedding stay float32, as they do in this library's own bfloat16:
a spectrum spans more than either format holds, and sums over minutes leave float16's range.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from redimnet_jax import files
from redimnet_jax.data import tree
from redimnet_jax.errors import ArgumentError, UserError
from redimnet_jax.export.graph.layers import EXACT
from redimnet_jax.export.graph.network import LENGTHS, WAVEFORMS
from redimnet_jax.export.options import ExportOptions
from redimnet_jax.models.speaker_model import SpeakerModel

KEPT = frozenset({"frontend", "pool", "linear", EXACT})
QUANTIZED = ["Conv", "MatMul"]
MAX_RECORDINGS = 64
MAX_SECONDS = 10.0


def converted(proto: onnx.ModelProto, model: SpeakerModel, options: ExportOptions) -> onnx.ModelProto:
    """Return the float32 `proto` of `model` in the precision of `options`; raise UserError without recordings."""
    names = [node.name for node in proto.graph.node]
    kept = {name for name in names if "/" not in name or KEPT.intersection(name.split("/"))}
    match options.precision:
        case "float16":
            return _float16(proto, kept)
        case "int8":
            return _quantized(proto, kept)
        case "int8-static":
            assert options.calibration_audio is not None
            return _quantized(proto, kept, calibration_signals(model, options.calibration_audio))
    return proto


def _float16(proto: onnx.ModelProto, kept: set[str]) -> onnx.ModelProto:
    """Return `proto` with the arithmetic of all nodes but those `kept` in float16.

    The converter of onnxruntime would round the waveforms too, of which float16 loses the quiet ones.
    """
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    known = [*inferred.value_info, *inferred.input, *inferred.output]
    dtypes = {value.name: value.type.tensor_type.elem_type for value in known}
    dtypes |= {name: tensor.data_type for name, tensor in constants.items()}
    halves: set[str] = set()  # the names of values that are float16
    nodes: list[onnx.NodeProto] = []
    made: dict[tuple[str, bool], str] = {}

    def as_dtype(name: str, half: bool) -> str:
        if dtypes[name] != TensorProto.FLOAT or (name in halves) == half:
            return name
        if (name, half) not in made:
            made[name, half] = f"{name}:float{16 if half else 32}"
            if name in constants:
                array = numpy_helper.to_array(constants[name]).astype(np.float16)
                proto.graph.initializer.append(numpy_helper.from_array(array, made[name, half]))
            else:
                to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
                output = made[name, half]
                nodes.append(helper.make_node("Cast", [name], [output], name=output, to=to))
        return made[name, half]

    for node in proto.graph.node:
        half = node.name not in kept
        node.input[:] = [as_dtype(name, half) for name in node.input]
        halves.update(name for name in node.output if half and dtypes[name] == TensorProto.FLOAT)
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(tensors)
    return proto


def _quantized(
    proto: onnx.ModelProto, kept: set[str], signals: Sequence[np.ndarray] | None = None
) -> onnx.ModelProto:
    import onnxruntime
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory() as folder:
        source, target = (str(Path(folder) / name) for name in ("float32.onnx", "int8.onnx"))
        onnx.save(proto, source)
        unsigned = quantization.QuantType.QUInt8
        shared: dict[str, Any] = {
            "op_types_to_quantize": QUANTIZED,
            # Products of unsigned with signed numbers saturate on x86 CPUs without VNNI.
            "weight_type": unsigned,
            "nodes_to_exclude": list(kept),
            "extra_options": {"MatMulConstBOnly": True},
        }
        level = logging.root.level
        logging.root.setLevel(logging.ERROR)  # It advises a shape inference that dynamic lengths make void.
        try:
            if signals is None:
                quantization.quantize_dynamic(source, target, **shared)
            else:
                shared |= {"activation_type": unsigned, "per_channel": True}
                quantization.quantize_static(source, target, _reader(signals), **shared)
        except RuntimeError as error:
            # 1.20 does not find the ranges of softmaxes that stay float32.
            raise UserError(
                f"onnxruntime {onnxruntime.__version__} cannot quantise this network ({files.first_line(error)}); "
                "install a newer version."
            ) from error
        finally:
            logging.root.setLevel(level)
        return onnx.load(target)


def _reader(signals: Sequence[np.ndarray]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._inputs = ({WAVEFORMS: signal[None], LENGTHS: np.array([len(signal)])} for signal in signals)

        def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            return next(self._inputs, None)

    return Reader()


def calibration_signals(model: SpeakerModel, folder: Path) -> list[np.ndarray]:
    """Return the first ten seconds of at most 64 recordings below `folder`, evenly spread over their sorted paths."""
    paths = sorted(_audio_below(folder))
    if not paths:
        raise UserError(f"There is no recording below {folder}; give a folder with audio files to calibrate on.")
    chosen = [paths[len(paths) * index // MAX_RECORDINGS] for index in range(MAX_RECORDINGS)]
    signals = [model.read(path, max_seconds=MAX_SECONDS) for path in dict.fromkeys(chosen)]
    if not any(map(np.any, signals)):
        raise UserError(f"The recordings below {folder} are silent; give a folder with speech to calibrate on.")
    return signals


def _audio_below(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise ArgumentError(f"{folder} is no folder of recordings; check `calibration_audio`.")
    return (path for path in folder.rglob("*") if tree.is_audio(path.name) and path.is_file())
