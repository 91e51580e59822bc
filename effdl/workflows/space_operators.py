"""The distinct operators of a space, and its networks as codes of them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.opspec import OpSpec
from effdl.search.cost import SlotIndex
from effdl.search.space import Population

__all__ = ["SpaceOperators"]


@dataclass(frozen=True, kw_only=True)
class SpaceOperators:
    """Operators of a space, each once.

    Attributes:
        space: The space.
    """

    space: MobileNetV3Space

    @cached_property
    def _index(self) -> SlotIndex:
        return SlotIndex(self.space.search_space, self.space.slots)

    @cached_property
    def _numbered(self) -> tuple[tuple[OpSpec, ...], NDArray[np.intp]]:
        """Operators with distinct keys, and the operator of each code of the index."""
        numbers: dict[str, int] = {}
        ops: list[OpSpec] = []
        op_of_code = np.full(self._index.num_codes, -1, dtype=np.intp)
        for start, slot in zip(self._index.offsets[:-1], self.space.slots, strict=True):
            for i, op in enumerate(slot.ops):
                number = numbers.setdefault(op.key, len(ops))
                if number == len(ops):
                    ops.append(op)
                op_of_code[start + i] = number
        op_of_code[op_of_code < 0] = len(ops)
        return tuple(ops), op_of_code

    @property
    def ops(self) -> tuple[OpSpec, ...]:
        """Every operator once."""
        return self._numbered[0]

    def codes(self, population: Population) -> NDArray[np.intp]:
        """Operators [N, num_slots] of networks [N, num_dimensions], as indices into `ops`.

        ``len(ops)`` stands for an empty slot.
        """
        return self._numbered[1][self._index.codes(population)]
