"""Times ONNX models in OpenVINO on this machine's CPU."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from effdl.errors import (
    BackendUnavailableError,
    ConfigError,
    CorruptFileError,
    TargetUnavailableError,
)
from effdl.targets.host import RuntimeBuild, describe_host, find_runtime
from effdl.targets.measure.onnxruntime import NUM_THREADS, reference_model
from effdl.targets.sampler import HostSampler
from effdl.targets.timing import Instruments

if TYPE_CHECKING:
    import openvino

__all__ = ["OpenVinoRuntime", "OpenVinoSession"]

_DEVICE = "CPU"
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
_TELEMETRY = "openvino_telemetry"


def _find_build() -> RuntimeBuild:
    try:
        return find_runtime("openvino")
    except BackendUnavailableError as error:
        raise BackendUnavailableError(error.message, hint='pip install "effdl[openvino]"') from None


@cache
def _open_core() -> "openvino.Core":
    """The runtime, imported without its telemetry.

    Importing the package sends an event to its makers, unless its telemetry package
    is missing; nobody who measures here has agreed to that, so it is missing meanwhile.
    """
    _find_build()
    hide = _TELEMETRY not in sys.modules
    if hide:
        sys.modules[_TELEMETRY] = None  # pyright: ignore[reportArgumentType]
    try:
        return importlib.import_module("openvino").Core()
    finally:
        if hide:
            del sys.modules[_TELEMETRY]


@contextmanager
def _runtime_errors() -> Iterator[None]:
    """Turn the runtime's exceptions, which are all of one kind, into ours."""
    try:
        yield
    except RuntimeError as error:
        told = " ".join(str(error).split())
        raise CorruptFileError(
            f"OpenVINO cannot run a model given as bytes: {told[:300]}",
            hint="python -m onnx.checker MODEL.onnx may say more",
        ) from None


class OpenVinoSession:
    """A compiled model with made inputs and outputs that are allocated once.

    Inputs are standard normal numbers, or small integers, and the same every time.

    Args:
        model: A serialised ONNX model of fixed sizes.
        num_threads: Threads inside an operator.
        dtype: ``"float32"`` or ``"bfloat16"``, of the arithmetic inside.

    Raises:
        BackendUnavailableError: OpenVINO is not installed.
        CorruptFileError: It refuses the model, or a size is not fixed.
    """

    def __init__(
        self, model: bytes, *, num_threads: int = NUM_THREADS, dtype: str = "float32"
    ) -> None:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": num_threads,
            # Left alone, processors with bfloat16 units compute in bfloat16.
            "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype],
            # Its own pinning would undo the clock's pinning of this thread.
            "ENABLE_CPU_PINNING": False,
        }
        core = _open_core()
        with _runtime_errors():
            compiled = core.compile_model(core.read_model(model), _DEVICE, settings)
            self._request = compiled.create_infer_request()
        self.precision = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
        rng = np.random.default_rng(0)
        self.feeds = {port.get_any_name(): _made(port, rng) for port in compiled.inputs}
        self.outputs = [np.empty(_shape(p), p.element_type.to_dtype()) for p in compiled.outputs]
        make = importlib.import_module("openvino").Tensor
        for i, value in enumerate(self.feeds.values()):
            self._request.set_input_tensor(i, make(value, shared_memory=True))
        for i, value in enumerate(self.outputs):
            self._request.set_output_tensor(i, make(value, shared_memory=True))
        with _runtime_errors():
            self.run()

    def run(self) -> None:
        """Compute ``outputs`` from ``feeds`` once, in this thread."""
        self._request.infer(share_outputs=True)


def _shape(port: "openvino.ConstOutput") -> list[int]:
    if port.partial_shape.is_dynamic:
        raise CorruptFileError(
            f"value {port.get_any_name()!r} has dimensions of no fixed size: "
            f"{port.partial_shape.to_string()}",
            hint="export the model with fixed sizes, the batch's too",
        )
    return list(port.shape)


def _made(port: "openvino.ConstOutput", rng: np.random.Generator) -> NDArray[Any]:
    shape, dtype = _shape(port), np.dtype(port.element_type.to_dtype())
    is_float = np.issubdtype(dtype, np.floating)
    made = (
        rng.standard_normal(shape, dtype=np.float32) if is_float else rng.integers(0, 2, size=shape)
    )
    return np.ascontiguousarray(made, dtype=dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVinoRuntime:
    """OpenVINO on this machine's processor, as a `MeasurementRuntime`.

    Attributes:
        num_threads: Threads inside an operator.
        dtype: ``"float32"``, or ``"bfloat16"`` where the processor has units for it;
            inputs and outputs stay as the model has them.

    Raises:
        BackendUnavailableError: It is not installed.
        ConfigError: Another number format.
        TargetUnavailableError: The processor has no units for the number format.
    """

    num_threads: int = NUM_THREADS
    dtype: str = "float32"
    build: RuntimeBuild = field(default_factory=_find_build)
    device: str = field(default_factory=lambda: describe_host().name)
    device_fingerprint: str = field(default_factory=lambda: describe_host().fingerprint)
    clock_policy: str = field(default_factory=lambda: describe_host().clock_policy)
    regime: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in _PRECISIONS:
            raise ConfigError(
                f"OpenVINO on a CPU wants a number format of {', '.join(_PRECISIONS)}: "
                f"got {self.dtype}"
            )
        if self.dtype == "bfloat16":
            capabilities = _open_core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
            if "BF16" not in capabilities:
                raise TargetUnavailableError(
                    f"{self.device} has no units for bfloat16: wanted a processor with "
                    f"avx512_bf16 or amx_bf16, got {', '.join(capabilities)}",
                    hint="measure in float32",
                )

    def open_model(self, model: bytes) -> HostSampler:
        """`MeasurementRuntime.open_model`."""
        session = OpenVinoSession(model, num_threads=self.num_threads, dtype=self.dtype)
        return HostSampler(session.run)

    def instruments(self) -> Instruments:
        """`MeasurementRuntime.instruments`."""
        return Instruments(reference=lambda: self.open_model(reference_model()))
