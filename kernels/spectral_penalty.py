"""How far layers are from orthogonal, as a loss with its gradient.

For a matrix: beta / 2 * ||W W^T - I||^2 with gradient 2 beta (W W^T - I) W, the term of
Defensive Quantization (Lin, Gan and Han, ICLR 2019, arXiv:1904.08444). ||W^T W - I||^2
differs from it by the constant |rows - columns| only, so the smaller Gram matrix is
taken: equal gradients, and a loss that can reach zero.

For a convolution that matrix must be the operator's. With taps K_a, the rows of
W W^T - I hold Z_d = sum over a - b = d of K_a K_b^T, minus I at d = 0, and

    loss = beta / 2 * sum over d of ||Z_d||^2
    its gradient in K_a = 2 beta * sum over b of Z_(a - b) K_b

which is the matrix term above at every frequency, averaged (Parseval). Compare Wang et
al., Orthogonal Convolutional Neural Networks, CVPR 2020, arXiv:1911.12207.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from effdl.errors import ConfigError
from effdl.kernels.spectral_conv import ConvGeometry, conv_symbol, polyphase_weight

__all__ = ["conv_orthogonality_penalty", "orthogonality_penalty"]

_DEPTHWISE_GRID = 8


def orthogonality_penalty(weights: Sequence[Tensor], *, beta: float) -> Tensor:
    """The sum over layers of beta / 2 * ||W W^T - I||^2, or of W^T W where that is smaller.

    Layers of equal shape are computed together.

    Args:
        weights: Each [out, ...], taken as the matrix [out, the rest]: for convolutions
            the reshaped weights, whose norm is not the convolution's.
        beta: Weight of the loss.

    Returns:
        The loss, [].

    Raises:
        ConfigError: No weights, or one without two axes.
    """
    if not weights:
        raise ConfigError("weights: wanted at least one, got none")
    for weight in weights:
        if weight.ndim < 2:
            raise ConfigError(f"weights: wanted at least 2 axes each, got {weight.ndim}")
    return _MatrixPenalty.apply(beta, *weights)


def conv_orthogonality_penalty(
    weights: Sequence[Tensor], geometry: ConvGeometry, *, beta: float
) -> Tensor:
    """The same for convolutions as they are applied, on whole and half-open images alike.

    With fewer output than input channels (after a stride's phases) its zero is
    an operator whose singular values are all one; on images with zeros around them
    none is more. Depthwise layers cannot be orthogonal without being shifts: for them
    only what exceeds norm one counts, beta / 2 * the mean over frequencies of
    max(|A(w)|^2 - 1, 0)^2, over a grid of them.

    Args:
        weights: Each [O, C / groups, kh, kw], of one shape.
        geometry: How they are applied.
        beta: Weight of the loss.

    Raises:
        ConfigError: No weights, or of several shapes.
    """
    if len({tuple(weight.shape) for weight in weights}) != 1:
        raise ConfigError(
            f"weights: wanted one or more of one shape, got {[tuple(w.shape) for w in weights]}"
        )
    if min(weights[0].shape[0] // geometry.groups, _num_columns(weights[0], geometry)) == 1:
        return sum((_excess_penalty(w, geometry, beta) for w in weights), torch.zeros(()))
    taps = torch.cat([polyphase_weight(weight, geometry) for weight in weights])
    if taps.shape[1] > taps.shape[2]:
        taps = taps.transpose(1, 2).flip(3, 4)
    return _ConvPenalty.apply(beta, taps.permute(0, 1, 3, 4, 2))


class _MatrixPenalty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, beta: float, *weights: Tensor) -> Tensor:
        groups: dict[tuple[int, int], list[int]] = {}
        for i, weight in enumerate(weights):
            groups.setdefault((weight.shape[0], weight[0].numel()), []).append(i)
        loss = weights[0].new_zeros(())
        saved: list[Tensor] = []
        for (rows, columns), members in groups.items():
            stack = _stack([weights[i].reshape(rows, columns) for i in members])
            eye = torch.eye(min(rows, columns), dtype=stack.dtype, device=stack.device)
            left = stack if rows <= columns else stack.mT
            residual = torch.baddbmm(eye, left, left.mT, beta=-1)
            loss += residual.square().sum()
            saved += [stack, residual]
        ctx.save_for_backward(*saved)
        ctx.beta = beta
        ctx.members = list(groups.values())
        ctx.shapes = [weight.shape for weight in weights]
        return loss * (beta / 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        out: list[Tensor | None] = [None] * len(ctx.shapes)
        for k, members in enumerate(ctx.members):
            stack, residual = ctx.saved_tensors[2 * k : 2 * k + 2]
            slope = residual * (2 * ctx.beta * grads[0])
            wide = stack.shape[1] <= stack.shape[2]
            gradient = slope @ stack if wide else stack @ slope
            for i, part in zip(members, gradient.unbind(), strict=True):
                out[i] = part.reshape(ctx.shapes[i])
        return None, *out


class _ConvPenalty(torch.autograd.Function):
    """Of taps [groups, rows, kh, kw, columns]."""

    @staticmethod
    def forward(ctx: Any, beta: float, taps: Tensor) -> Tensor:
        groups, rows, height, width, _ = taps.shape
        num = height * width
        stacked = taps.permute(0, 2, 3, 1, 4).flatten(1, 3)
        # Every pair of taps in one product, then the sum over pairs of one offset.
        pairs = (stacked @ stacked.mT).view(groups, num, rows, num, rows).transpose(2, 3)
        offsets = _offsets(height, width).to(taps.device)
        z = taps.new_zeros(groups, (2 * height - 1) * (2 * width - 1), rows, rows)
        z.index_add_(1, offsets, pairs.flatten(1, 2))
        # At offset zero, which is in the middle.
        z[:, z.shape[1] // 2].diagonal(dim1=1, dim2=2).sub_(1)
        ctx.save_for_backward(stacked, z)
        ctx.beta = beta
        ctx.shape = taps.shape
        return z.square().sum() * (beta / 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        stacked, z = ctx.saved_tensors
        groups, rows, height, width, columns = ctx.shape
        num = height * width
        offsets = _offsets(height, width).to(z.device)
        spread = (z * (2 * ctx.beta * grads[0])).index_select(1, offsets)
        slope = spread.view(groups, num, num, rows, rows).transpose(2, 3)
        gradient = slope.reshape(groups, num * rows, num * rows) @ stacked
        gradient = gradient.view(groups, height, width, rows, columns)
        return None, gradient.permute(0, 3, 1, 2, 4)


def _offsets(height: int, width: int) -> Tensor:
    """For each pair of taps a, b the number of the offset a - b."""
    y, x = torch.arange(height), torch.arange(width)
    vertical = (y[:, None] - y + height - 1)[:, None, :, None]
    horizontal = (x[:, None] - x + width - 1)[None, :, None, :]
    return (vertical * (2 * width - 1) + horizontal).flatten()


def _excess_penalty(weight: Tensor, geometry: ConvGeometry, beta: float) -> Tensor:
    grid = max(_DEPTHWISE_GRID, 2 * max(weight.shape[2:]))
    symbol = conv_symbol(weight, geometry, grid=(grid, grid))
    squares = (symbol.real**2 + symbol.imag**2).sum(dim=(2, 3))
    return (squares - 1).clamp_min(0).square().mean(dim=1).sum() * (beta / 2)


def _num_columns(weight: Tensor, geometry: ConvGeometry) -> int:
    return weight.shape[1] * geometry.stride[0] * geometry.stride[1]


def _stack(matrices: list[Tensor]) -> Tensor:
    return matrices[0][None] if len(matrices) == 1 else torch.stack(matrices)
