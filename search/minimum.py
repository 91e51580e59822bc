"""The exact minimum of a lookup cost over a space, by variable elimination.

A cost is a sum (or maximum) of small tables, each over the few dimensions of
one slot. Dimensions are eliminated one by one: the tables that contain one are
joined and minimised over it, and what was best is remembered for the way back.
In a space of blocks, depths and a shared resolution no joined table has more
than a few hundred entries (the method: Bertelè and Brioschi, Nonserial Dynamic
Programming, 1972).
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from effdl.errors import ConfigError
from effdl.search.cost import LookupCost, SlotIndex
from effdl.search.space import Population, SearchSpace

__all__ = ["SlotMinimizer", "minimize_cost"]

_MAX_JOINED = 1 << 22

Factor = tuple[tuple[int, ...], NDArray[np.float64]]


class SlotMinimizer:
    """Minimises any value tables on one slot index, many tables at once.

    Args:
        space: The search space.
        index: The codes of its slots.
    """

    def __init__(self, space: SearchSpace, index: SlotIndex) -> None:
        self._space = space
        self._index = index
        self._sizes = tuple(int(n) for n in space.num_choices)
        self._gates = tuple(
            (i, d.gate) for i, d in enumerate(space.dimensions) if d.gate is not None
        )
        self._order = self._plan()

    def _scopes(self) -> list[tuple[int, ...]]:
        gates = ((i, gate.dimension) for i, gate in self._gates)
        slots = (
            (*dimensions, gate[0]) if gate is not None else dimensions
            for dimensions, gate in zip(
                self._index.slot_dimensions, self._index.slot_gates, strict=True
            )
        )
        return [tuple(sorted(set(scope))) for scope in (*slots, *gates)]

    def _plan(self) -> list[int]:
        """Dimensions in the order that keeps the joined tables smallest (greedily)."""
        scopes = [set(scope) for scope in self._scopes()]
        left = set().union(*scopes) if scopes else set()
        order = []
        while left:
            joined = {d: set().union(*(s for s in scopes if d in s)) for d in left}
            size = {d: math.prod(self._sizes[i] for i in joined[d]) for d in left}
            best = min(left, key=lambda d: (size[d], d))
            if size[best] > _MAX_JOINED:
                raise ConfigError(
                    f"space {self._space.name}: slots share too many dimensions for an exact "
                    f"minimum: wanted at most {_MAX_JOINED} joint choices, got {size[best]}"
                )
            scopes = [s for s in scopes if best not in s] + [joined[best] - {best}]
            left.remove(best)
            order.append(best)
        return order

    def minimize(
        self, values: NDArray[np.float64], *, reduction: Literal["sum", "max"] = "sum"
    ) -> tuple[Population, NDArray[np.float64]]:
        """The canonical row with the least cost for each of B value tables.

        Args:
            values: Value of every code [B, num_codes]; infinite forbids a code.
            reduction: How slots combine.

        Returns:
            Rows [B, num_dimensions] and their costs [B], infinite where every
            row is forbidden.
        """
        combine = np.add if reduction == "sum" else np.maximum
        factors = self._slot_factors(values) + self._gate_factors(reduction)
        decisions: list[tuple[int, tuple[int, ...], NDArray[np.intp]]] = []
        for dimension in self._order:
            touching = [f for f in factors if dimension in f[0]]
            factors = [f for f in factors if dimension not in f[0]]
            scope = tuple(sorted(set().union(*(f[0] for f in touching))))
            joined = _expand(touching[0], scope)
            for factor in touching[1:]:
                joined = combine(joined, _expand(factor, scope))
            axis = 1 + scope.index(dimension)
            rest = tuple(d for d in scope if d != dimension)
            decisions.append((dimension, rest, joined.argmin(axis=axis)))
            factors.append((rest, joined.min(axis=axis)))
        batch = len(values)
        minima = np.full(batch, 0.0 if reduction == "sum" else -np.inf)
        for _, value in factors:
            minima = combine(minima, value)
        rows = np.zeros((batch, len(self._sizes)), dtype=np.uint8)
        every = np.arange(batch)
        for dimension, rest, choice in reversed(decisions):
            first = every if len(choice) == batch else np.zeros_like(every)
            rows[:, dimension] = choice[(first, *(rows[:, d] for d in rest))]
        return self._space.canonicalize(rows), minima

    def _slot_factors(self, values: NDArray[np.float64]) -> list[Factor]:
        index, factors = self._index, []
        for s, dimensions in enumerate(index.slot_dimensions):
            start, size = index.offsets[s], index.sizes[s]
            shape = (len(values), *(self._sizes[d] for d in dimensions))
            axes = np.argsort(dimensions)
            table = values[:, start : start + size].reshape(shape).transpose(0, *(axes + 1))
            scope = tuple(sorted(dimensions))
            gate = index.slot_gates[s]
            if gate is not None:
                wide = tuple(sorted({*scope, gate[0]}))
                shape = tuple(self._sizes[d] if d == gate[0] else 1 for d in wide)
                present = np.arange(self._sizes[gate[0]]).reshape(shape) >= gate[1]
                empty = values[:, start + size].reshape(-1, *(1,) * len(wide))
                scope, table = wide, np.where(present, _expand((scope, table), wide), empty)
            factors.append((scope, table))
        return factors

    def _gate_factors(self, reduction: str) -> list[Factor]:
        """Infinite where a dimension that is switched off is not at choice 0."""
        factors: list[Factor] = []
        for dimension, gate in self._gates:
            on = np.arange(self._sizes[gate.dimension])[:, None] >= gate.minimum
            first = np.arange(self._sizes[dimension])[None, :] == 0
            table = np.where(on | first, 0.0 if reduction == "sum" else -np.inf, np.inf)
            table = table if gate.dimension < dimension else table.T
            factors.append((tuple(sorted((dimension, gate.dimension))), table[None]))
        return factors


def _expand(factor: Factor, scope: tuple[int, ...]) -> NDArray[np.float64]:
    own, table = factor
    sizes = iter(table.shape[1:])
    return table.reshape(-1, *(next(sizes) if d in own else 1 for d in scope))


def minimize_cost(space: SearchSpace, cost: LookupCost) -> tuple[NDArray[np.uint8], float]:
    """The cheapest canonical row [num_dimensions] of a space, and its cost."""
    rows, _ = SlotMinimizer(space, cost.index).minimize(cost.values[None], reduction=cost.reduction)
    return rows[0], float(cost(rows)[0])
