"""The kernel on channels-last images [N*T*P, C]: output channels stand in the vectors.

A pixel is a row. The rows of a block are copied once into a scratch that stays in the
cache, each channel from the frame it is to come from: here the shift happens. Then every
panel of weights multiplies the block, a few rows at a time, with their sums in registers
from the first input channel to the last.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import IRBuilder

from effdl.kernels.shift_conv1x1.tvm_builder import (
    Geometry,
    activate,
    divide,
    hold,
    ramp,
    t,
    when,
    zeros,
)

__all__ = ["RowsKernel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsKernel:
    """One size of the kernel; the number of frames stays open.

    Attributes:
        num_inputs: Input channels C.
        num_outputs: Output channels O.
        num_pixels: Pixels P of a frame.
        read: The frames the input channels are read from.
        write: The frames the output channels belong to: a gradient is written where
            the forward pass read.
        activation: ``"none"``, ``"relu"`` or ``"relu6"``.
        num_lanes: Numbers in a vector.
        num_rows: Rows multiplied at once.
        num_vectors: Vectors of output channels in a panel.
        num_tiles: So many times ``num_rows`` rows make a block.
    """

    num_inputs: int
    num_outputs: int
    num_pixels: int
    read: Geometry
    write: Geometry
    activation: str
    num_lanes: int
    num_rows: int
    num_vectors: int
    num_tiles: int

    @property
    def panel_size(self) -> int:
        """Output channels of a panel."""
        return self.num_vectors * self.num_lanes

    @property
    def num_panels(self) -> int:
        """Panels of output channels, the last one filled up with zeros."""
        return -(-self.num_outputs // self.panel_size)

    def build(self) -> Any:
        """TensorIR: f(x, w, b, y).

        x [N*T*P, C]; w [num_panels, C, panel_size], b [num_panels * panel_size];
        y [N*T*P, O].
        """
        block_size = self.num_tiles * self.num_rows
        with IRBuilder() as builder, t.prim_func(s_tir=True):
            t.func_name("rows")
            handles = [t.arg(name, t.handle()) for name in ("x_data", "w_data", "b_data")]
            handles.append(t.arg("y_data", t.handle()))
            num_rows = t.int64()
            shapes = (
                (num_rows, self.num_inputs),
                (self.num_panels, self.num_inputs, self.panel_size),
                (self.num_panels * self.panel_size,),
                (num_rows, self.num_outputs),
            )
            x, w, b, y = (
                t.match_buffer(handle, shape, "float32", align=4)
                for handle, shape in zip(handles, shapes, strict=True)
            )
            with t.parallel(divide(num_rows + block_size - 1, block_size)[0]) as task:
                start = hold(task * block_size)
                block = _Block(
                    kernel=self,
                    x=x,
                    w=w,
                    b=b,
                    y=y,
                    start=start,
                    num_here=hold(t.min(num_rows - start, t.int64(block_size))),
                )
                block.emit()
        return builder.get()


class _Block:
    """Emits the work of one block of rows."""

    def __init__(
        self, *, kernel: RowsKernel, x: Any, w: Any, b: Any, y: Any, start: Any, num_here: Any
    ) -> None:
        self.kernel, self.lanes = kernel, kernel.num_lanes
        self.x, self.w, self.b, self.y = x, w, b, y
        self.start, self.num_here = start, num_here
        # Odd numbers of vectors: rows a power of two apart would fight for the same cache sets.
        self.stride = (-(-kernel.num_inputs // self.lanes) | 1) * self.lanes
        size = kernel.num_tiles * kernel.num_rows * self.stride
        self.scratch = t.alloc_buffer((size,), "float32")
        self.spilled = t.alloc_buffer((kernel.num_rows * kernel.panel_size,), "float32")

    def emit(self) -> None:
        """Fill the scratch, then multiply it by every panel."""
        kernel = self.kernel
        with t.serial(self.num_here) as index:
            self._fill_row(index)
        # The last tile is multiplied whole: its missing rows must be numbers.
        whole_rows = hold(divide(self.num_here + kernel.num_rows - 1, kernel.num_rows)[0])
        with t.serial(whole_rows * kernel.num_rows - self.num_here) as index:
            self._fill((self.num_here + index) * self.stride, 0, kernel.num_inputs, None)
        with t.serial(kernel.num_panels) as panel, t.serial(whole_rows) as tile:
            self._multiply(panel, hold(tile * kernel.num_rows))

    def _fill_row(self, index: Any) -> None:
        kernel = self.kernel
        row = hold(self.start + index)
        frame = hold(divide(row, kernel.num_pixels)[0])
        for region in kernel.read.regions(kernel.num_inputs):
            source = row + region.offset * kernel.num_pixels
            when(
                kernel.read.exists(frame, region.offset),
                lambda region=region, source=source: self._fill(
                    index * self.stride, region.first, region.size, source
                ),
                lambda region=region: self._fill(
                    index * self.stride, region.first, region.size, None
                ),
            )

    def _fill(self, base: Any, first: int, size: int, source: Any) -> None:
        """Copy channels of a row of x, or zeros, into the scratch."""

        def copy(at: Any, num_lanes: int) -> None:
            places = ramp(at, num_lanes) if num_lanes > 1 else at
            value = zeros(num_lanes) if num_lanes > 1 else t.float32(0)
            if source is not None:
                value = self.x[source, places]
            into = ramp(base + at, num_lanes) if num_lanes > 1 else base + at
            t.buffer_store(self.scratch, value, [into])

        num_whole, num_rest = divmod(size, self.lanes)
        if num_whole:
            with t.serial(num_whole) as v:
                copy(v * self.lanes + first, self.lanes)
        at, num_lanes = first + num_whole * self.lanes, self.lanes
        while num_rest:
            num_lanes //= 2
            if num_rest >= num_lanes:
                copy(t.int64(at), num_lanes)
                at, num_rest = at + num_lanes, num_rest - num_lanes

    def _multiply(self, panel: Any, first: Any) -> None:
        kernel, lanes = self.kernel, self.lanes
        whole = ramp(0, lanes)
        # One buffer for each register: larger ones TVM puts on the heap.
        sums = [
            [t.alloc_buffer((lanes,), "float32") for _ in range(kernel.num_vectors)]
            for _ in range(kernel.num_rows)
        ]
        channel = hold(panel * kernel.panel_size)
        for row in sums:
            for v, vector in enumerate(row):
                t.buffer_store(vector, self.b[ramp(channel + v * lanes, lanes)], [whole])
        with t.serial(kernel.num_inputs) as k:
            weights = [self.w[panel, k, ramp(v * lanes, lanes)] for v in range(kernel.num_vectors)]
            for r, row in enumerate(sums):
                number = t.Broadcast(self.scratch[(first + r) * self.stride + k], lanes)
                for vector, weight in zip(row, weights, strict=True):
                    t.buffer_store(vector, vector[whole] + number * weight, [whole])
        for row in sums:
            for vector in row:
                value = activate(vector[whole], kernel.activation, lanes)
                t.buffer_store(vector, value, [whole])

        def directly() -> None:
            for r, row in enumerate(sums):

                def store(row: list[Any] = row, r: int = r) -> None:
                    for v, vector in enumerate(row):
                        at = ramp(channel + v * lanes, lanes)
                        t.buffer_store(self.y, vector[whole], [self.start + first + r, at])

                when(first + r < self.num_here, store)

        def by_element() -> None:
            for r, row in enumerate(sums):
                for v, vector in enumerate(row):
                    at = ramp(r * kernel.panel_size + v * lanes, lanes)
                    t.buffer_store(self.spilled, vector[whole], [at])
            with t.serial(kernel.num_rows) as r:
                when(first + r < self.num_here, lambda: self._store_row(channel, first + r, r))

        shifted = [r for r in kernel.write.regions(kernel.num_outputs) if r.offset]
        num_shifted = sum(region.size for region in shifted)
        is_filled = kernel.num_outputs % kernel.panel_size != 0
        conditions = []
        if num_shifted:
            conditions.append(channel >= num_shifted)
        if is_filled:
            conditions.append(channel + kernel.panel_size <= kernel.num_outputs)
        if conditions:
            when(
                t.And(*conditions) if len(conditions) == 2 else conditions[0], directly, by_element
            )
        else:
            directly()

    def _store_row(self, channel: Any, index: Any, r: Any) -> None:
        """Channels of one row, each run of them where it belongs.

        What belongs to a frame outside of the clip leaves its place to the frame that
        nothing is written to, at the clip's other end: zeros.
        """
        kernel = self.kernel
        row = hold(self.start + index)
        frame = hold(divide(row, kernel.num_pixels)[0])
        last = kernel.write.num_segments - 1
        for region in kernel.write.regions(kernel.num_outputs):
            first = hold(t.max(channel, t.int64(region.first)))
            end = hold(t.min(channel + kernel.panel_size, t.int64(region.first + region.size)))

            def copy(target: Any, keeps: bool, first: Any = first, end: Any = end) -> None:
                with t.serial(t.max(end - first, t.int64(0))) as c:
                    at = first + c
                    value = self.spilled[r * kernel.panel_size + at - channel]
                    t.buffer_store(self.y, value if keeps else t.float32(0), [target, at])

            step: Callable[[int], Any] = lambda frames, row=row: row + frames * kernel.num_pixels  # noqa: E731
            when(
                kernel.write.exists(frame, region.offset),
                lambda copy=copy, step=step, region=region: copy(step(region.offset), True),
                lambda copy=copy, step=step, region=region: copy(
                    step(-region.offset * last), False
                ),
            )
