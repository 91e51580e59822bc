"""Costs of whole populations as table lookups: one gather and one reduction.

Any cost that is a sum (latency, MACs, parameters) or a maximum (peak memory)
over the positions of a network is a `LookupCost`. All of them share one
`SlotIndex`, so a population's codes are worked out once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from effdl.search.space import Population, SearchSpace

__all__ = ["LookupCost", "SlotIndex", "SlotLike"]


class SlotLike(Protocol):
    """A position of a network: see `effdl.opspec.Slot`."""

    @property
    def dimensions(self) -> tuple[int, ...]: ...
    @property
    def gate(self) -> tuple[int, int] | None: ...


class SlotIndex:
    """Maps rows of choice indices to one table code for each slot.

    Slot s owns the codes ``offsets[s] .. offsets[s + 1] - 1``: first its
    choices in C order over its dimensions, then one code for "empty".

    Args:
        space: The search space.
        slots: The positions of the network.

    Attributes:
        slot_dimensions: Dimensions that choose the operator, for each slot.
        slot_gates: ``(dimension, minimum choice index)`` or None, for each slot.
        sizes: Codes of each slot, "empty" not counted [num_slots].
        offsets: First code of each slot, then the number of codes [num_slots + 1].
    """

    def __init__(self, space: SearchSpace, slots: Sequence[SlotLike]) -> None:
        self.slot_dimensions = tuple(tuple(slot.dimensions) for slot in slots)
        self.slot_gates = tuple(slot.gate for slot in slots)
        num_dimensions = len(space.dimensions)
        # Indices are small integers, exact in float32, and only float matrices
        # multiply through BLAS.
        self._strides = np.zeros((num_dimensions, len(slots)), dtype=np.float32)
        sizes = []
        for s, slot in enumerate(slots):
            size = 1
            for dimension in reversed(slot.dimensions):
                self._strides[dimension, s] = size
                size *= int(space.num_choices[dimension])
            sizes.append(size)
        self.sizes = np.array(sizes, dtype=np.intp)
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes + 1)]).astype(np.intp)
        if self.offsets[-1] >= 1 << 24:
            raise ValueError(f"{self.offsets[-1]} codes are too many for exact float32 indices")
        gated = [(s, slot.gate) for s, slot in enumerate(slots) if slot.gate is not None]
        self._gated = np.array([s for s, _ in gated], dtype=np.intp)
        self._gating = np.array([g[0] for _, g in gated], dtype=np.intp)
        self._minimum = np.array([g[1] for _, g in gated], dtype=np.uint8)
        self._base = self.offsets[:-1].astype(np.float32)
        self._empty = self.offsets[1:][self._gated] - 1

    @property
    def num_codes(self) -> int:
        """Length of a cost's value table."""
        return int(self.offsets[-1])

    def codes(self, population: Population) -> NDArray[np.intp]:
        """Table codes [N, num_slots] of a canonical population [N, num_dimensions]."""
        codes = (population.astype(np.float32) @ self._strides + self._base).astype(np.intp)
        codes[:, self._gated] = np.where(
            population[:, self._gating] >= self._minimum, codes[:, self._gated], self._empty
        )
        return codes

    def flatten(
        self, values: Sequence[NDArray[np.float64]], *, empty: float = 0.0
    ) -> NDArray[np.float64]:
        """One value table [num_codes] from a list of values for each slot."""
        table = np.full(self.num_codes, empty, dtype=np.float64)
        for start, size, slot_values in zip(self.offsets[:-1], self.sizes, values, strict=True):
            table[start : start + size] = slot_values
        return table


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupCost:
    """A cost that is a sum or a maximum of table values over slots.

    Attributes:
        name: What it measures, with its unit, such as ``"latency_ms"``.
        index: The codes of the space.
        values: Value of each code [num_codes].
        reduction: How slots combine.
    """

    name: str
    index: SlotIndex
    values: NDArray[np.float64]
    reduction: Literal["sum", "max"] = "sum"

    def of_codes(self, codes: NDArray[np.intp]) -> NDArray[np.float64]:
        """Costs [N] of codes [N, num_slots]."""
        picked = self.values.take(codes)
        return picked.sum(axis=1) if self.reduction == "sum" else picked.max(axis=1)

    def __call__(self, population: Population) -> NDArray[np.float64]:
        """Costs [N] of a canonical population [N, num_dimensions]."""
        return self.of_codes(self.index.codes(population))
