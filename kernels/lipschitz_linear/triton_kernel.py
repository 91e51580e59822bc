"""Quantized linear layers on GPUs: products of bytes on tensor cores, requantized in registers.

Triton multiplies signed bytes only. Unsigned activations are read less 128, and what that
takes from each sum, 128 times the sum of the weight's row, comes back with the bias:

    sum (x - z) w = sum (x - 128) w + (128 - z) sum w

Weights of 4 bits stand two in a byte, the first in the lowest bits, and are taken apart in
registers. Sums of real numbers (8-bit floats; 4-bit weights with float activations) are
scaled by output channel.
"""

from dataclasses import replace
from typing import Any

import torch
import triton.language as tl

from effdl.errors import BackendUnavailableError, ConfigError
from effdl.kernels.backend import is_interpreting
from effdl.kernels.lipschitz_linear.triton_programs import (
    quantized_linear_kernel,
    scaled_linear_kernel,
)
from effdl.kernels.triton_ahead import GPU_NAMES, AheadOfTimeCase
from effdl.kernels.triton_launch import index_type, is_amd, launch, must_upcast
from effdl.kernels.triton_tiles import Tile, byte_tile

__all__ = [
    "ahead_of_time_cases",
    "fold_zero_point",
    "fp8_linear",
    "int4_linear",
    "quantized_int4_linear",
    "quantized_linear",
]

# The first NVIDIA GPUs with 8-bit floats: Ada.
_FP8_CAPABILITY = (8, 9)
# The shortest sum that tensor cores of every kind take at once.
_LEAST_DEPTH = 16
_ELEMENT_BYTES = {"*fp32": 4, "*fp16": 2, "*bf16": 2}


def fold_zero_point(
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    x_zero_point: int,
    x_dtype: torch.dtype = torch.uint8,
    packed: bool = False,
) -> torch.Tensor:
    """The bias with everything in it that the activations' zero point adds to the sums.

    Worth keeping where the weights do not change: it reads all of them.

    Args:
        weight: int8 [N, K], or uint8 [N, ceil(K/2)] with two in a byte.
        bias: int32 [N].
        x_zero_point: Of the activations.
        x_dtype: Of the activations, uint8 or int8.
        packed: Whether the weights are of 4 bits.

    Returns:
        int32 [N].
    """
    if packed:
        pair = weight.to(torch.int32)
        sums = (((pair & 15) ^ 8) - 8 + ((pair >> 4) ^ 8) - 8).sum(1)
    else:
        sums = weight.sum(1, dtype=torch.int32)
    shift = 128 if x_dtype == torch.uint8 else 0
    return (bias + (shift - x_zero_point) * sums).to(torch.int32)


def quantized_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    multiplier: torch.Tensor,
    *,
    x_zero_point: int,
    y_zero_point: int,
    y_min: int = 0,
    y_max: int = 255,
    bias_is_folded: bool = False,
    tile: Tile | None = None,
) -> torch.Tensor:
    """Bytes in, bytes out: product, bias, requantization and activation in one kernel.

    Args:
        x: uint8 or int8 [M, K].
        weight: int8 [N, K].
        bias: int32 [N].
        multiplier: float32 [N] or [1]: x_scale * w_scale / y_scale.
        x_zero_point: Zero point of x.
        y_zero_point: Zero point of the result.
        y_min: Smallest result; below 0 the result is int8.
        y_max: Largest result.
        bias_is_folded: Whether the bias went through `fold_zero_point`.
        tile: Instead of the shipped configuration.

    Returns:
        uint8 (or int8) [M, N], bit for bit `effdl.kernels.quantization.requantize`.
    """
    if not bias_is_folded:
        bias = fold_zero_point(weight, bias, x_zero_point=x_zero_point, x_dtype=x.dtype)
    return _quantized(x, weight, bias, multiplier, (y_zero_point, y_min, y_max), False, tile)


def quantized_int4_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor,
    multiplier: torch.Tensor,
    *,
    x_zero_point: int,
    y_zero_point: int,
    y_min: int = 0,
    y_max: int = 255,
    bias_is_folded: bool = False,
    tile: Tile | None = None,
) -> torch.Tensor:
    """`quantized_linear` with weights of 4 bits.

    Args:
        x: uint8 or int8 [M, K].
        packed: uint8 [N, ceil(K/2)], from `effdl.kernels.bit_packing.pack_bits`; where K
            is odd the last half byte is 0.
        bias: As in `quantized_linear`.
        multiplier: As there.
        x_zero_point: As there.
        y_zero_point: As there.
        y_min: As there.
        y_max: As there.
        bias_is_folded: As there.
        tile: As there.

    Returns:
        uint8 (or int8) [M, N].
    """
    if not bias_is_folded:
        bias = fold_zero_point(
            packed, bias, x_zero_point=x_zero_point, x_dtype=x.dtype, packed=True
        )
    return _quantized(x, packed, bias, multiplier, (y_zero_point, y_min, y_max), True, tile)


