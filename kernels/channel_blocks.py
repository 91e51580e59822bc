"""Bytes of an image in blocks of 64 channels: the layout between fused int8 operators.

A tensor of C channels stands in blocks of 64 channels, the rest in one of 32 and one of
16 (C rounded up to 16, with zero weights). A block is [rows][columns][width], one after
the other in one flat buffer: block b starts at byte ``start_b * rows * columns``. Next to
NCHW and NHWC this keeps each vector load on one cache line, puts neighbouring channels in
the lanes (so 7x7 images waste none), and serves pointwise and depthwise convolutions
alike: nothing is rearranged between operators.

Weights for AVX512-VNNI lie as the sums of `effdl.kernels.tvm_vnni.pack_lanes` come out, so
that the bytes need no shuffle; those for other processors ("plain") in natural order.
"""

from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Block",
    "channel_blocks",
    "from_blocks",
    "pack_depthwise_vectors",
    "pack_depthwise_weights",
    "pack_pointwise_vectors",
    "pack_plain_depthwise_weights",
    "pack_plain_pointwise_weights",
    "pack_plain_vectors",
    "pack_pointwise_weights",
    "padded_channels",
    "to_blocks",
]

_WIDTHS = (64, 32, 16)
_Number = TypeVar("_Number", bound=np.generic)


class Block(NamedTuple):
    """Neighbouring channels that lie together: the first, and how many."""

    start: int
    width: int


def padded_channels(num_channels: int) -> int:
    """Channels with those that only fill the last block."""
    return -(-num_channels // 16) * 16


def channel_blocks(num_channels: int) -> tuple[Block, ...]:
    """The blocks of ``num_channels`` channels, in order.

    >>> [block.width for block in channel_blocks(144)]
    [64, 64, 16]
    """
    blocks: list[Block] = []
    start, end = 0, padded_channels(num_channels)
    for width in _WIDTHS:
        while end - start >= width:
            blocks.append(Block(start, width))
            start += width
    return tuple(blocks)


def to_blocks(x: NDArray[np.uint8], *, padding: int = 0, fill: int = 0) -> NDArray[np.uint8]:
    """[C, H, W] in blocks.

    Args:
        x: The image.
        padding: Rows and columns added on each side.
        fill: What they and the filling channels hold.
    """
    num_channels = x.shape[0]
    edges = ((0, padded_channels(num_channels) - num_channels), *((padding, padding),) * 2)
    padded = np.pad(x, edges, constant_values=fill)
    return np.concatenate(
        [
            padded[start : start + width].transpose(1, 2, 0).ravel()
            for start, width in channel_blocks(num_channels)
        ]
    )


def from_blocks(
    flat: NDArray[np.uint8], shape: tuple[int, int, int], *, padding: int = 0
) -> NDArray[np.uint8]:
    """The inverse of `to_blocks`, for an image of ``shape`` [C, H, W]."""
    num_channels, height, width = shape
    rows, columns = height + 2 * padding, width + 2 * padding
    num_pixels = rows * columns
    parts = [
        flat[start * num_pixels : (start + width) * num_pixels]
        .reshape(rows, columns, width)
        .transpose(2, 0, 1)
        for start, width in channel_blocks(num_channels)
    ]
    whole = np.concatenate(parts)[:num_channels]
    return whole[:, padding : padding + height, padding : padding + width]


def _pad_channels(values: NDArray[Any]) -> NDArray[Any]:
    missing = padded_channels(values.shape[0]) - values.shape[0]
    return np.pad(values, [(0, missing), *[(0, 0)] * (values.ndim - 1)])


def _packed_order() -> NDArray[np.int64]:
    vector, lane = np.meshgrid(np.arange(4), np.arange(16), indexing="ij")
    return 16 * (lane // 4) + 4 * vector + lane % 4


def _pointwise_order(width: int) -> NDArray[np.int64]:
    # One vector for each 16 channels of one pixel; `pack_lanes` takes four vectors, of
    # one, two or four pixels.
    lane = np.arange(16)
    vectors = np.arange(width // 16)[:, None]
    return width // 4 * (lane // 4) + 4 * vectors + lane % 4


def _depthwise_order(width: int) -> NDArray[np.int64]:
    # 64 neighbouring bytes, of one, two or four pixels.
    return _packed_order() % width


def pack_pointwise_weights(weight: NDArray[np.int8]) -> NDArray[np.int8]:
    """[O, K] for lanes of output channels: for each block [K/4][width/16][16][4]."""
    num_inputs = -(-weight.shape[1] // 4) * 4
    padded = _pad_channels(weight)
    padded = np.pad(padded, ((0, 0), (0, num_inputs - weight.shape[1])))
    parts = []
    for start, width in channel_blocks(weight.shape[0]):
        lanes = padded[start + _pointwise_order(width)]
        parts.append(lanes.reshape(-1, 16, num_inputs // 4, 4).transpose(2, 0, 1, 3).ravel())
    return np.ascontiguousarray(np.concatenate(parts))


def pack_pointwise_vectors(values: NDArray[_Number]) -> NDArray[_Number]:
    """Biases or multipliers [O] in the order of the lanes, [O rounded up to 16]."""
    padded = _pad_channels(values)
    return np.concatenate(
        [
            padded[start + _pointwise_order(width)].ravel()
            for start, width in channel_blocks(values.shape[0])
        ]
    )


def pack_depthwise_weights(
    weight: NDArray[np.int8], *, num_rows: int, stride: int
) -> NDArray[np.int8]:
    """[C, k, k] for lanes of channels, four rows of one column in each.

    For each block [k columns][num_rows][groups][4][16][4]: output row r of ``num_rows``
    that are computed together finds its taps ``r * stride`` rows further down; ``groups``
    of four rows cover them all.
    """
    size = weight.shape[1]
    num_groups = -(-((num_rows - 1) * stride + size) // 4)
    padded = _pad_channels(weight)
    parts = []
    for start, width in channel_blocks(weight.shape[0]):
        lanes = padded[start + _depthwise_order(width)]
        rows = np.zeros((size, num_rows, 4 * num_groups, 4, 16), np.int8)
        for row in range(num_rows):
            taps = slice(row * stride, row * stride + size)
            rows[:, row, taps] = lanes.transpose(3, 2, 0, 1)
        grouped = rows.reshape(size, num_rows, num_groups, 4, 4, 16)
        parts.append(grouped.transpose(0, 1, 2, 4, 5, 3).ravel())
    return np.ascontiguousarray(np.concatenate(parts))


def pack_depthwise_vectors(values: NDArray[_Number]) -> NDArray[_Number]:
    """Biases or multipliers [C] in the order of the lanes, 64 for each block."""
    padded = _pad_channels(values)
    return np.concatenate(
        [
            padded[start + _depthwise_order(width)].ravel()
            for start, width in channel_blocks(values.shape[0])
        ]
    )


def pack_plain_pointwise_weights(weight: NDArray[np.int8]) -> NDArray[np.int8]:
    """[O, K] in natural order: for each block [K][width]."""
    padded = _pad_channels(weight)
    blocks = channel_blocks(weight.shape[0])
    return np.concatenate([padded[start : start + width].T.ravel() for start, width in blocks])


def pack_plain_depthwise_weights(weight: NDArray[np.int8]) -> NDArray[np.int8]:
    """[C, k, k] in natural order: for each block [k * k][width]."""
    return pack_plain_pointwise_weights(weight.reshape(weight.shape[0], -1))


def pack_plain_vectors(values: NDArray[_Number]) -> NDArray[_Number]:
    """Biases or multipliers in natural order, [C rounded up to 16]."""
    return _pad_channels(values)
