"""The latency model of this machine: measured operators, corrected to whole networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from effdl.errors import MissingEntryError
from effdl.opspec import OpSpec
from effdl.targets.calibration import Calibration

__all__ = ["HostLatencyModel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLatencyModel:
    """Gives milliseconds for operators; sums of them are medians of whole networks.

    Attributes:
        op_ms: 20th percentile of each operator alone, in milliseconds, by key.
        calibration: From sums of those to whole networks.
        device: The machine, as people call it.
        batch_size: Samples in one run.
        runtime: What ran the operators.
        source: ``interpolated`` if some operators were filled in between others.
    """

    op_ms: Mapping[str, float]
    calibration: Calibration
    device: str
    batch_size: int
    runtime: str
    source: Literal["measured", "interpolated"] = "measured"

    @property
    def interval_percent(self) -> float | None:
        """Half-width of the 95 % prediction interval of a whole network.

        That of the correction, and how much slower the machine sometimes runs.
        """
        return self.calibration.interval_percent + self.calibration.slow_percent

    def predict_op_ms(
        self, ops: Sequence[OpSpec], *, resolutions: Sequence[int] | None = None
    ) -> NDArray[np.float64]:
        """Latencies of operators [len(ops)], in milliseconds for the whole batch.

        Args:
            ops: The operators.
            resolutions: Not needed: an operator's key says its size.

        Raises:
            MissingEntryError: An operator was never measured.
        """
        missing = [op.key for op in ops if op.key not in self.op_ms]
        if missing:
            raise MissingEntryError(
                f"this machine's table lacks {len(missing)} of the operators asked for, "
                f"such as {missing[0]}",
                hint="effdl profile --target cpu",
            )
        return self.calibration.correct(ops, np.array([self.op_ms[op.key] for op in ops]))
