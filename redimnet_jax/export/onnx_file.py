"""The format onnx: raw waveforms of any length in a batch, with their lengths, to embeddings."""

import json
from pathlib import Path

from redimnet_jax import files, optional
from redimnet_jax.export import metadata
from redimnet_jax.export.options import ExportOptions
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.version import VERSION

OPSET = 17  # the first with LayerNormalization
IR_VERSION = 8  # that of the opset's release


def write(model: SpeakerModel, path: Path, options: ExportOptions) -> None:
    """Write `model` to the new file `path`.

    Inputs are `waveforms` (batch, samples) float32 and `lengths` (batch,) int64, output is `embedding` (batch, dim)
    float32, NaN for a signal without one. The metadata's entry `redimnet_jax` is the JSON of `metadata.describe`.
    """
    optional.require("export")
    import onnx
    from onnx import TensorProto, helper

    from redimnet_jax.export.graph.builder import Graph
    from redimnet_jax.export.graph.network import EMBEDDING, LENGTHS, WAVEFORMS, write_network
    from redimnet_jax.export.precision import converted

    width = options.width(model)
    graph = Graph()
    write_network(graph, model.network, width, options.normalize)
    inputs = [
        helper.make_tensor_value_info(WAVEFORMS, TensorProto.FLOAT, ["batch", "samples"]),
        helper.make_tensor_value_info(LENGTHS, TensorProto.INT64, ["batch"]),
    ]
    outputs = [helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, ["batch", width])]
    proto = helper.make_model(
        graph.proto(model.arch, inputs, outputs),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="redimnet_jax",
        producer_version=VERSION,
    )
    proto = converted(proto, model, options)
    helper.set_model_props(proto, {"redimnet_jax": json.dumps(metadata.describe(model, options))})
    onnx.checker.check_model(proto, full_check=True)
    files.write(path, proto.SerializeToString())
