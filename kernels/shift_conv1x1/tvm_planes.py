"""The kernel on planar images [N*T, C, P]: pixels stand in the vectors.

The columns of all frames are cut into tiles of a few vectors. The rows of a tile are
copied once into a panel that stays in the cache, each from the frame it is to come
from: here the shift happens. Then every block of output channels multiplies the panel,
with its sums in registers from the first input channel to the last.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import IRBuilder

from effdl.kernels.shift_conv1x1.tvm_builder import (
    Geometry,
    Region,
    activate,
    divide,
    hold,
    ramp,
    t,
    when,
    zeros,
)

__all__ = ["PlanarKernel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanarKernel:
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
        num_rows: Output channels of a block.
        num_vectors: Vectors of a tile at most.
        prefetches: Whether a tile fetches the next one's rows into the cache.
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
    prefetches: bool

    @property
    def num_blocks(self) -> int:
        """Blocks of output channels, the last one filled up with zeros."""
        return -(-self.num_outputs // self.num_rows)

    def build(self) -> Any:
        """TensorIR: f(x, w, b, width, groups, y).

        x [N, C, P]; w [num_blocks, C, num_rows], b [num_blocks * num_rows]; width: vectors
        of a tile; groups: into how many tasks the output channels are divided;
        y [N, O, P].
        """
        with IRBuilder() as builder, t.prim_func(s_tir=True):
            t.func_name("planes")
            handles = [t.arg(name, t.handle()) for name in ("x_data", "w_data", "b_data")]
            width = t.arg("width", t.int32())
            groups = t.arg("groups", t.int32())
            handles.append(t.arg("y_data", t.handle()))
            num_frames = t.int64()
            shapes = (
                (num_frames, self.num_inputs, self.num_pixels),
                (self.num_blocks, self.num_inputs, self.num_rows),
                (self.num_blocks * self.num_rows,),
                (num_frames, self.num_outputs, self.num_pixels),
            )
            x, w, b, y = (
                t.match_buffer(handle, shape, "float32", align=4)
                for handle, shape in zip(handles, shapes, strict=True)
            )
            num_columns = num_frames * self.num_pixels
            tile_size = t.cast(width, "int64") * self.num_lanes
            num_tiles = divide(num_columns + tile_size - 1, tile_size)[0]
            largest = self.num_vectors * self.num_lanes
            with t.parallel(num_tiles * t.cast(groups, "int64")) as task:
                columns = hold(num_columns)
                size = hold(t.cast(width, "int64") * self.num_lanes)
                group, index = divide(task, hold(divide(columns + size - 1, size)[0]))
                tile = _Tile(
                    kernel=self,
                    x=x,
                    w=w,
                    b=b,
                    y=y,
                    num_columns=columns,
                    start=hold(index * size),
                    width=width,
                    panel=t.alloc_buffer((self.num_inputs * largest,), "float32"),
                    spilled=t.alloc_buffer((self.num_rows * largest,), "float32"),
                )
                tile.emit(hold(group, "int32"), groups)
        return builder.get()


class _Tile:
    """Emits the work of one tile of columns."""

    def __init__(
        self,
        *,
        kernel: PlanarKernel,
        x: Any,
        w: Any,
        b: Any,
        y: Any,
        num_columns: Any,
        start: Any,
        width: Any,
        panel: Any,
        spilled: Any,
    ) -> None:
        self.kernel, self.lanes = kernel, kernel.num_lanes
        self.x, self.w, self.b, self.y = x, w, b, y
        self.panel, self.spilled = panel, spilled
        self.num_columns, self.start = num_columns, start
        pixels = kernel.num_pixels
        self.frame, self.pixel = (hold(part) for part in divide(start, pixels))
        num_left = divide(num_columns - start + self.lanes - 1, self.lanes)[0]
        self.width = hold(t.min(t.cast(width, "int64"), num_left))
        self.row_size = hold(self.width * self.lanes)
        self.is_inside = hold(self.pixel + self.row_size <= pixels, "bool")
        self.sizes = self._existing_sizes()

    def _existing_sizes(self) -> Any:
        """Rows of every region, none where a tile of one frame has no such neighbour."""
        kernel = self.kernel
        regions = kernel.read.regions(kernel.num_inputs)
        sizes = t.alloc_buffer((len(regions),), "int64")
        for index, region in enumerate(regions):
            t.buffer_store(sizes, t.int64(region.size), [index])
            exists = kernel.read.exists(self.frame, region.offset)
            if exists is not None:
                when(
                    t.And(self.is_inside, t.Not(exists)),
                    lambda index=index: t.buffer_store(sizes, t.int64(0), [index]),
                )
        return sizes

    def emit(self, group: Any, groups: Any) -> None:
        """Fill the panel, then multiply it for this group's blocks of output channels."""
        when(self.is_inside, self._fill_inside, self._fill_by_vector)
        num_blocks = self.kernel.num_blocks
        first = hold(divide(group * num_blocks, groups)[0], "int32")
        end = hold(divide((group + 1) * num_blocks, groups)[0], "int32")
        self._multiply(self.kernel.num_vectors, first, end)

    def _multiply(self, num_vectors: int, first: Any, end: Any) -> None:
        def blocks() -> None:
            with t.serial(end - first) as index:
                self._multiply_block(first + index, num_vectors)

        if num_vectors == 1:
            blocks()
        else:
            when(
                self.width == num_vectors,
                blocks,
                lambda: self._multiply(num_vectors - 1, first, end),
            )

    def _fill_inside(self) -> None:
        """Every vector of the tile lies in one frame; rows that do not exist are left out."""
        kernel = self.kernel

        def copy(row: Any, source: Any, v: Any) -> None:
            value = self.x[source, row, ramp(self.pixel + v * self.lanes, self.lanes)]
            t.buffer_store(
                self.panel, value, [ramp(row * self.row_size + v * self.lanes, self.lanes)]
            )

        def rows(region: Region) -> None:
            source = self.frame + region.offset

            def whole_tile() -> None:
                with t.serial(region.size) as index:
                    for v in range(kernel.num_vectors):
                        copy(index + region.first, source, v)

            def narrow_tile() -> None:
                with t.serial(region.size) as index, t.serial(self.width) as v:
                    copy(index + region.first, source, v)

            when(self.width == kernel.num_vectors, whole_tile, narrow_tile)

        for region in kernel.read.regions(kernel.num_inputs):
            exists = kernel.read.exists(self.frame, region.offset)
            when(exists, lambda region=region: rows(region))

    def _for_regions(self, frame: Any, copy: Callable[[Any, Any], None]) -> None:
        """Call ``copy(row, frame or None for zeros)`` in a loop over every region's rows."""
        for region in self.kernel.read.regions(self.kernel.num_inputs):

            def rows(source: Any, region: Any = region) -> None:
                with t.serial(region.size) as index:
                    copy(index + region.first, source)

            when(
                self.kernel.read.exists(frame, region.offset),
                lambda rows=rows, region=region: rows(frame + region.offset),
                lambda rows=rows: rows(None),
            )

    def _fill_by_vector(self) -> None:
        pixels = self.kernel.num_pixels
        with t.serial(self.width) as v:
            at = hold(v * self.lanes)
            column = hold(self.start + at)
            frame, pixel = (hold(part) for part in divide(column, pixels))

            def whole(row: Any, source: Any) -> None:
                value = zeros(self.lanes)
                if source is not None:
                    value = self.x[source, row, ramp(pixel, self.lanes)]
                t.buffer_store(self.panel, value, [ramp(row * self.row_size + at, self.lanes)])

            def by_element() -> None:
                self._fill_by_element(at)

            def crossing() -> None:
                if pixels >= self.lanes:
                    when(
                        column + self.lanes <= self.num_columns,
                        lambda: self._fill_crossing(at, frame, pixel),
                        by_element,
                    )
                else:
                    by_element()

            if pixels % self.lanes == 0:
                self._for_regions(frame, whole)
            else:
                when(
                    pixel + self.lanes <= pixels,
                    lambda: self._for_regions(frame, whole),
                    crossing,
                )

    def _fill_crossing(self, at: Any, frame: Any, pixel: Any) -> None:
        """A vector whose lanes lie in two frames: each is read where the other's rows stand."""
        lanes, pixels = self.lanes, self.kernel.num_pixels
        in_first = ramp(0, lanes) < t.Broadcast(t.cast(pixels - pixel, "int32"), lanes)
        for region in self.kernel.read.regions(self.kernel.num_inputs):
            exists = [self.kernel.read.exists(frame + n, region.offset) for n in range(2)]

            def rows(first: bool, second: bool, region: Region = region) -> None:
                source = frame + region.offset
                with t.serial(region.size) as index:
                    row = index + region.first
                    one = other = zeros(lanes)
                    if first:
                        one = self.x[source, row, ramp(pixel, lanes)]
                    if second:
                        other = self.x[source + 1, row, ramp(pixel - pixels, lanes)]
                    value = t.Select(in_first, one, other)
                    t.buffer_store(self.panel, value, [ramp(row * self.row_size + at, lanes)])

            when(
                exists[0],
                lambda rows=rows, exists=exists: when(
                    exists[1], lambda: rows(True, True), lambda: rows(True, False)
                ),
                lambda rows=rows, exists=exists: when(
                    exists[1], lambda: rows(False, True), lambda: rows(False, False)
                ),
            )

    def _fill_by_element(self, at: Any) -> None:
        """A vector that reaches beyond the last column, which then stands in its lanes."""
        pixels = self.kernel.num_pixels
        with t.serial(self.lanes) as lane:
            column = hold(t.min(self.start + at + lane, self.num_columns - 1))
            frame, pixel = (hold(part) for part in divide(column, pixels))

            def copy(row: Any, source: Any) -> None:
                value = t.float32(0) if source is None else self.x[source, row, pixel]
                t.buffer_store(self.panel, value, [row * self.row_size + at + lane])

            self._for_regions(frame, copy)

    def _multiply_block(self, block: Any, num_vectors: int) -> None:
        kernel, lanes = self.kernel, self.lanes
        # One buffer for each register: larger ones TVM puts on the heap.
        sums = [
            [t.alloc_buffer((lanes,), "float32") for _ in range(num_vectors)]
            for _ in range(kernel.num_rows)
        ]
        whole = ramp(0, lanes)
        for r in range(kernel.num_rows):
            for v in range(num_vectors):
                bias = self.b[block * kernel.num_rows + r]
                t.buffer_store(sums[r][v], t.Broadcast(bias, lanes), [whole])
        ahead = self._next_tile(block) if kernel.prefetches else None

        def multiply(k: Any, offset: Any) -> None:
            if ahead is not None:
                self._prefetch(ahead[0] + offset, ahead[1], k)
            for r in range(kernel.num_rows):
                weight = t.Broadcast(self.w[block, k, r], lanes)
                for v in range(num_vectors):
                    column = self.panel[ramp((k * num_vectors + v) * lanes, lanes)]
                    t.buffer_store(sums[r][v], sums[r][v][whole] + weight * column, [whole])

        regions = kernel.read.regions(kernel.num_inputs)
        if len(regions) == 1 and regions[0].offset == 0:
            with t.serial(kernel.num_inputs) as k:
                multiply(k, 0)
        else:
            with t.serial(len(regions)) as n:
                first, offset = t.int64(0), t.int64(0)
                for index, region in enumerate(regions):
                    first = t.Select(n == index, t.int64(region.first), first)
                    offset = t.Select(n == index, t.int64(region.offset), offset)
                first, offset = hold(first), hold(offset)
                with t.serial(self.sizes[n]) as k:
                    multiply(first + k, offset)
        for r in range(kernel.num_rows):
            for v in range(num_vectors):
                value = activate(sums[r][v][whole], kernel.activation, lanes)
                t.buffer_store(sums[r][v], value, [whole])
        self._store(block, sums)

    def _next_tile(self, block: Any) -> tuple[Any, Any]:
        """Where the next tile's vector stands that this block's loop can fetch."""
        column = t.min(
            self.start + self.row_size + t.min(block, self.width - 1) * self.lanes,
            self.num_columns - 1,
        )
        frame, pixel = (hold(part) for part in divide(column, self.kernel.num_pixels))
        return frame, pixel

    def _prefetch(self, frame: Any, pixel: Any, k: Any) -> None:
        # Of a frame that does not exist, an address that nobody reads: that is harmless.
        address = t.address_of(self.x[frame, k, pixel])
        read, into_l2, data = t.int32(0), t.int32(2), t.int32(1)
        t.evaluate(t.call_llvm_intrin("void", "llvm.prefetch", address, read, into_l2, data))

    def _store(self, block: Any, sums: list[list[Any]]) -> None:
        kernel, whole = self.kernel, ramp(0, self.lanes)

        def inside() -> None:
            for r, row in enumerate(sums):

                def store(frame: Any, channel: Any, kept: Any, row: Any = row) -> None:
                    for v, vector in enumerate(row):
                        value = _keep(vector[whole], kept, zeros(self.lanes))
                        at = ramp(self.pixel + v * self.lanes, self.lanes)
                        t.buffer_store(self.y, value, [frame, channel, at])

                self._place(block * kernel.num_rows + r, self.frame, store)

        def across() -> None:
            # An element taken at a variable place would drive the sums out of registers.
            size = len(sums[0]) * self.lanes
            for r, row in enumerate(sums):
                for v, vector in enumerate(row):
                    at = ramp(r * size + v * self.lanes, self.lanes)
                    t.buffer_store(self.spilled, vector[whole], [at])
            num_here = hold(t.min(t.int64(size), self.num_columns - self.start))
            last = divide(self.pixel + num_here - 1, kernel.num_pixels)[0]
            with t.serial(last + 1) as n, t.serial(kernel.num_rows) as r:
                first = hold(t.max(t.int64(0), n * kernel.num_pixels - self.pixel))
                end = hold(t.min(num_here, (n + 1) * kernel.num_pixels - self.pixel))
                self._store_run(block * kernel.num_rows + r, n, r * size, first, end)

        when(self.is_inside, inside, across)

    def _store_run(self, channel: Any, n: Any, row: Any, first: Any, end: Any) -> None:
        """Columns ``first`` to ``end`` of a spilled row, which lie in the tile's n-th frame."""
        lanes = self.lanes
        pixel = hold(self.pixel - n * self.kernel.num_pixels)

        def store(frame: Any, channel: Any, kept: Any) -> None:
            def vector(at: Any) -> None:
                value = _keep(self.spilled[ramp(row + at, lanes)], kept, zeros(lanes))
                t.buffer_store(self.y, value, [frame, channel, ramp(pixel + at, lanes)])

            def vectors() -> None:
                with t.serial(divide(end - first, lanes)[0]) as v:
                    vector(first + v * lanes)
                vector(end - lanes)

            def elements() -> None:
                with t.serial(end - first) as column:
                    at = first + column
                    value = _keep(self.spilled[row + at], kept, t.float32(0))
                    t.buffer_store(self.y, value, [frame, channel, pixel + at])

            when(end - first >= lanes, vectors, elements)

        self._place(hold(channel, "int32"), hold(self.frame + n), store)

    def _place(self, channel: Any, frame: Any, store: Callable[[Any, Any, Any], None]) -> None:
        """Call ``store(frame, channel, whether the sum is kept or None)`` where it belongs.

        A sum that belongs to a frame outside of the clip leaves its place to the frame
        that nothing is written to, at the clip's other end: zeros.
        """
        kernel = self.kernel
        regions = kernel.write.regions(kernel.num_outputs)
        target, kept = frame, None
        last = kernel.write.num_segments - 1
        for region in regions:
            exists = kernel.write.exists(frame, region.offset)
            if exists is None:
                continue
            here = t.And(channel >= region.first, channel < region.first + region.size)
            moved = t.Select(exists, frame + region.offset, frame - region.offset * last)
            target = t.Select(here, moved, target)
            lives = t.Or(t.Not(here), exists)
            kept = lives if kept is None else t.And(kept, lives)
        if kept is not None:
            target, kept = hold(target), hold(kept, "bool")
        when(
            None if kernel.num_outputs % kernel.num_rows == 0 else channel < kernel.num_outputs,
            lambda: store(target, channel, kept),
        )


def _keep(value: Any, kept: Any | None, zero: Any) -> Any:
    return value if kept is None else t.Select(kept, value, zero)
