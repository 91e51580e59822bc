"""An ONNX graph between QuantizeLinear and DequantizeLinear, read back as integers.

What comes out are a few kinds of steps with their packed numbers as NumPy arrays: what a
compiler of int8 networks needs to know, whatever tool wrote the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from effdl.errors import ConfigError
from effdl.kernels.quantization import output_multiplier

__all__ = [
    "AddStep",
    "ByteTensor",
    "ConvolutionStep",
    "Int8Graph",
    "MeanStep",
    "read_int8_graph",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteTensor:
    """An activation as unsigned bytes.

    Attributes:
        name: Of the bytes, in the graph.
        scale: Its scale.
        zero_point: Its zero point.
        shape: [C, H, W] of one image.
    """

    name: str
    scale: float
    zero_point: int
    shape: tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvolutionStep:
    """A convolution, or a linear layer on one pixel, with what follows it.

    Attributes:
        x: Its input.
        y: Its output.
        weight: int8, [O, C / groups, k, k].
        bias: int32, [O].
        multiplier: float32, [O].
        groups: Of the convolution.
        stride: Of both axes.
        padding: On all sides.
        y_min: Smallest output.
        y_max: Largest output.
        gives_floats: Whether the output is ``sums * multiplier`` in float32.
    """

    x: ByteTensor
    y: ByteTensor
    weight: NDArray[np.int8]
    bias: NDArray[np.int32]
    multiplier: NDArray[np.float32]
    groups: int
    stride: int
    padding: int
    y_min: int
    y_max: int
    gives_floats: bool = False

    @property
    def is_pointwise(self) -> bool:
        """A 1x1 convolution over all channels."""
        return self.groups == 1 and self.weight.shape[2] == 1 and self.stride == 1

    @property
    def is_depthwise(self) -> bool:
        """One kernel for each channel."""
        return self.groups == self.x.shape[0] == self.y.shape[0] > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AddStep:
    """The sum of two tensors of one shape."""

    a: ByteTensor
    b: ByteTensor
    y: ByteTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanStep:
    """The mean over all pixels: [C, H, W] to [C, 1, 1]."""

    x: ByteTensor
    y: ByteTensor


Step = ConvolutionStep | AddStep | MeanStep


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Graph:
    """A network on bytes, from float images to float outputs.

    Attributes:
        input_name: Of the float input.
        image: What the input is quantized to.
        steps: In order.
        output_name: Of the float output.
        output: The bytes that it is dequantized from; where the last step gives floats,
            of scale 1.
        output_shape: Its shape for one image.
    """

    input_name: str
    image: ByteTensor
    steps: tuple[Step, ...]
    output_name: str
    output: ByteTensor
    output_shape: tuple[int, ...]


def read_int8_graph(model: onnx.ModelProto) -> Int8Graph:
    """Read a network whose operators all stand between bytes.

    It knows Conv, Gemm, Add, GlobalAveragePool, ReduceMean over both axes, Flatten and
    Reshape of one pixel, with Relu and Clip after any of them.

    Raises:
        ConfigError: Another operator, or a form of one that it does not know.
    """
    return _Reader(model).read()


def _attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _integers(value: object) -> tuple[int, ...]:
    values = value if isinstance(value, Sequence) else (value,)
    return tuple(v for v in values if isinstance(v, int))


class _Reader:
    def __init__(self, model: onnx.ModelProto) -> None:
        inferred = onnx.shape_inference.infer_shapes(model)
        self._graph = inferred.graph
        self._constants = {t.name: numpy_helper.to_array(t) for t in self._graph.initializer}
        for node in self._graph.node:
            if node.op_type == "Constant":
                self._constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self._shapes = {
            value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
            for value in (*self._graph.input, *self._graph.value_info, *self._graph.output)
        }
        self._makers = {name: node for node in self._graph.node for name in node.output}
        self._users: dict[str, list[onnx.NodeProto]] = {}
        for node in self._graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
        # Bytes that are another tensor's under a new name.
        self._same: dict[str, str] = {}
        self._tensors: dict[str, ByteTensor] = {}

    def read(self) -> Int8Graph:
        inputs = [i.name for i in self._graph.input if i.name not in self._constants]
        if len(inputs) != 1 or len(self._graph.output) != 1:
            raise ConfigError(
                "int8 graph: wanted one input and one output, "
                f"got {len(inputs)} and {len(self._graph.output)}"
            )
        image = self._quantized(inputs[0])
        steps: list[Step] = []
        for node in self._graph.node:
            step = self._step(node)
            if step is not None:
                steps.append(step)
        output_name = self._graph.output[0].name
        last = self._makers[output_name]
        shape = self._shapes.get(output_name, ())[1:]
        if steps and isinstance(steps[-1], ConvolutionStep) and steps[-1].gives_floats:
            return Int8Graph(
                input_name=inputs[0],
                image=image,
                steps=tuple(steps),
                output_name=output_name,
                output=steps[-1].y,
                output_shape=shape,
            )
        if last.op_type != "DequantizeLinear":
            raise ConfigError(
                f"int8 graph: wanted the output {output_name!r} dequantized from bytes, "
                f"got {last.op_type}"
            )
        return Int8Graph(
            input_name=inputs[0],
            image=image,
            steps=tuple(steps),
            output_name=output_name,
            output=self._bytes(output_name, last),
            output_shape=shape,
        )

    def _step(self, node: onnx.NodeProto) -> Step | None:
        kind = node.op_type
        if kind in ("QuantizeLinear", "DequantizeLinear", "Constant", "Relu", "Clip"):
            return None
        if kind == "Conv":
            return self._convolution(node)
        if kind == "Gemm":
            return self._linear(node)
        if kind == "Add":
            a, b = (self._bytes(name, node) for name in node.input)
            if a.shape != b.shape:
                raise _unknown(node, f"summands of shapes {a.shape} and {b.shape}")
            y, low, high = self._result(node, a.shape)
            if (low, high) != (0, 255):
                raise _unknown(node, "an activation after it")
            return AddStep(a=a, b=b, y=y)
        if kind in ("GlobalAveragePool", "ReduceMean"):
            x = self._bytes(node.input[0], node)
            if kind == "ReduceMean" and sorted(self._axes(node)) != [2, 3]:
                raise _unknown(node, "a mean over other axes than 2 and 3")
            y, low, high = self._result(node, (x.shape[0], 1, 1))
            if (low, high) != (0, 255):
                raise _unknown(node, "an activation after it")
            return MeanStep(x=x, y=y)
        if kind in ("Flatten", "Reshape", "Squeeze"):
            x = self._bytes(node.input[0], node)
            y, _, _ = self._result(node, x.shape)
            if x.shape[1:] != (1, 1) or (x.scale, x.zero_point) != (y.scale, y.zero_point):
                raise _unknown(node, f"another input than one pixel of one scale: {x.shape}")
            self._same[y.name] = self._same.get(x.name, x.name)
            return None
        raise _unknown(node, None)

    def _constant(self, name: str, node: onnx.NodeProto) -> NDArray[Any]:
        if name not in self._constants:
            raise _unknown(node, f"{name!r} that is computed: wanted a constant")
        return self._constants[name]

    def _axes(self, node: onnx.NodeProto) -> list[int]:
        axes = _attributes(node).get("axes")
        if axes is None and len(node.input) > 1:
            axes = self._constant(node.input[1], node).tolist()
        return [axis % 4 for axis in _integers(axes)]

    def _convolution(self, node: onnx.NodeProto) -> ConvolutionStep:
        attributes = _attributes(node)
        x = self._bytes(node.input[0], node)
        weight, w_scale = self._weight(node, axis=0)
        size = weight.shape[2]
        strides = _integers(attributes.get("strides", (1, 1)))
        pads = _integers(attributes.get("pads", (0, 0, 0, 0)))
        if (
            weight.ndim != 4
            or weight.shape[2] != weight.shape[3]
            or len(set(strides)) != 1
            or len(set(pads)) != 1
            or set(_integers(attributes.get("dilations", (1, 1)))) != {1}
            or attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
        ):
            raise _unknown(node, "kernel, stride, padding or dilation that differs by axis")
        stride, padding = strides[0], pads[0]
        (groups,) = _integers(attributes.get("group", 1))
        out = tuple((n + 2 * padding - size) // stride + 1 for n in x.shape[1:])
        y, low, high = self._result(node, (weight.shape[0], out[0], out[1]))
        return self._weighted(node, x, y, weight, w_scale, groups, stride, padding, low, high)

    def _linear(self, node: onnx.NodeProto) -> ConvolutionStep:
        attributes = _attributes(node)
        if (attributes.get("alpha", 1.0), attributes.get("beta", 1.0)) != (1.0, 1.0) or (
            attributes.get("transA", 0)
        ):
            raise _unknown(node, "alpha, beta or transA")
        x = self._bytes(node.input[0], node)
        transposed = bool(attributes.get("transB", 0))
        weight, w_scale = self._weight(node, axis=0 if transposed else 1)
        matrix = weight if transposed else weight.T
        shape = (matrix.shape[0], 1, 1)
        gives_floats = node.output[0] == self._graph.output[0].name
        if gives_floats:
            y, low, high = (
                ByteTensor(name=node.output[0], scale=1, zero_point=0, shape=shape),
                0,
                255,
            )
        else:
            y, low, high = self._result(node, shape)
        if x.shape != (matrix.shape[1], 1, 1):
            raise _unknown(node, f"an input of {x.shape} for {matrix.shape[1]} features")
        kernels = np.ascontiguousarray(matrix)[:, :, None, None]
        step = self._weighted(node, x, y, kernels, w_scale, 1, 1, 0, low, high)
        return replace(step, gives_floats=gives_floats)

    def _weighted(
        self,
        node: onnx.NodeProto,
        x: ByteTensor,
        y: ByteTensor,
        weight: NDArray[np.int8],
        w_scale: NDArray[np.float32],
        groups: int,
        stride: int,
        padding: int,
        low: int,
        high: int,
    ) -> ConvolutionStep:
        num_outputs = weight.shape[0]
        bias = np.zeros(num_outputs, np.int32)
        if len(node.input) > 2 and node.input[2]:
            bias = self._bias(node.input[2], np.float32(x.scale) * w_scale)
        multiplier = output_multiplier(x.scale, w_scale, y.scale)
        return ConvolutionStep(
            x=x,
            y=y,
            weight=weight,
            bias=np.broadcast_to(bias, num_outputs).astype(np.int32),
            multiplier=np.broadcast_to(multiplier, num_outputs).astype(np.float32),
            groups=groups,
            stride=stride,
            padding=padding,
            y_min=low,
            y_max=high,
        )

    def _weight(
        self, node: onnx.NodeProto, *, axis: int
    ) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        maker = self._makers.get(node.input[1])
        if maker is None or maker.op_type != "DequantizeLinear":
            raise _unknown(node, "a weight that is not int8")
        values = self._constants.get(maker.input[0])
        if values is None or values.dtype != np.int8:
            raise _unknown(node, "a weight that is not constant int8")
        scale = np.atleast_1d(self._constant(maker.input[1], node)).astype(np.float32)
        if len(maker.input) > 2 and self._constant(maker.input[2], node).any():
            raise _unknown(node, "a weight with a zero point")
        along = _attributes(maker).get("axis", 1)
        if scale.size > 1 and (not isinstance(along, int) or along % values.ndim != axis):
            raise _unknown(node, "weight scales along another axis than its outputs")
        return values, scale

    def _bias(self, name: str, scale: NDArray[np.float32]) -> NDArray[np.int32]:
        maker = self._makers.get(name)
        if maker is not None and maker.op_type == "DequantizeLinear":
            values = self._constants.get(maker.input[0])
            if values is not None and values.dtype == np.int32:
                return values
        if name not in self._constants:
            raise ConfigError(f"int8 graph: wanted a constant bias, got {name!r}")
        return np.rint(self._constants[name] / scale).astype(np.int32)

    def _bytes(self, name: str, node: onnx.NodeProto) -> ByteTensor:
        """The bytes behind a float tensor that is read."""
        maker = self._makers.get(name)
        if node.op_type == "DequantizeLinear":
            maker = node
        if maker is None or maker.op_type != "DequantizeLinear":
            raise _unknown(node, f"an input that is not dequantized from bytes: {name!r}")
        tensor = self._tensors.get(maker.input[0])
        if tensor is None:
            raise _unknown(node, f"bytes that no operator before it wrote: {maker.input[0]!r}")
        same = self._same.get(tensor.name, tensor.name)
        return self._tensors[same]

    def _result(
        self, node: onnx.NodeProto, shape: tuple[int, int, int]
    ) -> tuple[ByteTensor, int, int]:
        """The bytes that an operator's output becomes, and what activations limit it to."""
        name, lowest, highest = node.output[0], -np.inf, np.inf
        while True:
            users = self._users.get(name, [])
            if len(users) != 1:
                raise _unknown(node, f"an output that {len(users)} operators read as floats")
            user = users[0]
            if user.op_type == "QuantizeLinear":
                break
            if user.op_type == "Relu":
                lowest = max(lowest, 0.0)
            elif user.op_type == "Clip":
                low, high = self._clip_bounds(user)
                lowest, highest = max(lowest, low), min(highest, high)
            else:
                raise _unknown(node, f"{user.op_type} after it, on floats")
            name = user.output[0]
        tensor = self._quantized(name, shape)
        low_byte, high_byte = (
            int(np.clip(np.rint(bound / np.float32(tensor.scale)) + tensor.zero_point, 0, 255))
            for bound in (lowest, highest)
        )
        return tensor, low_byte, high_byte

    def _clip_bounds(self, node: onnx.NodeProto) -> tuple[float, float]:
        bounds = [-np.inf, np.inf]
        for place, name in enumerate(node.input[1:3]):
            if name:
                bounds[place] = float(self._constant(name, node).reshape(-1)[0])
        for place, name in enumerate(("min", "max")):
            value = _attributes(node).get(name)
            if isinstance(value, float):
                bounds[place] = value
        return bounds[0], bounds[1]

    def _quantized(self, name: str, shape: tuple[int, int, int] | None = None) -> ByteTensor:
        users = [user for user in self._users.get(name, []) if user.op_type == "QuantizeLinear"]
        if len(users) != 1:
            raise ConfigError(
                f"int8 graph: wanted {name!r} quantized once, got {len(users)} QuantizeLinear"
            )
        node = users[0]
        point = self._constant(node.input[2], node) if len(node.input) > 2 else np.uint8(0)
        scale = self._constant(node.input[1], node)
        if point.dtype != np.uint8 or scale.size != 1:
            raise _unknown(node, "activations that are not uint8 with one scale")
        if shape is None:
            known = self._shapes.get(name, ())
            if len(known) != 4 or 0 in known[1:]:
                raise ConfigError(
                    f"int8 graph: wanted the input as [N, C, H, W] of fixed size, got {known}"
                )
            shape = (known[1], known[2], known[3])
        tensor = ByteTensor(
            name=node.output[0],
            scale=float(scale.reshape(-1)[0]),
            zero_point=int(np.asarray(point).reshape(-1)[0]),
            shape=shape,
        )
        self._tensors[tensor.name] = tensor
        return tensor


def _unknown(node: onnx.NodeProto, what: str | None) -> ConfigError:
    name = f"{node.op_type} {node.name!r}" if node.name else node.op_type
    if what is None:
        return ConfigError(
            f"int8 graph: does not know the operator {name}: wanted Conv, Gemm, Add, "
            "GlobalAveragePool, ReduceMean, Flatten, Relu or Clip",
            hint="run the file with ONNX Runtime instead",
        )
    return ConfigError(f"int8 graph: {name} has {what}")
