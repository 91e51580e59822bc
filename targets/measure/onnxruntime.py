"""Times ONNX models in ONNX Runtime on this machine's CPU."""

import importlib
from collections.abc import Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from effdl.errors import ConfigError, CorruptFileError
from effdl.targets.timing import (
    FINAL_PROTOCOL,
    Instruments,
    Opener,
    Progress,
    Protocol,
    Run,
    Timing,
    measure_interleaved,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnxruntime

__all__ = [
    "NUM_THREADS",
    "PROVIDER",
    "make_feeds",
    "make_run",
    "host_instruments",
    "measure_models",
    "open_graph",
    "open_session",
    "run_once",
]

NUM_THREADS = 1
"""Threads inside an operator, unless asked otherwise; part of every stored key."""

PROVIDER = "CPUExecutionProvider"

_MAX_OPEN_MODELS = 16
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
        made = rng.standard_normal(shape) if dtype in _FLOATS else rng.integers(0, 2, size=shape)
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


def open_graph(model: bytes, *, num_threads: int = NUM_THREADS) -> Run:
    """Load a model of fixed sizes and bind made inputs to it."""
    session = open_session(model, num_threads=num_threads)
    return make_run(session, make_feeds(session))


@cache
def _reference_graph() -> bytes:
    """A dense convolution that fits a second-level cache: arithmetic as in any network."""
    from onnx import TensorProto, helper, numpy_helper

    channels, size = _REFERENCE_CHANNELS, _REFERENCE_SIZE
    shape = [1, channels, size, size]
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


def host_instruments() -> Instruments:
    """This machine's clock, with a convolution in this runtime as the reference kernel."""
    return Instruments(reference=lambda: open_graph(_reference_graph()))


def measure_models(
    models: Sequence[bytes | Path],
    *,
    batch_size: int | None = None,
    num_threads: int = NUM_THREADS,
    protocol: Protocol = FINAL_PROTOCOL,
    budget_s: float = 120.0,
    progress: Progress | None = None,
) -> list[Timing]:
    """Time whole models against each other, with the protocol for final figures.

    Args:
        models: Serialised models, or paths of them; trusted, as they run in this
            process.
        batch_size: Size of a first dimension that is not fixed; None: 1.
        num_threads: Threads inside an operator.
        protocol: How carefully.
        budget_s: Seconds after which no further round is begun.
        progress: Called with (rounds of models done, at least to do, text).

    Raises:
        ConfigError: A model fixes another batch size than the one asked for.
        CorruptFileError: A model cannot be run, or has sizes that are not fixed.
    """

    def opener(model: bytes | Path) -> Opener:
        def opened() -> Run:
            session = open_session(model, num_threads=num_threads)
            return make_run(session, make_feeds(session, batch_size=batch_size))

        return opened

    return measure_interleaved(
        [opener(model) for model in models],
        instruments=host_instruments(),
        protocol=protocol,
        budget_s=budget_s,
        max_open=_MAX_OPEN_MODELS,
        progress=progress,
    )
