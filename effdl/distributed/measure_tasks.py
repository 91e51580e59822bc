"""Timing models on a worker: what it is asked, what it does, what it answers."""

import hashlib
import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from effdl.errors import CorruptFileError, UnknownNameError
from effdl.files import read_limited, write_atomically
from effdl.targets.host import RuntimeBuild
from effdl.targets.measure.runtime import MeasurementRuntime
from effdl.targets.timing import (
    FINAL_PROTOCOL,
    Protocol,
    Round,
    measure_interleaved,
)

__all__ = [
    "ModelFile",
    "ModelsMeasured",
    "ModelsToMeasure",
    "Place",
    "keep_model",
    "measure_models_on_worker",
]

_MAX_FILE_BYTES = 2_000_000_000
_MAX_OPEN_MODELS = 16
_RUNTIMES = {
    "onnxruntime": "effdl.targets.measure.onnxruntime:OnnxRuntime",
    "openvino": "effdl.targets.measure.openvino:OpenVinoRuntime",
    "torch": "effdl.targets.measure.torch_runtime:TorchRuntime",
}


class ModelFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A serialised ONNX model in a folder that the workers see, too.

    Attributes:
        path: Absolute.
        sha256: Of its bytes, 64 hexadecimal digits.
    """

    path: str
    sha256: str


class ModelsToMeasure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker is asked.

    Attributes:
        models: Serialised ONNX models of fixed sizes, or where they lie.
        runtime: Way to measure: ``"onnxruntime"``, ``"openvino"`` or ``"torch"``.
        settings: What its class is made with, such as ``{"processor": "cuda"}``.
        protocol: How carefully.
        budget_s: Seconds after which no further round is begun.
        earlier: Rounds of each model that an interrupted measurement left.
    """

    models: tuple[bytes | ModelFile, ...]
    runtime: str = "onnxruntime"
    settings: dict[str, str | int | bool] = {}
    protocol: Protocol = FINAL_PROTOCOL
    budget_s: float = 120.0
    earlier: tuple[tuple[Round, ...], ...] = ()


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where something was measured: what must be equal for figures to belong together.

    Attributes:
        device: The device, as people call it.
        device_fingerprint: 16 hexadecimal digits.
        build: What ran the models.
        clock_policy: What decides the device's frequency.
        num_threads: Threads inside an operator.
        dtype: Number format.
        regime: What was timed where there is a choice.
    """

    device: str
    device_fingerprint: str
    build: RuntimeBuild
    clock_policy: str
    num_threads: int
    dtype: str
    regime: str

    @classmethod
    def of(cls, runtime: MeasurementRuntime) -> "Place":
        """The place that a way to measure stands for."""
        return cls(**{name: getattr(runtime, name) for name in cls.__struct_fields__})


class ModelsMeasured(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker answers.

    Attributes:
        place: Where it was measured.
        rounds: Of each model, in order; without the earlier ones.
    """

    place: Place
    rounds: tuple[tuple[Round, ...], ...]


def keep_model(folder: Path, model: bytes) -> ModelFile:
    """Put a model where workers find it, under its digest.

    Args:
        folder: Seen under the same path by every worker.
        model: A serialised ONNX model.

    Raises:
        OutputError: It cannot be written.
    """
    digest = hashlib.sha256(model).hexdigest()
    path = folder.resolve() / f"{digest}.onnx"
    if not path.exists():
        write_atomically(path, model)
    return ModelFile(path=str(path), sha256=digest)


def measure_models_on_worker(request: ModelsToMeasure) -> ModelsMeasured:
    """Time models against each other, here: the function of a task.

    Raises:
        ConfigError: A file cannot be read, or there is no such way to measure.
        CorruptFileError: A file is not the one that was meant, or a model cannot be run.
        BackendUnavailableError: The runtime is not installed here.
    """
    if request.runtime not in _RUNTIMES:
        raise UnknownNameError("way to measure", request.runtime, _RUNTIMES)
    module, _, name = _RUNTIMES[request.runtime].partition(":")
    make: Callable[..., MeasurementRuntime] = getattr(importlib.import_module(module), name)
    runtime = make(**request.settings)
    rounds: list[list[Round]] = [[] for _ in request.models]
    measure_interleaved(
        [partial(runtime.open_model, _read(model)) for model in request.models],
        instruments=runtime.instruments(),
        protocol=request.protocol,
        budget_s=request.budget_s,
        max_open=_MAX_OPEN_MODELS,
        earlier=request.earlier,
        record=lambda index, measured: rounds[index].append(measured),
    )
    return ModelsMeasured(place=Place.of(runtime), rounds=tuple(map(tuple, rounds)))


def _read(model: bytes | ModelFile) -> bytes:
    if isinstance(model, bytes):
        return model
    data = read_limited(Path(model.path), _MAX_FILE_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if digest != model.sha256:
        raise CorruptFileError(
            f"{model.path} is another file than was meant: wanted SHA-256 {model.sha256}, "
            f"got {digest}"
        )
    return data
