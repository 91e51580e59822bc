"""How far a predictor is off, and fair ways to hold pairs out."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from effdl.search.space import Population, SearchSpace

__all__ = ["PredictionErrors", "hold_out", "measure_errors", "near_duplicate_groups"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionErrors:
    """Errors over a set of sub-networks.

    Attributes:
        rmse_pp: Root mean square, in percentage points.
        max_pp: Largest magnitude, in percentage points.
        spearman: Rank correlation; tied values share their mean rank.
    """

    rmse_pp: float
    max_pp: float
    spearman: float


def measure_errors(predicted: NDArray[np.float64], true: NDArray[np.float64]) -> PredictionErrors:
    """Errors of fractions [N] against true fractions [N]."""
    off_pp = 100.0 * (predicted - true)
    left, right = _mean_ranks(predicted), _mean_ranks(true)
    left, right = left - left.mean(), right - right.mean()
    return PredictionErrors(
        rmse_pp=float(np.sqrt(np.square(off_pp).mean())),
        max_pp=float(np.abs(off_pp).max()),
        spearman=float(left @ right / np.sqrt((left @ left) * (right @ right))),
    )


def _mean_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def near_duplicate_groups(
    population: Population, space: SearchSpace, *, max_differences: int
) -> NDArray[np.intp]:
    """Group [N] of every row: rows a few choices apart, and whatever chains link, share one.

    Two rows differ at a gated position also where it counts in only one of them;
    the gating dimensions themselves are not counted again.

    Args:
        population: Rows [N, num_dimensions].
        space: Their space.
        max_differences: Largest number of positions at which neighbours differ.
    """
    gating = {d.gate.dimension for d in space.dimensions if d.gate is not None}
    columns = [i for i in range(len(space.dimensions)) if i not in gating]
    codes = np.where(space.active(population), population + 1, 0)[:, columns]
    groups = np.full(len(codes), -1, dtype=np.intp)
    for start in range(len(codes)):
        if groups[start] >= 0:
            continue
        groups[start] = start
        waiting = [start]
        while waiting:
            differences = (codes != codes[waiting.pop()]).sum(axis=1)
            (found,) = np.nonzero((differences <= max_differences) & (groups < 0))
            groups[found] = start
            waiting.extend(found.tolist())
    return groups


def hold_out(
    groups: NDArray[np.intp], num_folds: int, rng: np.random.Generator
) -> Iterator[NDArray[np.bool_]]:
    """Masks [N] of held-out rows: whole groups, every row once, folds of about equal size.

    Args:
        groups: Group [N] of every row.
        num_folds: Number of masks.
        rng: Source of the order.
    """
    names, members = np.unique(groups, return_counts=True)
    order = rng.permutation(len(names))
    # Large groups first, each to the emptiest fold.
    order = order[np.argsort(-members[order], kind="stable")]
    filled = np.zeros(num_folds, dtype=np.intp)
    fold_of = np.empty(len(names), dtype=np.intp)
    for i in order:
        fold_of[i] = filled.argmin()
        filled[fold_of[i]] += members[i]
    fold = fold_of[np.searchsorted(names, groups)]
    for i in range(num_folds):
        yield fold == i
