"""The largest singular value of a convolution as it is applied: not that of its reshaped weights.

A convolution without padding's edge is a matrix A(w) at every frequency w, its symbol,
and its norm is the largest singular value of all of them. On a circle of N pixels the
frequencies are N points; an image with zeros around it is a part of a large enough
circle, so the largest over all frequencies bounds every size and padding. A stride s is
taken apart first: the s x s phases of the input become channels, which moves numbers
but changes no length, and a convolution of stride one remains.

Between N points the norm of a trigonometric polynomial of degree (k - 1) / 2 grows by
at most 1 / cos(pi (k - 1) / (2 N)) per axis (M. Riesz's comparison with a cosine): the
bound holds at all frequencies though it looks at N of them.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from effdl.errors import ConfigError
from effdl.kernels.spectral import gram_bound, norm_upper_bound
from effdl.kernels.validation import format_shape

__all__ = [
    "ConvGeometry",
    "apply_conv",
    "apply_conv_transpose",
    "conv_gram_bound",
    "conv_matrix",
    "conv_norm_bound",
    "conv_power_iteration",
    "conv_symbol",
    "polyphase_weight",
    "reshaped_norm_bound",
]

# Sizes of the grid of frequencies: 0.24 % above the truth at worst for 3x3, 1 % and 4 %.
_FINE_GRID, _GRID, _COARSE_GRID = 64, 32, 16
_FINE_CHANNELS, _CHANNELS = 1, 96


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvGeometry:
    """How a convolution's weights are laid over the image: (vertical, horizontal).

    Attributes:
        stride: Step between outputs.
        padding: Zeros on each side.
        dilation: Step between taps.
        groups: Equal parts of the channels that do not mix.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


