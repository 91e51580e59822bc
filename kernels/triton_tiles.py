"""Tile sizes of Triton's matrix products, and the ones of 8-bit integers and 8-bit floats.

Functions of the shape and of the kind of GPU, chosen by reasoning: they compile for every
kind of GPU without a spilled register, and were not timed.
"""

from dataclasses import dataclass

import triton

__all__ = ["FEW_PROGRAMS", "Tile", "byte_tile", "power_of_two"]

# Below this many programs a smaller tile keeps more of a large GPU busy.
FEW_PROGRAMS = 132


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """What one program computes.

    Attributes:
        rows: Of the result.
        columns: Of the result.
        depth: Terms of the sum that are added in one step of the loop.
        num_warps: Warps of a program.
        num_stages: Steps whose loads are under way at once.
    """

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int

    def count(self, num_rows: int, num_columns: int) -> int:
        """How many tiles a result of this size has."""
        return triton.cdiv(num_rows, self.rows) * triton.cdiv(num_columns, self.columns)


def power_of_two(number: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << max(number - 1, 0).bit_length()


def byte_tile(
    *,
    num_rows: int,
    num_columns: int,
    num_terms: int,
    element_bytes: int = 1,
    is_amd: bool = False,
) -> Tile:
    """The tile of a product of bytes, or of bytes with wider activations.

    Args:
        num_rows: Of the result: the batch, or pixels.
        num_columns: Of the result: output channels.
        num_terms: Length of each sum.
        element_bytes: Of an activation: 1, 2, or 4 (which no tensor core multiplies exactly).
        is_amd: Whether the GPU is AMD's, with 64 KiB of shared memory.
    """
    num_stages = 2 if is_amd else 3
    depth = max(32, min(128 // element_bytes, power_of_two(num_terms)))
    if num_rows <= 16:
        # Bound by reading the weights: narrow tiles, so that all of the GPU reads.
        return Tile(rows=16, columns=32, depth=depth, num_warps=4, num_stages=num_stages)
    if element_bytes == 4:
        # With 64 rows Triton 3.6 rounds float32 to tf32 on sm_100, asked for or not.
        return Tile(rows=32, columns=64, depth=16, num_warps=4, num_stages=2)
    tile = Tile(rows=128, columns=128, depth=depth, num_warps=8, num_stages=num_stages)
    if num_columns <= 64 or tile.count(num_rows, num_columns) < FEW_PROGRAMS:
        columns = 32 if num_columns <= 32 else 64
        return Tile(rows=64, columns=columns, depth=depth, num_warps=4, num_stages=num_stages)
    return tile
