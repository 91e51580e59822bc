"""Fitting the launch-and-work model to measured networks.

Levenberg-Marquardt on the logarithms of the coefficients, against the
logarithms of the latencies, with Huber weights so that a few disturbed
measurements do not pull the fit. Few networks get a weak prior too, without
which ten of them could not tell ten coefficients apart. With many networks, corrections
by kind of block and by resolution follow, as a ridge regression on what is left.
"""

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
    sum_over_slots,
)

__all__ = [
    "FEW_SAMPLES",
    "FIRST_GUESS",
    "MIN_SAMPLES",
    "Descent",
    "Measurements",
    "check_measurements",
    "fit_blocks",
    "fit_by_descent",
]

FIRST_GUESS = np.log([0.1, 0.05, 0.02, 0.02, 0.005, 0.05, 0.1, 1.0, 1.0, 1.0])
"""A first guess but for its scale: logarithms of a0..a3, b0..b2, c0, c1 and p - 1."""

MIN_SAMPLES = 10
"""Different networks that a fit needs at least."""

FEW_SAMPLES = 40
"""Below so many networks, a fit takes a prior, and its interval comes from the posterior."""

_GUESS_SPREAD = 0.7
_NUM_STARTS = 4
_LOWEST = np.array([-18.0] * 9 + [-3.0])
_HIGHEST = np.array([12.0] * 9 + [2.5])
_MAX_ITERATIONS = 60
_RIDGE = 10.0

# Huber's constant, 95 % efficient on normal errors; residuals below the floor
# are timer noise whatever their spread.
_HUBER = 1.345
_RESIDUAL_FLOOR = 0.002


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
        return sum_over_slots(self.codes, of_ops)

    def merge_repeats(self) -> "Measurements":
        """Every network once, in the order of the first, at the median of its latencies."""
        rows_of: dict[bytes, list[int]] = {}
        for i, row in enumerate(self.codes):
            rows_of.setdefault(row.tobytes(), []).append(i)
        latency_ms = np.array([np.median(self.latency_ms[rows]) for rows in rows_of.values()])
        first = np.array([rows[0] for rows in rows_of.values()], dtype=np.intp)
        return replace(self, codes=self.codes[first], latency_ms=latency_ms)


class Descent(NamedTuple):
    """Where a descent ended.

    Attributes:
        mean_error: Mean absolute residual.
        parameters: As of `launch_and_work` [10].
        residual: Logarithms of predicted over measured latency [N].
        jacobian: Derivatives of the logarithms of predicted latencies [N, 10].
        weight: Huber's weights [N].
        prior: Precision of the prior [10, 10], in units of the residuals' variance.
    """

    mean_error: float
    parameters: NDArray[np.float64]
    residual: NDArray[np.float64]
    jacobian: NDArray[np.float64]
    weight: NDArray[np.float64]
    prior: NDArray[np.float64]


def fit_blocks(
    measured: Measurements, *, corrections: bool = False, seed: int = 0
) -> BlockCoefficients:
    """Fit the launch-and-work model.

    Args:
        measured: At least 10 different networks.
        corrections: Whether to add corrections by kind of block and by
            resolution; they need hundreds of networks.
        seed: Of the starting points.

    Raises:
        ConfigError: There are too few networks, or all latencies are equal.
    """
    check_measurements(measured)
    return fit_by_descent(measured, corrections=corrections, seed=seed)[0]


def check_measurements(measured: Measurements) -> None:
    """Refuse what no fit can be made of.

    Raises:
        ConfigError: There are too few networks, or all latencies are equal.
    """
    num, num_different = len(measured), len(np.unique(measured.codes, axis=0))
    if num_different < MIN_SAMPLES:
        repeated = f" in {num} rows" if num_different < num else ""
        raise ConfigError(
            f"too few measurements for a fit: wanted at least {MIN_SAMPLES} different networks, "
            f"got {num_different}{repeated}",
            hint="effdl targets suggest -n 20 -o FILE.csv chooses networks to measure",
        )
    if np.ptp(measured.latency_ms) == 0.0:
        raise ConfigError(
            f"all {num} networks have the same latency: wanted measurements, "
            f"got {measured.latency_ms[0]:g} ms throughout",
            hint="a clock with a finer resolution, or more repetitions in a run, tells them apart",
        )


