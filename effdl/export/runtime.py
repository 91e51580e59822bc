"""ONNX Runtime as the judge of a file: quiet sessions, made inputs, relative errors.

No torch here: the child process that opens untrusted files imports this module.
"""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

__all__ = ["RUNTIME_ERRORS", "ParityCase", "make_cases", "open_session", "relative_error", "run"]

_state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
# ONNX Runtime's exceptions have no common root of their own.
RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    *(e for e in vars(_state).values() if isinstance(e, type) and issubclass(e, Exception)),
    RuntimeError,
)
# Outputs smaller than this are rounding noise of denormal intermediates.
_SMALLEST_SCALE = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityCase:
    """One made input.

    Attributes:
        kind: ``random``: standard normal. ``extreme``: every element -2 or 2,
            about the ends of a normalised image. ``zeros``.
        seed: Of its random numbers.
        batch_size: Its first dimension.
    """

    kind: Literal["random", "extreme", "zeros"]
    seed: int
    batch_size: int

    def __str__(self) -> str:
        return f"{self.kind} input, seed {self.seed}, batch size {self.batch_size}"

    def make(self, sample_shape: Sequence[int]) -> NDArray[np.float32]:
        """The input [batch_size, *sample_shape]; the same numbers everywhere."""
        shape = (self.batch_size, *sample_shape)
        rng = np.random.default_rng([self.seed, self.batch_size])
        match self.kind:
            case "random":
                return rng.standard_normal(shape, dtype=np.float32)
            case "extreme":
                return (4.0 * rng.integers(0, 2, size=shape) - 2.0).astype(np.float32)
            case "zeros":
                return np.zeros(shape, dtype=np.float32)


def make_cases(batch_sizes: Sequence[int], num_seeds: int) -> Iterator[ParityCase]:
    """Every kind of input at every batch size and seed; zeros need no second seed."""
    for batch_size in batch_sizes:
        for seed in range(num_seeds):
            yield ParityCase(kind="random", seed=seed, batch_size=batch_size)
            yield ParityCase(kind="extreme", seed=seed, batch_size=batch_size)
        yield ParityCase(kind="zeros", seed=0, batch_size=batch_size)


def open_session(
    model: Path | bytes, *, optimize: bool, num_threads: int
) -> onnxruntime.InferenceSession:
    """Load a model on the CPU; nothing is logged.

    Args:
        model: A file, or its bytes.
        optimize: Whether ONNX Runtime may rewrite the graph.
        num_threads: Threads within an operator.

    Raises:
        Exception: One of `RUNTIME_ERRORS`, where the model cannot be loaded.
    """
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first output of a model with one input.

    Raises:
        Exception: One of `RUNTIME_ERRORS`, where the model cannot be run.
    """
    first = session.get_outputs()[0].name
    return np.asarray(session.run([first], {session.get_inputs()[0].name: image})[0])


def relative_error(got: NDArray[np.floating], wanted: NDArray[np.floating]) -> float:
    """Largest absolute difference over the largest wanted magnitude.

    Infinite where shapes differ or anything is not finite: a NaN never passes.
    """
    if got.shape != wanted.shape or not (np.isfinite(got).all() and np.isfinite(wanted).all()):
        return float("inf")
    if got.size == 0:
        return 0.0
    exact = wanted.astype(np.float64)
    return float(np.abs(got - exact).max() / max(np.abs(exact).max(), _SMALLEST_SCALE))
