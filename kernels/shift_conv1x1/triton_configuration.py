"""Tile sizes of the Triton kernels: a function of the shape and of the kind of GPU.

Chosen by reasoning, and compiled for every kind of GPU without a spilled register; they
were not timed. `effdl.kernels.shift_conv1x1.triton_tuning` times alternatives on a GPU.
"""

from dataclasses import replace

from effdl.kernels.triton_tiles import FEW_PROGRAMS, Tile, power_of_two

__all__ = ["choose_tile", "choose_weight_tile"]


def choose_tile(
    *,
    num_rows: int,
    num_columns: int,
    num_terms: int,
    borders: tuple[int, ...] = (),
    element_bytes: int,
    tensor_cores: bool,
    is_amd: bool = False,
) -> Tile:
    """The tile of the forward product or of the gradient to x.

    Args:
        num_rows: Channels of the result.
        num_columns: Pixels of all frames.
        num_terms: Length of each sum.
        borders: Where the frame that is read changes along the sum: a depth that divides
            them all needs no frame for each channel.
        element_bytes: 1, 2 or 4.
        tensor_cores: Whether the product runs on them (float32 only as tf32).
        is_amd: Whether the GPU is AMD's, with 64 KiB of shared memory.
    """
    if not tensor_cores:
        return Tile(rows=64, columns=64, depth=16, num_warps=8, num_stages=2)
    deepest = {1: 128, 2: 64, 4: 32}[element_bytes]
    least = {1: 32, 2: 16, 4: 16}[element_bytes]
    depth = deepest
    while depth > least and (
        depth >= 2 * max(num_terms, 1) or any(b % depth for b in borders if b < num_terms)
    ):
        depth //= 2
    if any(b % depth for b in borders if b < num_terms):
        depth = min(deepest, max(least, power_of_two(num_terms), 32))
    rows = 128 if num_rows > 64 else 64 if num_rows > 32 else 32
    tile = Tile(
        rows=rows,
        columns=128,
        depth=depth,
        num_warps=8 if rows > 64 else 4,
        num_stages=2 if is_amd else 3,
    )
    if tile.count(num_rows, num_columns) >= FEW_PROGRAMS:
        return tile
    return replace(tile, rows=min(rows, 64), columns=64, num_warps=4)


def choose_weight_tile(
    *,
    num_outputs: int,
    num_channels: int,
    num_pixels: int,
    element_bytes: int,
    tensor_cores: bool,
    is_amd: bool = False,
) -> tuple[Tile, int]:
    """The tile of the gradient to the weight, and how many steps of its loop one program takes.

    The number of steps is a power of two: few kernels are compiled for many batch sizes.

    Args:
        num_outputs: Output channels.
        num_channels: Input channels.
        num_pixels: Of all frames: the length of each sum.
        element_bytes: 2 or 4.
        tensor_cores: Whether the product runs on them.
        is_amd: Whether the GPU is AMD's.
    """
    if tensor_cores:
        depth = 64 if element_bytes == 2 else 32
        tile = Tile(rows=64, columns=64, depth=depth, num_warps=4, num_stages=2 if is_amd else 3)
    else:
        tile = Tile(rows=64, columns=64, depth=16, num_warps=8, num_stages=2)
    num_parts = max(1, 4 * FEW_PROGRAMS // max(1, tile.count(num_outputs, num_channels)))
    steps = -(-num_pixels // (tile.depth * num_parts))
    return tile, power_of_two(min(max(steps, 4), 1024))
