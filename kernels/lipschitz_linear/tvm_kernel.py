"""The quantized linear layer on CPUs: int8 weights packed once, any number of rows."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from effdl.kernels.lipschitz_linear.tvm_int8 import choose_tile, linear_function
from effdl.kernels.tvm_dot import DotProduct, find_dot_product, host_dot_product
from effdl.kernels.tvm_panels import (
    Epilogue,
    PackCache,
    Panels,
    fill_inputs,
    make_epilogue,
    pack_panels,
)
from effdl.kernels.tvm_runtime import CompiledModule, compile_module

__all__ = ["PackedLinear", "pack_linear", "quantized_linear", "run_linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLinear:
    """A quantized linear layer, ready to run.

    Attributes:
        panels: Its weights.
        epilogue: Its bias, requantization and activation.
        num_inputs: K.
    """

    panels: Panels
    epilogue: Epilogue
    num_inputs: int


_PACKED, _LAYERS = PackCache(), PackCache()


def pack_linear(
    weight_s8: Tensor,
    bias_s32: Tensor,
    multiplier_f32: Tensor,
    *,
    x_zero_point: int,
    y_zero_point: int,
    y_min: int = 0,
    y_max: int = 255,
    instructions: str | None = None,
) -> PackedLinear:
    """Put a layer's weights into the order that the kernel reads.

    The weights of a tensor that still lives unchanged are packed only once.

    Args:
        weight_s8: int8, [N, K].
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
    panels = _PACKED.get(
        (weight_s8,), dot_product.name, lambda: pack_panels(weight_s8, dot_product)
    )
    epilogue = make_epilogue(
        panels,
        bias_s32,
        multiplier_f32,
        x_zero_point=x_zero_point,
        y_zero_point=y_zero_point,
        y_min=y_min,
        y_max=y_max,
    )
    return PackedLinear(panels=panels, epilogue=epilogue, num_inputs=weight_s8.shape[1])


def run_linear(layer: PackedLinear, x_u8: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Apply a packed layer.

    Args:
        layer: From `pack_linear`.
        x_u8: uint8, [M, K].
        out: Where the result goes, contiguous; None: a new tensor.

    Returns:
        uint8, [M, N].
    """
    num_rows = x_u8.shape[0]
    num_outputs = layer.panels.num_outputs
    y = torch.empty(num_rows, num_outputs, dtype=torch.uint8) if out is None else out
    if y.numel() == 0:
        return y
    fill = fill_inputs(layer.num_inputs)
    x = pad(x_u8, (0, fill)) if fill else x_u8.contiguous()
    tile_rows, tile_panels = choose_tile(num_rows, layer.panels.dot_product)
    module = _compiled(
        layer.panels.dot_product.name, x.shape[1], num_outputs, tile_rows, tile_panels
    )
    epilogue = layer.epilogue
    module.call(
        "linear",
        x,
        layer.panels.weight,
        epilogue.bias,
        epilogue.multiplier,
        epilogue.limits,
        y,
    )
    return y


def quantized_linear(
    x_u8: Tensor,
    weight_s8: Tensor,
    bias_s32: Tensor,
    multiplier_f32: Tensor,
    *,
    x_zero_point: int,
    y_zero_point: int,
    y_min: int = 0,
    y_max: int = 255,
) -> Tensor:
    """``clip(round((Σ_k (x - x_zero_point) w + bias) multiplier) + y_zero_point)``, bit-exact.

    The arithmetic of `effdl.kernels.quantization`. Weights are packed at the first call
    with a tensor and remembered; `pack_linear` with `run_linear` saves the look-up.

    Args:
        x_u8: uint8, [M, K].
        weight_s8: int8, [N, K].
        bias_s32: int32, [N].
        multiplier_f32: float32, [N] or [1].
        x_zero_point: Zero point of the input.
        y_zero_point: Zero point of the output.
        y_min: Smallest output.
        y_max: Largest output.

    Returns:
        uint8, [M, N].
    """
    layer = _LAYERS.get(
        (weight_s8, bias_s32, multiplier_f32),
        (x_zero_point, y_zero_point, y_min, y_max),
        lambda: pack_linear(
            weight_s8,
            bias_s32,
            multiplier_f32,
            x_zero_point=x_zero_point,
            y_zero_point=y_zero_point,
            y_min=y_min,
            y_max=y_max,
        ),
    )
    return run_linear(layer, x_u8)


@cache
def _compiled(
    instructions: str, num_inputs: int, num_outputs: int, tile_rows: int, tile_panels: int
) -> CompiledModule:
    dot_product: DotProduct = find_dot_product(instructions)
    function = linear_function(
        dot_product,
        num_inputs=num_inputs,
        num_outputs=num_outputs,
        tile_rows=tile_rows,
        tile_panels=tile_panels,
    )
    return compile_module({"linear": function}, target=dot_product.to_tvm())