def fit_by_descent(
    measured: Measurements, *, corrections: bool, seed: int
) -> tuple[BlockCoefficients, Descent]:
    """As `fit_blocks`, of any number of networks; also the descent behind the coefficients."""
    features = op_features(measured.ops)
    rng = np.random.default_rng(seed)
    spread = [_GUESS_SPREAD * (k > 0) * rng.normal(size=10) for k in range(_NUM_STARTS)]
    descents = [_descend(measured, features, FIRST_GUESS + by) for by in spread]
    best = min(descents, key=lambda descent: descent.mean_error)
    plain = BlockCoefficients.of_parameters(best.parameters)
    return (_corrected(measured, features, plain) if corrections else plain), best


def _prior_precision() -> NDArray[np.float64]:
    """Precision [10, 10] of the logarithms about the first guess.

    The launch costs keep their proportions to each other within a factor of e,
    and so do the work costs; all together, at a tenth of that weight. No scale
    is preferred.
    """
    precision = np.diag([0.0] * 9 + [1.0])
    for of, weight in ((range(4), 1.0), (range(4, 7), 1.0), (range(9), 0.1)):
        precision[np.ix_(of, of)] += weight * (np.eye(len(of)) - 1.0 / len(of))
    return precision


_PRIOR = _prior_precision()


def _prior(width: float, num: int) -> NDArray[np.float64]:
    """The prior's precision [10, 10] for so many networks.

    It is in units of the residuals' variance: Huber's loss turns linear at ``width``.
    """
    return (width / _HUBER) ** 2 * _PRIOR * (num < FEW_SAMPLES)


def _descend(
    measured: Measurements, features: NDArray[np.float64], start: NDArray[np.float64]
) -> Descent:
    """Levenberg-Marquardt from one start, scaled to the measurements first."""
    log_ms = np.log(measured.latency_ms)

    def residuals(at: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        op_ms, op_jacobian = launch_and_work(features, at)
        total_ms = measured.sum_over_slots(op_ms)
        jacobian = measured.sum_over_slots(op_jacobian) / total_ms[:, None]
        return np.log(total_ms) - log_ms, jacobian

    def loss_at(at: NDArray[np.float64], residual: NDArray[np.float64], width: float) -> float:
        """Huber's loss, and the prior's in units of the residuals' variance."""
        off = at - FIRST_GUESS
        return _huber_loss(residual, width) + 0.5 * float(off @ _prior(width, len(measured)) @ off)

    parameters = start.copy()
    parameters[:9] -= np.median(residuals(start)[0])
    parameters = parameters.clip(_LOWEST, _HIGHEST)
    residual, jacobian = residuals(parameters)
    damping = 1e-2
    for _ in range(_MAX_ITERATIONS):
        width = _width(residual)
        weight = np.minimum(1.0, width / np.maximum(np.abs(residual), 1e-12))
        loss = loss_at(parameters, residual, width)
        prior = _prior(width, len(measured))
        curvature = jacobian.T @ (weight[:, None] * jacobian) + prior
        gradient = jacobian.T @ (weight * residual) + prior @ (parameters - FIRST_GUESS)
        diagonal = np.diag(curvature) + 1e-9 * np.trace(curvature)
        for _ in range(8):
            step = np.linalg.solve(curvature + damping * np.diag(diagonal), -gradient)
            trial = (parameters + step.clip(-2.0, 2.0)).clip(_LOWEST, _HIGHEST)
            trial_residual, trial_jacobian = residuals(trial)
            gain = loss - loss_at(trial, trial_residual, width)
            if gain > 0:
                break
            damping *= 4.0
        else:
            break
        parameters, residual, jacobian = trial, trial_residual, trial_jacobian
        damping = max(damping / 5.0, 1e-9)
        if gain < 1e-6 * loss:
            break
    width = _width(residual)
    weight = np.minimum(1.0, width / np.maximum(np.abs(residual), 1e-12))
    prior = _prior(width, len(measured))
    mean_error = float(np.abs(residual).mean())
    return Descent(mean_error, parameters, residual, jacobian, weight, prior)


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
