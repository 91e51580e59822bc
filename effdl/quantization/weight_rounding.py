"""Rounding weights so that the layer's output moves least, not each weight.

Rounding a weight leaves an error; the weights after it, not rounded yet, are moved so
that on the samples seen they make up for it. That is optimal brain surgery applied to
rounding (Frantar et al., GPTQ, arXiv:2210.17323, sections 3 and 4), here around the
mean of the inputs: what is left of the mean goes into the bias.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["round_weight", "sample_patches"]

_MAX_INT8 = 127
# Added to the covariance's diagonal, as a share of its mean: few samples say little of
# many channels.
_DAMPING = 0.02


def sample_patches(
    x: NDArray[np.float32],
    *,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    dilations: tuple[int, int],
    max_patches: int,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """What a convolution's filter sees at some of its places.

    Args:
        x: Input [N, C, H, W].
        kernel: Height and width of the filter.
        strides: Vertical and horizontal stride.
        pads: Zeros above, left, below, right.
        dilations: Vertical and horizontal distance of taps.
        max_patches: How many at most; a random choice.
        rng: Chooses.

    Returns:
        [num_patches, C, kernel height * kernel width].
    """
    num, channels, height, width = x.shape
    rows = (height + pads[0] + pads[2] - dilations[0] * (kernel[0] - 1) - 1) // strides[0] + 1
    columns = (width + pads[1] + pads[3] - dilations[1] * (kernel[1] - 1) - 1) // strides[1] + 1
    places = num * rows * columns
    chosen = np.arange(places) if places <= max_patches else rng.choice(places, max_patches, False)
    image, row, column = np.unravel_index(chosen, (num, rows, columns))
    patches = np.zeros((len(chosen), channels, kernel[0] * kernel[1]), dtype=np.float32)
    for tap in range(kernel[0] * kernel[1]):
        y = row * strides[0] - pads[0] + (tap // kernel[1]) * dilations[0]
        z = column * strides[1] - pads[1] + (tap % kernel[1]) * dilations[1]
        inside = (y >= 0) & (y < height) & (z >= 0) & (z < width)
        patches[inside, :, tap] = x[image[inside], :, y[inside], z[inside]]
    return patches


def round_weight(
    weight: NDArray[np.floating],
    scales: NDArray[np.float32],
    inputs: NDArray[np.float32],
) -> NDArray[np.int8]:
    """Weights as bytes, rounded one input after another, each error made up for by the rest.

    Args:
        weight: [groups, outputs a group, inputs a group].
        scales: [groups, outputs a group].
        inputs: Samples [num_samples, groups, inputs a group].

    Returns:
        [groups, outputs a group, inputs a group].
    """
    groups, _, width = weight.shape
    centered = (inputs - inputs.mean(axis=0)).transpose(1, 0, 2).astype(np.float64)
    covariance = np.matmul(centered.transpose(0, 2, 1), centered) / max(1, len(inputs))
    spread = covariance.diagonal(axis1=1, axis2=2)
    damping = _DAMPING * spread.mean(axis=1) + np.finfo(np.float32).tiny
    covariance[:, np.arange(width), np.arange(width)] += damping[:, None]
    # Inputs that vary most come first: their errors can still be made up for.
    order = np.argsort(-spread, axis=1, kind="stable")
    each = np.arange(groups)[:, None]
    covariance = covariance[each[:, :, None], order[:, :, None], order[:, None, :]]
    inverse = np.linalg.inv(covariance)
    upper = np.linalg.cholesky(inverse).transpose(0, 2, 1)
    left = np.take_along_axis(weight.astype(np.float64), order[:, None, :], axis=2) / scales[
        ..., None
    ].astype(np.float64)
    rounded = np.empty_like(left)
    for i in range(width):
        rounded[:, :, i] = np.clip(np.rint(left[:, :, i]), -_MAX_INT8, _MAX_INT8)
        error = (left[:, :, i] - rounded[:, :, i]) / upper[:, None, i, i]
        left[:, :, i + 1 :] -= error[:, :, None] * upper[:, None, i, i + 1 :]
    restored = np.empty_like(rounded)
    np.put_along_axis(restored, np.broadcast_to(order[:, None, :], rounded.shape), rounded, axis=2)
    return restored.astype(np.int8)
