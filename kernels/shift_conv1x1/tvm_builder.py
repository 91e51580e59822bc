"""What the generated CPU kernels share: vectors, branches, and the geometry of a shift."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir

__all__ = [
    "NO_SHIFT",
    "Geometry",
    "Region",
    "VectorUnit",
    "activate",
    "divide",
    "hold",
    "ramp",
    "t",
    "when",
    "zeros",
]

t: Any = ir
"""TVM's builder of TensorIR; its functions accept Python's numbers, its annotations do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorUnit:
    """What a kernel is built for.

    Attributes:
        num_lanes: Float32 numbers in one vector register.
        num_registers: Vector registers.
    """

    num_lanes: int
    num_registers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A run of channels that comes from one frame.

    Attributes:
        first: The first channel.
        size: How many.
        offset: The frame they are read from, relative to the output's: -1, 0 or 1.
    """

    first: int
    size: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Which frame every input channel is read from.

    Attributes:
        num_segments: Frames of a clip.
        fold_next: Channels from the following frame.
        fold_previous: Channels from the preceding frame.
        previous_first: Whether those from the preceding frame come first.
    """

    num_segments: int
    fold_next: int
    fold_previous: int
    previous_first: bool = False

    def regions(self, num_channels: int) -> tuple[Region, ...]:
        """The runs of channels, in order; empty ones are left out."""
        runs = [(self.fold_next, 1), (self.fold_previous, -1)]
        if self.previous_first:
            runs.reverse()
        runs.append((num_channels - self.fold_next - self.fold_previous, 0))
        regions: list[Region] = []
        first = 0
        for size, offset in runs:
            if size:
                regions.append(Region(first=first, size=size, offset=offset))
            first += size
        return tuple(regions)

    def exists(self, frame: Any, offset: int) -> Any | None:
        """Whether the clip has the neighbour of a frame; None: always."""
        if offset == 0:
            return None
        position = divide(frame, self.num_segments)[1]
        return position < self.num_segments - 1 if offset > 0 else position > 0

    def exists_at(self, frame: int, offset: int) -> bool:
        """The same for a frame that is known."""
        return 0 <= frame % self.num_segments + offset < self.num_segments


NO_SHIFT = Geometry(num_segments=1, fold_next=0, fold_previous=0)


def divide(value: Any, divisor: Any) -> tuple[Any, Any]:
    """Quotient and remainder of numbers that are not negative."""
    return t.truncdiv(value, divisor), t.truncmod(value, divisor)


def hold(value: Any, dtype: str = "int64") -> Any:
    """A number kept in a place of its own.

    TVM's simplifier sees nothing of what it was made from: with it in sight, compiling
    takes minutes.
    """
    place = t.alloc_buffer((1,), dtype)
    t.buffer_store(place, t.cast(value, dtype), [0])
    return place[0]


def ramp(first: Any, num_lanes: int) -> Any:
    """Indices of consecutive elements."""
    return t.Ramp(first, 1, num_lanes)


def zeros(num_lanes: int) -> Any:
    """A vector of zeros."""
    return t.Broadcast(t.float32(0), num_lanes)


def when(
    condition: Any | None, then: Callable[[], None], otherwise: Callable[[], None] | None = None
) -> None:
    """Emit a branch; a condition of None always holds."""
    if condition is None:
        then()
        return
    with t.If(condition):
        with t.Then():
            then()
        if otherwise is not None:
            with t.Else():
                otherwise()


def activate(vector: Any, activation: str, num_lanes: int) -> Any:
    """ReLU or ReLU6 of a vector (NaN stays NaN), or the vector itself."""
    if activation == "none":
        return vector
    vector = t.Select(vector < zeros(num_lanes), zeros(num_lanes), vector)
    if activation == "relu6":
        six = t.Broadcast(t.float32(6), num_lanes)
        vector = t.Select(vector > six, six, vector)
    return vector
