"""Evaluated networks: one of them, and everything evaluated so far."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from effdl.search.problem import Objective, SearchProblem
from effdl.search.space import Population, SubnetConfig

__all__ = ["Archive", "Candidate", "row_keys"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """One evaluated network.

    Attributes:
        row: Its canonical row [num_dimensions].
        config: The same as a configuration.
        objective: Its objective value.
        costs: Its costs by name; each name ends in the unit.
    """

    row: NDArray[np.uint8]
    config: SubnetConfig
    objective: float
    costs: Mapping[str, float]


def row_keys(population: Population) -> list[bytes]:
    """One hashable key for each row; equal iff the rows are equal."""
    rows = np.ascontiguousarray(population)
    return rows.view(np.dtype((np.void, rows.shape[1]))).ravel().tolist()


class Archive:
    """Everything evaluated so far; the same network is never evaluated twice.

    Args:
        problem: What is searched for.
    """

    def __init__(self, problem: SearchProblem) -> None:
        self._num_dimensions = len(problem.space.dimensions)
        self._objective: Objective = problem.objective
        self._index: dict[bytes, int] = {}
        self._rows = np.empty((4096, self._num_dimensions), dtype=np.uint8)
        self._values = np.empty(4096, dtype=np.float64)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def population(self) -> Population:
        """Every evaluated row, in order of evaluation [len(self), num_dimensions]."""
        return self._rows[: len(self)]

    @property
    def objective(self) -> NDArray[np.float64]:
        """Objective values of `population` [len(self)]."""
        return self._values[: len(self)]

    def unseen(self, population: Population) -> NDArray[np.intp]:
        """Indices, increasing, of the rows never evaluated; equal rows count once."""
        index, fresh = self._index, {}
        for i, key in enumerate(row_keys(population)):
            if key not in index and key not in fresh:
                fresh[key] = i
        return np.fromiter(fresh.values(), dtype=np.intp, count=len(fresh))

    def evaluate(self, population: Population) -> NDArray[np.float64]:
        """Objective values [N] of canonical rows [N, num_dimensions].

        Only rows never seen before reach the objective; the others are
        answered from memory.
        """
        keys = row_keys(population)
        index, start = self._index, len(self._index)
        known = [index.setdefault(key, len(index)) for key in keys]
        places = np.array(known, dtype=np.intp)
        if len(index) > start:
            self._grow(len(index))
            new = places >= start
            self._rows[places[new]] = population[new]
            self._values[start : len(index)] = self._objective(self._rows[start : len(index)])
        return self._values[places]

    def _grow(self, size: int) -> None:
        while size > len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
            self._values = np.concatenate([self._values, np.empty_like(self._values)])