def apply_conv(x: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """The operator: [N, C, H, W] -> [N, O, H', W'], without a bias."""
    return functional.conv2d(
        x,
        weight,
        stride=geometry.stride,
        padding=geometry.padding,
        dilation=geometry.dilation,
        groups=geometry.groups,
    )


def apply_conv_transpose(
    y: Tensor, weight: Tensor, geometry: ConvGeometry, *, input_size: tuple[int, int]
) -> Tensor:
    """The operator's transpose: [N, O, H', W'] -> [N, C, H, W] with (H, W) = ``input_size``."""
    extra = [
        (size + 2 * p - d * (k - 1) - 1) % s
        for size, p, d, k, s in zip(
            *(input_size, geometry.padding, geometry.dilation, weight.shape[2:], geometry.stride),
            strict=True,
        )
    ]
    return functional.conv_transpose2d(
        y,
        weight,
        stride=geometry.stride,
        padding=geometry.padding,
        output_padding=extra,
        dilation=geometry.dilation,
        groups=geometry.groups,
    )


def conv_power_iteration(
    weight: Tensor, image: Tensor, geometry: ConvGeometry, *, num_iterations: int = 1
) -> tuple[Tensor, Tensor]:
    """Estimates from below of each group's largest singular value, on the real operator.

    Power iteration with the convolution and its transpose, padding and stride as they
    are; all groups at once. The gradient flows through ``weight`` with the image held still.

    Args:
        weight: [O, C / groups, kh, kw].
        image: Where to start, [1, C, H, W]; a larger image has a norm at least as large.
        geometry: How the weights are applied.
        num_iterations: Products with the operator and its transpose, at least 1.

    Returns:
        sigma, [groups], of the last image but one, whose product the last iteration makes
        anyway; and the new image, [1, C, H, W], detached: of length one in each group.
    """
    size = (image.shape[2], image.shape[3])
    image = _unit_groups(image.detach(), image, geometry.groups)

    def improved(y: Tensor) -> Tensor:
        better = apply_conv_transpose(y, weight, geometry, input_size=size)
        return _unit_groups(better, image, geometry.groups)

    with torch.no_grad():
        for _ in range(num_iterations - 1):
            image = improved(apply_conv(image, weight, geometry))
    y = apply_conv(image, weight, geometry)
    with torch.no_grad():
        image = improved(y)
    return y.reshape(geometry.groups, -1).norm(dim=1), image


def polyphase_weight(weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """The weights of the equal convolution of stride one.

    Args:
        weight: [O, C / groups, kh, kw].
        geometry: Its stride and dilation count; the norm does not depend on padding here.

    Returns:
        [groups, O / groups, C / groups * sh * sw, kh', kw'] with kh' = ceil(kh / sh).
    """
    groups = geometry.groups
    if weight.ndim != 4 or weight.shape[0] % groups:
        raise ConfigError(
            f"weight: wanted [O, C / groups, kh, kw] with O divisible by groups={groups}, "
            f"got {format_shape(weight.shape)}"
        )
    spread = weight
    for axis in (3, 2):
        stride, dilation = geometry.stride[axis - 2], geometry.dilation[axis - 2]
        # Without a stride the gaps only repeat the frequencies.
        spread = _dilate(spread, axis, dilation if stride > 1 else 1)
        spread = _phases(spread, axis, stride)
    spread = spread.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    return spread.reshape(groups, weight.shape[0] // groups, *spread.shape[1:])


def conv_symbol(weight: Tensor, geometry: ConvGeometry, *, grid: int | tuple[int, int]) -> Tensor:
    """The convolution's matrix at the frequencies of a circle.

    Args:
        weight: [O, C / groups, kh, kw].
        geometry: How the weights are applied.
        grid: Output pixels around the circle, at least k' on each axis.

    Returns:
        Complex, [groups, frequencies, O / groups, C / groups * sh * sw]; of frequencies
        that are each other's conjugate only one.

    Raises:
        ConfigError: The grid is smaller than the weights.
    """
    taps = polyphase_weight(weight, geometry)
    height, width = (grid, grid) if isinstance(grid, int) else grid
    if height < taps.shape[3] or width < taps.shape[4]:
        raise ConfigError(
            f"grid: wanted at least {taps.shape[3]} x {taps.shape[4]}, got {height} x {width}"
        )
    # A 1 x 1 symbol is the same at every frequency.
    height = 1 if taps.shape[3] == 1 else height
    width = 1 if taps.shape[4] == 1 else width
    return torch.fft.rfft2(taps, s=(height, width)).flatten(3).permute(0, 3, 1, 2)


def conv_norm_bound(
    weight: Tensor, geometry: ConvGeometry, *, grid: int | None = None
) -> tuple[float, ...]:
    """For each group a number that the operator's norm does not exceed, at any image size.

    With zeros around the image, or on a circle at stride 1. Exact but for the grid (the
    module says how much) and for about one percent in wide layers.

    Args:
        weight: [O, C / groups, kh, kw].
        geometry: How the weights are applied.
        grid: Frequencies on each axis; None: 64 for depthwise, 32, and 16 for wide layers.
    """
    taps = polyphase_weight(weight.detach(), geometry)
    grid = grid or _grid(taps)
    excess = _excess(taps, grid)
    symbol = conv_symbol(weight.detach().double(), geometry, grid=grid)
    if min(symbol.shape[2:]) == 1:
        norms = torch.linalg.vector_norm(symbol, dim=(2, 3)).amax(dim=1)
        return tuple(float(norm) * excess * (1 + 1e-12) for norm in norms)
    return tuple(norm_upper_bound(group) * excess for group in symbol)


def conv_gram_bound(
    weight: Tensor, geometry: ConvGeometry, *, num_iterations: int = 6, grid: int | None = None
) -> Tensor:
    """As `conv_norm_bound`, differentiable, by Gram iteration at every frequency.

    Returns:
        [groups]: above the truth by the grid's excess and Gram iteration's.
    """
    taps = polyphase_weight(weight, geometry)
    grid = grid or _grid(taps)
    symbol = conv_symbol(weight, geometry, grid=grid)
    num_iterations = 0 if min(symbol.shape[2:]) == 1 else num_iterations
    return gram_bound(symbol, num_iterations=num_iterations).amax(dim=1) * _excess(taps, grid)


def reshaped_norm_bound(weight: Tensor) -> float:
    """The norm of the weights as a matrix [O, C * kh * kw]: not the norm of the convolution.

    What Defensive Quantization's regulariser and PyTorch's ``spectral_norm`` look at. The
    convolution's own norm is up to sqrt(kh * kw) times as large.
    """
    return norm_upper_bound(weight.detach().flatten(1))


def conv_matrix(weight: Tensor, geometry: ConvGeometry, *, input_size: tuple[int, int]) -> Tensor:
    """The operator as a dense matrix, for exact norms of small images.

    Returns:
        [O * H' * W', C * H * W].
    """
    channels = weight.shape[1] * geometry.groups
    identity = torch.eye(channels * math.prod(input_size), dtype=weight.dtype)
    columns = apply_conv(identity.reshape(-1, channels, *input_size), weight, geometry)
    return columns.flatten(1).t()


def _grid(taps: Tensor) -> int:
    narrow = min(taps.shape[1:3])
    if narrow <= _FINE_CHANNELS:
        grid = _FINE_GRID
    else:
        grid = _GRID if narrow <= _CHANNELS else _COARSE_GRID
    # The correction needs a grid some times finer than the weights.
    return max(grid, 4 * max(taps.shape[3:]))


def _excess(taps: Tensor, grid: int) -> float:
    return math.prod(
        1 / math.cos(math.pi * (size - 1) / (2 * grid)) if size > 1 else 1.0
        for size in taps.shape[3:]
    )


def _dilate(weight: Tensor, axis: int, dilation: int) -> Tensor:
    if dilation == 1:
        return weight
    size = dilation * (weight.shape[axis] - 1) + 1
    shape = [*weight.shape[:axis], size, *weight.shape[axis + 1 :]]
    positions = torch.arange(0, size, dilation, device=weight.device)
    return weight.new_zeros(shape).index_copy(axis, positions, weight)


def _phases(weight: Tensor, axis: int, stride: int) -> Tensor:
    """[..., k, ...] -> [..., ceil(k / stride), stride, ...]."""
    fill = -weight.shape[axis] % stride
    pad = [0, 0] * (weight.ndim - axis - 1) + [0, fill]
    padded = functional.pad(weight, pad)
    return padded.unflatten(axis, (padded.shape[axis] // stride, stride))


def _unit_groups(x: Tensor, otherwise: Tensor, groups: int) -> Tensor:
    rows = x.reshape(groups, -1)
    lengths = rows.norm(dim=1, keepdim=True)
    unit = rows / lengths.clamp_min(torch.finfo(x.dtype).tiny)
    return torch.where(lengths > 0, unit, otherwise.reshape(groups, -1)).reshape(x.shape)
