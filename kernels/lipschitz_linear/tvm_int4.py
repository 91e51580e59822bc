"""Linear layers with weights of four bits on CPUs, for a few rows.

The floating-point form quantizes each row of x as it comes, to 16 bits, which at one row
costs nothing: the time goes into reading the weights.

    s = max |x| / 32512
    q = round(x / s)           division and rounding in float32, half to even
    q = 256 high + low         two signed bytes
    y = s * Σ_g scale[g] * (256 * Σ_k high[k] * w[k] + Σ_k low[k] * w[k])

The sums over k are exact integers, each brought to float32; from there on all is float32:
one addition joins high and low, one fused multiply-add each group, and s is multiplied
last. The error of x is 1 / 65024 of the row's largest number. A row with a number that is
not finite gives NaN.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from effdl.kernels.bit_packing import unpack_bits
from effdl.kernels.lipschitz_linear.tvm_int4_function import (
    NUM_PANELS,
    NUM_PARTS,
    int4_float_function,
    int4_integer_function,
    padded_group,
)
from effdl.kernels.tvm_dot import DotProduct, find_dot_product, host_dot_product
from effdl.kernels.tvm_panels import PackCache, Scratch, limits_tensor
from effdl.kernels.tvm_runtime import CompiledModule, compile_module

__all__ = [
    "PackedInt4",
    "PackedInt4Requantized",
    "int4_matvec",
    "pack_int4",
    "pack_int4_requantized",
    "run_int4",
    "run_int4_requantized",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedInt4:
    """Weights of four bits with float scales, ready to run.

    Attributes:
        weight: uint8, [N / outputs of a tile, K / 8, 4, bytes of a vector].
        scale: float32, [groups, N], filled up with zeros to whole tiles.
        num_inputs: K.
        num_outputs: N.
        dot_product: What it was packed for.
    """

    weight: Tensor
    scale: Tensor
    num_inputs: int
    num_outputs: int
    dot_product: DotProduct


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedInt4Requantized:
    """Weights of four bits between layers of bytes, ready to run.

    Attributes:
        weight: As in `PackedInt4`.
        bias: int32, filled up to whole tiles, with the input's zero point folded in.
        multiplier: float32, filled up.
        limits: Of `effdl.kernels.tvm_panels.limits_tensor`.
        num_inputs: K.
        num_outputs: N.
        dot_product: What it was packed for.
    """

    weight: Tensor
    bias: Tensor
    multiplier: Tensor
    limits: Tensor
    num_inputs: int
    num_outputs: int
    dot_product: DotProduct


_LAYERS = PackCache()
_X_BYTES, _X_SUMS, _X_SCALE = Scratch(torch.int8), Scratch(torch.int32), Scratch(torch.float32)


def _pack(weight_s8: Tensor, num_groups: int, dot_product: DotProduct) -> Tensor:
    num_outputs, num_inputs = weight_s8.shape
    num_lanes = dot_product.num_lanes
    grouped = weight_s8.unflatten(1, (num_groups, num_inputs // num_groups))
    fill = padded_group(num_inputs, num_groups) - grouped.shape[2]
    offset = pad(grouped, (0, fill, 0, 0, 0, -num_outputs % (NUM_PANELS * num_lanes))) + 8
    num_steps = offset.shape[1] * offset.shape[2] // 8
    tiles = offset.to(torch.uint8).view(-1, NUM_PANELS, num_lanes, num_steps, 2, 4)
    joined = tiles[..., 0, :] | (tiles[..., 1, :] << 4)
    return joined.permute(0, 3, 1, 2, 4).flatten(3).contiguous()


def pack_int4(
    packed_u8: Tensor, scale_f32: Tensor, *, instructions: str | None = None
) -> PackedInt4:
    """Put weights into the order that the kernel reads.

    Args:
        packed_u8: uint8, [N, K / 2]: `effdl.kernels.bit_packing.pack_bits`.
        scale_f32: float32, [N], or [N, groups] for equal parts of each row.
        instructions: A name of `effdl.kernels.tvm_dot.DOT_PRODUCTS`; None: the best that
            this machine has.

    Raises:
        UnknownNameError: There are no such instructions.
    """
    dot_product = host_dot_product() if instructions is None else find_dot_product(instructions)
    num_inputs = 2 * packed_u8.shape[1]
    weight = unpack_bits(packed_u8, 4, size=num_inputs)
    scale = scale_f32[:, None] if scale_f32.ndim == 1 else scale_f32
    fill = -weight.shape[0] % (NUM_PANELS * dot_product.num_lanes)
    return PackedInt4(
        weight=_pack(weight, scale.shape[1], dot_product),
        scale=pad(scale.t(), (0, fill)).contiguous(),
        num_inputs=num_inputs,
        num_outputs=weight.shape[0],
        dot_product=dot_product,
    )


def run_int4(layer: PackedInt4, x_f32: Tensor) -> Tensor:
    """Apply packed weights.

    Args:
        layer: From `pack_int4`.
        x_f32: float32, [M, K].

    Returns:
        float32, [M, N].
    """
    num_rows = x_f32.shape[0]
    num_groups, num_filled = layer.scale.shape
    y = torch.empty(num_rows, num_filled)
    if y.numel() == 0 or layer.num_inputs == 0:
        return y[:, : layer.num_outputs].zero_()
    module = _compiled_float(
        layer.dot_product.name,
        layer.num_inputs,
        num_filled,
        num_groups,
        min(num_rows, 2),
    )
    num_parts = num_rows * NUM_PARTS
    row_bytes = num_groups * padded_group(layer.num_inputs, num_groups)
    module.call(
        "int4",
        x_f32.contiguous(),
        layer.weight,
        layer.scale,
        _X_BYTES.reserve(num_parts * row_bytes),
        _X_SUMS.reserve(num_parts * num_groups),
        _X_SCALE.reserve(num_rows),
        y,
    )
    return y if num_filled == layer.num_outputs else y[:, : layer.num_outputs].contiguous()


def int4_matvec(x_f32: Tensor, packed_u8: Tensor, scale_f32: Tensor) -> Tensor:
    """``x @ (scale * weight)^T`` with weights of four bits.

    Weights are packed at the first call with a tensor and remembered; `pack_int4` with
    `run_int4` saves the look-up. The arithmetic stands at the head of this module.

    Args:
        x_f32: float32, [M, K].
        packed_u8: uint8, [N, K / 2]: `effdl.kernels.bit_packing.pack_bits`.
        scale_f32: float32, [N], or [N, groups] for equal parts of each row.

    Returns:
        float32, [M, N].
    """
    layer = _LAYERS.get((packed_u8, scale_f32), None, lambda: pack_int4(packed_u8, scale_f32))
    return run_int4(layer, x_f32)


def pack_int4_requantized(
    packed_u8: Tensor,
    bias_s32: Tensor,
    multiplier_f32: Tensor,
    *,
    x_zero_point: int,
    y_zero_point: int,
    y_min: int = 0,
    y_max: int = 255,
    instructions: str | None = None,
) -> PackedInt4Requantized:
    """Put a layer of weights of four bits, between bytes, into the order that is read.

    Args:
        packed_u8: uint8, [N, K / 2]: `effdl.kernels.bit_packing.pack_bits`.
        bias_s32: int32, [N].
        multiplier_f32: float32, [N] or [1]: `effdl.kernels.quantization.output_multiplier`.
        x_zero_point: Zero point of the input.
        y_zero_point: Zero point of the output.
        y_min: Smallest output.
        y_max: Largest output.
        instructions: A name of `effdl.kernels.tvm_dot.DOT_PRODUCTS`; None: the best that
            this machine has.

    Raises:
        UnknownNameError: There are no such instructions.
    """
    dot_product = host_dot_product() if instructions is None else find_dot_product(instructions)
    num_inputs = 2 * packed_u8.shape[1]
    weight = unpack_bits(packed_u8, 4, size=num_inputs)
    num_outputs = weight.shape[0]
    fill = (0, -num_outputs % (NUM_PANELS * dot_product.num_lanes))
    bias = torch.add(bias_s32, weight.sum(1, dtype=torch.int32), alpha=-x_zero_point)
    return PackedInt4Requantized(
        weight=_pack(weight, 1, dot_product),
        bias=pad(bias, fill),
        multiplier=pad(multiplier_f32.expand(num_outputs), fill),
        limits=limits_tensor(
            y_zero_point=y_zero_point, y_min=y_min, y_max=y_max, x_zero_point=x_zero_point
        ),
        num_inputs=num_inputs,
        num_outputs=num_outputs,
        dot_product=dot_product,
    )


def run_int4_requantized(layer: PackedInt4Requantized, x_u8: Tensor) -> Tensor:
    """Apply a packed layer, bit-exact with `effdl.kernels.quantization.requantize`.

    Args:
        layer: From `pack_int4_requantized`.
        x_u8: uint8, [M, K].

    Returns:
        uint8, [M, N].
    """
    num_rows, num_filled = x_u8.shape[0], layer.bias.shape[0]
    y = torch.empty(num_rows, num_filled, dtype=torch.uint8)
    if y.numel():
        fill = -layer.num_inputs % 8
        x = pad(x_u8, (0, fill)) if fill else x_u8.contiguous()
        module = _compiled_integer(layer.dot_product.name, x.shape[1], num_filled, min(num_rows, 2))
        module.call(
            "int4",
            x.view(-1),
            layer.weight,
            layer.bias,
            layer.multiplier,
            layer.limits,
            _X_SUMS.reserve(num_rows),
            y,
        )
    return y if num_filled == layer.num_outputs else y[:, : layer.num_outputs].contiguous()


@cache
def _compiled_float(
    instructions: str,
    num_inputs: int,
    num_outputs: int,
    num_groups: int,
    tile_rows: int,
) -> CompiledModule:
    dot_product = find_dot_product(instructions)
    function = int4_float_function(
        dot_product,
        num_inputs=num_inputs,
        num_outputs=num_outputs,
        num_groups=num_groups,
        tile_rows=tile_rows,
    )
    return compile_module({"int4": function}, target=dot_product.to_tvm())


@cache
def _compiled_integer(
    instructions: str, num_inputs: int, num_outputs: int, tile_rows: int
) -> CompiledModule:
    dot_product = find_dot_product(instructions)
    function = int4_integer_function(
        dot_product, num_inputs=num_inputs, num_outputs=num_outputs, tile_rows=tile_rows
    )
    return compile_module({"int4": function}, target=dot_product.to_tvm())
