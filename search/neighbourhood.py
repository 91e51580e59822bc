"""The small changes of a network that local search combines.

Which dimensions change together follows from the slots of the constrained
costs: those that choose one operator and nothing else do. A dimension that
switches slots on (a depth) changes together with what it switches on.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

from effdl.search.candidate import row_keys
from effdl.search.problem import SearchProblem
from effdl.search.space import Population

__all__ = ["Neighbourhood"]

_MAX_JOINT = 64


class Neighbourhood:
    """Every small change of a row.

    Args:
        problem: Its space and its constraints' slots.
    """

    def __init__(self, problem: SearchProblem) -> None:
        space = problem.space
        self._space = space
        dimensions = range(len(space.dimensions))
        uses: dict[int, list[int]] = {d: [] for d in dimensions}
        slots = problem.constraints[0].cost.index.slot_dimensions if problem.constraints else ()
        for s, scope in enumerate(slots):
            for d in scope:
                uses[d].append(s)
        joint: dict[object, list[int]] = {}
        for d in dimensions:
            gate = space.dimensions[d].gate
            joint.setdefault((uses[d][0], gate) if len(uses[d]) == 1 else ("alone", d), []).append(
                d
            )
        self._groups = [tuple(group) for group in joint.values()]
        self._choices = [self._joint_choices(group) for group in self._groups]
        self._gate = [space.dimensions[group[0]].gate for group in self._groups]
        gating = {gate.dimension for gate in self._gate if gate is not None}
        self._switches = [any(d in gating for d in group) for group in self._groups]

    def _joint_choices(self, group: tuple[int, ...]) -> NDArray[np.uint8]:
        sizes = [int(self._space.num_choices[d]) for d in group]
        if int(np.prod(sizes)) <= _MAX_JOINT:
            return np.array(list(itertools.product(*map(range, sizes))), dtype=np.uint8)
        singles = [np.zeros(len(group), dtype=np.uint8)]
        for position, size in enumerate(sizes):
            for choice in range(1, size):
                single = np.zeros(len(group), dtype=np.uint8)
                single[position] = choice
                singles.append(single)
        return np.array(singles)

    def moves(self, row: NDArray[np.uint8]) -> tuple[Population, NDArray[np.intp]]:
        """All small changes of a canonical row [num_dimensions].

        Returns:
            Different canonical rows [M, num_dimensions], none of them ``row``,
            and the group of dimensions that each changes [M].
        """
        parts, groups = [], []
        for g, (dimensions, choices) in enumerate(zip(self._groups, self._choices, strict=True)):
            gate = self._gate[g]
            if gate is not None and row[gate.dimension] < gate.minimum:
                continue
            rows = np.repeat(row[None], len(choices), axis=0)
            rows[:, dimensions] = choices
            if self._switches[g]:
                rows = np.concatenate([rows, *self._switched_on(row, rows, dimensions)])
            parts.append(rows)
            groups.append(np.full(len(rows), g))
        moves, group = np.concatenate(parts), np.concatenate(groups)
        self._space.canonicalize(moves)
        places = {key: i for i, key in enumerate(row_keys(moves))}
        places.pop(row_keys(row[None])[0], None)
        kept = np.fromiter(places.values(), dtype=np.intp, count=len(places))
        return moves[kept], group[kept]

    def _switched_on(
        self, row: NDArray[np.uint8], rows: Population, dimensions: tuple[int, ...]
    ) -> list[Population]:
        """Rows whose newly active groups take every choice (several groups the same one)."""
        extra = []
        for changed in rows:
            fresh = [
                h
                for h, gate in enumerate(self._gate)
                if gate is not None
                and gate.dimension in dimensions
                and row[gate.dimension] < gate.minimum <= changed[gate.dimension]
            ]
            if not fresh:
                continue
            most = max(len(self._choices[h]) for h in fresh)
            varied = np.repeat(changed[None], most, axis=0)
            for h in fresh:
                places = np.arange(most) % len(self._choices[h])
                varied[:, self._groups[h]] = self._choices[h][places]
            extra.append(varied)
        return extra
