"""Search where to shift a TSM, each shift at the cost of its fastest implementation."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from effdl.models.tsm.space import ShiftPlacementSpace
from effdl.search.constraint import Constraint
from effdl.search.cost import LookupCost, SlotIndex
from effdl.search.evolution import EvolutionSearch
from effdl.search.loop import run_search
from effdl.search.problem import SearchProblem
from effdl.search.result import SearchResult
from effdl.targets.implementations import FastestLatencyModel

__all__ = ["ShiftPlacement", "place_shifts", "shift_latency"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShiftPlacement:
    """Where to shift, and with what.

    Attributes:
        places: Indices of the shifted blocks.
        implementations: The fastest implementation at each of them.
        latency_ms: Of all shifts, in milliseconds for the whole batch.
        receptive_frames: Frames that an output depends on.
        search: How it was found.
    """

    places: tuple[int, ...]
    implementations: Mapping[int, str]
    latency_ms: float
    receptive_frames: int
    search: SearchResult


def shift_latency(space: ShiftPlacementSpace, model: FastestLatencyModel) -> LookupCost:
    """Milliseconds of all shifts of a placement, each by its fastest implementation.

    Raises:
        MissingEntryError: A shift of the space was never measured.
    """
    index = SlotIndex(space.search_space, space.slots)
    values = [model.predict_op_ms(slot.ops) for slot in space.slots]
    return LookupCost(name="latency_ms", index=index, values=index.flatten(values))


def place_shifts(
    space: ShiftPlacementSpace,
    model: FastestLatencyModel,
    *,
    latency_ms: float,
    seed: int = 0,
) -> ShiftPlacement:
    """See as many frames as shifts within a latency allow.

    Args:
        space: Where shifts may stand.
        model: The fastest measured implementation of each shift.
        latency_ms: Limit for all shifts of one forward pass, in milliseconds.
        seed: Of the search.

    Raises:
        ConfigError: The limit is not positive.
        MissingEntryError: A shift of the space was never measured.
    """
    cost = shift_latency(space, model)
    problem = SearchProblem(
        space=space.search_space,
        objective=space.receptive_frames,
        constraints=(Constraint(name="latency", limit=latency_ms, cost=cost),),
    )
    found = run_search(
        problem, EvolutionSearch(num_generations=50), rng=np.random.default_rng(seed)
    )
    best = found.best[0]
    places = tuple(np.flatnonzero(best.row).tolist())
    return ShiftPlacement(
        places=places,
        implementations={i: model.fastest(space.slots[i].ops[1].key) for i in places},
        latency_ms=best.costs["latency_ms"],
        receptive_frames=int(best.objective),
        search=found,
    )
