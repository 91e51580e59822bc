"""The fused int8 inverted residual as latency tables see it."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

from effdl.errors import BackendUnavailableError
from effdl.kernels.backend import Backend
from effdl.kernels.inverted_residual.reference import (
    QuantizedAddition,
    QuantizedConvolution,
    inverted_residual_reference,
)
from effdl.kernels.kernel_spec import KernelSpec
from effdl.opspec import OpSpec

__all__ = ["MOBILENET_V2_BLOCKS", "default_specs", "inverted_residual_spec", "made_block"]

_FLOAT32_BYTES = 4
_OPSET = 17
_IR_VERSION = 8
_SCALE = 0.05
_ZERO_POINT = 128

MOBILENET_V2_BLOCKS = (
    (32, 32, 16, 112, 1),
    (16, 96, 24, 112, 2),
    (24, 144, 24, 56, 1),
    (24, 144, 32, 56, 2),
    *[(32, 192, 32, 28, 1)] * 2,
    (32, 192, 64, 28, 2),
    *[(64, 384, 64, 14, 1)] * 3,
    (64, 384, 96, 14, 1),
    *[(96, 576, 96, 14, 1)] * 2,
    (96, 576, 160, 14, 2),
    *[(160, 960, 160, 7, 1)] * 2,
    (160, 960, 320, 7, 1),
)
"""Input, hidden and output channels, height (= width) and stride of MobileNetV2's blocks."""


def inverted_residual_spec(
    in_channels: int, hidden_channels: int, out_channels: int, size: int, stride: int
) -> OpSpec:
    """The block as an operator; one sample is one image.

    Args:
        in_channels: Channels of the input.
        hidden_channels: Of the depthwise convolution; there is no expansion where they are
            those of the input.
        out_channels: Channels of the output.
        size: Height and width of the input.
        stride: Of the depthwise convolution.
    """
    out_size = (size - 1) // stride + 1
    expansion = in_channels * hidden_channels if hidden_channels != in_channels else 0
    weights = expansion + hidden_channels * (9 + out_channels)
    biases = hidden_channels * (2 if expansion else 1) + out_channels
    pointwise = expansion * size**2 + hidden_channels * out_channels * out_size**2
    depthwise = 9 * hidden_channels * out_size**2
    before = in_channels * size**2
    wide = hidden_channels * size**2 if expansion else 0
    deep = hidden_channels * out_size**2
    after = out_channels * out_size**2
    elements = before + 2 * wide + 2 * deep + after
    return OpSpec(
        key=f"Int8InvertedResidual-input:{size}x{size}x{in_channels}"
        f"-output:{out_size}x{out_size}x{out_channels}-hidden:{hidden_channels}"
        f"-kernel:3-stride:{stride}",
        num_params=weights + biases,
        macs=pointwise + depthwise,
        bytes_moved=_FLOAT32_BYTES * (elements + weights + biases),
        peak_memory_bytes=_FLOAT32_BYTES * max(before + wide, wide + deep, deep + after),
        features={
            "pointwise_macs": float(pointwise),
            "depthwise_macs": float(depthwise),
            "activation_elements": float(elements),
        },
        build=partial(_build, in_channels, hidden_channels, out_channels, size, stride),
    )


def default_specs() -> tuple[KernelSpec, ...]:
    """The blocks of MobileNetV2 at 224 x 224, each size once."""
    return tuple(
        KernelSpec(
            op=inverted_residual_spec(*block),
            kernel="inverted_residual",
            case="{}-{}-{}@{} stride {}".format(*block),
            dtype="uint8",
            backends=(Backend.TVM,),
            make_run=partial(_make_run, *block),
        )
        for block in dict.fromkeys(MOBILENET_V2_BLOCKS)
    )


def _made_layer(
    rng: np.random.Generator, shape: tuple[int, ...], point: int
) -> QuantizedConvolution:
    fan_in = int(np.prod(shape[1:]))
    # Sums of random bytes come to fill the output's range.
    multiplier = 40.0 / (70.0 * 70.0 * np.sqrt(fan_in))
    return QuantizedConvolution(
        weight=torch.from_numpy(rng.integers(-127, 128, shape, np.int8)),
        bias=torch.from_numpy(rng.integers(-1000, 1000, shape[0]).astype(np.int32)),
        multiplier=torch.full((shape[0],), multiplier, dtype=torch.float32),
        y_zero_point=point,
    )


