"""A float ONNX graph with some of its operators on bytes: QuantizeLinear and DequantizeLinear.

Every byte tensor stands between a QuantizeLinear and a DequantizeLinear, weights and
biases behind a DequantizeLinear: a form that every runtime reads, and that those with
integer kernels fuse. An operator that stays in floats reads what its neighbour's bytes
give back, so the file computes the same everywhere.
"""

from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from effdl.export.int8_calibration import Int8Parameters
from effdl.export.int8_operators import Int8Operator
from effdl.quantization.calibration import quantize_bias

__all__ = ["byte_tensors", "write_qdq"]

_SUFFIXES = {"q": "_quantized", "dq": "_dequantized"}


def byte_tensors(operators: Collection[Int8Operator]) -> tuple[str, ...]:
    """Every activation that int8 operators read or write as bytes, each once."""
    names: dict[str, None] = {}
    for operator in operators:
        names.update(dict.fromkeys(operator.inputs))
        if operator.writes_bytes:
            names[operator.output] = None
    return tuple(names)


def write_qdq(
    model: onnx.ModelProto,
    operators: Collection[Int8Operator],
    parameters: Int8Parameters,
) -> onnx.ModelProto:
    """The graph with these operators on bytes, and all others as they are.

    Args:
        model: Opset 13 or newer, in floats; it is not changed.
        operators: Those of `find_int8_operators` that shall run on bytes.
        parameters: Of all of them, at least.
    """
    return _Writer(model, operators, parameters).write()


class _Writer:
    def __init__(
        self,
        model: onnx.ModelProto,
        operators: Collection[Int8Operator],
        parameters: Int8Parameters,
    ) -> None:
        self._model, self._parameters = model, parameters
        self._scales = parameters.activations
        self._by_node = {op.nodes[0]: op for op in operators}
        self._written_as_bytes = {op.output for op in operators if op.writes_bytes}
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._dequantized: dict[str, str] = {}

    def write(self) -> onnx.ModelProto:
        graph = self._model.graph
        for i, node in enumerate(graph.node):
            operator = self._by_node.get(i)
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            for place, name in enumerate(node.input):
                reads_bytes = operator is not None and name in operator.inputs
                if reads_bytes or name in self._written_as_bytes:
                    copy.input[place] = self._as_bytes(name)
            if operator is not None:
                self._add_weights(operator, copy)
            self._nodes.append(copy)
        for value in graph.output:
            if value.name in self._written_as_bytes:
                self._rename_output(value.name)
        done = onnx.ModelProto()
        done.CopyFrom(self._model)
        del done.graph.node[:], done.graph.initializer[:]
        done.graph.node.extend(self._nodes)
        used = {name for node in self._nodes for name in node.input}
        kept = [t for t in graph.initializer if t.name in used]
        done.graph.initializer.extend([*kept, *self._initializers.values()])
        del done.graph.value_info[:]
        return done

    def _as_bytes(self, name: str) -> str:
        """The tensor as its bytes give it back; the two nodes are written once."""
        if name not in self._dequantized:
            scale = self._scales[name]
            pair = [
                self._constant(f"{name}_scale", np.float32(scale.scale)),
                self._constant(f"{name}_zero_point", np.uint8(scale.zero_point)),
            ]
            q, dq = (name + _SUFFIXES[kind] for kind in ("q", "dq"))
            self._nodes.append(helper.make_node("QuantizeLinear", [name, *pair], [q], name=q))
            self._nodes.append(helper.make_node("DequantizeLinear", [q, *pair], [dq], name=dq))
            self._dequantized[name] = dq
        return self._dequantized[name]

    def _add_weights(self, operator: Int8Operator, node: onnx.NodeProto) -> None:
        if operator.weight is None:
            return
        steps = self._parameters.weights[operator.name]
        w_scale = self._parameters.weight_scales[operator.name]
        axis = operator.output_axis(node)
        name = f"{operator.name}_weight"
        node.input[1] = self._dequantize_constant(name, steps, w_scale, axis)
        bias = self._parameters.biases.get(operator.name)
        if bias is None or operator.kind == "MatMul":
            return
        x_scale = np.float32(self._scales[operator.inputs[0]].scale)
        whole = quantize_bias(bias, float(x_scale), w_scale)
        scale = (x_scale * w_scale).astype(np.float32)
        del node.input[2:]
        node.input.append(self._dequantize_constant(f"{operator.name}_bias", whole, scale, 0))

    def _dequantize_constant(
        self, name: str, steps: NDArray[np.generic], scale: NDArray[np.float32], axis: int
    ) -> str:
        q, dq = (name + _SUFFIXES[kind] for kind in ("q", "dq"))
        inputs = [
            self._constant(q, steps),
            self._constant(f"{name}_scale", scale),
            self._constant(f"{name}_zero_point", np.zeros(scale.shape, dtype=steps.dtype)),
        ]
        self._nodes.append(helper.make_node("DequantizeLinear", inputs, [dq], name=dq, axis=axis))
        return dq

    def _constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        self._initializers[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _rename_output(self, name: str) -> None:
        """Let the graph's output be what the bytes give back, under its own name."""
        inner = f"{name}_float"
        for node in self._nodes:
            for places in (node.input, node.output):
                for i, used in enumerate(places):
                    if used == name:
                        places[i] = inner
        dequantized = self._dequantized.get(name)
        if dequantized is None:
            self._nodes_for_output(name, inner)
            return
        for node in self._nodes:
            for places in (node.input, node.output):
                for i, used in enumerate(places):
                    if used == dequantized:
                        places[i] = name

    def _nodes_for_output(self, name: str, inner: str) -> None:
        scale = self._scales[name]
        pair = [
            self._constant(f"{name}_scale", np.float32(scale.scale)),
            self._constant(f"{name}_zero_point", np.uint8(scale.zero_point)),
        ]
        q = name + _SUFFIXES["q"]
        self._nodes.append(helper.make_node("QuantizeLinear", [inner, *pair], [q], name=q))
        self._nodes.append(helper.make_node("DequantizeLinear", [q, *pair], [name], name=name))
