"""Limits that a sub-network must keep."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from effdl.errors import ConfigError
from effdl.search.cost import LookupCost
from effdl.search.space import Population

__all__ = ["Constraint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """``cost(network) <= limit``.

    Attributes:
        name: What is limited, as a message says it, such as ``"latency"``.
        limit: The largest allowed cost, in the unit that ``cost.name`` ends in.
        cost: The limited cost.

    Raises:
        ConfigError: The limit is not a positive finite number.
    """

    name: str
    limit: float
    cost: LookupCost

    def __post_init__(self) -> None:
        if not (np.isfinite(self.limit) and self.limit > 0):
            raise ConfigError(f"{self.name} limit: wanted a positive number, got {self.limit}")

    def violation(self, population: Population) -> NDArray[np.float64]:
        """By what fraction of the limit each row exceeds it [N]; 0 iff feasible."""
        return self.violation_of(self.cost(population))

    def violation_of(self, costs: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same from costs [N] that are already known."""
        excess = np.maximum(costs - self.limit, 0.0)
        return excess / self.limit
