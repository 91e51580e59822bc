"""Evolutionary search on canonical encodings (Cai et al., Once-for-All, section 3.4)."""

import math
from dataclasses import dataclass

import numpy as np

from effdl.errors import ConfigError
from effdl.search.algorithm import ProposalRun, Proposals
from effdl.search.candidate import Archive
from effdl.search.feasible import FeasibleRegion
from effdl.search.space import Population, SearchSpace

__all__ = ["EvolutionSearch", "crossover", "mutate", "ofa_evolution"]

# Of the children bred, more than are wanted: those that break a limit or are
# known already are dropped. How many follows the last generation's loss.
_FIRST_SURPLUS = 2.5
_SURPLUS_RANGE = (1.25, 6.0)
_SURPLUS_MARGIN = 1.1
# Below this fraction of a population the shortage is made up by repairs.
_LEAST_YIELD = 0.3
_FILLING_FACTOR = 1.5
_MAX_DRAWS = 4
# Where so few were new so often in a row, nearly everything feasible is known.
_BARREN_YIELD, _MAX_BARREN = 0.2, 8
_MOST_PROB = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolutionSearch:
    """Mutation and uniform crossover among the best, the best survive.

    Every child is feasible and new: what breaks a limit or was evaluated
    before is dropped, so a generation may be smaller than the population, and
    more of them follow until ``population_size * num_generations`` children
    were evaluated. Where nearly all are dropped, stronger mutants are repaired.
    The search ends early when new networks can hardly be found.

    Attributes:
        population_size: New networks for each generation.
        num_generations: Full generations after the first, random population.
        mutation_prob: Probability that a dimension of a mutated child is redrawn.
        mutation_ratio: Fraction of children by mutation; the rest by crossover.
        parent_ratio: Fraction of the population that survives and breeds.
        patience: Generations without a better network after which the
            population is drawn anew; None: never.
    """

    population_size: int = 100
    num_generations: int = 500
    mutation_prob: float = 0.1
    mutation_ratio: float = 0.5
    parent_ratio: float = 0.25
    patience: int | None = 20

    def __post_init__(self) -> None:
        if self.population_size < 1 or self.num_generations < 0:
            raise ConfigError(
                "evolution: wanted population_size >= 1 and num_generations >= 0, got "
                f"{self.population_size} and {self.num_generations}"
            )
        for name in ("mutation_prob", "mutation_ratio", "parent_ratio"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"evolution: wanted {name} within [0, 1], got {value}")

    def start(
        self, region: FeasibleRegion, archive: Archive, rng: np.random.Generator
    ) -> ProposalRun:
        """See `SearchAlgorithm.start`."""
        return ProposalRun(self.propose(region, archive, rng))

    def propose(
        self,
        region: FeasibleRegion,
        archive: Archive,
        rng: np.random.Generator,
        *,
        first: Population | None = None,
    ) -> Proposals:
        """The search as a coroutine.

        Args:
            region: The feasible networks.
            archive: Everything evaluated so far.
            rng: The only source of randomness.
            first: Feasible rows to begin with; None: random ones.
        """
        size = self.population_size
        num_parents = max(1, round(self.parent_ratio * size))
        rows = _new_random(region, archive, rng, size) if first is None else first
        if len(rows) == 0:
            return
        values = yield rows
        left = size * self.num_generations
        surplus, best, stale, barren = _FIRST_SURPLUS, values.max(), 0, 0
        while left > 0:
            if self.patience is not None and stale > self.patience:
                fresh = _new_random(region, archive, rng, min(size, left))
                surplus, stale = _FIRST_SURPLUS, 0
                if len(fresh):
                    left -= len(fresh)
                    rows = fresh
                    values = yield rows
                    best = values.max()
                    continue
            order = np.argsort(-values, kind="stable")[:num_parents]
            parents, parent_values = rows[order], values[order]
            num = math.ceil(surplus * size)
            bred = self._breed(region.problem.space, rng, parents, num)
            bred = bred[region.contains(bred)]
            bred = bred[archive.unseen(bred)]
            wanted = _SURPLUS_MARGIN * num / max(1, len(bred))
            surplus = min(max(wanted, _SURPLUS_RANGE[0]), _SURPLUS_RANGE[1])
            if len(bred) < _LEAST_YIELD * size:
                bred = self._fill(region, archive, rng, parents, bred)
            barren = barren + 1 if len(bred) < _BARREN_YIELD * size else 0
            if len(bred) == 0 or barren > _MAX_BARREN:
                return
            children = bred[: min(size, left)]
            left -= len(children)
            child_values = yield children
            rows = np.concatenate([parents, children])
            values = np.concatenate([parent_values, child_values])
            stale = 0 if child_values.max() > best else stale + 1
            best = max(best, child_values.max())

    def _fill(
        self,
        region: FeasibleRegion,
        archive: Archive,
        rng: np.random.Generator,
        parents: Population,
        children: Population,
    ) -> Population:
        """Make up a shortage of new feasible children by mutating more and repairing."""
        missing = self.population_size - len(children)
        picked = parents[rng.integers(len(parents), size=2 * missing)]
        prob = min(1.0, max(_FILLING_FACTOR * self.mutation_prob, 0.05))
        more = region.repair(mutate(region.problem.space, picked, prob, rng), rng)
        children = np.concatenate([children, more])
        return children[archive.unseen(children)[: self.population_size]]

    def _breed(
        self, space: SearchSpace, rng: np.random.Generator, parents: Population, num: int
    ) -> Population:
        """Mutants and crossings in turn, so that any beginning has its share of both."""
        num_mutants = round(self.mutation_ratio * num)
        children = parents[rng.integers(len(parents), size=num)]
        fathers = parents[rng.integers(len(parents), size=num - num_mutants)]
        _redraw(space, children[:num_mutants], self.mutation_prob, rng)
        _mix(children[num_mutants:], fathers, rng)
        return space.canonicalize(children[rng.permutation(num)])


