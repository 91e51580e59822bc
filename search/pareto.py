"""Pareto fronts: which networks no other one beats, and the search for a whole front."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from effdl.errors import ConfigError
from effdl.search.algorithm import ProposalRun, Proposals
from effdl.search.candidate import Archive
from effdl.search.evolution import EvolutionSearch
from effdl.search.feasible import FeasibleRegion
from effdl.search.local_search import LocalSearch
from effdl.search.space import Population

__all__ = ["ParetoSearch", "pareto_indices"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoSearch:
    """Spreads its effort over limits, so that the whole front is good, not its end.

    The first limit is tightened to evenly spaced values between the cost of
    the anchor (the smallest possible, where there is one limit) and the limit
    itself. At each value a short evolution starts from the best networks known
    there, and local search finishes it. What one limit evaluated serves all.

    Attributes:
        num_limits: Values of the first limit, itself included.
        evolution: The beginning at each.
        local: The end at each.
    """

    num_limits: int
    evolution: EvolutionSearch
    local: LocalSearch

    def __post_init__(self) -> None:
        if self.num_limits < 1:
            raise ConfigError(f"Pareto search: wanted num_limits >= 1, got {self.num_limits}")

    def start(
        self, region: FeasibleRegion, archive: Archive, rng: np.random.Generator
    ) -> ProposalRun:
        """See `SearchAlgorithm.start`.

        Raises:
            ConfigError: The problem has no constraint, so there is no front.
        """
        if not region.problem.constraints:
            raise ConfigError("Pareto search: wanted a limited cost, got no constraint")
        return ProposalRun(self._propose(region, archive, rng))

    def _propose(
        self, region: FeasibleRegion, archive: Archive, rng: np.random.Generator
    ) -> Proposals:
        first, *others = region.problem.constraints
        smallest = float(first.cost(region.anchor[None])[0])
        for limit in np.linspace(smallest, first.limit, self.num_limits):
            tight = replace(first, limit=max(float(limit), smallest))
            problem = replace(region.problem, constraints=(tight, *others))
            inside = FeasibleRegion(problem, anchor=region.anchor)
            start = self._known_and_new(inside, archive, rng)
            yield from self.evolution.propose(inside, archive, rng, first=start)
            known = np.flatnonzero(inside.contains(archive.population))
            top = known[archive.objective[known].argmax()]
            row, value = archive.population[top].copy(), float(archive.objective[top])
            yield from self.local.improve(inside, archive, rng, row, value)

    def _known_and_new(
        self, region: FeasibleRegion, archive: Archive, rng: np.random.Generator
    ) -> Population:
        """Half of a population from the best networks known, half random [N, D]."""
        half = (self.evolution.population_size + 1) // 2
        known = np.flatnonzero(region.contains(archive.population))
        best = known[np.argsort(-archive.objective[known], kind="stable")[:half]]
        return np.concatenate([archive.population[best], region.sample(half, rng)])


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
