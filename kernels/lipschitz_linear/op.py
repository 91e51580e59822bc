"""The quantized linear layer: bytes in, bytes out, and the choice of how."""

import torch
from torch import Tensor

from effdl.errors import ConfigError
from effdl.kernels.backend import Backend, choose_backend
from effdl.kernels.lipschitz_linear import reference
from effdl.kernels.quantized_operands import check_quantized_operands
from effdl.kernels.validation import check_devices, check_dtype, check_rank, format_shape

__all__ = ["int4_linear", "quantized_linear"]


def quantized_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    *,
    x_zero_point: int,
    y_zero_point: int,
    y_min: int = 0,
    y_max: int = 255,
    backend: Backend | str | None = None,
) -> Tensor:
    """A linear layer in integers, as ONNX's QLinear operators define it.

    y = clip(round(multiplier * (bias + sum over k of (x - x_zero_point) * weight)) + y_zero_point),
    the sum exact in int32, the product in float32, halves rounded to even. A ReLU is
    y_min = y_zero_point. Bit-exact on every backend.

    Args:
        x: uint8, [M, K].
        weight: int8, [N, K]; weights of fewer bits stand in the same bytes.
        bias: int32, [N], in steps of x_scale * w_scale.
        multiplier: float32, [N] or [1]: `effdl.kernels.quantization.output_multiplier`.
        x_zero_point: Zero point of the input.
        y_zero_point: Zero point of the output.
        y_min: Smallest output.
        y_max: Largest output.
        backend: None: the fastest here.

    Returns:
        uint8, [M, N].

    Raises:
        ConfigError: Wrong shapes, types, devices or ranges.
        BackendUnavailableError: The backend that was asked for is not here.
    """
    check_rank("x", x, ("M", "K"))
    check_rank("weight", weight, ("N", "K"))
    device = check_quantized_operands(
        x,
        weight,
        bias,
        multiplier,
        x_zero_point=x_zero_point,
        y_zero_point=y_zero_point,
        y_min=y_min,
        y_max=y_max,
    )
    if x.shape[1] != weight.shape[1]:
        raise ConfigError(
            f"x: wanted [M, {weight.shape[1]}] for a weight of {format_shape(weight.shape)}, "
            f"got {format_shape(x.shape)}"
        )
    chosen = choose_backend(backend, device=device)
    return torch.ops.effdl.quantized_linear(
        x, weight, bias, multiplier, x_zero_point, y_zero_point, y_min, y_max, chosen.value
    )


def int4_linear(
    x: Tensor, packed_weight: Tensor, scale: Tensor, *, backend: Backend | str | None = None
) -> Tensor:
    """A linear layer whose weights alone are integers, of four bits.

    y = x @ (scale * weight)^T: for a few rows of x, where the time goes into reading the
    weights. Differentiable in x. TVM's kernel rounds each row of x to 16 bits: by at most
    1 / 65024 of its largest number.

    Args:
        x: float32, [M, K], K even.
        packed_weight: uint8, [N, K / 2]: `effdl.kernels.bit_packing.pack_bits`.
        scale: float32, [N], or [N, groups] for equal parts of each row.
        backend: None: the fastest here.

    Returns:
        float32, [M, N].

    Raises:
        ConfigError: Wrong shapes, types or devices.
        BackendUnavailableError: The backend that was asked for is not here.
    """
    check_rank("x", x, ("M", "K"))
    check_rank("packed_weight", packed_weight, ("N", "K / 2"))
    check_dtype("x", x, (torch.float32,))
    check_dtype("packed_weight", packed_weight, (torch.uint8,))
    check_dtype("scale", scale, (torch.float32,))
    device = check_devices(x=x, packed_weight=packed_weight, scale=scale)
    outputs, size = packed_weight.shape[0], 2 * packed_weight.shape[1]
    if x.shape[1] != size:
        raise ConfigError(
            f"x: wanted [M, {size}] for a packed weight of {format_shape(packed_weight.shape)}, "
            f"got {format_shape(x.shape)}"
        )
    groups = scale.shape[1] if scale.ndim == 2 else 1
    if scale.ndim not in (1, 2) or scale.shape[0] != outputs or not groups or size % groups:
        raise ConfigError(
            f"scale: wanted [{outputs}], or [{outputs}, groups] with groups dividing {size}, "
            f"got {format_shape(scale.shape)}"
        )
    chosen = choose_backend(backend, device=device, offered=(Backend.REFERENCE, Backend.TVM))
    return torch.ops.effdl.int4_linear(x, packed_weight, scale, chosen.value)


@torch.library.custom_op("effdl::quantized_linear", mutates_args=())
def _quantized_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    x_zero_point: int,
    y_zero_point: int,
    y_min: int,
    y_max: int,
    backend: str,
) -> Tensor:
    if not x.numel() or not weight.numel():
        implementation = reference
    elif backend == Backend.TVM:
        from effdl.kernels.lipschitz_linear import tvm_kernel as implementation
    elif backend == Backend.TRITON:
        from effdl.kernels.lipschitz_linear import triton_kernel as implementation
    else:
        implementation = reference
    return implementation.quantized_linear(
        x,
        weight,
        bias,
        multiplier,
        x_zero_point=x_zero_point,
        y_zero_point=y_zero_point,
        y_min=y_min,
        y_max=y_max,
    )


@_quantized_linear.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    x_zero_point: int,
    y_zero_point: int,
    y_min: int,
    y_max: int,
    backend: str,
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op("effdl::int4_linear", mutates_args=())
def _int4_linear(x: Tensor, packed_weight: Tensor, scale: Tensor, backend: str) -> Tensor:
    if backend == Backend.TVM and x.numel() and packed_weight.numel():
        from effdl.kernels.lipschitz_linear import tvm_int4

        return tvm_int4.int4_matvec(x, packed_weight, scale)
    return reference.int4_linear(x, packed_weight, scale)


@_int4_linear.register_fake
def _(x: Tensor, packed_weight: Tensor, scale: Tensor, backend: str) -> Tensor:
    return x.new_empty(x.shape[0], packed_weight.shape[0])


def _save(ctx, inputs, output) -> None:  # pyright: ignore[reportMissingParameterType]
    _, packed_weight, scale, _ = inputs
    ctx.save_for_backward(packed_weight, scale)


def _differentiate(ctx, grad):  # pyright: ignore[reportMissingParameterType]
    packed_weight, scale = ctx.saved_tensors
    weight = reference.dequantize_int4(packed_weight, scale, size=2 * packed_weight.shape[1])
    return grad @ weight.to(grad.dtype), None, None, None


_int4_linear.register_autograd(_differentiate, setup_context=_save)
