"""Times ONNX models in ONNX Runtime on this machine's CPU."""

import importlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from effdl.errors import ConfigError, CorruptFileError
from effdl.targets.host import RuntimeBuild, describe_host, find_runtime
from effdl.targets.sampler import HostSampler, Run
from effdl.targets.timing import (
    Instruments,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnxruntime

__all__ = [
    "NUM_THREADS",
    "PROVIDER",
    "OnnxRuntime",
    "make_feeds",
    "make_run",
    "open_session",
    "reference_model",
    "run_once",
]

NUM_THREADS = 1
"""Threads inside an operator, unless asked otherwise; part of every stored key."""

PROVIDER = "CPUExecutionProvider"

_REFERENCE_CHANNELS, _REFERENCE_SIZE = 96, 14


_RUNTIME_ERRORS = (
    "Fail",
    "InvalidArgument",
    "InvalidGraph",
    "InvalidProtobuf",
    "NoModel",
    "NoSuchFile",
    "NotImplemented",
    "RuntimeException",
)


@contextmanager
def _runtime_errors(what: str) -> "Iterator[None]":
    """Turn the runtime's own exceptions into ours."""
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    try:
        yield
    except tuple(getattr(state, name) for name in _RUNTIME_ERRORS) as error:
        raise CorruptFileError(
            f"ONNX Runtime cannot run {what}: {str(error).splitlines()[0][:300]}",
            hint="python -m onnx.checker MODEL.onnx may say more",
        ) from None


def open_session(
    model: bytes | Path, *, num_threads: int = NUM_THREADS, profile_prefix: Path | None = None
) -> "onnxruntime.InferenceSession":
    """A session on the CPU with all graph optimisations.

    Args:
        model: A serialised model, or the path of one.
        num_threads: Threads inside an operator.
        profile_prefix: Where the runtime writes its own profile, if anywhere.

    Raises:
        CorruptFileError: The runtime refuses the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    what = str(model) if isinstance(model, Path) else "a model given as bytes"
    with _runtime_errors(what):
        return onnxruntime.InferenceSession(
            str(model) if isinstance(model, Path) else model, options, providers=[PROVIDER]
        )


_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


def make_feeds(
    session: "onnxruntime.InferenceSession", *, batch_size: int | None = None, seed: int = 0
) -> dict[str, NDArray[Any]]:
    """Made inputs for a session: standard normal numbers, or small integers.

    Args:
        session: The session.
        batch_size: Of first dimensions that are not fixed; None: 1.
        seed: Of the values.

    Raises:
        ConfigError: The model fixes another batch size than the one asked for.
        CorruptFileError: Another dimension is not fixed, or a type is not known here.
    """
    rng, feeds = np.random.default_rng(seed), {}
    inputs = session.get_inputs()
    fixed = inputs[0].shape[0] if inputs and inputs[0].shape else None
    if batch_size is not None and isinstance(fixed, int) and fixed != batch_size:
        raise ConfigError(
            f"the model is of batch size {fixed} and no other: got batch size {batch_size}",
            hint=f"leave out --batch-size, or give --batch-size {fixed}",
        )
    for value in inputs:
        shape = [
            (batch_size or 1) if i == 0 and not isinstance(d, int) else d
            for i, d in enumerate(value.shape)
        ]
        loose = [str(d) for d in shape if not isinstance(d, int)]
        if loose:
            raise CorruptFileError(
                f"input {value.name!r} has dimensions of no fixed size: wanted only the first "
                f"(the batch) to vary, got {list(value.shape)}",
                hint="export the model with fixed sizes, all but the batch's",
            )
        if value.type not in _DTYPES:
            raise CorruptFileError(
                f"input {value.name!r} wanted one of {', '.join(_DTYPES)}, got {value.type}"
            )
        dtype = _DTYPES[value.type]
        made = (
            rng.standard_normal(shape, dtype=np.float32)
            if dtype in _FLOATS
            else rng.integers(0, 2, size=shape)
        )
        feeds[value.name] = np.ascontiguousarray(made, dtype=dtype)
    return feeds


_FLOATS = (np.float16, np.float32, np.float64)


def make_run(session: "onnxruntime.InferenceSession", feeds: dict[str, NDArray[Any]]) -> Run:
    """A callable that runs the session once on inputs bound beforehand.

    Outputs are allocated once, by the first run, and written over by later ones.
    """
    import onnxruntime

    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
    names = [value.name for value in session.get_outputs()]
    for name in names:
        binding.bind_output(name, "cpu")
    with _runtime_errors("the model"):
        session.run_with_iobinding(binding)
    outputs = binding.get_outputs()
    binding.clear_binding_outputs()
    for name, value in zip(names, outputs, strict=True):
        binding.bind_ortvalue_output(name, value)
    run = session.run_with_iobinding
    return lambda: run(binding)


def run_once(
    session: "onnxruntime.InferenceSession", feeds: dict[str, NDArray[Any]]
) -> list[NDArray[Any]]:
    """The outputs of one run.

    Raises:
        CorruptFileError: The runtime cannot run the model.
    """
    with _runtime_errors("the model"):
        return [np.asarray(value) for value in session.run(None, feeds)]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxRuntime:
    """ONNX Runtime on this machine's processor, as a `MeasurementRuntime`.

    Attributes:
        num_threads: Threads inside an operator.

    Raises:
        BackendUnavailableError: It is not installed.
    """

    num_threads: int = NUM_THREADS
    build: RuntimeBuild = field(default_factory=find_runtime)
    device: str = field(default_factory=lambda: describe_host().name)
    device_fingerprint: str = field(default_factory=lambda: describe_host().fingerprint)
    clock_policy: str = field(default_factory=lambda: describe_host().clock_policy)
    dtype: str = "float32"
    regime: str = ""

    def open_model(self, model: bytes) -> HostSampler:
        """`MeasurementRuntime.open_model`."""
        session = open_session(model, num_threads=self.num_threads)
        return HostSampler(make_run(session, make_feeds(session)))

    def instruments(self) -> Instruments:
        """`MeasurementRuntime.instruments`."""
        return Instruments(reference=lambda: self.open_model(reference_model()))


@cache
def reference_model(
    *, batch_size: int = 1, channels: int = _REFERENCE_CHANNELS, size: int = _REFERENCE_SIZE
) -> bytes:
    """A dense 3x3 convolution: arithmetic as in any network.

    Args:
        batch_size: Images at once; as given here, one, all fits a second-level cache.
        channels: Of input and output.
        size: Height and width in pixels.
    """
    from onnx import TensorProto, helper, numpy_helper

    shape = [batch_size, channels, size, size]
    weight = np.random.default_rng(0).standard_normal((channels, channels, 3, 3), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "weight"], ["output"], pads=[1, 1, 1, 1])],
        "reference",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "weight")],
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, ir_version=8, opset_imports=[opset]).SerializeToString()
