"""The operators of a float ONNX graph that have an int8 form, with what is fused to them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

__all__ = ["Int8Operator", "constants_of", "find_int8_operators"]

_KINDS = ("Conv", "Gemm", "MatMul", "Add", "Mul", "GlobalAveragePool", "MaxPool")
_FUSED_ACTIVATIONS = ("Relu", "Clip")


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Operator:
    """An operator that can run on bytes, as the graph has it in floats.

    Attributes:
        name: Of its first node.
        kind: The first node's operator.
        nodes: Indices into the graph's nodes: the operator and a ReLU or ReLU6 after it.
        inputs: Activations it reads.
        output: The activation it writes, after the ReLU.
        weight: Name of its constant weight, if it has one.
        bias: Name of its constant bias, if it has one.
        limits: What the ReLU clips to; infinite where it does not.
    """

    name: str
    kind: str
    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    output: str
    weight: str | None = None
    bias: str | None = None
    limits: tuple[float, float] = (-np.inf, np.inf)

    @property
    def writes_bytes(self) -> bool:
        """Whether its int8 form gives bytes; a matrix product gives its float sums."""
        return self.kind not in ("Gemm", "MatMul")

    def output_axis(self, node: onnx.NodeProto) -> int:
        """Axis of the output channels in its weight; ``node`` is its first node."""
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        return 0 if self.kind == "Conv" or transposed else 1

    @property
    def keeps_scale(self) -> bool:
        """Whether its output's bytes are some of its input's."""
        return self.kind == "MaxPool"


def constants_of(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    """Every constant tensor of a graph by name."""
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = numpy_helper.to_array(attribute.t)
    return found


def find_int8_operators(model: onnx.ModelProto) -> tuple[Int8Operator, ...]:
    """What of a graph can run on bytes, in the graph's order.

    Convolutions, matrix products with constant weights, sums and products of two
    activations, global average and maximum pooling; a ReLU or ReLU6 that alone reads
    their output belongs to them.
    """
    constants = constants_of(model)
    graph_outputs = {value.name for value in model.graph.output}
    readers: dict[str, list[int]] = {}
    for i, node in enumerate(model.graph.node):
        for name in node.input:
            readers.setdefault(name, []).append(i)
    return tuple(_find(model.graph, constants, readers, graph_outputs))


def _find(
    graph: onnx.GraphProto,
    constants: Mapping[str, NDArray[np.generic]],
    readers: Mapping[str, list[int]],
    graph_outputs: set[str],
) -> Iterator[Int8Operator]:
    for i, node in enumerate(graph.node):
        if node.op_type not in _KINDS:
            continue
        varying = tuple(name for name in node.input if name and name not in constants)
        has_weight = node.op_type in ("Conv", "Gemm", "MatMul")
        if has_weight and (varying != (node.input[0],) or not _is_plain(node, constants)):
            continue
        if node.op_type in ("Add", "Mul") and len(varying) != 2:
            continue
        nodes, output, limits = (i,), node.output[0], (-np.inf, np.inf)
        following = readers.get(output, [])
        if has_weight and len(following) == 1 and output not in graph_outputs:
            after = graph.node[following[0]]
            found = _limits(after, constants)
            if found is not None:
                nodes, output, limits = (i, following[0]), after.output[0], found
        yield Int8Operator(
            name=node.name or node.output[0],
            kind=node.op_type,
            nodes=nodes,
            inputs=varying,
            output=output,
            weight=node.input[1] if has_weight else None,
            bias=node.input[2] if has_weight and len(node.input) > 2 and node.input[2] else None,
            limits=limits,
        )


def _is_plain(node: onnx.NodeProto, constants: Mapping[str, NDArray[np.generic]]) -> bool:
    """Whether it is nothing but ``x * weight + bias`` with a float weight of known layout."""
    weight = constants[node.input[1]]
    if weight.dtype != np.float32:
        return False
    if node.op_type == "Gemm":
        facts = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        return (facts.get("alpha", 1.0), facts.get("beta", 1.0), facts.get("transA", 0)) == (
            1.0,
            1.0,
            0,
        )
    return node.op_type == "Conv" or weight.ndim == 2


def _limits(
    node: onnx.NodeProto, constants: Mapping[str, NDArray[np.generic]]
) -> tuple[float, float] | None:
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type != "Clip" or any(name and name not in constants for name in node.input[1:]):
        return None
    ends = [-np.inf, np.inf]
    for i, name in enumerate(node.input[1:]):
        if name:
            ends[i] = float(constants[name].reshape(()))
    return ends[0], ends[1]
