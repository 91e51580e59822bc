"""Where a TSM may shift: one choice for each residual block.

Every shift lets the network see one frame further to both sides, and costs what the
shift costs at that place. The operator in a place is the shift itself, so a search
with a table of kernels takes the fastest implementation of each.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from effdl.kernels.temporal_shift.spec import (
    MOBILENET_V2_SHAPES,
    RESNET50_SHAPES,
    temporal_shift_spec,
)
from effdl.opspec import OpSpec, Slot
from effdl.search.space import Dimension, Population, SearchSpace

__all__ = ["ShiftPlacementSpace", "tsm_mobilenet_v2_space", "tsm_resnet50_space"]


@dataclass(frozen=True, kw_only=True)
class ShiftPlacementSpace:
    """Which blocks of a network on clips are shifted.

    Attributes:
        name: Name of the space.
        shapes: Channels and height (= width) at each place where a shift may stand.
        num_segments: Frames of a clip.
    """

    name: str
    shapes: tuple[tuple[int, int], ...]
    num_segments: int = 8

    @cached_property
    def search_space(self) -> SearchSpace:
        """One dimension ``shift`` a place: 0 or 1."""
        places = range(len(self.shapes))
        return SearchSpace(
            name=self.name,
            dimensions=tuple(Dimension(name="shift", position=i, choices=(0, 1)) for i in places),
        )

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """One slot a place, empty where nothing is shifted."""
        ops = [self._op(channels, size) for channels, size in self.shapes]
        return tuple(
            Slot(name=f"shift{i}", dimensions=(i,), ops=(op, op), gate=(i, 1))
            for i, op in enumerate(ops)
        )

    def receptive_frames(self, population: Population) -> NDArray[np.float64]:
        """Frames that an output depends on [N], for rows [N, num places], clips being endless."""
        return 1.0 + 2.0 * population.sum(axis=1, dtype=np.float64)

    def _op(self, channels: int, size: int) -> OpSpec:
        return temporal_shift_spec(channels, size, num_segments=self.num_segments)


def tsm_resnet50_space() -> ShiftPlacementSpace:
    """ResNet-50 on 8 frames of 224 x 224: 16 places."""
    return ShiftPlacementSpace(name="tsm-resnet50", shapes=RESNET50_SHAPES)


def tsm_mobilenet_v2_space() -> ShiftPlacementSpace:
    """MobileNetV2 on 8 frames of 224 x 224: 10 places."""
    return ShiftPlacementSpace(name="tsm-mobilenet-v2", shapes=MOBILENET_V2_SHAPES)
