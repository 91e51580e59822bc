"""The folded shift on CPUs: float32, in planes or channels-last.

Gradients are the same kernels: that to x multiplies by the transposed weight and writes
where the forward pass read; that to the weight reads x shifted once more.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
import tvm
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from effdl.kernels.shift_conv1x1.reference import memory_format
from effdl.kernels.shift_conv1x1.tvm_builder import NO_SHIFT, Geometry, VectorUnit
from effdl.kernels.shift_conv1x1.tvm_planes import PlanarKernel
from effdl.kernels.shift_conv1x1.tvm_rows import RowsKernel
from effdl.kernels.tvm_runtime import CompiledModule, compile_module, has_feature

__all__ = ["forward", "grad_input", "grad_weight", "host_vectors", "planar_kernel", "rows_kernel"]

# Bytes of a block of rows, to stay in a core's second-level cache beside the weights.
_BLOCK_BYTES = 256 * 1024

# They find nothing to do in these kernels, or what LLVM does anyway, and take most of the time.
_IDLE_PASSES = [
    "s_tir.CompactBufferAllocation",
    "s_tir.HoistIfThenElse",
    "s_tir.LoopPartition",
    "s_tir.RenormalizeSplitPattern",
    "tirx.CommonSubexprElim",
    "tirx.RemoveNoOp",
]


class _Split(NamedTuple):
    width: int
    num_groups: int


@cache
def host_vectors() -> VectorUnit:
    """This machine's vectors."""
    if has_feature("avx512f"):
        return VectorUnit(num_lanes=16, num_registers=32)
    if has_feature("avx2"):
        return VectorUnit(num_lanes=8, num_registers=16)
    return VectorUnit(num_lanes=4, num_registers=32 if has_feature("neon") else 16)


def planar_kernel(
    num_inputs: int,
    num_outputs: int,
    num_pixels: int,
    *,
    read: Geometry = NO_SHIFT,
    write: Geometry = NO_SHIFT,
    activation: str = "none",
    vectors: VectorUnit | None = None,
) -> PlanarKernel:
    """The kernel for planes of this size, with the tile that was fastest for it."""
    vectors = vectors or host_vectors()
    # Wide tiles read few weights; with very many inputs their panel would fill the cache.
    if vectors.num_registers < 32:
        num_rows, num_vectors = 4, 3
    elif num_inputs >= 2048:
        num_rows, num_vectors = 8, 3
    else:
        num_rows, num_vectors = 4, 6
    return PlanarKernel(
        num_inputs=num_inputs,
        num_outputs=num_outputs,
        num_pixels=num_pixels,
        read=read,
        write=write,
        activation=activation,
        num_lanes=vectors.num_lanes,
        num_rows=num_rows,
        num_vectors=num_vectors,
        prefetches=True,
    )


