"""Several implementations of one operator, measured against each other.

An operator's key says what is computed; what computes it stands in the setting of a
measurement. So one operator may have a figure in ONNX Runtime and others in kernels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from effdl.errors import MissingEntryError
from effdl.opspec import OpSpec
from effdl.targets.sampler import Opener
from effdl.targets.store import MeasurementStore, Setting
from effdl.targets.timing import Instruments, Progress, Protocol, Timing, measure_interleaved

__all__ = [
    "FastestLatencyModel",
    "Implementation",
    "finished_implementations",
    "profile_implementations",
]

# Those of one operator are few; compiled kernels and sessions stay open where they fit.
_MAX_OPEN = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Implementation:
    """One way to compute one operator.

    Attributes:
        key: The operator's (`effdl.opspec.OpSpec.key`).
        name: Such as ``"onnxruntime"``; unique among those of one key.
        setting: What a figure of it holds for.
        opener: Opens it for the clock.
    """

    key: str
    name: str
    setting: Setting
    opener: Opener


def finished_implementations(
    implementations: Sequence[Implementation], store: MeasurementStore, protocol: Protocol
) -> list[Timing | None]:
    """What the store holds of each and need not be measured again, in order."""
    by_setting = {
        setting: store.read_timings(setting)
        for setting in dict.fromkeys(one.setting for one in implementations)
    }
    found = [by_setting[one.setting].get(one.key) for one in implementations]
    return [t if t is not None and t.num_rounds >= protocol.min_rounds else None for t in found]


def profile_implementations(
    implementations: Sequence[Implementation],
    *,
    store: MeasurementStore,
    protocol: Protocol,
    instruments: Instruments,
    budget_s: float,
    progress: Progress | None = None,
) -> list[Timing]:
    """Measure what the store lacks, all in the same rounds, and go on where one was stopped.

    Args:
        implementations: What to time.
        store: Where every round is committed as it is measured.
        protocol: How carefully.
        instruments: The clock and the reference.
        budget_s: Seconds after which every item has one round and no more.
        progress: Told how many rounds are done, of how many.

    Returns:
        A timing of each, in order.

    Raises:
        OutputError: The store cannot be written.
    """
    timings = finished_implementations(implementations, store, protocol)
    left = [i for i, timing in enumerate(timings) if timing is None]
    chosen = [implementations[i] for i in left]
    measured = measure_interleaved(
        [one.opener for one in chosen],
        instruments=instruments,
        protocol=protocol,
        budget_s=budget_s,
        max_open=_MAX_OPEN,
        earlier=[store.read_rounds(one.setting, [one.key])[0] for one in chosen],
        record=lambda index, done: store.add_round(chosen[index].setting, chosen[index].key, done),
        progress=progress,
    )
    for one, timing in zip(chosen, measured, strict=True):
        store.write_timings(one.setting, {one.key: timing})
    fresh = dict(zip(left, measured, strict=True))
    return [fresh[i] if timing is None else timing for i, timing in enumerate(timings)]


@dataclass(frozen=True, slots=True, kw_only=True)
class FastestLatencyModel:
    """A `LatencyModel` in which the fastest measured implementation of an operator stands.

    Attributes:
        implementations_ms: 20th percentile of each implementation in milliseconds for
            the whole batch, at one speed of the machine: by the operator's key, then by
            the implementation's name.
        device: The machine, as people call it.
        batch_size: Samples in one run.
    """

    implementations_ms: Mapping[str, Mapping[str, float]]
    device: str
    batch_size: int

    @property
    def source(self) -> Literal["measured"]:
        """How the latencies came about."""
        return "measured"

    @property
    def runtime(self) -> str:
        """Every implementation that is the fastest of some operator."""
        return ", ".join(sorted({self.fastest(key) for key in self.implementations_ms}))

    @property
    def interval_percent(self) -> None:
        """Not known of sums of operators measured alone."""
        return None

    @classmethod
    def of_timings(
        cls,
        implementations: Sequence[Implementation],
        timings: Sequence[Timing],
        *,
        device: str,
    ) -> "FastestLatencyModel":
        """The model of measured implementations, all of one batch size.

        Timings of different days are brought to one speed of the machine by the
        reference kernel that was timed beside each.
        """
        usual_s = float(np.median([timing.reference_s for timing in timings]))
        found: dict[str, dict[str, float]] = {}
        for one, timing in zip(implementations, timings, strict=True):
            ms = timing.p20_ms * usual_s / timing.reference_s
            found.setdefault(one.key, {})[one.name] = ms
        return cls(
            implementations_ms=found,
            device=device,
            batch_size=implementations[0].setting.batch_size,
        )

    def fastest(self, key: str) -> str:
        """Name of the operator's fastest implementation.

        Raises:
            MissingEntryError: The operator was never measured.
        """
        return min(self._of(key).items(), key=lambda item: item[1])[0]

    def predict_op_ms(
        self, ops: Sequence[OpSpec], *, resolutions: Sequence[int] | None = None
    ) -> NDArray[np.float64]:
        """Latencies of operators [len(ops)], each by its fastest implementation.

        Args:
            ops: The operators.
            resolutions: Not needed: an operator's key says its size.

        Raises:
            MissingEntryError: An operator was never measured.
        """
        return np.array([min(self._of(op.key).values()) for op in ops], dtype=np.float64)

    def _of(self, key: str) -> Mapping[str, float]:
        try:
            return self.implementations_ms[key]
        except KeyError:
            raise MissingEntryError(
                f"no implementation of {key} was measured on this machine",
                hint="effdl profile --target cpu --ops kernels",
            ) from None
