"""Fitting the launch-and-work model to measured networks.

Levenberg-Marquardt on the logarithms of the coefficients, against the
logarithms of the latencies, with Huber weights so that a few disturbed
measurements do not pull the fit. With many networks, corrections by kind of
block and by resolution follow, as a ridge regression on what is left.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from effdl.errors import ConfigError
from effdl.opspec import OpSpec
from effdl.targets.block_model import (
    BlockCoefficients,
    BlockKind,
    block_kind,
    launch_and_work,
    op_features,
)

__all__ = ["CrossValidation", "Measurements", "cross_validate", "fit_best", "fit_blocks"]

# Shape of a first guess, scaled to the measurements: logarithms of a0..a3,
# b0..b2, c0, c1 and p - 1.
_GUESS = np.log([0.1, 0.05, 0.02, 0.02, 0.005, 0.05, 0.1, 1.0, 1.0, 1.0])
_GUESS_SPREAD = 0.7
_NUM_STARTS = 4
_LOWEST = np.array([-18.0] * 9 + [-3.0])
_HIGHEST = np.array([12.0] * 9 + [2.5])
_MAX_ITERATIONS = 60

_MIN_SAMPLES = 10
_MIN_SAMPLES_FOR_CORRECTIONS = 200
_RIDGE = 10.0

# Huber's constant, 95 % efficient on normal errors; residuals below the floor
# are timer noise whatever their spread.
_HUBER = 1.345
_RESIDUAL_FLOOR = 0.002
_COVERAGE = 0.95


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Networks measured as a whole, and the operators they are made of.

    Attributes:
        ops: Every operator that occurs.
        codes: Operators of each network [N, num_slots] as indices into
            ``ops``; ``len(ops)`` stands for an empty slot.
        latency_ms: Measured latency of each network [N], positive.
    """

    ops: tuple[OpSpec, ...]
    codes: NDArray[np.intp]
    latency_ms: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.latency_ms)

    def take(self, rows: NDArray[np.intp]) -> "Measurements":
        """Some of the networks."""
        return replace(self, codes=self.codes[rows], latency_ms=self.latency_ms[rows])

    def sum_over_slots(self, of_ops: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums [N, ...] over each network of values of operators [len(ops), ...]."""
        padded = np.concatenate([of_ops, np.zeros((1, *of_ops.shape[1:]))])
        return padded[self.codes].sum(axis=1)


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


def fit_blocks(
    measured: Measurements, *, corrections: bool = False, seed: int = 0
) -> BlockCoefficients:
    """Fit the launch-and-work model.

    Args:
        measured: At least 10 networks.
        corrections: Whether to add corrections by kind of block and by
            resolution; they need hundreds of networks.
        seed: Of the starting points.

    Raises:
        ConfigError: There are too few networks.
    """
    if len(measured) < _MIN_SAMPLES:
        raise ConfigError(
            f"too few measurements for a fit: wanted at least {_MIN_SAMPLES}, got {len(measured)}",
            hint="20 random sub-networks are enough on most GPUs",
        )
    features = op_features(measured.ops)
    rng = np.random.default_rng(seed)
    starts = [_GUESS + _GUESS_SPREAD * (k > 0) * rng.normal(size=10) for k in range(_NUM_STARTS)]
    fits = [_descend(measured, features, start) for start in starts]
    plain = BlockCoefficients.of_parameters(min(fits, key=lambda fit: fit.mean_error).parameters)
    return _corrected(measured, features, plain) if corrections else plain


def fit_best(measured: Measurements, *, seed: int = 0) -> tuple[BlockCoefficients, CrossValidation]:
    """The fit, and its errors on unseen networks.

    From 200 networks on, corrections are tried and kept where they lower the
    cross-validated error.

    Args:
        measured: At least 12 networks.
        seed: Of the folds and the starting points.

    Raises:
        ConfigError: There are too few networks.
    """
    validation = cross_validate(measured, seed=seed)
    corrections = False
    if len(measured) >= _MIN_SAMPLES_FOR_CORRECTIONS:
        corrected = cross_validate(measured, corrections=True, seed=seed)
        corrections = corrected.mape_percent < validation.mape_percent
        validation = corrected if corrections else validation
    return fit_blocks(measured, corrections=corrections, seed=seed), validation


def cross_validate(
    measured: Measurements, *, corrections: bool = False, seed: int = 0
) -> CrossValidation:
    """Fit on all folds but one, predict that one, for each fold.

    There are 20 folds below 200 networks, else 5. The interval is the
    conformal quantile of the errors: the smallest that holds
    ceil((N + 1) 0.95) of them, or the largest error where N is too small.

    Args:
        measured: At least 12 networks.
        corrections: As of `fit_blocks`.
        seed: Of the folds and of the fits.

    Raises:
        ConfigError: There are too few networks.
    """
    num = len(measured)
    num_folds = min(num, 20 if num < 200 else 5)
    fold_of = np.random.default_rng(seed).permutation(num) % max(1, num_folds)
    predicted_ms = np.empty(num)
    for fold in range(num_folds):
        (held_out,), (kept,) = np.nonzero(fold_of == fold), np.nonzero(fold_of != fold)
        coefficients = fit_blocks(measured.take(kept), corrections=corrections, seed=seed)
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


class _Fit(NamedTuple):
    mean_error: float
    parameters: NDArray[np.float64]


def _descend(
    measured: Measurements, features: NDArray[np.float64], start: NDArray[np.float64]
) -> _Fit:
    """Levenberg-Marquardt from one start, scaled to the measurements first."""
    log_ms = np.log(measured.latency_ms)

    def residuals(at: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        op_ms, op_jacobian = launch_and_work(features, at)
        total_ms = measured.sum_over_slots(op_ms)
        jacobian = measured.sum_over_slots(op_jacobian) / total_ms[:, None]
        return np.log(total_ms) - log_ms, jacobian

    parameters = start.copy()
    parameters[:9] -= np.median(residuals(start)[0])
    parameters = parameters.clip(_LOWEST, _HIGHEST)
    residual, jacobian = residuals(parameters)
    damping = 1e-2
    for _ in range(_MAX_ITERATIONS):
        width = _width(residual)
        weight = np.minimum(1.0, width / np.maximum(np.abs(residual), 1e-12))
        loss = _huber_loss(residual, width)
        curvature = jacobian.T @ (weight[:, None] * jacobian)
        gradient = jacobian.T @ (weight * residual)
        diagonal = np.diag(curvature) + 1e-9 * np.trace(curvature)
        for _ in range(8):
            step = np.linalg.solve(curvature + damping * np.diag(diagonal), -gradient)
            trial = (parameters + step.clip(-2.0, 2.0)).clip(_LOWEST, _HIGHEST)
            trial_residual, trial_jacobian = residuals(trial)
            gain = loss - _huber_loss(trial_residual, width)
            if gain > 0:
                break
            damping *= 4.0
        else:
            break
        parameters, residual, jacobian = trial, trial_residual, trial_jacobian
        damping = max(damping / 5.0, 1e-9)
        if gain < 1e-6 * loss:
            break
    return _Fit(float(np.abs(residual).mean()), parameters)


def _corrected(
    measured: Measurements, features: NDArray[np.float64], plain: BlockCoefficients
) -> BlockCoefficients:
    """Add the corrections: offset and scale by kind of block, offset by resolution."""
    op_ms = plain.predict_op_ms(measured.ops)
    blocks = np.flatnonzero(features[:, 0])
    kinds = [block_kind(measured.ops[i].key) for i in blocks]
    names = sorted(set(kinds))
    membership = np.zeros((len(op_ms), len(names)))
    membership[blocks, [names.index(kind) for kind in kinds]] = 1.0
    pixels = np.array([op.features.get("image_pixels", 0.0) for op in measured.ops])
    sides = np.unique(pixels[pixels > 0])
    by_resolution = (pixels[:, None] == sides).astype(np.float64)
    columns = np.concatenate([membership, membership * op_ms[:, None], by_resolution], axis=1)

    relative = measured.sum_over_slots(columns) / measured.latency_ms[:, None]
    missing = 1.0 - measured.sum_over_slots(op_ms) / measured.latency_ms
    values = _robust_ridge(relative, missing)
    offsets, scales, by_side = np.split(values, [len(names), 2 * len(names)])
    return msgspec.structs.replace(
        plain,
        kinds={
            name: BlockKind(scale=max(0.0, 1.0 + scale), offset_ms=offset)
            for name, scale, offset in zip(names, scales.tolist(), offsets.tolist(), strict=True)
        },
        resolution_offset_ms=dict(
            zip(np.sqrt(sides).round().astype(int).tolist(), by_side.tolist(), strict=True)
        ),
    )


def _robust_ridge(columns: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ridge regression with Huber weights on columns brought to unit size."""
    sizes = np.sqrt((columns**2).mean(axis=0))
    used = sizes > 0
    scaled = columns[:, used] / sizes[used]
    penalty = _RIDGE * np.eye(scaled.shape[1])
    solution = np.zeros(scaled.shape[1])
    for _ in range(10):
        residual = scaled @ solution - wanted
        weight = np.minimum(1.0, _width(residual) / np.maximum(np.abs(residual), 1e-12))
        weighted = weight[:, None] * scaled
        solution = np.linalg.solve(scaled.T @ weighted + penalty, weighted.T @ wanted)
    values = np.zeros(len(sizes))
    values[used] = solution / sizes[used]
    return values


def _width(residual: NDArray[np.float64]) -> float:
    """Where Huber's loss turns linear: 1.345 robust standard deviations."""
    return max(_HUBER * 1.4826 * float(np.median(np.abs(residual))), _RESIDUAL_FLOOR)


def _huber_loss(residual: NDArray[np.float64], width: float) -> float:
    size = np.abs(residual)
    small = np.minimum(size, width)
    return float((small * (size - 0.5 * small)).sum())


def _rank_correlation(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Spearman's rho; equal values share the mean of their ranks."""
    ranks = []
    for values in (left, right):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        ranks.append((last - (counts - 1) / 2.0)[inverse])
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
