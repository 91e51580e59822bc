"""Choosing which networks to measure for a launch-and-work fit.

A network says of the coefficients what its cost features say: how its latency
splits into launches and arithmetic. The design spreads over those features so
that the fit's variance, averaged over the space, is least (an I-optimal design).
The split depends on the device, which nobody has measured yet, so the average
also goes over made devices, from launch-bound to work-bound ones (a Bayesian
design). Each chosen network is the best one beside those chosen before; then
each is exchanged for a better one where there is one (Fedorov's exchange).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from effdl.opspec import OpSpec
from effdl.targets.block_fit import FIRST_GUESS
from effdl.targets.block_model import launch_and_work, op_features, sum_over_slots

__all__ = ["NUM_DESIGNED", "choose_networks"]

NUM_DESIGNED = 20
"""Beyond so many, random networks serve as well as designed ones: the coefficients are
known by then, and what the model leaves out is best averaged over the whole space."""

# Natural logarithms that the made devices' launch costs are shifted by, twice each.
_REGIMES = (-2.0, -1.0, 0.0, 1.0, 2.0) * 2
_SPREAD = 0.7
_EXPONENTS_LESS_ONE = (0.5, 4.0)
# Prior precision over that of one measurement: an error of 1 % against a factor of e.
_RIDGE = 1e-4
_EXCHANGES = 2


def choose_networks(
    ops: Sequence[OpSpec],
    codes: NDArray[np.intp],
    num: int,
    rng: np.random.Generator,
) -> NDArray[np.intp]:
    """Rows [num] of the networks to measure, all different.

    Args:
        ops: Every operator that occurs.
        codes: Operators of each candidate [N, num_slots] as indices into
            ``ops``; ``len(ops)`` stands for an empty slot.
        num: How many; at most N.
        rng: Of the made devices, and of the choice beyond `NUM_DESIGNED`.
    """
    devices = _made_devices(ops, codes, rng)
    num_designed = min(num, NUM_DESIGNED)
    chosen: list[int] = []
    while len(chosen) < num_designed:
        chosen.append(_best_addition(devices, chosen))
    for _ in range(_EXCHANGES):
        before = chosen.copy()
        for i in range(num_designed):
            chosen[i] = _best_addition(devices, chosen[:i] + chosen[i + 1 :])
        if chosen == before:
            break
    others = np.setdiff1d(np.arange(len(codes)), chosen)
    more = rng.permutation(others)[: num - num_designed]
    return np.concatenate([np.array(chosen, dtype=np.intp), more])


@dataclass(frozen=True, kw_only=True)
class _Device:
    """Derivatives of every candidate's log latency [N, 10], and their second moments [10, 10]."""

    slopes: NDArray[np.float64]
    moments: NDArray[np.float64]


def _made_devices(
    ops: Sequence[OpSpec], codes: NDArray[np.intp], rng: np.random.Generator
) -> list[_Device]:
    features = op_features(ops)
    devices = []
    for regime in _REGIMES:
        parameters = FIRST_GUESS + _SPREAD * rng.normal(size=len(FIRST_GUESS))
        parameters[:4] += regime
        parameters[9] = np.log(rng.uniform(*_EXPONENTS_LESS_ONE))
        op_ms, op_slopes = launch_and_work(features, parameters)
        slopes = sum_over_slots(codes, op_slopes) / sum_over_slots(codes, op_ms)[:, None]
        slopes /= np.sqrt((slopes**2).sum(axis=1).mean())
        devices.append(_Device(slopes=slopes, moments=slopes.T @ slopes / len(slopes)))
    return devices


def _best_addition(devices: Sequence[_Device], chosen: Sequence[int]) -> int:
    """The candidate that lowers the mean variance most, in logarithms summed over devices."""
    score = np.zeros(len(devices[0].slopes))
    for device in devices:
        known = device.slopes[list(chosen)]
        covariance = np.linalg.inv(known.T @ known + _RIDGE * np.eye(known.shape[1]))
        seen = device.slopes @ covariance
        gain = ((seen @ device.moments) * seen).sum(axis=1)
        gain /= 1.0 + (seen * device.slopes).sum(axis=1)
        score += np.log1p(-gain / np.trace(covariance @ device.moments))
    score[list(chosen)] = np.inf
    return int(score.argmin())