def int4_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    tile: Tile | None = None,
) -> torch.Tensor:
    """Real activations, weights of 4 bits: a quarter of the bytes of float16 is read.

    Args:
        x: float32, float16 or bfloat16 [M, K].
        packed: uint8 [N, ceil(K/2)], as in `quantized_int4_linear`.
        scale: float32, of the weights: [N], or [N, groups] for equal parts of each row,
            whose length is a multiple of 16.
        bias: [N] in the format of x, or None.
        tile: Instead of the shipped configuration.

    Returns:
        [M, N] in the format of x.

    Raises:
        ConfigError: The groups are of another length.
    """
    num_groups = scale.shape[1] if scale.ndim == 2 else 1
    length = x.shape[1] // num_groups
    if num_groups > 1 and length % _LEAST_DEPTH:
        raise ConfigError(
            f"scale: wanted groups of a multiple of {_LEAST_DEPTH} weights, got {length}"
        )
    y = torch.empty((x.shape[0], packed.shape[0]), dtype=x.dtype, device=x.device)
    return _scaled(x, packed, scale, bias, y, True, tile)


def fp8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    y_dtype: torch.dtype = torch.float16,
    tile: Tile | None = None,
) -> torch.Tensor:
    """A product of 8-bit floats on tensor cores, summed in float32.

    Args:
        x: float8_e4m3fn [M, K] (float8_e4m3fnuz on AMD's gfx942).
        weight: [N, K] in the same format.
        scale: float32 [N] or [1]: x_scale * w_scale.
        bias: float32 [N] or None.
        y_dtype: Of the result: float32, float16 or bfloat16.
        tile: Instead of the shipped configuration.

    Returns:
        [M, N].

    Raises:
        BackendUnavailableError: The GPU multiplies no 8-bit floats.
    """
    _check_fp8(x)
    y = torch.empty((x.shape[0], weight.shape[0]), dtype=y_dtype, device=x.device)
    return _scaled(x, weight, scale, bias, y, False, tile)


def _check_fp8(x: torch.Tensor) -> None:
    if is_interpreting() or is_amd():
        return
    capability = torch.cuda.get_device_capability(x.device)
    if capability < _FP8_CAPABILITY:
        wanted, got = (".".join(map(str, c)) for c in (_FP8_CAPABILITY, capability))
        raise BackendUnavailableError(
            f"8-bit floats want a GPU of compute capability {wanted}, got {got}",
            hint="quantize to int8 instead: quantized_linear",
        )


def _quantized(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    multiplier: torch.Tensor,
    output: tuple[int, int, int],
    packed: bool,
    tile: Tile | None,
) -> torch.Tensor:
    zero_point, y_min, y_max = output
    dtype = torch.int8 if y_min < 0 else torch.uint8
    y = torch.empty((x.shape[0], weight.shape[0]), dtype=dtype, device=x.device)
    x, weight = _rows(x), weight.contiguous()
    tile = tile or _tile(x, y)
    launch(
        quantized_linear_kernel,
        tile.count(*y.shape),
        x,
        weight,
        bias.contiguous(),
        multiplier.expand(y.shape[1]).contiguous(),
        y,
        *y.shape,
        x.stride(0),
        float(y_min - zero_point),
        float(y_max - zero_point),
        float(zero_point),
        **_constants(x, weight, y, packed, tile),
    )
    return y


def _scaled(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    packed: bool,
    tile: Tile | None,
) -> torch.Tensor:
    x, weight = _rows(x), weight.contiguous()
    tile = tile or _tile(x, y)
    num_groups = scale.shape[1] if scale.ndim == 2 else 1
    if num_groups > 1:
        # One group a step: the largest power of two that divides its length.
        length = x.shape[1] // num_groups
        tile = replace(tile, depth=min(tile.depth, length & -length))
    else:
        scale = scale.flatten().expand(y.shape[1])
    scale = scale.contiguous()
    launch(
        scaled_linear_kernel,
        tile.count(*y.shape),
        x,
        weight,
        scale if bias is None else bias.contiguous(),
        scale,
        y,
        *y.shape,
        x.stride(0),
        num_groups=num_groups,
        has_bias=bias is not None,
        upcast=must_upcast(x.dtype),
        **_constants(x, weight, y, packed, tile),
    )
    return y


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.shape[1] <= 1 or x.stride(1) == 1 else x.contiguous()


