"""The quantized convolution as latency tables see it: costs, ONNX form, and how to run it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

from effdl.errors import BackendUnavailableError
from effdl.kernels.backend import Backend, choose_backend
from effdl.kernels.kernel_spec import KernelSpec
from effdl.kernels.quantization import output_multiplier
from effdl.opspec import OpSpec

__all__ = ["CONVOLUTIONS", "ConvolutionShape", "default_specs"]

_FLOAT32_BYTES = 4
_IR_VERSION = 10
_SCALE = 0.05
_ZERO_POINT = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvolutionShape:
    """A convolution with a square kernel and as much padding as keeps the size at stride 1.

    Attributes:
        in_channels: C.
        out_channels: O.
        kernel_size: Kernel height and width.
        size: Height and width of the input in pixels.
        stride: Pixels between windows.
        groups: Equal parts of the channels that do not mix.
    """

    in_channels: int
    out_channels: int
    kernel_size: int
    size: int
    stride: int = 1
    groups: int = 1

    @property
    def out_size(self) -> int:
        """Height and width of the output in pixels."""
        padded = self.size + 2 * (self.kernel_size // 2)
        return (padded - self.kernel_size) // self.stride + 1

    @property
    def case(self) -> str:
        """As a table names it: ``"3x3 64-64@56"``."""
        kind = "depthwise " if self.groups == self.in_channels > 1 else ""
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        return (
            f"{kind}{self.kernel_size}x{self.kernel_size} "
            f"{self.in_channels}-{self.out_channels}@{self.size}{stride}"
        )

    def spec(self) -> OpSpec:
        """The operator; one sample is one image."""
        before = self.in_channels * self.size**2
        after = self.out_channels * self.out_size**2
        weights = self.out_channels * self.in_channels // self.groups * self.kernel_size**2
        macs = weights * self.out_size**2
        if self.groups == self.in_channels > 1:
            kind = "depthwise_macs"
        else:
            kind = "pointwise_macs" if self.kernel_size == 1 else "dense_macs"
        return OpSpec(
            key=f"Int8Conv-input:{self.size}x{self.size}x{self.in_channels}"
            f"-output:{self.out_size}x{self.out_size}x{self.out_channels}"
            f"-kernel:{self.kernel_size}-stride:{self.stride}-groups:{self.groups}",
            num_params=weights + self.out_channels,
            macs=macs,
            bytes_moved=_FLOAT32_BYTES * (before + after + weights + self.out_channels),
            peak_memory_bytes=_FLOAT32_BYTES * (before + after),
            features={kind: float(macs), "activation_elements": float(before + after)},
            build=partial(_build, self),
        )


CONVOLUTIONS = (
    ConvolutionShape(in_channels=64, out_channels=64, kernel_size=3, size=56),
    ConvolutionShape(in_channels=256, out_channels=256, kernel_size=3, size=14),
    ConvolutionShape(in_channels=256, out_channels=256, kernel_size=1, size=14),
    ConvolutionShape(in_channels=96, out_channels=24, kernel_size=1, size=56),
    ConvolutionShape(in_channels=192, out_channels=192, kernel_size=3, size=28, groups=192),
    ConvolutionShape(in_channels=240, out_channels=240, kernel_size=5, size=14, groups=240),
)
"""Of ResNets, and of mobile networks where runtimes' integers gain little."""


def default_specs() -> tuple[KernelSpec, ...]:
    """Dense, pointwise and depthwise convolutions."""
    return tuple(
        KernelSpec(
            op=shape.spec(),
            kernel="lipschitz_conv2d",
            case=shape.case,
            dtype="uint8",
            backends=(Backend.TVM, Backend.TRITON),
            make_run=partial(_make_run, shape),
        )
        for shape in CONVOLUTIONS
    )


def _made_weight(shape: ConvolutionShape) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    size = (shape.in_channels // shape.groups, shape.kernel_size, shape.kernel_size)
    # Seven bits: without dot products of bytes some runtimes' sums saturate beyond.
    weight = rng.integers(-64, 65, (shape.out_channels, *size), np.int8)
    # Sums of random bytes come to fill the output's range.
    scale = 40.0 / (74.0 * 37.0 * np.prod(size) ** 0.5)
    return weight, np.full(shape.out_channels, scale, np.float32)


def _make_run(shape: ConvolutionShape, batch_size: int, backend: Backend) -> Callable[[], object]:
    if backend is Backend.TRITON and not torch.cuda.is_available():
        raise BackendUnavailableError("Triton's kernels run on a GPU, got none here")
    device = torch.device("cuda" if backend is Backend.TRITON else "cpu")
    choose_backend(backend, device=device)
    if backend is Backend.TVM:
        from effdl.kernels.lipschitz_conv2d import tvm_kernel as implementation
    elif backend is Backend.TRITON:
        from effdl.kernels.lipschitz_conv2d import triton_kernel as implementation
    else:
        from effdl.kernels.lipschitz_conv2d import reference as implementation
    weight, scale = _made_weight(shape)
    multiplier = torch.from_numpy(output_multiplier(_SCALE, scale, _SCALE))
    image = (batch_size, shape.in_channels, shape.size, shape.size)
    run = partial(
        implementation.quantized_conv2d,
        torch.randint(0, 256, image, dtype=torch.uint8).to(device),
        torch.from_numpy(weight).to(device),
        torch.zeros(shape.out_channels, dtype=torch.int32, device=device),
        multiplier.to(device),
        x_zero_point=_ZERO_POINT,
        y_zero_point=_ZERO_POINT,
        stride=shape.stride,
        padding=shape.kernel_size // 2,
        groups=shape.groups,
    )
    run()
    return run


def _build(shape: ConvolutionShape, batch_size: int) -> bytes:
    """QLinearConv, bytes in and out."""
    weight, scale = _made_weight(shape)
    constants = {
        "scale": np.array(_SCALE, np.float32),
        "middle": np.array(_ZERO_POINT, np.uint8),
        "weight": weight,
        "weight_scale": scale,
        "weight_points": np.zeros(shape.out_channels, np.int8),
        "bias": np.zeros(shape.out_channels, np.int32),
    }
    node = helper.make_node(
        "QLinearConv",
        [
            *("input", "scale", "middle", "weight", "weight_scale", "weight_points"),
            *("scale", "middle", "bias"),
        ],
        ["output"],
        group=shape.groups,
        pads=[shape.kernel_size // 2] * 4,
        strides=[shape.stride] * 2,
    )
    before = [batch_size, shape.in_channels, shape.size, shape.size]
    after = [batch_size, shape.out_channels, shape.out_size, shape.out_size]
    graph = helper.make_graph(
        [node],
        "int8_convolution",
        [helper.make_tensor_value_info("input", TensorProto.UINT8, before)],
        [helper.make_tensor_value_info("output", TensorProto.UINT8, after)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=_IR_VERSION
    )
    return model.SerializeToString()
