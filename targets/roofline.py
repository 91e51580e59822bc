"""Latency estimates from published peak figures, for devices nobody measured.

An operator takes as long as its arithmetic at the device's peak or its memory
traffic at the device's bandwidth, whichever is longer, each at the share of the
peak that networks reach there, plus a fixed cost. (Roofline model: Williams,
Waterman, Patterson, Communications of the ACM 52(4), 2009.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from effdl.errors import ConfigError
from effdl.opspec import OpSpec
from effdl.targets.target import Target

__all__ = ["RooflineModel"]

_FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflineModel:
    """Estimates operators of one device at one batch size, in float32.

    Attributes:
        device: The device, as people call it.
        batch_size: Samples in one run.
        runtime: What is assumed to run the operators.
        peak_flops_per_s: Peak float32 arithmetic, a multiply-add counted as two.
        memory_bandwidth_bytes_per_s: Peak memory bandwidth.
        launch_overhead_us: Fixed cost of an operator.
        flops_efficiency: Share of the arithmetic peak that is reached.
        bandwidth_efficiency: Share of the bandwidth that is reached.
    """

    device: str
    batch_size: int
    runtime: str
    peak_flops_per_s: float
    memory_bandwidth_bytes_per_s: float
    launch_overhead_us: float
    flops_efficiency: float
    bandwidth_efficiency: float

    @property
    def source(self) -> Literal["estimated"]:
        """How the latencies came about."""
        return "estimated"

    @property
    def interval_percent(self) -> None:
        """Nobody knows how wrong an estimate is."""
        return None

    @classmethod
    def of_target(cls, target: Target, *, batch_size: int) -> Self:
        """The model of a target's published figures.

        Raises:
            ConfigError: The descriptor lacks a figure.
        """
        figures = {
            "peak_flops_per_s": target.peak_flops_per_s.get("float32"),
            "memory_bandwidth_bytes_per_s": target.memory_bandwidth_bytes_per_s,
            "launch_overhead_us": target.launch_overhead_us,
            "flops_efficiency": target.flops_efficiency,
            "bandwidth_efficiency": target.bandwidth_efficiency,
        }
        values = {name: figure.value for name, figure in figures.items() if figure is not None}
        missing = [name for name in figures if name not in values]
        if missing:
            raise ConfigError(
                f"target {target.name} has neither a latency table nor the figures for an "
                f"estimate: its descriptor lacks {', '.join(missing)}",
                hint="effdl targets fit makes a target from 20 measured sub-networks",
            )
        return cls(device=target.device, batch_size=batch_size, runtime=target.runtime, **values)

    def estimate_op_ms(self, ops: Sequence[OpSpec]) -> NDArray[np.float64]:
        """Estimated latencies of operators [len(ops)], in milliseconds for the whole batch."""
        flops = np.array([op.flops for op in ops], dtype=np.float64) * self.batch_size
        weights = np.array([op.num_params for op in ops], dtype=np.float64) * _FLOAT32_BYTES
        moved = np.array([op.bytes_moved for op in ops], dtype=np.float64)
        bytes_moved = np.maximum(moved - weights, 0.0) * self.batch_size + weights
        arithmetic_s = flops / (self.peak_flops_per_s * self.flops_efficiency)
        traffic_s = bytes_moved / (self.memory_bandwidth_bytes_per_s * self.bandwidth_efficiency)
        return 1e3 * np.maximum(arithmetic_s, traffic_s) + 1e-3 * self.launch_overhead_us

    def predict_op_ms(
        self, ops: Sequence[OpSpec], *, resolutions: Sequence[int] | None = None
    ) -> NDArray[np.float64]:
        """The same as `estimate_op_ms`, under the name that every latency model has."""
        return self.estimate_op_ms(ops)
