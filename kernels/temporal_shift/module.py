"""The temporal shift as layers: of whole clips, and of streams with their state."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from effdl.errors import ConfigError
from effdl.kernels.backend import Backend
from effdl.kernels.temporal_shift.op import (
    Direction,
    shift_sections,
    temporal_shift,
    temporal_shift_,
    temporal_shift_state,
    temporal_shift_step,
)

__all__ = ["StreamingTemporalShift", "TemporalShift"]


class TemporalShift(nn.Module):
    """Some channels of every frame from the next frame, some from the previous one.

    Args:
        num_segments: T, frames of a clip.
        fold_div: One part in so many of the channels comes from each neighbour.
        direction: As for `temporal_shift`.
        causal: Whether to shift from the past only.
        in_place: Whether to work in the memory of the input, which nobody may need
            afterwards: see `temporal_shift_`.
        backend: As for `temporal_shift`.

    Raises:
        ConfigError: A wrong number, or a causal shift with a direction.
        UnknownNameError: There is no such direction.
    """

    def __init__(
        self,
        num_segments: int,
        *,
        fold_div: int = 8,
        direction: Direction = "mit",
        causal: bool = False,
        in_place: bool = False,
        backend: Backend | str | None = None,
    ) -> None:
        super().__init__()
        if num_segments < 1:
            raise ConfigError(f"num_segments: wanted 1 or more, got {num_segments}")
        shift_sections(fold_div, fold_div=fold_div, direction=direction, causal=causal)
        self.num_segments = num_segments
        self.fold_div = fold_div
        self.direction: Direction = direction
        self.causal = causal
        self.in_place = in_place
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """[N*T, C, H, W] -> [N*T, C, H, W]."""
        shift = temporal_shift_ if self.in_place else temporal_shift
        return shift(
            x,
            num_segments=self.num_segments,
            fold_div=self.fold_div,
            direction=self.direction,
            causal=self.causal,
            backend=self.backend,
        )

    def streaming(self, *, num_segments: int = 1) -> "StreamingTemporalShift":
        """The same shift, frame by frame.

        Args:
            num_segments: Frames of each stream in one step.

        Raises:
            ConfigError: The shift is not causal: a stream does not know its next frame.
        """
        if not self.causal:
            raise ConfigError(
                "a stream has no next frame: wanted a causal shift, got a bi-directional one",
                hint="train with causal=True",
            )
        return StreamingTemporalShift(
            num_segments=num_segments, fold_div=self.fold_div, backend=self.backend
        )

    def extra_repr(self) -> str:
        """The options, as ``print`` shows them."""
        way = "causal" if self.causal else f"direction={self.direction!r}"
        place = ", in_place" if self.in_place else ""
        return f"num_segments={self.num_segments}, fold_div={self.fold_div}, {way}{place}"


class StreamingTemporalShift(nn.Module):
    """The causal shift of many streams, step by step; who calls it keeps the state.

    Args:
        num_segments: T, frames of each stream in one step.
        fold_div: As for `TemporalShift`.
        backend: As for `TemporalShift`.

    Raises:
        ConfigError: A wrong number.
    """

    def __init__(
        self,
        *,
        num_segments: int = 1,
        fold_div: int = 8,
        backend: Backend | str | None = None,
    ) -> None:
        super().__init__()
        if num_segments < 1:
            raise ConfigError(f"num_segments: wanted 1 or more, got {num_segments}")
        shift_sections(fold_div, fold_div=fold_div, causal=True)
        self.num_segments = num_segments
        self.fold_div = fold_div
        self.backend = backend

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Shift the next frames of every stream.

        Args:
            x: [N*T, C, H, W].
            state: What the last step returned, [N, C // fold_div, H, W]; None: there was none.

        Returns:
            The shifted frames, as x, and the state for the next step.
        """
        if state is None:
            state = self.initial_state(x)
        return temporal_shift_step(
            x,
            state,
            fold_div=self.fold_div,
            num_segments=self.num_segments,
            backend=self.backend,
        )

    def initial_state(self, x: Tensor) -> Tensor:
        """The state before the first frame, [N, C // fold_div, H, W], for frames like x."""
        return temporal_shift_state(x, fold_div=self.fold_div, num_segments=self.num_segments)

    @staticmethod
    def reset(state: Tensor, streams: Sequence[int]) -> Tensor:
        """The state with some streams begun anew.

        Args:
            state: [N, C // fold_div, H, W]; stays as it is.
            streams: Their numbers.
        """
        index = torch.tensor(streams, dtype=torch.int64, device=state.device)
        return state.index_fill(0, index, 0)

    def extra_repr(self) -> str:
        """The options, as ``print`` shows them."""
        return f"num_segments={self.num_segments}, fold_div={self.fold_div}"