def _tile(x: torch.Tensor, y: torch.Tensor) -> Tile:
    return byte_tile(
        num_rows=y.shape[0],
        num_columns=y.shape[1],
        num_terms=x.shape[1],
        element_bytes=x.element_size(),
        is_amd=is_amd(),
    )


def _constants(
    x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, packed: bool, tile: Tile
) -> dict[str, Any]:
    return {
        "num_terms": x.shape[1],
        "packed": packed,
        "index_type": index_type(x, weight, y),
        "rows": tile.rows,
        "columns": tile.columns,
        "depth": tile.depth,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
        "enable_fp_fusion": False,
    }


def ahead_of_time_cases() -> list[AheadOfTimeCase]:
    """Large products, narrow ones and matrix-vector products, in the shipped configurations."""
    amd = tuple(gpu for gpu in GPU_NAMES if gpu.startswith("gfx"))
    nvidia = tuple(gpu for gpu in GPU_NAMES if gpu not in amd)
    cases = []
    for gpus, on_amd in ((nvidia, False), (amd, True)):
        fp8, fp8_gpus = ("*fp8e4b8", amd) if on_amd else ("*fp8e4nv", nvidia[1:])
        cases += [
            _case("int8", "*u8", "*i8", (4096, 1024, 4096), gpus, on_amd),
            _case("int8", "*i8", "*i8", (256, 64, 1280), gpus, on_amd),
            _case("int8", "*u8", "*i8", (1, 4096, 4096), gpus, on_amd),
            _case("int4", "*u8", "*u8", (1, 4096, 4096), gpus, on_amd),
            _case("int4", "*u8", "*u8", (4096, 1024, 4096), gpus, on_amd),
            _case("int4_weights", "*fp16", "*u8", (1, 4096, 4096), gpus, on_amd),
            _case("int4_weights", "*bf16", "*u8", (4096, 1024, 4096), gpus, on_amd),
            _case("int4_weights", "*fp32", "*u8", (1, 4096, 4096), gpus, on_amd, 32),
            _case("int4_weights", "*fp32", "*u8", (4096, 1024, 4096), gpus, on_amd),
            _case("fp8", fp8, fp8, (4096, 1024, 4096), fp8_gpus, on_amd),
        ]
    return cases


def _case(
    form: str,
    x_element: str,
    weight_element: str,
    sizes: tuple[int, int, int],
    gpus: tuple[str, ...],
    on_amd: bool,
    num_groups: int = 1,
) -> AheadOfTimeCase:
    num_rows, num_outputs, num_terms = sizes
    tile = byte_tile(
        num_rows=num_rows,
        num_columns=num_outputs,
        num_terms=num_terms,
        element_bytes=_ELEMENT_BYTES.get(x_element, 1),
        is_amd=on_amd,
    )
    tensors = {"x_ptr": x_element, "weight_ptr": weight_element}
    numbers = {"num_rows": "i32", "num_outputs": "i32", "x_row": "i32"}
    constants = {
        "num_terms": num_terms,
        "packed": form.startswith("int4"),
        "index_type": tl.int32,
        "rows": tile.rows,
        "columns": tile.columns,
        "depth": tile.depth,
    }
    name = f"lipschitz_linear.{form}.{x_element[1:]}.{num_rows}x{num_outputs}x{num_terms}"
    if form in ("int8", "int4"):
        function: Any = quantized_linear_kernel
        tensors |= {"bias_ptr": "*i32", "multiplier_ptr": "*fp32", "y_ptr": "*u8"}
        numbers |= {"low": "fp32", "high": "fp32", "zero_point": "fp32"}
    else:
        function = scaled_linear_kernel
        y_element = x_element if form == "int4_weights" else "*fp16"
        tensors |= {"bias_ptr": y_element, "scale_ptr": "*fp32", "y_ptr": y_element}
        constants |= {"num_groups": num_groups, "has_bias": True, "upcast": False}
    return AheadOfTimeCase(
        name=name,
        function=function,
        signature={**tensors, **numbers},
        constexprs=constants,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        divisible=("num_outputs", "x_row"),
        gpus=gpus,
    )
