"""What every way to measure has in common."""

import typing
from collections.abc import Sequence
from functools import partial

from effdl.targets.host import RuntimeBuild
from effdl.targets.sampler import Sampler
from effdl.targets.timing import (
    FINAL_PROTOCOL,
    Instruments,
    Progress,
    Protocol,
    Timing,
    measure_interleaved,
)

__all__ = ["MeasurementRuntime", "measure_on"]

_MAX_OPEN_MODELS = 16


class MeasurementRuntime(typing.Protocol):
    """One way to run and time ONNX models on one device.

    Attributes:
        build: What runs the models.
        device: The device, as people call it.
        device_fingerprint: 16 hexadecimal digits: devices with the same are taken for
            equal, and a measurement on another is a miss.
        clock_policy: What decides the device's frequency, or ``"unknown"``.
        num_threads: Threads inside an operator.
        dtype: Number format.
        regime: What is timed where there is a choice, such as ``"cold"`` and
            ``"graph"`` on a GPU; empty where there is none.
    """

    @property
    def build(self) -> RuntimeBuild: ...

    @property
    def device(self) -> str: ...

    @property
    def device_fingerprint(self) -> str: ...

    @property
    def clock_policy(self) -> str: ...

    @property
    def num_threads(self) -> int: ...

    @property
    def dtype(self) -> str: ...

    @property
    def regime(self) -> str: ...

    def open_model(self, model: bytes) -> Sampler:
        """Load a model of fixed sizes and bind made inputs to it.

        Args:
            model: A serialised ONNX model.

        Raises:
            CorruptFileError: The runtime refuses the model.
            TargetUnavailableError: The device is lost.
        """
        ...

    def instruments(self) -> Instruments:
        """The clock, with a fixed kernel on the same device as the reference."""
        ...


def measure_on(
    runtime: MeasurementRuntime,
    models: Sequence[bytes],
    *,
    protocol: Protocol = FINAL_PROTOCOL,
    budget_s: float = 120.0,
    progress: Progress | None = None,
) -> list[Timing]:
    """Time models against each other.

    Args:
        runtime: Where.
        models: Serialised ONNX models of fixed sizes.
        protocol: How carefully.
        budget_s: Seconds after which no further round is begun.
        progress: Called with (rounds of models done, at least to do, text).

    Raises:
        CorruptFileError: The runtime refuses a model.
        TargetUnavailableError: The device is lost.
    """
    return measure_interleaved(
        [partial(runtime.open_model, model) for model in models],
        instruments=runtime.instruments(),
        protocol=protocol,
        budget_s=budget_s,
        max_open=_MAX_OPEN_MODELS,
        progress=progress,
    )
