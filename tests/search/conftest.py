"""Small problems whose answers can be found by trying everything."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from effdl.search.constraint import Constraint
from effdl.search.cost import LookupCost, SlotIndex
from effdl.search.problem import SearchProblem
from effdl.search.space import Dimension, Gate, Population, SearchSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A slot of a made network."""

    dimensions: tuple[int, ...]
    gate: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class MadeProblem:
    """A made space with every one of its networks.

    Attributes:
        problem: An objective with interactions under one limit.
        rows: Every canonical row [num_networks, num_dimensions].
        cost: Cost of every row.
        objective: Objective of every row.
        positions: The slots.
        values: Value of every choice of every slot, empty where switched off.
    """

    problem: SearchProblem
    rows: Population
    cost: NDArray[np.float64]
    objective: NDArray[np.float64]
    positions: list[Position]
    values: list[NDArray[np.float64]]

    @property
    def space(self) -> SearchSpace:
        return self.problem.space

    def within(self, limit: float) -> SearchProblem:
        """The same problem under another limit."""
        (constraint,) = self.problem.constraints
        return SearchProblem(
            space=self.space,
            objective=self.problem.objective,
            constraints=(Constraint(name="latency", limit=limit, cost=constraint.cost),),
        )

    def optimum(self, limit: float) -> float:
        """The greatest objective within a limit."""
        return float(self.objective[self.cost <= limit].max())


def made_space() -> tuple[SearchSpace, list[Position]]:
    """Two units of one or two blocks with kernel and width, and a shared resolution."""
    dimensions = [Dimension(name="depth", position=u, choices=(1, 2)) for u in range(2)]
    positions = [Position(dimensions=(10,))]
    for name in ("kernel_size", "expand_ratio"):
        for block in range(4):
            gate = Gate(dimension=block // 2, minimum=1) if block % 2 else None
            choices = (3, 5, 7) if name == "kernel_size" else (3, 6)
            dimensions.append(Dimension(name=name, position=block, choices=choices, gate=gate))
    dimensions.append(Dimension(name="resolution", position=None, choices=(160, 192, 224)))
    for block in range(4):
        gate = (block // 2, 1) if block % 2 else None
        positions.append(Position(dimensions=(10, 2 + block, 6 + block), gate=gate))
    return SearchSpace(name="made", dimensions=tuple(dimensions)), positions


def every_row(space: SearchSpace) -> Population:
    choices = itertools.product(*(range(len(d.choices)) for d in space.dimensions))
    rows = space.canonicalize(np.array(list(choices), dtype=np.uint8))
    return np.unique(rows, axis=0)


@pytest.fixture(scope="session")
def make_problem() -> Callable[[int], MadeProblem]:
    """A problem of 5,292 networks with made costs and an objective, by seed."""
    space, positions = made_space()
    rows = every_row(space)

    def make(seed: int) -> MadeProblem:
        rng = np.random.default_rng(seed)
        index = SlotIndex(space, positions)
        values = [rng.uniform(0.5, 3.0, size) for size in index.sizes]
        cost = LookupCost(name="latency_ms", index=index, values=index.flatten(values))
        linear = rng.uniform(0.0, 1.0, (len(space.dimensions), 3))
        pairs = rng.normal(0.0, 0.1, (len(space.dimensions), len(space.dimensions)))

        def objective(population: Population) -> NDArray[np.float64]:
            active = space.active(population)
            columns = np.arange(population.shape[1])
            gains = linear[columns, population] * active
            return gains.sum(axis=1) + np.einsum("nd,de,ne->n", gains, pairs, gains)

        costs = cost(rows)
        limit = float(np.quantile(costs, 0.3))
        return MadeProblem(
            problem=SearchProblem(
                space=space,
                objective=objective,
                constraints=(Constraint(name="latency", limit=limit, cost=cost),),
            ),
            rows=rows,
            cost=costs,
            objective=objective(rows),
            positions=positions,
            values=values,
        )

    return make