def rows_kernel(
    num_inputs: int,
    num_outputs: int,
    num_pixels: int,
    *,
    read: Geometry = NO_SHIFT,
    write: Geometry = NO_SHIFT,
    activation: str = "none",
    vectors: VectorUnit | None = None,
) -> RowsKernel:
    """The kernel for channels-last images of this size."""
    vectors = vectors or host_vectors()
    tiles = ((6, 4), (8, 3), (12, 2)) if vectors.num_registers >= 32 else ((3, 4), (4, 3), (6, 2))

    def num_computed(tile: tuple[int, int]) -> int:
        panel_size = tile[1] * vectors.num_lanes
        return -(-num_outputs // panel_size) * panel_size

    num_rows, num_vectors = min(tiles, key=num_computed)
    return RowsKernel(
        num_inputs=num_inputs,
        num_outputs=num_outputs,
        num_pixels=num_pixels,
        read=read,
        write=write,
        activation=activation,
        num_lanes=vectors.num_lanes,
        num_rows=num_rows,
        num_vectors=num_vectors,
        num_tiles=max(1, min(16, _BLOCK_BYTES // (4 * num_inputs * num_rows))),
    )


@cache
def _compiled(kernel: PlanarKernel | RowsKernel) -> CompiledModule:
    name = "planes" if isinstance(kernel, PlanarKernel) else "rows"
    with tvm.transform.PassContext(disabled_pass=_IDLE_PASSES):
        return compile_module({name: kernel.build()})


@cache
def choose_split(
    num_columns: int, num_outputs: int, *, num_lanes: int, most: int, num_threads: int
) -> _Split:
    """How wide the tiles are and how the work is divided so that no thread waits long.

    Threads share the columns, or the output channels where there are few columns; then
    each fills its own panels.
    """
    num_vectors = -(-num_columns // num_lanes)
    choices: list[tuple[float, _Split]] = []
    for width in range(1, most + 1):
        num_tiles = -(-num_vectors // width)
        last = num_vectors - (num_tiles - 1) * width
        # A narrow tile waits for its own sums.
        per_tile = max(width, 3) + 0.3
        mine = -(-num_tiles // num_threads)
        cost = mine * per_tile
        if num_threads == 1:
            cost += max(last, 2) - width
        choices.append((cost, _Split(width, 1)))
        if num_threads > 1:
            total = (num_tiles - 1) * per_tile + max(last, 2)
            choices.append(
                (total * (1 / num_threads + 4 / num_outputs), _Split(width, num_threads))
            )
    return min(choices)[1]


def _geometry(num_segments: int, fold_next: int, fold_previous: int, order: str) -> Geometry:
    if fold_next == fold_previous == 0:
        return NO_SHIFT
    return Geometry(
        num_segments=num_segments,
        fold_next=fold_next,
        fold_previous=fold_previous,
        previous_first=order == "previous_first",
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
    out: Tensor | None = None,
) -> Tensor:
    """As `reference.forward`; the weight, [O, C] or [O, C, 1, 1], is packed when it changes.

    The result is written to ``out``, in the memory format of x, if there is one.
    """
    read = _geometry(num_segments, fold_next, fold_previous, order)
    return _convolve(x, weight, bias, read=read, activation=activation, out=out)


def grad_input(
    grad_y: Tensor,
    weight: Tensor,
    *,
    num_segments: int,
    fold_next: int,
    fold_previous: int,
    order: str = "next_first",
) -> Tensor:
    """As `reference.grad_input`."""
    write = _geometry(num_segments, fold_next, fold_previous, order)
    return _convolve(grad_y, weight, None, write=write, is_transposed=True)


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    read: Geometry = NO_SHIFT,
    write: Geometry = NO_SHIFT,
    activation: str = "none",
    is_transposed: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    num_frames, num_inputs, height, width = x.shape
    num_outputs = weight.shape[1 if is_transposed else 0]
    layout = memory_format(x)
    y = out
    if y is None:
        y = torch.empty((num_frames, num_outputs, height, width), memory_format=layout)
    if y.numel() == 0:
        return y
    sizes = num_inputs, num_outputs, height * width
    if layout is torch.channels_last:
        rows = rows_kernel(*sizes, read=read, write=write, activation=activation)
        _compiled(rows).call(
            "rows",
            x.permute(0, 2, 3, 1).flatten(0, 2),
            _packed(weight, rows.panel_size, is_transposed),
            _filled(bias, rows.num_panels * rows.panel_size),
            y.permute(0, 2, 3, 1).flatten(0, 2),
        )
        return y
    planes = planar_kernel(*sizes, read=read, write=write, activation=activation)
    split = choose_split(
        num_frames * height * width,
        num_outputs,
        num_lanes=planes.num_lanes,
        most=planes.num_vectors,
        num_threads=torch.get_num_threads(),
    )
    _compiled(planes).call(
        "planes",
        x.contiguous().flatten(2),
        _packed(weight, planes.num_rows, is_transposed),
        _filled(bias, planes.num_blocks * planes.num_rows),
        *split,
        y.flatten(2),
    )
    return y


def _filled(bias: Tensor | None, size: int) -> Tensor:
    if bias is None:
        return torch.zeros(size)
    return torch.nn.functional.pad(bias.detach(), (0, size - bias.shape[0])).contiguous()


class _Packing(NamedTuple):
    version: int
    address: int
    packed: Tensor


_packings: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _packed(weight: Tensor, block_size: int, is_transposed: bool) -> Tensor:
    """Blocks of output channels beside each other, [blocks, inputs, block_size].

    Kept for as long as the weight lives and nobody writes to it; a tensor made in
    inference mode does not count its writes, so it is packed anew every time.
    """
    if weight.is_inference():
        return _pack(weight, block_size, is_transposed)
    kept: dict[tuple[int, bool], _Packing] | None = _packings.get(weight)
    if kept is None:
        kept = _packings[weight] = {}
    key = block_size, is_transposed
    packing = kept.get(key)
    version, address = weight._version, weight.data_ptr()
    if packing is None or packing.version != version or packing.address != address:
        packing = _Packing(version, address, _pack(weight, block_size, is_transposed))
        kept[key] = packing
    return packing.packed


def _pack(weight: Tensor, block_size: int, is_transposed: bool) -> Tensor:
    matrix = weight.detach().flatten(1)
    if is_transposed:
        matrix = matrix.t()
    num_outputs, num_inputs = matrix.shape
    num_blocks = math.ceil(num_outputs / block_size)
    packed = torch.zeros(num_blocks, num_inputs, block_size)
    num_whole = num_outputs // block_size
    whole = matrix[: num_whole * block_size].unflatten(0, (num_whole, block_size))
    packed[:num_whole] = whole.transpose(1, 2)
    if num_whole < num_blocks:
        rest = matrix[num_whole * block_size :]
        packed[num_whole, :, : rest.shape[0]] = rest.t()
    return packed


def grad_weight(
    grad_y: Tensor,
    x: Tensor,
    *,
    num_segments: int,
    fold_next: int,
    fold_previous: int,
    order: str = "next_first",
) -> Tensor:
    """As `reference.grad_weight`."""
    gradient = torch.zeros(grad_y.shape[1], x.shape[1])
    if x.numel() == 0:
        return gradient
    geometry = _geometry(num_segments, fold_next, fold_previous, order)
    for region in geometry.regions(x.shape[1]):
        end = region.first + region.size
        into = gradient[:, region.first : end]
        for frame in range(x.shape[0]):
            if geometry.exists_at(frame, region.offset):
                outer = grad_y[frame].flatten(1)
                into.addmm_(outer, x[frame + region.offset, region.first : end].flatten(1).t())
    return gradient
