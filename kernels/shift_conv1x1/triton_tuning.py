"""Timing tiles of the folded shift on a GPU: run by a person, never at import or by a call.

What comes out best for a GPU belongs into `effdl.kernels.shift_conv1x1.triton_configuration`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product

import torch
from triton.runtime.errors import OutOfResources

from effdl.kernels.shift_conv1x1 import triton_kernel
from effdl.kernels.triton_tiles import Tile

__all__ = ["TimedTile", "candidate_tiles", "tune_forward", "tune_grad_input"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedTile:
    """A tile and how long the product took with it.

    Attributes:
        tile: The tile.
        latency_ms: Measured, in milliseconds.
    """

    tile: Tile
    latency_ms: float


def candidate_tiles(*, element_bytes: int, tensor_cores: bool) -> tuple[Tile, ...]:
    """Tiles worth timing; some need more shared memory than a GPU has.

    Args:
        element_bytes: 1, 2 or 4.
        tensor_cores: Whether the product runs on them.
    """
    if not tensor_cores:
        sizes = product((32, 64), (64, 128), (16,), (4, 8), (2,))
    else:
        depths = (64 // element_bytes, 128 // element_bytes)
        sizes = product((64, 128), (64, 128, 256), depths, (4, 8), (2, 3, 4))
    return tuple(
        Tile(rows=rows, columns=columns, depth=depth, num_warps=num_warps, num_stages=num_stages)
        for rows, columns, depth, num_warps, num_stages in sizes
    )


def tune_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    num_segments: int,
    fold_next: int,
    fold_previous: int,
    measure: Callable[[Callable[[], object]], float],
    tiles: Iterable[Tile] | None = None,
) -> tuple[TimedTile, ...]:
    """Time the forward product with every tile that fits.

    Args:
        x: [N*T, C, H, W].
        weight: [O, C].
        num_segments: T.
        fold_next: Channels read from the next frame.
        fold_previous: Channels read from the previous frame.
        measure: Times a call, in milliseconds, such as ``triton.testing.do_bench``.
        tiles: None: `candidate_tiles`.

    Returns:
        The fastest first.
    """

    def run(tile: Tile) -> object:
        return triton_kernel.forward(
            x,
            weight,
            None,
            num_segments=num_segments,
            fold_next=fold_next,
            fold_previous=fold_previous,
            tile=tile,
        )

    return _time(run, _candidates(x, tiles), measure)


def tune_grad_input(
    grad_y: torch.Tensor,
    weight: torch.Tensor,
    *,
    num_segments: int,
    fold_next: int,
    fold_previous: int,
    measure: Callable[[Callable[[], object]], float],
    tiles: Iterable[Tile] | None = None,
) -> tuple[TimedTile, ...]:
    """`tune_forward` for the gradient to x; arguments as there."""

    def run(tile: Tile) -> object:
        return triton_kernel.grad_input(
            grad_y,
            weight,
            num_segments=num_segments,
            fold_next=fold_next,
            fold_previous=fold_previous,
            tile=tile,
        )

    return _time(run, _candidates(grad_y, tiles), measure)


def _candidates(x: torch.Tensor, tiles: Iterable[Tile] | None) -> tuple[Tile, ...]:
    if tiles is not None:
        return tuple(tiles)
    on_tensor_cores = x.dtype != torch.float32 or bool(torch.backends.cuda.matmul.allow_tf32)
    return candidate_tiles(element_bytes=x.element_size(), tensor_cores=on_tensor_cores)


def _time(
    run: Callable[[Tile], object],
    tiles: Iterable[Tile],
    measure: Callable[[Callable[[], object]], float],
) -> tuple[TimedTile, ...]:
    timed: list[TimedTile] = []
    for tile in tiles:
        try:
            latency_ms = measure(lambda tile=tile: run(tile))
        except OutOfResources:
            continue
        timed.append(TimedTile(tile=tile, latency_ms=latency_ms))
    return tuple(sorted(timed, key=lambda each: each.latency_ms))
