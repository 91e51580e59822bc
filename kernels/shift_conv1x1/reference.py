"""A temporal shift, then a 1x1 convolution, in plain PyTorch: the truth of every backend."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["forward", "grad_input", "grad_weight", "memory_format", "shift"]


def memory_format(x: Tensor) -> torch.memory_format:
    """The format of a result made from images: channels-last only where x clearly is."""
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def shift(
    x: Tensor, *, num_segments: int, fold_next: int, fold_previous: int, order: str = "next_first"
) -> Tensor:
    """Take every channel from its frame; zeros where a clip has no such frame.

    Args:
        x: [N*T, C, H, W].
        num_segments: T, frames of a clip.
        fold_next: Channels from the next frame.
        fold_previous: Channels from the previous frame.
        order: Which of the two sections is first: ``"next_first"`` or ``"previous_first"``.
    """
    if x.shape[0] == 0:
        return x.clone()
    sections = [(fold_next, 1), (fold_previous, -1)]
    if order == "previous_first":
        sections.reverse()
    frames = x.unflatten(0, (-1, num_segments))
    sizes = [size for size, _ in sections]
    *parts, still = frames.split([*sizes, x.shape[1] - sum(sizes)], dim=2)
    # A pad of -1 at one end and 1 at the other: two nodes where exporters make ten of slices.
    moved = [
        functional.pad(part, (0, 0, 0, 0, 0, 0, -offset, offset))
        for part, (size, offset) in zip(parts, sections, strict=True)
        if size
    ]
    return torch.cat([*moved, still], dim=2).flatten(0, 1)


def _shift_back(
    x: Tensor, *, num_segments: int, fold_next: int, fold_previous: int, order: str
) -> Tensor:
    """The transpose of `shift`: what went to the next frame comes back from it."""
    other = "previous_first" if order == "next_first" else "next_first"
    return shift(
        x,
        num_segments=num_segments,
        fold_next=fold_previous,
        fold_previous=fold_next,
        order=other,
    )


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    num_segments: int,
    fold_next: int,
    fold_previous: int,
    order: str = "next_first",
    activation: str = "none",
) -> Tensor:
    """Shift, convolve, add the bias, activate.

    Args:
        x: [N*T, C, H, W].
        weight: [O, C] in the format of x.
        bias: [O] or None; int32 for int8.
        num_segments: T.
        fold_next: Channels from the next frame.
        fold_previous: Channels from the previous frame.
        order: Which of the two comes first.
        activation: ``"none"``, ``"relu"`` or ``"relu6"``.

    Returns:
        [N*T, O, H, W] in the format of x; int8 gives int32 sums.
    """
    shifted = shift(
        x,
        num_segments=num_segments,
        fold_next=fold_next,
        fold_previous=fold_previous,
        order=order,
    )
    if x.dtype == torch.int8 or x.numel() == 0:
        dtype = torch.int32 if x.dtype == torch.int8 else x.dtype
        y = torch.einsum("nchw,oc->nohw", shifted.to(dtype), weight.to(dtype))
        y = y if bias is None else y + bias[:, None, None]
    else:
        y = functional.conv2d(shifted, weight[:, :, None, None], bias)
    if activation == "relu":
        y = functional.relu(y)
    elif activation == "relu6":
        y = functional.relu6(y)
    return y.contiguous(memory_format=memory_format(x))


def grad_input(
    grad_y: Tensor,
    weight: Tensor,
    *,
    num_segments: int,
    fold_next: int,
    fold_previous: int,
    order: str = "next_first",
) -> Tensor:
    """The gradient to x, [N*T, C, H, W], from that to the sums, [N*T, O, H, W]."""
    return _shift_back(
        torch.einsum("nohw,oc->nchw", grad_y, weight),
        num_segments=num_segments,
        fold_next=fold_next,
        fold_previous=fold_previous,
        order=order,
    ).contiguous(memory_format=memory_format(grad_y))


def grad_weight(
    grad_y: Tensor,
    x: Tensor,
    *,
    num_segments: int,
    fold_next: int,
    fold_previous: int,
    order: str = "next_first",
) -> Tensor:
    """The gradient to the weight, [O, C], with x shifted once more."""
    shifted = shift(
        x,
        num_segments=num_segments,
        fold_next=fold_next,
        fold_previous=fold_previous,
        order=order,
    )
    return torch.einsum("nohw,nchw->oc", grad_y, shifted)
