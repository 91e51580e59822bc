"""From samples to figures: percentiles, dropped samples, intervals over rounds."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["drop_interrupted", "interval_half_width", "paired_ratio", "row_percentile"]

_NUM_RESAMPLES = 200


def row_percentile(samples: NDArray[np.float64], percent: float) -> NDArray[np.float64]:
    """Percentile of each row, with linear interpolation, ignoring NaN.

    Args:
        samples: [rows, samples]; every row holds at least one number.
        percent: From 0 to 100.

    Returns:
        [rows].
    """
    ordered = np.sort(samples, axis=1)
    last = np.isfinite(samples).sum(axis=1) - 1
    position = last * (percent / 100)
    below = np.floor(position).astype(np.intp)
    above = np.minimum(below + 1, last)
    low = np.take_along_axis(ordered, below[:, None], axis=1)[:, 0]
    high = np.take_along_axis(ordered, above[:, None], axis=1)[:, 0]
    return low + (high - low) * (position - below)


def interval_half_width(samples: NDArray[np.float64], percent: float, *, seed: int = 0) -> float:
    """Half the 95 % interval of a percentile, by a bootstrap over rounds.

    Whole rounds are drawn with replacement, not samples: noise comes in bursts, so
    samples of one round are not independent and would promise too much.

    Args:
        samples: [rounds, samples] in any unit; NaN where a sample was dropped.
        percent: Which percentile, from 0 to 100.
        seed: Of the resampling.

    Returns:
        Half the width, in the unit of the samples; 0 for a single round, which says
        nothing of its spread.
    """
    num_rounds = len(samples)
    picks = np.random.default_rng(seed).integers(0, num_rounds, size=(_NUM_RESAMPLES, num_rounds))
    resampled = samples[picks].reshape(_NUM_RESAMPLES, -1)
    low, high = np.percentile(row_percentile(resampled, percent), [2.5, 97.5])
    return float(high - low) / 2


def drop_interrupted(
    samples: NDArray[np.float64], interrupted: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """NaN in place of interrupted samples, if at least half of all remain.

    A round that would lose every sample keeps them, so that every round counts.

    Args:
        samples: [rounds, samples].
        interrupted: [rounds, samples].
    """
    if interrupted.mean() > 0.5:
        return samples
    droppable = interrupted & ~interrupted.all(axis=1, keepdims=True)
    return np.where(droppable, np.nan, samples)


def paired_ratio(
    first: NDArray[np.float64], second: NDArray[np.float64], percent: float, *, seed: int = 0
) -> tuple[float, float, float]:
    """Ratio of two percentiles, with its 95 % interval.

    Round i of both was measured at the same time, so both are resampled by the
    same rounds: noise that hits both cancels out.

    Args:
        first: [rounds, samples]; NaN where a sample was dropped.
        second: [rounds, samples] of the same rounds.
        percent: Which percentile, from 0 to 100.
        seed: Of the resampling.

    Returns:
        Second over first, and the low and high end of the interval.
    """
    num_rounds = len(first)
    picks = np.random.default_rng(seed).integers(0, num_rounds, size=(_NUM_RESAMPLES, num_rounds))

    def resampled(samples: NDArray[np.float64]) -> NDArray[np.float64]:
        return row_percentile(samples[picks].reshape(_NUM_RESAMPLES, -1), percent)

    pooled = [row_percentile(samples.reshape(1, -1), percent)[0] for samples in (first, second)]
    low, high = np.percentile(resampled(second) / resampled(first), [2.5, 97.5])
    return float(pooled[1] / pooled[0]), float(low), float(high)
