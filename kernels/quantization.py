"""Quantization arithmetic, as ONNX's QLinear operators define it.

A real number r stands as an integer q with a scale s and a zero point z: r = s * (q - z).
Activations are unsigned with a zero point, weights signed without one (z = 0).
An integer operator accumulates exactly in int32 and requantizes once:

    y = clip(round(acc * multiplier) + y_zero_point, y_min, y_max)

with ``multiplier = x_scale * w_scale / y_scale`` and the product in float32, and round
half to even. ReLU and ReLU6 are nothing but y_min and y_max.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["output_multiplier", "requantize"]


def output_multiplier(
    x_scale: float, w_scale: NDArray[np.float32], y_scale: float
) -> NDArray[np.float32]:
    """``x_scale * w_scale / y_scale`` in float32, in that order, as ONNX Runtime does.

    Args:
        x_scale: Scale of the input.
        w_scale: Scale of the weights, [output channels] or [1].
        y_scale: Scale of the output.
    """
    product = np.float32(x_scale) * np.asarray(w_scale, np.float32)
    return (product / np.float32(y_scale)).astype(np.float32)


def requantize(
    accumulator: NDArray[np.int32],
    multiplier: NDArray[np.float32],
    *,
    y_zero_point: int,
    y_min: int = 0,
    y_max: int = 255,
) -> NDArray[np.uint8]:
    """Integer accumulators as the next layer's bytes: the truth of every backend.

    Args:
        accumulator: Sums with the bias, [..., channels].
        multiplier: [channels] or [1].
        y_zero_point: Zero point of the output.
        y_min: Smallest output (the zero point, for a ReLU).
        y_max: Largest output (where 6 stands, for a ReLU6).
    """
    scaled = np.rint(accumulator.astype(np.float32) * multiplier)
    # Beyond the bytes the float32 sum is exact enough: it is clipped anyway.
    return np.clip(scaled + np.float32(y_zero_point), y_min, y_max).astype(np.uint8)
