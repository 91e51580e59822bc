"""Local search: from a network to the best one reachable by combined small changes.

All small changes of a network are evaluated. If their gains nearly add up, as
they do for a smooth objective, and costs add up, then the best combination
under the limits is a knapsack: pairs are ranked by the sum of their gains, and
larger combinations come from pricing the limits (Lagrangian relaxation). The
most promising combinations are evaluated, and the best true one is taken.
"""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from effdl.search.algorithm import ProposalRun, Proposals
from effdl.search.candidate import Archive
from effdl.search.evolution import mutate
from effdl.search.feasible import FeasibleRegion
from effdl.search.neighbourhood import Neighbourhood
from effdl.search.space import Population

__all__ = ["LocalSearch"]

Climb = Generator[Population, NDArray[np.float64], tuple[NDArray[np.uint8], float]]

_PRICES = 24
_TRUST = (0.0, 0.25, 0.5, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSearch:
    """Climbs from a network until no combination of changes helps, then kicks it.

    Attributes:
        num_kicks: Climbs from a disturbed copy of the best network, after the first.
        kick_prob: Probability that a kick redraws a dimension.
        num_pairs: Most promising pairs of changes evaluated in every step.
        max_steps: Steps of one climb, at most.
    """

    num_kicks: int = 2
    kick_prob: float = 0.2
    num_pairs: int = 100
    max_steps: int = 60

    def start(
        self, region: FeasibleRegion, archive: Archive, rng: np.random.Generator
    ) -> ProposalRun:
        """See `SearchAlgorithm.start`; begins at a random feasible network."""
        return ProposalRun(self._propose(region, archive, rng))

    def _propose(
        self, region: FeasibleRegion, archive: Archive, rng: np.random.Generator
    ) -> Proposals:
        first = region.sample(1, rng)
        values = yield first
        yield from self.improve(region, archive, rng, first[0], float(values[0]))

    def improve(
        self,
        region: FeasibleRegion,
        archive: Archive,
        rng: np.random.Generator,
        row: NDArray[np.uint8],
        value: float,
    ) -> Climb:
        """Climb from a feasible row [num_dimensions] with the given objective, then kick.

        Returns:
            The best feasible row found, and its objective.
        """
        space = region.problem.space
        neighbourhood = Neighbourhood(region.problem)
        best, best_value = yield from self._climb(region, archive, neighbourhood, row, value)
        for _ in range(self.num_kicks):
            kicked = region.repair(mutate(space, best[None], self.kick_prob, rng), rng)
            values = yield kicked
            end, end_value = yield from self._climb(
                region, archive, neighbourhood, kicked[0], float(values[0])
            )
            if end_value > best_value:
                best, best_value = end, end_value
        return best, best_value

    def _climb(
        self,
        region: FeasibleRegion,
        archive: Archive,
        neighbourhood: Neighbourhood,
        row: NDArray[np.uint8],
        value: float,
    ) -> Climb:
        constraints = region.problem.constraints
        for _ in range(self.max_steps):
            moves, group = neighbourhood.moves(row)
            if len(moves) == 0:
                break
            gains = (yield moves) - value
            slack = np.array([c.limit - c.cost(row[None])[0] for c in constraints])
            added = np.array([c.cost(moves) for c in constraints]).reshape(len(slack), len(moves))
            added -= np.array([c.cost(row[None])[0] for c in constraints])[:, None]
            inside = region.contains(moves)
            tried = [moves[inside]]
            tried_gains = [gains[inside]]
            combos = np.concatenate(
                [
                    _pairs(row, moves, group, gains, added, slack, self.num_pairs),
                    _priced(row, moves, group, gains, added),
                ]
            )
            region.problem.space.canonicalize(combos)
            combos = combos[region.contains(combos)]
            combos = combos[archive.unseen(combos)]
            if len(combos):
                tried.append(combos)
                tried_gains.append((yield combos) - value)
            every, every_gains = np.concatenate(tried), np.concatenate(tried_gains)
            if len(every) == 0:
                break
            top = int(every_gains.argmax())
            if every_gains[top] <= 0:
                break
            row, value = every[top].copy(), value + float(every_gains[top])
        return row, value


def _pairs(
    row: NDArray[np.uint8],
    moves: Population,
    group: NDArray[np.intp],
    gains: NDArray[np.float64],
    added: NDArray[np.float64],
    slack: NDArray[np.float64],
    num: int,
) -> Population:
    """The ``num`` pairs of moves of different groups with the greatest summed gain."""
    total = gains[:, None] + gains[None, :]
    allowed = group[:, None] < group[None, :]
    for cost, left in zip(added, slack, strict=True):
        allowed &= cost[:, None] + cost[None, :] <= left
    total = np.where(allowed, total, -np.inf).ravel()
    num = min(num, int(allowed.sum()))
    if num == 0:
        return moves[:0]
    top = np.argpartition(-total, num - 1)[:num]
    first, second = moves[top // len(moves)], moves[top % len(moves)]
    return np.where(first != row, first, second)


def _priced(
    row: NDArray[np.uint8],
    moves: Population,
    group: NDArray[np.intp],
    gains: NDArray[np.float64],
    added: NDArray[np.float64],
) -> Population:
    """For every price of the first limit: each group's best move, where it pays."""
    if len(added) == 0:
        return moves[:0]
    cost = added[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = gains / cost
    rates = rates[np.isfinite(rates) & (rates > 0)]
    if len(rates) == 0:
        return moves[:0]
    prices = np.tile(np.quantile(rates, np.linspace(0.02, 0.98, _PRICES)), len(_TRUST))
    threshold = np.repeat(_TRUST, _PRICES) * float(np.median(np.abs(gains)))
    worth = gains[None] - prices[:, None] * cost[None]
    every = np.arange(len(prices))
    rows = np.repeat(row[None], len(prices), axis=0)
    for g in np.unique(group):
        members = np.flatnonzero(group == g)
        best = worth[:, members].argmax(axis=1)
        pays = worth[every, members[best]] > threshold
        chosen = moves[members[best]]
        rows = np.where(pays[:, None] & (chosen != row), chosen, rows)
    return rows
