"""Random search: the baseline that every other algorithm must beat."""

from dataclasses import dataclass

import numpy as np

from effdl.search.algorithm import ProposalRun, Proposals
from effdl.search.candidate import Archive
from effdl.search.feasible import FeasibleRegion

__all__ = ["RandomSearch"]

_MAX_BARREN = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomSearch:
    """Independent feasible networks.

    Attributes:
        num_evaluations: Different networks to draw.
        batch_size: Networks for each ask.
    """

    num_evaluations: int = 50_100
    batch_size: int = 100

    def start(
        self, region: FeasibleRegion, archive: Archive, rng: np.random.Generator
    ) -> ProposalRun:
        """See `SearchAlgorithm.start`."""
        return ProposalRun(self._propose(region, archive, rng))

    def _propose(
        self, region: FeasibleRegion, archive: Archive, rng: np.random.Generator
    ) -> Proposals:
        left, barren = self.num_evaluations, 0
        while left > 0 and barren < _MAX_BARREN:
            rows = region.sample(min(left, self.batch_size), rng)
            rows = rows[archive.unseen(rows)]
            barren = 0 if len(rows) else barren + 1
            if len(rows):
                left -= len(rows)
                yield rows
