"""Post-training calibration: from what a network computes to scales and zero points.

Weights are symmetric int8, one scale an output channel; activations are uint8 with a
zero point, one scale a tensor; biases are int32 at the product of the two scales. That
is the arithmetic of ONNX's QLinear operators (see `effdl.kernels.quantization`).
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from effdl.errors import ConfigError

__all__ = [
    "ActivationScale",
    "Histogram",
    "RangeMethod",
    "activation_scale",
    "choose_range",
    "quantize_bias",
    "quantize_weight",
]

RangeMethod = Literal["minmax", "percentile", "mse"]

_NUM_LEVELS = 255
_MAX_INT8 = 127
_MAX_INT32 = 2**31 - 1
_NUM_BINS = 2048
# Of all values, on both sides together.
_PERCENTILE_LEFT_OUT = 6e-5
_NUM_CLIP_STEPS = 40
# Below this a range is a constant's rounding noise.
_SMALLEST_SPAN = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationScale:
    """How an activation tensor stands as unsigned bytes: ``real = scale * (byte - zero_point)``.

    Attributes:
        scale: Real distance of neighbouring bytes.
        zero_point: The byte that stands for 0, 0 to 255.
    """

    scale: float
    zero_point: int

    @property
    def low(self) -> float:
        """The smallest number that a byte stands for."""
        return -self.scale * self.zero_point

    @property
    def high(self) -> float:
        """The largest number that a byte stands for."""
        return self.scale * (_NUM_LEVELS - self.zero_point)

    def round(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """The values [...] as their bytes give them back."""
        scale = np.float32(self.scale)
        steps = np.rint(np.asarray(values, np.float32) / scale) + np.float32(self.zero_point)
        return (np.clip(steps, 0, _NUM_LEVELS) - np.float32(self.zero_point)) * scale


@dataclass(slots=True, kw_only=True)
class Histogram:
    """How often values fall where, over any number of batches.

    Attributes:
        low: Smallest value counted.
        high: Largest value counted.
        counts: Values in equal bins from ``low`` to ``high`` [num_bins].
    """

    low: float
    high: float
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_NUM_BINS, dtype=np.int64))

    def add(self, values: NDArray[np.floating]) -> None:
        """Count values [...]; those beyond the ends count at the ends."""
        span = max(self.high - self.low, _SMALLEST_SPAN)
        places = (values.reshape(-1) - self.low) * (len(self.counts) / span)
        indices = np.clip(places, 0, len(self.counts) - 1).astype(np.intp)
        self.counts += np.bincount(indices, minlength=len(self.counts))

    @property
    def centers(self) -> NDArray[np.float64]:
        """Middle of each bin [num_bins]."""
        edges = np.linspace(self.low, self.high, len(self.counts) + 1)
        return (edges[:-1] + edges[1:]) / 2


def activation_scale(low: float, high: float) -> ActivationScale:
    """The bytes of a range; 0 always has one of its own.

    Args:
        low: Smallest number to stand for.
        high: Largest number to stand for.

    Raises:
        ConfigError: The range is not finite, or turned around.
    """
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ConfigError(f"wanted a finite range, got {low} to {high}")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max(high - low, _SMALLEST_SPAN) / _NUM_LEVELS))
    return ActivationScale(scale=scale, zero_point=round(min(_NUM_LEVELS, max(0.0, -low / scale))))


def choose_range(histogram: Histogram, method: RangeMethod) -> tuple[float, float]:
    """Which numbers the bytes should stand for.

    ``minmax`` keeps all that was seen; ``percentile`` leaves out the rarest ten
    thousandth; ``mse`` clips where clipping and rounding together cost the least mean
    square error, searched over both ends.

    Args:
        histogram: Of what was seen.
        method: How.

    Returns:
        The lower and the upper end, with 0 between them.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if method == "minmax" or high - low < _SMALLEST_SPAN:
        return low, high
    if method == "percentile":
        shares = np.cumsum(histogram.counts) / max(1, histogram.counts.sum())
        first = int(np.searchsorted(shares, _PERCENTILE_LEFT_OUT / 2))
        last = int(np.searchsorted(shares, 1 - _PERCENTILE_LEFT_OUT / 2))
        edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
        return min(float(edges[first]), 0.0), max(float(edges[min(last + 1, _NUM_BINS)]), 0.0)
    # One end at a time, the one that reaches further first.
    ends = [low, high]
    for end in sorted((0, 1), key=lambda i: -abs(ends[i])):
        if ends[end] == 0.0:
            continue
        tries = [ends[end] * (1 - step / _NUM_CLIP_STEPS) for step in range(_NUM_CLIP_STEPS)]
        errors = [_mean_square_error(histogram, _with(ends, end, value)) for value in tries]
        ends[end] = tries[int(np.argmin(errors))]
    return ends[0], ends[1]


def _with(ends: list[float], end: int, value: float) -> tuple[float, float]:
    return (value, ends[1]) if end == 0 else (ends[0], value)


def _mean_square_error(histogram: Histogram, ends: tuple[float, float]) -> float:
    scale = activation_scale(*ends)
    centers, counts = histogram.centers, histogram.counts
    clipped = np.clip(centers, scale.low, scale.high) - centers
    # Within a step, values are spread evenly: the variance of rounding is step^2 / 12.
    inside = counts[(centers >= scale.low) & (centers <= scale.high)].sum()
    return float((counts * clipped**2).sum() + inside * scale.scale**2 / 12)


def quantize_weight(
    weight: NDArray[np.floating], *, axis: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weights as signed bytes -127 to 127 with one scale an output channel.

    Args:
        weight: [...].
        axis: Its axis of output channels.

    Returns:
        The bytes [...] and the scales [output channels].
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others) if weight.size else np.zeros(weight.shape[axis])
    # A channel of zeros has any scale; 1 keeps its bias exact.
    scales = np.where(largest > 0, largest / _MAX_INT8, 1.0).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    steps = np.rint(weight.astype(np.float32) / scales.reshape(shape))
    return np.clip(steps, -_MAX_INT8, _MAX_INT8).astype(np.int8), scales


def quantize_bias(
    bias: NDArray[np.floating], x_scale: float, w_scale: NDArray[np.float32]
) -> NDArray[np.int32]:
    """A bias [output channels] as integers at scale ``x_scale * w_scale``."""
    scale = np.float64(np.float32(x_scale)) * w_scale.astype(np.float64)
    return np.clip(np.rint(bias / scale), -_MAX_INT32, _MAX_INT32).astype(np.int32)
