"""From parts to the whole: a network is not the plain sum of its operators.

An operator timed alone runs on warm caches and pays for entering the runtime and
for reordering its input; inside a network it finds cold weights and none of that.
On whole networks measured in the same rounds the correction

    network = sum over operators of scale[class] * operator + per block + offset

is fitted with coefficients that cannot be negative, and scales of at least 0.3, so it
can be dealt out to the operators again. Classes are blocks without and with
squeeze-excite, and the rest.
"""

from collections.abc import Sequence
from itertools import combinations

import msgspec
import numpy as np
from numpy.typing import NDArray

from effdl.errors import ConfigError
from effdl.opspec import OpSpec

__all__ = ["Calibration", "fit_calibration", "network_features", "nonnegative_least_squares"]

_NUM_FEATURES = 6
_NUM_FOLDS = 10
# The prior that nothing needs correcting; its weight grows with the networks, because
# columns that rise together (other operators, blocks, 1) stay hard to tell apart.
_PRIOR = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
_PRIOR_WEIGHT = 0.08
# An operator keeps at least so much of the time it takes alone.
_LEAST = np.array([0.3, 0.3, 0.3, 0.0, 0.0, 0.0])


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fitted correction.

    Attributes:
        scales: Of blocks without squeeze-excite, with it, and of other operators.
        per_block_ms: Added to every block, in milliseconds.
        per_squeeze_excite_ms: Added to every block with squeeze-excite.
        offset_ms: Added to every network.
        median_ratio: Median over 20th percentile of a whole network: predictions
            are of the median, which is what a user sees.
        reference_s: Usual time of the reference kernel while all was measured.
        num_networks: Whole networks it was fitted on.
        mape_percent: Mean absolute error on networks left out of the fit.
        worst_percent: Largest of those errors.
        interval_percent: Half the 95 % interval of a prediction, by those errors.
        slow_percent: How much slower than usual the machine was at the slowest 5 % of
            the time, by the reference kernel.
        resolutions: Lowest and highest input resolution among the networks.
    """

    scales: tuple[float, float, float]
    per_block_ms: float
    per_squeeze_excite_ms: float
    offset_ms: float
    median_ratio: float
    reference_s: float
    num_networks: int
    mape_percent: float
    worst_percent: float
    interval_percent: float
    slow_percent: float = 0.0
    resolutions: tuple[int, int]

    def correct(self, ops: Sequence[OpSpec], op_ms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Milliseconds [len(ops)] whose sums are medians of whole networks.

        The offset goes to the operator that reads the image.

        Args:
            ops: The operators.
            op_ms: What each takes alone [len(ops)], in milliseconds.
        """
        kinds = _kinds(ops)
        extra = np.array([self.per_block_ms, self.per_block_ms + self.per_squeeze_excite_ms, 0.0])
        stem = np.array([op.features.get("image_pixels", 0.0) > 0 for op in ops])
        corrected = np.array(self.scales)[kinds] * op_ms + extra[kinds] + self.offset_ms * stem
        return self.median_ratio * corrected


def network_features(ops: Sequence[OpSpec], op_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the correction is linear in [6], for one network.

    Milliseconds of blocks without squeeze-excite, of those with it, and of the
    rest; numbers of blocks and of squeeze-excites; 1.
    """
    kinds = _kinds(ops)
    sums = [float(op_ms[kinds == kind].sum()) for kind in range(3)]
    num_blocks, num_squeezes = int((kinds < 2).sum()), int((kinds == 1).sum())
    return np.array([*sums, num_blocks, num_squeezes, 1.0])


def fit_calibration(
    features: NDArray[np.float64],
    p20_ms: NDArray[np.float64],
    median_ms: NDArray[np.float64],
    *,
    reference_s: float,
    slow_percent: float = 0.0,
    resolutions: tuple[int, int],
) -> Calibration:
    """Fit the correction and its error on networks it has not seen.

    Errors are relative, so small networks count as much as large ones.

    Args:
        features: `network_features` of each network [N, 6].
        p20_ms: 20th percentile of each network [N].
        median_ms: Median of each network [N].
        reference_s: Usual time of the reference kernel.
        slow_percent: How much slower the machine was at the slowest 5 % of the time.
        resolutions: Lowest and highest input resolution among the networks.

    Raises:
        ConfigError: There are fewer than four networks.
    """
    num = len(p20_ms)
    if num < 4:
        raise ConfigError(f"wanted at least 4 networks to calibrate on, got {num}")
    folds, errors = np.arange(num) % min(num, _NUM_FOLDS), np.zeros(num)
    for fold in np.unique(folds):
        out = folds == fold
        fitted = _fit(features[~out], p20_ms[~out])
        errors[out] = features[out] @ fitted / p20_ms[out] - 1
    c = _fit(features, p20_ms).tolist()
    return Calibration(
        scales=(c[0], c[1], c[2]),
        per_block_ms=c[3],
        per_squeeze_excite_ms=c[4],
        offset_ms=c[5],
        median_ratio=float(np.median(median_ms / p20_ms)),
        reference_s=reference_s,
        num_networks=num,
        mape_percent=100 * float(np.abs(errors).mean()),
        worst_percent=100 * float(np.abs(errors).max()),
        interval_percent=196 * float(np.sqrt(np.mean(errors**2))),
        slow_percent=slow_percent,
        resolutions=resolutions,
    )


def _fit(features: NDArray[np.float64], target_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    relative = features / target_ms[:, None]
    # Columns as shares of a network, so that one prior weight fits them all.
    share = np.maximum(relative.mean(axis=0), 1e-12)
    share[3:] = np.maximum(share[3:], relative[:, :3].sum(axis=1).mean() * 0.1)
    prior = _PRIOR_WEIGHT * np.sqrt(len(target_ms)) * np.diag(share)
    matrix = np.vstack([relative, prior])
    target = np.concatenate([np.ones(len(target_ms)), prior @ _PRIOR])
    return _LEAST + nonnegative_least_squares(matrix, target - matrix @ _LEAST)


def nonnegative_least_squares(
    matrix: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The x >= 0 that minimises |matrix x - target|, for few columns.

    Every set of positive columns is tried, so the result is exact.

    Args:
        matrix: [rows, columns].
        target: [rows].

    Returns:
        [columns].
    """
    num = matrix.shape[1]
    gram, moment = matrix.T @ matrix, matrix.T @ target
    best, best_value = np.zeros(num), 0.0
    for size in range(1, num + 1):
        for subset in combinations(range(num), size):
            columns = np.array(subset)
            x = np.linalg.lstsq(gram[np.ix_(columns, columns)], moment[columns], rcond=None)[0]
            value = float(-moment[columns] @ x)
            if value < best_value and (x >= 0).all():
                best, best_value = np.zeros(num), value
                best[columns] = x
    return best


def _kinds(ops: Sequence[OpSpec]) -> NDArray[np.intp]:
    """0: block, 1: block with squeeze-excite, 2: anything else [len(ops)]."""
    return np.array(
        [
            2 if not op.features.get("block") else int(op.features.get("squeeze_excite", 0) > 0)
            for op in ops
        ],
        dtype=np.intp,
    )
