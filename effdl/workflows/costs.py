"""Costs of a network space as lookups: where networks, tables and search meet."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.opspec import OpSpec, Slot
from effdl.search.cost import LookupCost, SlotIndex
from effdl.targets.latency_model import LatencyModel

__all__ = ["SpaceCosts"]


@dataclass(frozen=True, kw_only=True)
class SpaceCosts:
    """Every cost of a space; all of them share one index of table codes.

    Attributes:
        space: The space.
        batch_size: Samples in one forward pass; peak memory grows with it.
        latency_model: Milliseconds of each operator on the target, or None.
    """

    space: MobileNetV3Space
    batch_size: int
    latency_model: LatencyModel | None = None

    @cached_property
    def index(self) -> SlotIndex:
        """Table codes of the space."""
        return SlotIndex(self.space.search_space, self.space.slots)

    @cached_property
    def macs(self) -> LookupCost:
        """Multiply-accumulate operations for one sample."""
        return self._sum("macs", lambda op: op.macs)

    @cached_property
    def params(self) -> LookupCost:
        """Trainable parameters."""
        return self._sum("params", lambda op: op.num_params)

    @cached_property
    def peak_memory_bytes(self) -> LookupCost:
        """Largest float32 activation memory alive at once, for the whole batch."""
        values = self._values(lambda op: op.peak_memory_bytes * self.batch_size)
        table = self.index.flatten(values)
        return LookupCost(name="peak_memory_bytes", index=self.index, values=table, reduction="max")

    @cached_property
    def latency_ms(self) -> LookupCost:
        """Milliseconds of one forward pass of the whole batch on the target.

        Raises:
            MissingEntryError: The target's table lacks an operator of the space.
        """
        model = self.latency_model
        if model is None:
            raise ValueError("these costs were made without a latency model")
        ops: list[OpSpec] = []
        resolutions: list[int] = []
        for slot in self.space.slots:
            ops += slot.ops
            resolutions += self._resolutions(slot)
        milliseconds = model.predict_op_ms(ops, resolutions=resolutions)
        ends = np.cumsum([len(slot.ops) for slot in self.space.slots])[:-1]
        table = self.index.flatten(np.split(milliseconds, ends))
        return LookupCost(name="latency_ms", index=self.index, values=table)

    def statics(self) -> tuple[LookupCost, ...]:
        """What every network is reported with beside its latency."""
        return (self.params, self.macs)

    def _resolutions(self, slot: Slot) -> list[int]:
        # The resolution is every slot's first dimension, so it varies slowest.
        repeats = len(slot.ops) // len(self.space.resolutions)
        return [r for r in self.space.resolutions for _ in range(repeats)]

    def _sum(self, name: str, value: Callable[[OpSpec], float]) -> LookupCost:
        return LookupCost(
            name=name, index=self.index, values=self.index.flatten(self._values(value))
        )

    def _values(self, value: Callable[[OpSpec], float]) -> list[NDArray[np.float64]]:
        return [np.array([float(value(op)) for op in slot.ops]) for slot in self.space.slots]