def made_block(
    in_channels: int, hidden_channels: int, out_channels: int, stride: int
) -> tuple[
    QuantizedConvolution | None,
    QuantizedConvolution,
    QuantizedConvolution,
    QuantizedAddition | None,
]:
    """Expansion, depthwise convolution, projection and addition with made numbers."""
    rng = np.random.default_rng(0)
    expansion = None
    if hidden_channels != in_channels:
        expansion = _made_layer(rng, (hidden_channels, in_channels, 1, 1), 0)
    addition = None
    if stride == 1 and in_channels == out_channels:
        addition = QuantizedAddition(
            x_scale=_SCALE, y_scale=_SCALE, sum_scale=2 * _SCALE, sum_zero_point=_ZERO_POINT
        )
    depthwise = _made_layer(rng, (hidden_channels, 1, 3, 3), 0)
    projection = _made_layer(rng, (out_channels, hidden_channels, 1, 1), _ZERO_POINT)
    return expansion, depthwise, projection, addition


def _make_run(
    in_channels: int,
    hidden_channels: int,
    out_channels: int,
    size: int,
    stride: int,
    batch_size: int,
    backend: Backend,
) -> Callable[[], object]:
    expansion, depthwise, projection, addition = made_block(
        in_channels, hidden_channels, out_channels, stride
    )
    if backend is Backend.REFERENCE:
        x = torch.randint(0, 256, (batch_size, in_channels, size, size), dtype=torch.uint8)
        return partial(
            inverted_residual_reference,
            x,
            expansion=expansion,
            depthwise=depthwise,
            projection=projection,
            x_zero_point=_ZERO_POINT,
            stride=stride,
            addition=addition,
        )
    if backend is not Backend.TVM:
        raise BackendUnavailableError(f"the fused inverted residual has no {backend} kernel")
    from effdl.kernels.inverted_residual.tvm_images import make_block_run

    return make_block_run(
        expansion=expansion,
        depthwise=depthwise,
        projection=projection,
        x_zero_point=_ZERO_POINT,
        height=size,
        width=size,
        stride=stride,
        addition=addition,
        batch_size=batch_size,
    )


def _build(
    in_channels: int,
    hidden_channels: int,
    out_channels: int,
    size: int,
    stride: int,
    batch_size: int,
) -> bytes:
    """The block in plain ONNX, between QuantizeLinear and DequantizeLinear."""
    expansion, depthwise, projection, addition = made_block(
        in_channels, hidden_channels, out_channels, stride
    )
    constants: dict[str, np.ndarray] = {
        "scale": np.array(_SCALE, np.float32),
        "middle": np.array(_ZERO_POINT, np.uint8),
        "zero": np.array(0, np.uint8),
    }
    nodes = []
    x, x_point = "input", "middle"
    layers = {"expansion": expansion, "depthwise": depthwise, "projection": projection}
    for name, layer in layers.items():
        if layer is None:
            continue
        is_depthwise = layer is depthwise
        # x, w and y scales multiply to the layer's multiplier.
        constants[f"{name}_weight"] = layer.weight.numpy()
        constants[f"{name}_scale"] = layer.multiplier.numpy()
        constants[f"{name}_bias"] = layer.bias.numpy()
        constants[f"{name}_bias_scale"] = np.float32(_SCALE) * layer.multiplier.numpy()
        y = "projected" if addition is not None and layer is projection else name
        y = "output" if layer is projection and addition is None else y
        y_point = "middle" if layer is projection else "zero"
        parts = {
            "x": ([x, "scale", x_point], {}),
            "w": ([f"{name}_weight", f"{name}_scale"], {"axis": 0}),
            "b": ([f"{name}_bias", f"{name}_bias_scale"], {"axis": 0}),
        }
        nodes += [
            helper.make_node("DequantizeLinear", given, [f"{name}_{part}"], **attributes)
            for part, (given, attributes) in parts.items()
        ]
        nodes.append(
            helper.make_node(
                "Conv",
                [f"{name}_{part}" for part in parts],
                [f"{name}_y"],
                group=hidden_channels if is_depthwise else 1,
                pads=[1] * 4 if is_depthwise else [0] * 4,
                strides=[stride] * 2 if is_depthwise else [1] * 2,
            )
        )
        nodes.append(helper.make_node("QuantizeLinear", [f"{name}_y", "scale", y_point], [y]))
        x, x_point = y, y_point
    if addition is not None:
        constants["double_scale"] = np.array(2 * _SCALE, np.float32)
        for given, real in (("input", "a"), ("projected", "b")):
            nodes.append(helper.make_node("DequantizeLinear", [given, "scale", "middle"], [real]))
        nodes.append(helper.make_node("Add", ["a", "b"], ["sum"]))
        nodes.append(
            helper.make_node("QuantizeLinear", ["sum", "double_scale", "middle"], ["output"])
        )
    out_size = (size - 1) // stride + 1
    given = [batch_size, in_channels, size, size]
    made = [batch_size, out_channels, out_size, out_size]
    graph = helper.make_graph(
        nodes,
        "effdl",
        [helper.make_tensor_value_info("input", TensorProto.UINT8, given)],
        [helper.make_tensor_value_info("output", TensorProto.UINT8, made)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph,
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", _OPSET)],
        producer_name="effdl",
    )
    return model.SerializeToString()
