"""How good a launch-and-work fit is on networks it has not seen.

With 40 measurements or more their own cross-validated errors say it; with
fewer, the posterior of the coefficients and Student's t do.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from effdl.targets.block_fit import (
    FEW_SAMPLES,
    Measurements,
    check_measurements,
    fit_blocks,
    fit_by_descent,
)
from effdl.targets.block_model import (
    BlockCoefficients,
    launch_and_work,
    op_features,
    sum_over_slots,
)

__all__ = ["CrossValidation", "cross_validate", "fit_best", "predictive_interval_percent"]

_MIN_SAMPLES_FOR_CORRECTIONS = 200

_COVERAGE = 0.95
# Student's t at 97.5 % for 1, 2, 3, ... degrees of freedom; then the normal one's.
_STUDENT_T = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
_NORMAL = 1.9600


class CrossValidation(NamedTuple):
    """Errors on networks that the fit did not see.

    Attributes:
        mape_percent: Mean absolute percentage error.
        spearman: Rank correlation of predicted and measured.
        interval_percent: 95 % of the measurements lie within this many
            percent of their prediction.
    """

    mape_percent: float
    spearman: float
    interval_percent: float


def fit_best(
    measured: Measurements, unseen: NDArray[np.intp], *, seed: int = 0
) -> tuple[BlockCoefficients, CrossValidation]:
    """The fit, and its errors on unseen networks.

    From 200 networks on, corrections are tried and kept where they lower the
    cross-validated error. Below 40, where the errors are too few to read a
    95 % quantile from, the interval is `predictive_interval_percent`.

    Args:
        measured: At least 10 different networks, none of them twice.
        unseen: Random networks [M, num_slots], coded as ``measured.codes`` is.
        seed: Of the folds and the starting points.

    Raises:
        ConfigError: There are too few networks, or all latencies are equal.
    """
    validation = cross_validate(measured, seed=seed)
    corrections = False
    if len(measured) >= _MIN_SAMPLES_FOR_CORRECTIONS:
        corrected = cross_validate(measured, corrections=True, seed=seed)
        corrections = corrected.mape_percent < validation.mape_percent
        validation = corrected if corrections else validation
    # From 40 errors on, a quantile of them beats what a distribution says of the tail.
    if len(measured) < FEW_SAMPLES:
        interval = predictive_interval_percent(measured, unseen, seed=seed)
        validation = validation._replace(interval_percent=interval)
    return fit_blocks(measured, corrections=corrections, seed=seed), validation


def cross_validate(
    measured: Measurements, *, corrections: bool = False, seed: int = 0
) -> CrossValidation:
    """Fit on all folds but one, predict that one, for each fold.

    There are 20 folds below 200 networks, else 5. The interval is the conformal
    quantile of the errors: the smallest that holds ceil((N + 1) 0.95) of them, or
    the largest error where N is too small.

    Args:
        measured: At least 10 different networks, none of them twice.
        corrections: As of `fit_blocks`.
        seed: Of the folds and of the fits.

    Raises:
        ConfigError: There are too few networks, or all latencies are equal.
    """
    check_measurements(measured)
    num = len(measured)
    num_folds = min(num, 20 if num < 200 else 5)
    fold_of = np.random.default_rng(seed).permutation(num) % num_folds
    predicted_ms = np.empty(num)
    for fold in range(num_folds):
        (held_out,), (kept,) = np.nonzero(fold_of == fold), np.nonzero(fold_of != fold)
        coefficients, _ = fit_by_descent(measured.take(kept), corrections=corrections, seed=seed)
        op_ms = coefficients.predict_op_ms(measured.ops)
        predicted_ms[held_out] = measured.take(held_out).sum_over_slots(op_ms)
    ratio = predicted_ms / measured.latency_ms
    errors = np.sort(np.abs(1.0 / ratio - 1.0))
    rank = min(num, math.ceil((num + 1) * _COVERAGE))
    return CrossValidation(
        mape_percent=100.0 * float(np.abs(ratio - 1.0).mean()),
        spearman=_rank_correlation(predicted_ms, measured.latency_ms),
        interval_percent=100.0 * float(errors[rank - 1]),
    )


def predictive_interval_percent(
    measured: Measurements, unseen: NDArray[np.intp], *, seed: int = 0
) -> float:
    """Percent of their prediction within which 95 % of unseen networks lie.

    The fit is taken as a linear regression around its solution::

        s^2   = sum of squared residuals / d,  d = N - trace(H)
        width = t(97.5 %, d) s sqrt(1 + mean of x' C^-1 x over unseen networks)

    in logarithms of latency, where H is the hat matrix, C the curvature with the
    prior, and x the derivatives of a network's log latency. Huber's weights
    enter H and C, not s: a disturbed measurement widens the interval.

    Args:
        measured: At least 10 different networks, none of them twice.
        unseen: Random networks [M, num_slots], coded as ``measured.codes`` is.
        seed: Of the starting points.

    Raises:
        ConfigError: There are too few networks, or all latencies are equal.
    """
    check_measurements(measured)
    _, fit = fit_by_descent(measured, corrections=False, seed=seed)
    jacobian = fit.jacobian
    information = jacobian.T @ (fit.weight[:, None] * jacobian)
    tiny = 1e-12 * np.trace(information) * np.eye(10)
    covariance = np.linalg.inv(information + fit.prior + tiny)
    freedom = max(1.0, len(measured) - float(np.trace(covariance @ information)))
    op_ms, op_jacobian = launch_and_work(op_features(measured.ops), fit.parameters)
    slopes = sum_over_slots(unseen, op_jacobian) / sum_over_slots(unseen, op_ms)[:, None]
    leverage = float(((slopes @ covariance) * slopes).sum(axis=1).mean())
    variance = float((fit.residual**2).sum()) / freedom * (1.0 + leverage)
    return 100.0 * math.expm1(_student_t(freedom) * math.sqrt(variance))


def _student_t(freedom: float) -> float:
    """Student's t at 97.5 %, interpolated in 1 / degrees of freedom."""
    inverse = [0.0, *(1.0 / k for k in range(len(_STUDENT_T), 0, -1))]
    return float(np.interp(1.0 / freedom, inverse, [_NORMAL, *reversed(_STUDENT_T)]))


def _rank_correlation(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Spearman's rho; equal values share the mean of their ranks."""
    ranks = []
    for values in (left, right):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        ranks.append((last - (counts - 1) / 2.0)[inverse])
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
