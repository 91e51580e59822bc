"""One operator of a graph with its neighbours, in floats or on bytes, as a model for the clock.

An operator alone says little: on bytes it needs its neighbours to speak bytes, else
somebody converts, and runtimes keep tensors in other layouts inside a graph than at its
edges. So an operator is timed between the operators before and after it, in two graphs
that differ in this one operator only.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from effdl.export.int8_calibration import Int8Parameters
from effdl.export.int8_operators import Int8Operator, constants_of
from effdl.export.qdq import byte_tensors, write_qdq
from effdl.quantization.calibration import activation_scale, quantize_weight

__all__ = ["Segments", "made_parameters", "with_batch_size"]

# Of activations without a limit; speed does not depend on it.
_MADE_RANGE = 4.0


def with_batch_size(model: onnx.ModelProto, batch_size: int) -> onnx.ModelProto:
    """The graph with its free first dimensions fixed, and the shape of every tensor."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        if not first.HasField("dim_value"):
            first.dim_value = batch_size
    del fixed.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(fixed, data_prop=True)


def made_parameters(model: onnx.ModelProto, operators: Collection[Int8Operator]) -> Int8Parameters:
    """Parameters with which the graph runs as fast as with calibrated ones, and means nothing."""
    constants = constants_of(model)
    limits = {op.output: op.limits for op in operators}
    activations = {}
    for name in byte_tensors(operators):
        low, high = limits.get(name, (-np.inf, np.inf))
        activations[name] = activation_scale(
            low if np.isfinite(low) else -_MADE_RANGE, high if np.isfinite(high) else _MADE_RANGE
        )
    nodes = model.graph.node
    weights, weight_scales, biases = {}, {}, {}
    for op in operators:
        if op.weight is None:
            continue
        weight = constants[op.weight].astype(np.float32)
        weights[op.name], weight_scales[op.name] = quantize_weight(
            weight, axis=op.output_axis(nodes[op.nodes[0]])
        )
        if op.bias is not None:
            biases[op.name] = constants[op.bias].astype(np.float32)
    return Int8Parameters(
        activations=activations, weights=weights, weight_scales=weight_scales, biases=biases
    )


class Segments:
    """Cuts segments out of a graph.

    Args:
        model: The float graph, of fixed sizes.
        operators: Those of `find_int8_operators`.
    """

    def __init__(self, model: onnx.ModelProto, operators: Iterable[Int8Operator]) -> None:
        self._model = model
        self._constants = constants_of(model)
        self._operators = {op.name: op for op in operators}
        self._operator_of_node = {i: op for op in self._operators.values() for i in op.nodes}
        self._producers = {
            name: i for i, node in enumerate(model.graph.node) for name in node.output
        }
        self._readers: dict[str, list[int]] = {}
        for i, node in enumerate(model.graph.node):
            for name in node.input:
                self._readers.setdefault(name, []).append(i)
        graph = model.graph
        self._values = {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}

    def cut(self, name: str, int8_names: Collection[str]) -> bytes:
        """The operator between its neighbours.

        Args:
            name: The operator's.
            int8_names: Operators of the whole graph that run on bytes; the operator itself
                may be one of them or not.

        Returns:
            A serialised model.
        """
        nodes = self._neighbourhood(self._operators[name])
        part, places = self._extract(nodes)
        inside = [
            replace(op, nodes=tuple(places[i] for i in op.nodes))
            for op in self._operators.values()
            if op.name in int8_names and op.nodes[0] in places
        ]
        return write_qdq(part, inside, made_parameters(part, inside)).SerializeToString()

    def signature(self, name: str, int8_names: Collection[str]) -> str:
        """Equal for segments that take equally long: all but names and the weights' values."""
        nodes = self._neighbourhood(self._operators[name])
        numbers: dict[str, int] = {}
        parts = []
        for i in nodes:
            node, op = self._model.graph.node[i], self._operator_of_node.get(i)
            tensors = [
                (numbers.setdefault(t, len(numbers)), self._shape(t))
                for t in (*node.input, *node.output)
            ]
            attributes = sorted(str(helper.get_attribute_value(a)) + a.name for a in node.attribute)
            mark = op is not None and op.name in int8_names, op is self._operators[name]
            parts.append(f"{node.op_type}{tensors}{attributes}{mark}")
        return ";".join(parts)

    def _shape(self, name: str) -> tuple[int, ...]:
        if name in self._constants:
            return self._constants[name].shape
        value = self._values.get(name)
        dims = value.type.tensor_type.shape.dim if value is not None else ()
        return tuple(d.dim_value for d in dims)

    def _neighbourhood(self, operator: Int8Operator) -> list[int]:
        chosen = set(operator.nodes)
        for name in operator.inputs:
            if name in self._producers:
                chosen |= self._with_its_operator(self._producers[name])
        for reader in self._readers.get(operator.output, []):
            chosen |= self._with_its_operator(reader)
        return sorted(chosen)

    def _with_its_operator(self, node: int) -> set[int]:
        operator = self._operator_of_node.get(node)
        return {node} if operator is None else set(operator.nodes)

    def _extract(self, nodes: list[int]) -> tuple[onnx.ModelProto, dict[int, int]]:
        """The nodes as a model, and the place of each in it."""
        kept = [self._model.graph.node[i] for i in nodes]
        made = {name for node in kept for name in node.output if name}
        read = {name: None for node in kept for name in node.input if name}
        ends = {value.name for value in self._model.graph.output}
        outputs = [
            name
            for node in kept
            for name in node.output
            if name and (name in ends or name not in read)
        ]
        graph = helper.make_graph(
            kept,
            "segment",
            [self._value(name) for name in read if name not in made | self._constants.keys()],
            [self._value(name) for name in outputs],
            [
                numpy_helper.from_array(self._constants[name], name)
                for name in read
                if name in self._constants
            ],
        )
        part = helper.make_model(
            graph, ir_version=self._model.ir_version, opset_imports=self._model.opset_import
        )
        return part, {old: new for new, old in enumerate(nodes)}

    def _value(self, name: str) -> onnx.ValueInfoProto:
        known = self._values.get(name)
        kind = TensorProto.FLOAT if known is None else known.type.tensor_type.elem_type
        return helper.make_tensor_value_info(name, kind, self._shape(name))
