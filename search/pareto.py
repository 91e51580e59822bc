"""Pareto fronts: which networks no other one beats."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["pareto_indices"]


def pareto_indices(objective: NDArray[np.float64], cost: NDArray[np.float64]) -> NDArray[np.intp]:
    """Indices of the non-dominated entries, by increasing cost.

    An entry is dominated where another one has at least its objective at most
    at its cost, and is better in one of the two. Of equal entries the first stays.

    Args:
        objective: Values to maximise [N].
        cost: Values to minimise [N].
    """
    if len(objective) == 0:
        return np.empty(0, dtype=np.intp)
    order = np.lexsort((-objective, cost))
    ordered = objective[order]
    before = np.concatenate([[-np.inf], np.maximum.accumulate(ordered)[:-1]])
    return order[ordered > before]
