"""A trained model as ONNX: raw rows in, embedding out, and the scores of a supervised model."""

from __future__ import annotations

from typing import Any

import numpy as np

from ivis_spark.core.dense import DenseNetwork
from ivis_spark.errors import ArtifactError, DependencyError
from ivis_spark.serving.folder import HasFolder, ModelFolder, folder_of

# linear needs no node
_OPERATORS = {"relu": "Relu", "selu": "Selu", "elu": "Elu", "tanh": "Tanh", "sigmoid": "Sigmoid", "softmax": "Softmax"}
_OPSET, _IR_VERSION = 17, 9  # what onnxruntime 1.17 reads


def export_onnx(model: HasFolder | ModelFolder, path: str) -> None:
    """Write a dense encoder, its scaling and its head as one ONNX file.

    Input `features`, unscaled rows, (n, d): float64 if the model scales them, because float32 would lose precision,
    else float32; outputs `embedding`, float32 (n, e), and `scores`, float32 (n, c), if the model is supervised. Runs
    on: driver.

    Raises:
        DependencyError: if onnx is not installed.
        InputError: if `model` is no model that can be exported; says what to pass.
        ArtifactError: if the encoder is not a chain of dense layers.

    Example:
        >>> from ivis_spark.serving.export import export_onnx
        >>> export_onnx(model, "cells.onnx")
    """
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError as err:
        raise DependencyError("ONNX export needs the package onnx: pip install 'ivis_spark[onnx]'") from err
    encoder = folder_of(model).encoder()
    if not isinstance(encoder.network, DenseNetwork):
        raise ArtifactError(
            "the encoder is not a chain of dense layers; export its Keras model: IvisModel.encoder.export(path, "
            "format='onnx')"
        )
    graph = _Graph()
    hidden = "features"
    scaler, kind = encoder.scaler, TensorProto.FLOAT
    if scaler is not None and scaler.kind != "none":
        hidden = graph.add("Sub", hidden, graph.constant(scaler.offset, np.float64))
        hidden = graph.add("Mul", hidden, graph.constant(scaler.factor, np.float64))
    if scaler is not None and scaler.projection is not None:
        hidden = graph.add("Sub", hidden, graph.constant(scaler.projection.mean, np.float64))
    if hidden != "features":
        hidden, kind = graph.add("Cast", hidden, to=TensorProto.FLOAT), TensorProto.DOUBLE
    if scaler is not None and scaler.projection is not None:
        hidden = graph.add("MatMul", hidden, graph.constant(scaler.projection.axes))
    outputs = [_value("embedding", encoder.network.n_outputs)]
    graph.add("Identity", graph.dense(hidden, encoder.network), output="embedding")
    if encoder.head is not None:
        graph.add("Identity", graph.dense("embedding", encoder.head), output="scores")
        outputs.append(_value("scores", encoder.head.n_outputs))
    inputs = [helper.make_tensor_value_info("features", kind, ["n", encoder.n_inputs])]
    graph_proto = helper.make_graph(graph.nodes, "ivis_spark", inputs, outputs, graph.constants)
    proto = helper.make_model(graph_proto, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(proto)
    onnx.save_model(proto, path)


def _value(name: str, width: int) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])


class _Graph:
    """Nodes and constants, named as they come."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, dtype: type[np.floating[Any]] = np.float32) -> str:
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype), name))
        return name

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        output = output or f"hidden_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def dense(self, hidden: str, network: DenseNetwork) -> str:
        """Add the layers of a network and return its output."""
        for layer in network.layers:
            hidden = self.add("Gemm", hidden, self.constant(layer.kernel), self.constant(layer.bias))
            if layer.activation != "linear":
                options: dict[str, Any] = {"axis": 1} if layer.activation == "softmax" else {}
                hidden = self.add(_OPERATORS[layer.activation], hidden, **options)
        return hidden
