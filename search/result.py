"""What a search found."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from effdl.search.candidate import Candidate

__all__ = ["SearchResult"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SearchResult:
    """The end of a search.

    Attributes:
        best: The best distinct feasible networks, best first.
        pareto_front: Networks of which none evaluated is both at least as good
            and at most as expensive (first constrained cost), by increasing
            cost; empty where nothing was constrained.
        num_evaluations: Rows the algorithm asked for.
        num_unique: Different networks among them: the calls of the objective.
        history: Best objective after each of the ``num_unique`` evaluations.
        cpu_seconds: Processor time of this process.
        wall_seconds: Elapsed time.
    """

    best: tuple[Candidate, ...]
    pareto_front: tuple[Candidate, ...]
    num_evaluations: int
    num_unique: int
    history: NDArray[np.float64]
    cpu_seconds: float
    wall_seconds: float
