"""An inverted residual with its weights packed, ready to be compiled and called."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effdl.kernels.channel_blocks import (
    pack_depthwise_vectors,
    pack_depthwise_weights,
    pack_plain_depthwise_weights,
    pack_plain_pointwise_weights,
    pack_plain_vectors,
    pack_pointwise_vectors,
    pack_pointwise_weights,
)
from effdl.kernels.inverted_residual.reference import QuantizedAddition, QuantizedConvolution
from effdl.kernels.inverted_residual.tvm_kernel import (
    BlockShape,
    can_use_vnni,
    inverted_residual_function,
)
from effdl.kernels.tvm_channel_blocks import Output
from effdl.kernels.tvm_depthwise_blocks import depthwise_rows
from effdl.kernels.tvm_runtime import has_vnni

__all__ = ["PackedBlock", "aligned", "fold_zero_point", "output_of", "pack_block", "pack_pointwise"]

_SAFE_PRODUCT = 2.0**30


def aligned(values: NDArray[Any]) -> Tensor:
    """A copy in PyTorch's memory, which is aligned to 64 bytes."""
    return torch.from_numpy(np.ascontiguousarray(values)).clone()


def fold_zero_point(layer: QuantizedConvolution, x_zero_point: int) -> NDArray[np.int32]:
    """The bias with which sums over the input's bytes need no zero point."""
    weight = layer.weight.numpy().astype(np.int64)
    sums = weight.reshape(weight.shape[0], -1).sum(1)
    return (layer.bias.numpy() - x_zero_point * sums).astype(np.int32)


def output_of(layer: QuantizedConvolution) -> Output:
    """How a layer's sums become bytes."""
    weight = layer.weight.numpy().astype(np.int64)
    largest = 255 * np.abs(weight).reshape(weight.shape[0], -1).sum(1)
    largest = (2 * largest + np.abs(layer.bias.numpy().astype(np.int64))) * layer.multiplier.numpy()
    return Output(
        zero_point=layer.y_zero_point,
        y_min=layer.y_min,
        y_max=layer.y_max,
        limits=bool((largest >= _SAFE_PRODUCT).any()),
    )


def pack_pointwise(
    layer: QuantizedConvolution, *, x_zero_point: int, vnni: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, biases and multipliers of a 1x1 convolution, as the TVM functions read them."""
    weights, vectors = pack_plain_pointwise_weights, pack_plain_vectors
    if vnni:
        weights, vectors = pack_pointwise_weights, pack_pointwise_vectors
    matrix = layer.weight.numpy().reshape(layer.weight.shape[0], -1)
    return (
        aligned(weights(matrix)),
        aligned(vectors(fold_zero_point(layer, x_zero_point))),
        aligned(vectors(layer.multiplier.numpy())),
    )


def _pack_depthwise(
    layer: QuantizedConvolution, *, x_zero_point: int, shape: BlockShape
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = layer.weight.numpy()[:, 0]
    bias = fold_zero_point(layer, x_zero_point)
    multiplier = layer.multiplier.numpy()
    if not shape.vnni:
        plain = pack_plain_depthwise_weights(kernels)
        return (
            aligned(plain),
            aligned(pack_plain_vectors(bias)),
            aligned(pack_plain_vectors(multiplier)),
        )
    rows = depthwise_rows(shape.band_rows, shape.stride)
    return (
        aligned(pack_depthwise_weights(kernels, num_rows=rows, stride=shape.stride)),
        aligned(pack_depthwise_vectors(bias)),
        aligned(pack_depthwise_vectors(multiplier)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBlock:
    """One block, compiled nowhere yet.

    Attributes:
        shape: What is fixed at compilation.
        weights: Packed arguments between the input and the scratch memory.
    """

    shape: BlockShape
    weights: tuple[Tensor, ...]

    def function(self) -> Any:
        """The TensorIR function."""
        return inverted_residual_function(self.shape)

    def arguments(
        self, x: Tensor, y: Tensor, *, wide: Tensor, deep: Tensor, shortcut: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The function's arguments, all in blocks of channels.

        Args:
            x: The input; with borders of its zero point where there is no expansion.
            y: The output.
            wide: Scratch memory of ``shape.wide_bytes`` or more.
            deep: Scratch memory of ``shape.deep_bytes`` or more.
            shortcut: The input without borders, where ``shape.has_shortcut``.
        """
        scratch = wide[: self.shape.wide_bytes], deep[: self.shape.deep_bytes]
        added = (shortcut,) if shortcut is not None else ()
        return (x, *self.weights, *scratch, *added, y)


def pack_block(
    *,
    expansion: QuantizedConvolution | None,
    depthwise: QuantizedConvolution,
    projection: QuantizedConvolution,
    x_zero_point: int,
    height: int,
    width: int,
    stride: int = 1,
    addition: QuantizedAddition | None = None,
    vnni: bool | None = None,
    num_threads: int = 1,
) -> PackedBlock:
    """Pack a block's weights for images of one size.

    Args:
        expansion: 1x1, or None where the block has none.
        depthwise: k x k, padding k // 2.
        projection: 1x1.
        x_zero_point: Zero point of the input.
        height: Rows of the input.
        width: Columns of the input.
        stride: Of the depthwise convolution.
        addition: How the input is added to the output, or None.
        vnni: Whether to use AVX512-VNNI; None: where the machine has it.
        num_threads: How many threads share the work.
    """
    hidden_channels = depthwise.weight.shape[0]
    out_width = (width - 1) // stride + 1
    vnni = has_vnni() if vnni is None else vnni
    hidden_zero_point = x_zero_point if expansion is None else expansion.y_zero_point
    summand = None
    if addition is not None:
        offset = addition.offset(x_zero_point=x_zero_point, y_zero_point=projection.y_zero_point)
        summand = (*addition.ratios(), offset, addition.x_first)
    shape = BlockShape(
        in_channels=hidden_channels if expansion is None else expansion.weight.shape[1],
        hidden_channels=hidden_channels,
        out_channels=projection.weight.shape[0],
        height=height,
        width=width,
        kernel_size=depthwise.weight.shape[2],
        stride=stride,
        expands=expansion is not None,
        hidden_zero_point=hidden_zero_point,
        expansion=Output() if expansion is None else output_of(expansion),
        depthwise=output_of(depthwise),
        projection=output_of(projection),
        addition=summand,
        vnni=vnni and can_use_vnni(hidden_channels=hidden_channels, out_width=out_width),
        num_threads=num_threads,
    )
    wide: tuple[Tensor, ...] = ()
    if expansion is not None:
        wide = pack_pointwise(expansion, x_zero_point=x_zero_point, vnni=shape.vnni)
    return PackedBlock(
        shape=shape,
        weights=(
            *wide,
            *_pack_depthwise(depthwise, x_zero_point=hidden_zero_point, shape=shape),
            *pack_pointwise(projection, x_zero_point=depthwise.y_zero_point, vnni=shape.vnni),
        ),
    )
