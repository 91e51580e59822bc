"""The temporal shift in plain PyTorch: the truth that every backend is held to."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Sections", "clips", "shift", "shift_by_padding", "step", "step_by_concatenation"]


class Sections(NamedTuple):
    """Which channels come from where.

    Attributes:
        first: Channels of the first section, from 0.
        second: Channels of the second section, after the first.
        offset: Frames ahead that the first section comes from: 1 (the next frame) or
            -1; the second section comes from the other side, all other channels stay.
    """

    first: int
    second: int
    offset: int

    def reversed(self) -> "Sections":
        """The shift that carries gradients back: the transpose."""
        return self._replace(offset=-self.offset)


def clips(x: Tensor, num_segments: int) -> Tensor:
    """Frames [N*T, C, H, W] as clips [N, T, C, H, W], the same memory."""
    return x.view(x.shape[0] // num_segments, num_segments, *x.shape[1:])


def shift(x: Tensor, *, num_segments: int, sections: Sections, fill_value: int = 0) -> Tensor:
    """Every section taken from its frame; where a clip has no such frame, ``fill_value``.

    Args:
        x: [N*T, C, H, W].
        num_segments: T, frames of a clip.
        sections: Which channels come from where.
        fill_value: What stands at the ends.

    Returns:
        As x, in the memory format of x.
    """
    first, second, offset = sections
    result = torch.empty_like(x)
    y, x = clips(result, num_segments), clips(x, num_segments)
    for begin, end, step in ((0, first, offset), (first, first + second, -offset)):
        if step > 0:
            y[:, :-1, begin:end] = x[:, 1:, begin:end]
            y[:, -1, begin:end] = fill_value
        else:
            y[:, 1:, begin:end] = x[:, :-1, begin:end]
            y[:, 0, begin:end] = fill_value
    y[:, :, first + second :] = x[:, :, first + second :]
    return result


def step(
    x: Tensor, state: Tensor, *, num_segments: int, sections: Sections
) -> tuple[Tensor, Tensor]:
    """The shift of the first section through T frames and a state: a ring of T + 1 places.

    Args:
        x: [N*T, C, H, W].
        state: What stands where the clip ends, [N, first, H, W].
        num_segments: T.
        sections: With an empty second section.

    Returns:
        The frames, and the channels that left them: the next state.
    """
    first, _, offset = sections
    y, leaving = torch.empty_like(x), torch.empty_like(state)
    outs, ins = clips(y, num_segments), clips(x, num_segments)
    if offset > 0:
        outs[:, :-1, :first], outs[:, -1, :first] = ins[:, 1:, :first], state
        leaving[:] = ins[:, 0, :first]
    else:
        outs[:, 1:, :first], outs[:, 0, :first] = ins[:, :-1, :first], state
        leaving[:] = ins[:, -1, :first]
    outs[:, :, first:] = ins[:, :, first:]
    return y, leaving


def shift_by_padding(
    x: Tensor, *, num_segments: int, sections: Sections, fill_value: int = 0
) -> Tensor:
    """The same as `shift`, in the fewest operators that exporters know.

    A pad of -1 at one end and 1 at the other moves a section by one frame.
    """
    first, second, offset = sections
    frames = x.unflatten(0, (-1, num_segments))
    parts = frames.split([first, second, x.shape[1] - first - second], dim=2)
    still = (0, 0, 0, 0, 0, 0)
    moved = [
        functional.pad(part, (*still, -step, step), value=fill_value)
        for part, step in zip(parts, (offset, -offset), strict=False)
        if part.shape[2] > 0
    ]
    return torch.cat([*moved, parts[2]], dim=2).flatten(0, 1)


def step_by_concatenation(
    x: Tensor, state: Tensor, *, num_segments: int, sections: Sections
) -> tuple[Tensor, Tensor]:
    """The same as `step` towards later frames, in the fewest operators that exporters know."""
    first = sections.first
    if num_segments == 1:
        leaving, still = x.split([first, x.shape[1] - first], dim=1)
        return torch.cat([state, still], dim=1), leaving
    frames = x.unflatten(0, (-1, num_segments))
    moved, still = frames.split([first, x.shape[1] - first], dim=2)
    arrived, leaving = torch.cat([state.unsqueeze(1), moved], dim=1).split([num_segments, 1], dim=1)
    return torch.cat([arrived, still], dim=2).flatten(0, 1), leaving.squeeze(1)
