"""What is searched for: a space, an objective and the limits."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from effdl.search.constraint import Constraint
from effdl.search.cost import LookupCost
from effdl.search.space import Population, SearchSpace

__all__ = ["Objective", "SearchProblem"]

Objective = Callable[[Population], NDArray[np.floating]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchProblem:
    """Find the canonical row with the greatest objective that keeps every limit.

    Attributes:
        space: Where to look.
        objective: Rows [N, num_dimensions] to values [N]; greater is better.
            It must depend on the row alone, not on its neighbours in a batch.
        constraints: The limits. A Pareto front is drawn against the cost of
            the first one.
        costs: Further costs to report for every candidate.
    """

    space: SearchSpace
    objective: Objective
    constraints: tuple[Constraint, ...] = ()
    costs: tuple[LookupCost, ...] = ()

    @property
    def reported_costs(self) -> tuple[LookupCost, ...]:
        """Constrained costs, then the further ones; each name once."""
        every = (*(c.cost for c in self.constraints), *self.costs)
        return tuple({cost.name: cost for cost in reversed(every)}[name] for name in self._names())

    def _names(self) -> list[str]:
        every = (*(c.cost for c in self.constraints), *self.costs)
        return list(dict.fromkeys(cost.name for cost in every))

    def violation(self, population: Population) -> NDArray[np.float64]:
        """The largest relative violation of each row [N]; 0 iff it keeps every limit."""
        worst = np.zeros(len(population))
        for constraint in self.constraints:
            np.maximum(worst, constraint.violation(population), out=worst)
        return worst
