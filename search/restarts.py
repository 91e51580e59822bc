"""Many short searches from different corners of the space."""

from dataclasses import dataclass

import numpy as np

from effdl.errors import ConfigError
from effdl.search.algorithm import ProposalRun, Proposals
from effdl.search.candidate import Archive
from effdl.search.evolution import EvolutionSearch
from effdl.search.feasible import FeasibleRegion
from effdl.search.local_search import LocalSearch
from effdl.search.problem import SearchProblem
from effdl.search.space import Population

__all__ = ["RestartedSearch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartedSearch:
    """Short evolutions from scratch, each finished by local search.

    The first population of each shares one choice of the dimensions that all
    slots share, such as the resolution: the best networks of different
    resolutions have little in common, and mixed populations soon hold one only.

    Attributes:
        num_restarts: How often.
        evolution: The beginning of each.
        local: The end of each.
    """

    num_restarts: int
    evolution: EvolutionSearch
    local: LocalSearch

    def __post_init__(self) -> None:
        if self.num_restarts < 1:
            raise ConfigError(f"restarts: wanted num_restarts >= 1, got {self.num_restarts}")

    def start(
        self, region: FeasibleRegion, archive: Archive, rng: np.random.Generator
    ) -> ProposalRun:
        """See `SearchAlgorithm.start`."""
        return ProposalRun(self._propose(region, archive, rng))

    def _propose(
        self, region: FeasibleRegion, archive: Archive, rng: np.random.Generator
    ) -> Proposals:
        shared = _shared_dimensions(region.problem)
        for _ in range(self.num_restarts):
            begin = len(archive)
            first = _alike(region, rng, shared, self.evolution.population_size)
            first = first[archive.unseen(first)]
            yield from self.evolution.propose(region, archive, rng, first=first)
            inside = begin + np.flatnonzero(region.contains(archive.population[begin:]))
            if len(inside) == 0:
                continue
            top = inside[archive.objective[inside].argmax()]
            row, value = archive.population[top].copy(), float(archive.objective[top])
            yield from self.local.improve(region, archive, rng, row, value)


def _shared_dimensions(problem: SearchProblem) -> list[int]:
    """Dimensions that most slots of the first limited cost depend on."""
    if not problem.constraints:
        return []
    scopes = problem.constraints[0].cost.index.slot_dimensions
    uses = np.bincount(
        [d for scope in scopes for d in scope], minlength=len(problem.space.dimensions)
    )
    return np.flatnonzero(2 * uses > len(scopes)).tolist()


def _alike(
    region: FeasibleRegion, rng: np.random.Generator, shared: list[int], num: int
) -> Population:
    """Feasible rows [num, num_dimensions], most with equal shared dimensions."""
    space = region.problem.space
    rows = space.sample(4 * num, rng)
    rows[:, shared] = region.sample(1, rng)[0, shared]
    space.canonicalize(rows)
    inside = region.contains(rows)
    # Repairs would move the shared dimensions too, so they come last.
    rows = np.concatenate([rows[inside], rows[~inside]])[:num]
    return region.repair(rows, rng)
