"""The contract of a search algorithm: ask and tell.

The settings of an algorithm are a frozen dataclass with a method `start`. What
it returns holds the state of one search. Algorithms here are written as
coroutines, ``values = yield rows``, and `ProposalRun` gives them ask and tell.
"""

from collections.abc import Generator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from effdl.search.candidate import Archive
from effdl.search.feasible import FeasibleRegion
from effdl.search.space import Population

__all__ = ["ProposalRun", "Proposals", "SearchAlgorithm", "SearchRun"]

Proposals = Generator[Population, NDArray[np.float64], None]


class SearchRun(Protocol):
    """One search under way."""

    def ask(self) -> Population:
        """Canonical rows [N, num_dimensions] to evaluate; none: finished.

        A row that breaks a limit may be asked for, to learn from it; it is
        never part of the result.
        """
        ...

    def tell(self, values: NDArray[np.float64]) -> None:
        """The objective values [N] of the rows last asked."""
        ...


class SearchAlgorithm(Protocol):
    """Settings of an algorithm, and the way to start it."""

    def start(
        self, region: FeasibleRegion, archive: Archive, rng: np.random.Generator
    ) -> SearchRun:
        """A new search.

        Args:
            region: The feasible networks.
            archive: Everything evaluated so far; the loop fills it.
            rng: The only source of randomness.
        """
        ...


class ProposalRun:
    """Ask and tell over a coroutine that yields rows and is sent their values.

    Args:
        proposals: The coroutine; it ends when the search is finished.
    """

    def __init__(self, proposals: Proposals) -> None:
        self._proposals = proposals
        self._values: NDArray[np.float64] | None = None
        self._asked: Population | None = None

    def ask(self) -> Population:
        """See `SearchRun.ask`."""
        try:
            if self._values is None:
                self._asked = next(self._proposals)
            else:
                self._asked = self._proposals.send(self._values)
        except StopIteration:
            columns = 0 if self._asked is None else self._asked.shape[1]
            return np.empty((0, columns), dtype=np.uint8)
        return self._asked

    def tell(self, values: NDArray[np.float64]) -> None:
        """See `SearchRun.tell`."""
        self._values = values
