"""Fake quantization: rounding forward, straight through backward.

With q = clip(round(x / s) + z, q_min, q_max) the forward pass is y = s * (q - z), in one
pass over the tensor. Its gradients (Bengio et al., arXiv:1308.3432; Esser et al., ICLR
2020, section 2.1 for the scale) are

    dy/dx = 1 where round(x / s) + z lies within [q_min, q_max], else 0
    dy/ds = q - z - x / s  within, and q - z outside

What rounds to the last step lies within, as in PyTorch; LSQ clips half a step earlier.

The backward pass computes q again from x: nothing is saved but the tensors given.
"""

import torch
from torch import Tensor

from effdl.errors import ConfigError
from effdl.kernels.backend import Backend, choose_backend
from effdl.kernels.quantization import QuantizationParameters
from effdl.kernels.validation import check_devices, check_dtype, format_shape

__all__ = ["fake_quantize", "fake_quantize_as"]

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    backend: Backend | str | None = None,
) -> Tensor:
    """Round to the grid of a quantizer; gradients pass straight through inside its range.

    NaN stays NaN, with gradient 0; infinities clip.

    Args:
        x: Any shape, floating point.
        scale: Positive, [1] or [x.shape[axis]]; float32, or float64 with a float64 x.
            It gets a gradient where it asks for one.
        zero_point: int32, shaped as ``scale``.
        quant_min: Smallest integer.
        quant_max: Largest integer.
        axis: The channels' axis; None: one scale in all.
        backend: None: the fastest here.

    Returns:
        The shape and type of ``x``.

    Raises:
        ConfigError: Wrong shapes, types or devices.
        BackendUnavailableError: The backend that was asked for is not here.
    """
    check_dtype("x", x, _FLOATS)
    check_dtype("scale", scale, (torch.float32, torch.float64))
    check_dtype("zero_point", zero_point, (torch.int32,))
    device = check_devices(x=x, scale=scale, zero_point=zero_point)
    if scale.dtype == torch.float64 and x.dtype != torch.float64:
        raise ConfigError(f"scale: wanted torch.float32 with an x of {x.dtype}, got torch.float64")
    if axis is not None and not -x.ndim <= axis < x.ndim:
        raise ConfigError(f"axis: wanted {-x.ndim} to {x.ndim - 1}, got {axis}")
    wanted = (1 if axis is None else x.shape[axis],)
    for name, tensor in (("scale", scale), ("zero_point", zero_point)):
        if tuple(tensor.shape) != wanted:
            raise ConfigError(
                f"{name}: wanted shape {format_shape(wanted)} for axis={axis}, "
                f"got {format_shape(tensor.shape)}"
            )
    if quant_min >= quant_max:
        raise ConfigError(f"wanted quant_min < quant_max, got {quant_min} and {quant_max}")
    chosen = choose_backend(backend, device=device, offered=_offered(x))
    position = -1 if axis is None else axis % x.ndim
    return torch.ops.effdl.fake_quantize(
        x, scale, zero_point, quant_min, quant_max, position, chosen.value
    )


def fake_quantize_as(
    x: Tensor, parameters: QuantizationParameters, *, backend: Backend | str | None = None
) -> Tensor:
    """`fake_quantize` with the numbers of a `QuantizationParameters`."""
    return fake_quantize(
        x,
        parameters.scale,
        parameters.zero_point,
        quant_min=parameters.quant_min,
        quant_max=parameters.quant_max,
        axis=parameters.axis,
        backend=backend,
    )


def _offered(x: Tensor) -> tuple[Backend, ...]:
    if x.dtype == torch.float64:
        return (Backend.REFERENCE,)
    if x.dtype == torch.float32:
        return tuple(Backend)
    return (Backend.REFERENCE, Backend.TRITON)


def _spread(x: Tensor, per_channel: Tensor, axis: int) -> Tensor:
    if axis < 0:
        return per_channel
    shape = [1] * x.ndim
    shape[axis] = -1
    return per_channel.reshape(shape)


def _forward_reference(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, axis: int
) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    s, z = _spread(x, scale, axis), _spread(x, zero_point, axis)
    q = (torch.round(wide / s) + z).clamp(quant_min, quant_max)
    return ((q - z) * s).to(x.dtype).contiguous()


def _backward_reference(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int,
    needs_scale: bool,
) -> tuple[Tensor, Tensor]:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    s, z = _spread(x, scale, axis), _spread(x, zero_point, axis)
    rounded = torch.round(wide / s) + z
    inside = (rounded >= quant_min) & (rounded <= quant_max)
    grad_x = torch.where(inside, grad, torch.zeros_like(grad)).contiguous()
    if not needs_scale:
        return grad_x, torch.zeros_like(scale)
    steps = rounded.clamp(quant_min, quant_max) - z
    slope = grad.to(wide.dtype) * torch.where(inside, steps - wide / s, steps)
    if axis < 0:
        return grad_x, slope.sum().reshape(1).to(scale.dtype)
    others = [i for i in range(x.ndim) if i != axis]
    grad_scale = slope.sum(dim=others) if others else slope
    return grad_x, grad_scale.to(scale.dtype)


@torch.library.custom_op("effdl::fake_quantize", mutates_args=())
def _fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int,
    backend: str,
) -> Tensor:
    if backend == Backend.TVM:
        from effdl.kernels import tvm_fake_quantize

        return tvm_fake_quantize.fake_quantize_forward(
            x, scale, zero_point, quant_min, quant_max, axis
        )
    if backend == Backend.TRITON:
        from effdl.kernels import triton_fake_quantize

        return triton_fake_quantize.fake_quantize_forward(
            x, scale, zero_point, quant_min, quant_max, axis
        )
    return _forward_reference(x, scale, zero_point, quant_min, quant_max, axis)


@_fake_quantize.register_fake
def _(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int,
    backend: str,
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("effdl::fake_quantize_backward", mutates_args=())
def _fake_quantize_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int,
    needs_scale: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    if backend == Backend.TVM and not needs_scale:
        from effdl.kernels import tvm_fake_quantize

        grad_x = tvm_fake_quantize.fake_quantize_backward(
            grad, x, scale, zero_point, quant_min, quant_max, axis
        )
        return grad_x, torch.zeros_like(scale)
    if backend == Backend.TRITON:
        from effdl.kernels import triton_fake_quantize

        return triton_fake_quantize.fake_quantize_backward(
            grad, x, scale, zero_point, quant_min, quant_max, axis, needs_scale
        )
    return _backward_reference(grad, x, scale, zero_point, quant_min, quant_max, axis, needs_scale)


@_fake_quantize_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int,
    needs_scale: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    grad_x = torch.empty_like(grad, memory_format=torch.contiguous_format)
    return grad_x, torch.empty_like(scale, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output) -> None:  # pyright: ignore[reportMissingParameterType]
    x, scale, zero_point, *settings = inputs
    ctx.save_for_backward(x, scale, zero_point)
    ctx.settings = settings


def _differentiate(ctx, grad):  # pyright: ignore[reportMissingParameterType]
    quant_min, quant_max, axis, backend = ctx.settings
    needs_scale = bool(ctx.needs_input_grad[1])
    grad_x, grad_scale = torch.ops.effdl.fake_quantize_backward(
        grad, *ctx.saved_tensors, quant_min, quant_max, axis, needs_scale, backend
    )
    return grad_x, grad_scale if needs_scale else None, None, None, None, None, None


_fake_quantize.register_autograd(_differentiate, setup_context=_save)