def ofa_evolution() -> EvolutionSearch:
    """Once-for-All's settings: 100 networks, 500 generations, 50,100 evaluations."""
    return EvolutionSearch()


def mutate(
    space: SearchSpace, population: Population, prob: float, rng: np.random.Generator
) -> Population:
    """Redraw each dimension of each canonical row [N, D] with probability ``prob``."""
    mutants = population.copy()
    _redraw(space, mutants, prob, rng)
    return space.canonicalize(mutants)


def crossover(
    space: SearchSpace, mothers: Population, fathers: Population, rng: np.random.Generator
) -> Population:
    """Each dimension from either parent, at even odds [N, D]."""
    children = mothers.copy()
    _mix(children, fathers, rng)
    return space.canonicalize(children)


def _redraw(
    space: SearchSpace, population: Population, prob: float, rng: np.random.Generator
) -> None:
    # Of a Poisson number of hits every place is hit independently, with probability prob:
    # far fewer random numbers than one for each place.
    rate = -math.log1p(-min(prob, _MOST_PROB))
    places = rng.integers(population.size, size=rng.poisson(rate * population.size))
    dimensions = places % population.shape[1]
    draws = rng.random(len(places), dtype=np.float32) * space.num_choices[dimensions]
    population.reshape(-1)[places] = draws.astype(np.uint8)


def _mix(children: Population, fathers: Population, rng: np.random.Generator) -> None:
    coins = np.frombuffer(rng.bytes((children.size + 7) // 8), dtype=np.uint8)
    coin = np.unpackbits(coins, count=children.size).view(np.bool_).reshape(children.shape)
    children[...] = np.where(coin, fathers, children)


def _new_random(
    region: FeasibleRegion, archive: Archive, rng: np.random.Generator, num: int
) -> Population:
    rows = region.sample(num, rng)
    rows = rows[archive.unseen(rows)]
    for _ in range(_MAX_DRAWS):
        if len(rows) == num:
            break
        rows = np.concatenate([rows, region.sample(2 * num, rng)])
        rows = rows[archive.unseen(rows)[:num]]
    return rows
