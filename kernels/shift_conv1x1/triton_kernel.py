"""The temporal shift folded into a 1x1 convolution, on GPUs: products that read other frames.

Three matrix products over the pixels of all frames. Nothing shifted is ever stored:

* forward: the K-tiles of ``y[p, o] = sum_c x[p + frame(c), c] w[o, c]`` are read from the
  next, the previous or the same frame;
* gradient to x: the product runs unshifted, and each channel is stored in the frame it
  was read from. Past a clip's end that is the frame at its other end, which nobody read:
  it gets zeros, so every element is written exactly once;
* gradient to the weight: x is read shifted once more. The sum over pixels is cut into
  parts that are added in a fixed order: equal inputs give equal bits.

Where the sections' borders do not fall on borders of tiles, the frame is found for each
channel instead of each tile.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from effdl.errors import ConfigError
from effdl.kernels.shift_conv1x1.triton_configuration import (
    choose_tile,
    choose_weight_tile,
)
from effdl.kernels.shift_conv1x1.triton_programs import (
    forward_kernel,
    grad_input_kernel,
    grad_weight_kernel,
)
from effdl.kernels.triton_launch import index_type, is_amd, launch, must_upcast
from effdl.kernels.triton_tiles import Tile

__all__ = ["ACTIVATIONS", "ORDERS", "forward", "grad_input", "grad_weight"]

ACTIVATIONS = ("none", "relu", "relu6")
ORDERS = ("next_first", "previous_first")


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    num_segments: int,
    fold_next: int,
    fold_previous: int,
    order: str = "next_first",
    activation: str = "none",
    allow_tf32: bool | None = None,
    tile: Tile | None = None,
) -> torch.Tensor:
    """Shift the frames' channels, convolve with a 1x1 kernel, add the bias, activate.

    Args:
        x: [N*T, C, H, W] in float32, float16, bfloat16 or int8, in any strides; NCHW and
            channels-last are read in place.
        weight: [O, C] in the format of x.
        bias: [O] (int32 for int8), or None.
        num_segments: T, which divides N*T.
        fold_next: Channels that are read from the next frame.
        fold_previous: Channels that are read from the previous one.
        order: Which of the two sections comes first: one of `ORDERS`.
        activation: One of `ACTIVATIONS`.
        allow_tf32: Whether float32 products may be rounded to tf32 on tensor cores; None:
            where PyTorch's own may (``torch.backends.cuda.matmul.allow_tf32``).
        tile: Instead of the shipped configuration.

    Returns:
        [N*T, O, H, W] in the memory format and number format of x; int8 gives the int32
        sums.

    Raises:
        ConfigError: The order or the activation is unknown.
    """
    if activation not in ACTIVATIONS:
        raise ConfigError(f"activation: wanted one of {ACTIVATIONS}, got {activation!r}")
    sections = _sections(fold_next, fold_previous, order)
    precision = _precision(allow_tf32)
    x = _strided(x)
    num_frames, num_channels, height, width = x.shape
    num_outputs = weight.shape[0]
    y = _empty_like(x, num_outputs, torch.int32 if x.dtype == torch.int8 else x.dtype)
    if y.numel() == 0:
        return y
    num_pixels = num_frames * height * width
    borders = (sections.first_end, sections.second_end)
    tile = tile or choose_tile(
        num_rows=num_outputs,
        num_columns=num_pixels,
        num_terms=num_channels,
        borders=borders,
        **_arithmetic(x, precision),
    )
    launch(
        forward_kernel,
        tile.count(num_outputs, num_pixels),
        x,
        weight.contiguous(),
        x if bias is None else bias.contiguous(),
        y,
        num_pixels,
        num_segments,
        *_strides(x),
        *_strides(y),
        num_outputs=num_outputs,
        num_channels=num_channels,
        straddles=any(b % tile.depth != 0 and b < num_channels for b in borders),
        activation=activation,
        has_bias=bias is not None,
        sum_type=tl.int32 if x.dtype == torch.int8 else tl.float32,
        **_constants(sections, tile, height * width, (x, y, weight), precision),
    )
    return y


def grad_input(
    grad_y: torch.Tensor,
    weight: torch.Tensor,
    *,
    num_segments: int,
    fold_next: int,
    fold_previous: int,
    order: str = "next_first",
    allow_tf32: bool | None = None,
    tile: Tile | None = None,
) -> torch.Tensor:
    """The gradient to x, from the gradient to the (not activated) result.

    Args:
        grad_y: [N*T, O, H, W] in a floating format and any strides.
        weight: [O, C] in the same format.
        num_segments: As in `forward`.
        fold_next: As in `forward`.
        fold_previous: As in `forward`.
        order: As in `forward`.
        allow_tf32: As in `forward`.
        tile: Instead of the shipped configuration.

    Returns:
        [N*T, C, H, W] in the memory format of ``grad_y``.
    """
    sections = _sections(fold_next, fold_previous, order)
    precision = _precision(allow_tf32)
    grad_y = _strided(grad_y)
    num_frames, num_outputs, height, width = grad_y.shape
    num_channels = weight.shape[1]
    grad_x = _empty_like(grad_y, num_channels, grad_y.dtype)
    if grad_x.numel() == 0:
        return grad_x
    num_pixels = num_frames * height * width
    tile = tile or choose_tile(
        num_rows=num_channels,
        num_columns=num_pixels,
        num_terms=num_outputs,
        **_arithmetic(grad_y, precision),
    )
    launch(
        grad_input_kernel,
        tile.count(num_channels, num_pixels),
        grad_y,
        weight.contiguous(),
        grad_x,
        num_pixels,
        num_segments,
        *_strides(grad_y),
        *_strides(grad_x),
        num_outputs=num_outputs,
        num_channels=num_channels,
        **_constants(sections, tile, height * width, (grad_y, grad_x, weight), precision),
    )
    return grad_x


def grad_weight(
    grad_y: torch.Tensor,
    x: torch.Tensor,
    *,
    num_segments: int,
    fold_next: int,
    fold_previous: int,
    order: str = "next_first",
    allow_tf32: bool | None = None,
    tile: Tile | None = None,
    num_steps: int | None = None,
) -> torch.Tensor:
    """The gradient to the weight, summed in float32, in the same order every time.

    Args:
        grad_y: [N*T, O, H, W] in a floating format and any strides.
        x: [N*T, C, H, W], the unshifted input of `forward`, in the same format.
        num_segments: As in `forward`.
        fold_next: As in `forward`.
        fold_previous: As in `forward`.
        order: As in `forward`.
        allow_tf32: As in `forward`.
        tile: Instead of the shipped configuration.
        num_steps: Steps of the loop that one program takes, instead of the shipped number.

    Returns:
        [O, C] in the format of x.
    """
    sections = _sections(fold_next, fold_previous, order)
    precision = _precision(allow_tf32)
    grad_y, x = _strided(grad_y), _strided(x)
    num_frames, num_channels, height, width = x.shape
    num_outputs = grad_y.shape[1]
    num_pixels = num_frames * height * width
    if 0 in (num_pixels, num_outputs, num_channels):
        return x.new_zeros((num_outputs, num_channels))
    shipped, shipped_steps = choose_weight_tile(
        num_outputs=num_outputs,
        num_channels=num_channels,
        num_pixels=num_pixels,
        **_arithmetic(x, precision),
    )
    tile, num_steps = tile or shipped, num_steps or shipped_steps
    num_parts = triton.cdiv(num_pixels, num_steps * tile.depth)
    parts = x.new_empty((num_parts, num_outputs, num_channels), dtype=torch.float32)
    num_tiles = tile.count(num_outputs, num_channels)
    launch(
        grad_weight_kernel,
        num_parts * num_tiles,
        grad_y,
        x,
        parts,
        num_pixels,
        num_segments,
        *_strides(grad_y),
        *_strides(x),
        num_outputs=num_outputs,
        num_channels=num_channels,
        num_steps=num_steps,
        **_constants(sections, tile, height * width, (grad_y, x), precision),
    )
    return parts.sum(0).to(x.dtype)


class _Sections(NamedTuple):
    """Channels below first_end step ``first`` frames ahead, those below second_end back."""

    first_end: int
    second_end: int
    first: int


def _sections(fold_next: int, fold_previous: int, order: str) -> _Sections:
    if order not in ORDERS:
        raise ConfigError(f"order: wanted one of {ORDERS}, got {order!r}")
    both = fold_next + fold_previous
    if order == "next_first":
        return _Sections(fold_next, both, 1)
    return _Sections(fold_previous, both, -1)


def _strided(x: torch.Tensor) -> torch.Tensor:
    """The tensor itself where one stride leads over all pixels of a frame, else a copy."""
    height, width = x.shape[2:]
    if height <= 1 or width <= 1 or x.stride(2) == width * x.stride(3):
        return x
    return x.contiguous()


def _strides(x: torch.Tensor) -> tuple[int, int, int]:
    """Elements from a frame, a channel and a pixel to the next."""
    return x.stride(0), x.stride(1), x.stride(3) if x.shape[3] > 1 else x.stride(2)


def _empty_like(x: torch.Tensor, num_channels: int, dtype: torch.dtype) -> torch.Tensor:
    is_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.empty(
        (x.shape[0], num_channels, *x.shape[2:]),
        dtype=dtype,
        device=x.device,
        memory_format=torch.channels_last if is_last else torch.contiguous_format,
    )


def _precision(allow_tf32: bool | None) -> str:
    allowed = torch.backends.cuda.matmul.allow_tf32 if allow_tf32 is None else allow_tf32
    return "tf32" if allowed else "ieee"


def _arithmetic(x: torch.Tensor, precision: str) -> dict[str, Any]:
    return {
        "element_bytes": x.element_size(),
        "tensor_cores": x.dtype != torch.float32 or precision == "tf32",
        "is_amd": is_amd(),
    }


def _constants(
    sections: _Sections,
    tile: Tile,
    frame_pixels: int,
    tensors: tuple[torch.Tensor, ...],
    precision: str,
) -> dict[str, Any]:
    return {
        "frame_pixels": frame_pixels,
        "first_end": sections.first_end,
        "second_end": sections.second_end,
        "first_step": sections.first,
        "precision": precision,
        "index_type": index_type(*tensors),
        "upcast": must_upcast(tensors[0].dtype),
        "rows": tile.rows,
        "columns": tile.columns,
        "depth": tile.depth,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
        "enable_fp_fusion": True,
    }
