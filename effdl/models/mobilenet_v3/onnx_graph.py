"""MobileNetV3 operators and sub-networks as ONNX bytes, for the clock only.

The graphs are what PyTorch's exporter writes for the same layers at opset 20:
batch norm folded into biased convolutions, hard-swish and hard-sigmoid as single
nodes, pooling as ``ReduceMean``. Exporting a block through PyTorch takes seconds,
writing it takes milliseconds. The weights are made, so outputs mean nothing.
"""

from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from effdl.models.mobilenet_v3.operators import (
    Activation,
    BlockShape,
    ConvShape,
    LinearShape,
    PoolShape,
)
from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.search.space import SubnetConfig

__all__ = ["build_network", "build_operator"]

OPSET = 20
# The newest intermediate representation that ONNX Runtime 1.22 reads.
IR_VERSION = 10

Shape = ConvShape | PoolShape | LinearShape | BlockShape


def build_operator(shape: Shape, batch_size: int) -> bytes:
    """One operator as a serialised ONNX model.

    Args:
        shape: The operator.
        batch_size: Fixed first dimension of input and output.

    Returns:
        A model with input ``input`` and output ``output``, both float32: [batch_size,
        channels, height, width], or [batch_size, features] for the classifier.
    """
    return _build([shape], batch_size)


def build_network(space: MobileNetV3Space, config: SubnetConfig, batch_size: int) -> bytes:
    """One whole sub-network as a serialised ONNX model.

    Args:
        space: The family of networks.
        config: The sub-network.
        batch_size: Fixed first dimension of input and output.

    Returns:
        A model with input ``input`` [batch_size, in_channels, resolution, resolution]
        and output ``output`` [batch_size, num_classes], both float32.
    """
    return _build([shape for _, shape in space.shapes(config)], batch_size)


def _build(shapes: Sequence[Shape], batch_size: int) -> bytes:
    graph = _Graph()
    value = "input"
    for before, shape in zip([None, *shapes], shapes, strict=False):
        if isinstance(shape, LinearShape) and before is not None:
            shape_of = graph.constant(np.array([batch_size, shape.in_features], dtype=np.int64))
            value = graph.node("Reshape", [value, shape_of])
        value = _add(graph, value, shape)
    graph.nodes[-1].output[0] = "output"
    return graph.serialise(
        _input_shape(shapes[0], batch_size), _output_shape(shapes[-1], batch_size)
    )


def _input_shape(shape: Shape, batch_size: int) -> list[int]:
    match shape:
        case LinearShape():
            return [batch_size, shape.in_features]
        case PoolShape():
            return [batch_size, shape.channels, shape.in_size, shape.in_size]
        case ConvShape() | BlockShape():
            return [batch_size, shape.in_channels, shape.in_size, shape.in_size]


def _output_shape(shape: Shape, batch_size: int) -> list[int]:
    match shape:
        case LinearShape():
            return [batch_size, shape.out_features]
        case PoolShape():
            return [batch_size, shape.channels, 1, 1]
        case ConvShape() | BlockShape():
            return [batch_size, shape.out_channels, shape.out_size, shape.out_size]


def _add(graph: "_Graph", value: str, shape: Shape) -> str:
    match shape:
        case LinearShape():
            weight = graph.weights([shape.out_features, shape.in_features])
            bias = graph.weights([shape.out_features])
            return graph.node("Gemm", [value, weight, bias], transB=1)
        case PoolShape():
            return graph.mean(value)
        case ConvShape():
            value = graph.conv(
                value,
                shape.in_channels,
                shape.out_channels,
                kernel_size=shape.kernel_size,
                stride=shape.stride,
                bias=shape.batch_norm,
            )
            return graph.activation(value, "hswish")
        case BlockShape():
            return _add_block(graph, value, shape)


def _add_block(graph: "_Graph", entry: str, shape: BlockShape) -> str:
    mid, value = shape.mid_channels, entry
    if shape.expand:
        value = graph.conv(value, shape.in_channels, mid)
        value = graph.activation(value, shape.activation)
    value = graph.conv(
        value, mid, mid, kernel_size=shape.kernel_size, stride=shape.stride, groups=mid
    )
    value = graph.activation(value, shape.activation)
    if shape.squeeze_excite:
        gate = graph.conv(graph.mean(value), mid, shape.squeeze_channels)
        gate = graph.conv(graph.activation(gate, "relu"), shape.squeeze_channels, mid)
        gate = graph.node("HardSigmoid", [gate], alpha=1 / 6, beta=0.5)
        value = graph.node("Mul", [value, gate])
    value = graph.conv(value, mid, shape.out_channels)
    return graph.node("Add", [value, entry]) if shape.skip else value


class _Graph:
    """Nodes and made weights of a model under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._axes: str | None = None

    def node(self, kind: str, inputs: Iterable[str], **attributes: int | float | list[int]) -> str:
        """Append a node; returns the name of its output."""
        output = f"value{len(self.nodes)}"
        node = helper.make_node(kind, list(inputs), [output])
        node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        self.nodes.append(node)
        return output

    def constant(self, values: NDArray[np.generic]) -> str:
        """Append an initialiser; returns its name."""
        name = f"constant{len(self._initializers)}"
        self._initializers.append(numpy_helper.from_array(values, name))
        return name

    def weights(self, shape: Sequence[int]) -> str:
        """Append made weights, scaled by their fan-in so that activations stay near 1.

        Vanishing activations would be denormal numbers, which many processors
        compute far more slowly.
        """
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 100
        return self.constant(np.resize(_noise(), shape) * np.float32((2 / fan_in) ** 0.5))

    def conv(
        self,
        value: str,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> str:
        """A convolution with padding ``kernel_size // 2``."""
        inputs = [
            value,
            self.weights([out_channels, in_channels // groups, kernel_size, kernel_size]),
        ]
        if bias:
            inputs.append(self.weights([out_channels]))
        return self.node(
            "Conv",
            inputs,
            dilations=[1, 1],
            group=groups,
            kernel_shape=[kernel_size, kernel_size],
            pads=[kernel_size // 2] * 4,
            strides=[stride, stride],
        )

    def activation(self, value: str, name: Activation) -> str:
        """The activation called ``name``."""
        return self.node({"relu": "Relu", "hswish": "HardSwish"}[name], [value])

    def mean(self, value: str) -> str:
        """The mean over height and width, kept as dimensions of size 1."""
        if self._axes is None:
            self._axes = self.constant(np.array([2, 3], dtype=np.int64))
        return self.node("ReduceMean", [value, self._axes], keepdims=1)

    def serialise(self, input_shape: Sequence[int], output_shape: Sequence[int]) -> bytes:
        """The model from ``input`` to ``output``."""
        graph = helper.make_graph(
            self.nodes,
            "effdl",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, input_shape)],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, output_shape)],
            self._initializers,
        )
        model = helper.make_model(
            graph,
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
            producer_name="effdl",
        )
        return model.SerializeToString()


@cache
def _noise() -> NDArray[np.float32]:
    # A prime length keeps the repeats out of step with every weight shape.
    return np.random.default_rng(0).standard_normal(65521, dtype=np.float32)
