"""Networks compiled by TVM, on a board that is reached through TVM's RPC.

The code is untuned: TVM without a tuning log is many times slower than a vendor's
runtime, and what is measured is labelled so. The board's own clock times it; the link
to the board does not count. An emulated board computes and yields no latency.
"""

import hashlib
import math
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from effdl.compilers import TVM_VERSION
from effdl.errors import ConfigError, CorruptFileError, TargetUnavailableError
from effdl.targets.host import RuntimeBuild
from effdl.targets.measure.onnxruntime import reference_model
from effdl.targets.measure.rpc_board import Board, BoardDescription
from effdl.targets.measure.tvm_target import TvmTarget, find_tvm
from effdl.targets.measure.tvm_worker import Connect, Load, Time, TvmWorker
from effdl.targets.sampler import Samples
from effdl.targets.timing import Instruments

__all__ = ["BoardModel", "TvmRpcRuntime"]

# The slowest link that is waited for.
_BYTES_PER_S = 500_000
_SESSION_S = 6 * 3600
_HINT_RESTART = "on the board: ./effdl-rpcd --port 9090 --token-file token --work-dir work"


class BoardModel:
    """A model that is loaded on a board: a `Sampler`, and more.

    Args:
        runtime: What loaded it.
        handle: Its number there.
        inputs: To time it on.
    """

    def __init__(
        self, runtime: "TvmRpcRuntime", handle: int, inputs: Sequence[NDArray[Any]]
    ) -> None:
        self._runtime, self._handle, self._inputs = runtime, handle, inputs
        self._fastest_s = math.inf
        weakref.finalize(self, runtime.worker.release, handle)

    def run(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs for these inputs, in the model's order; works emulated, too.

        Raises:
            TargetUnavailableError: The board is lost, or hangs.
        """
        return self._runtime.worker.run(
            self._handle,
            inputs,
            who=self._runtime.who,
            limit_s=self._runtime.limit_s + sum(x.nbytes for x in inputs) / _BYTES_PER_S,
        )

    def sample(self, num: int, min_sample_s: float) -> Samples:
        """`Sampler.sample`, timed by the board's clock.

        Raises:
            TargetUnavailableError: The board is emulated, lost, or hangs.
        """
        self._runtime.require_real()
        if math.isinf(self._fastest_s):
            self.run(self._inputs)
            self._fastest_s = min(self._time(number=1, repeat=2))
        number = max(1, math.ceil(min_sample_s / max(self._fastest_s, 1e-9)))
        seconds = self._time(number=number, repeat=num)
        self._fastest_s = min(self._fastest_s, *seconds)
        return Samples(seconds, (False,) * num)

    def _time(self, *, number: int, repeat: int) -> tuple[float, ...]:
        expected_s = 0.0 if math.isinf(self._fastest_s) else self._fastest_s * number * repeat
        return self._runtime.worker.ask(
            Time(handle=self._handle, number=number, repeat=repeat),
            who=self._runtime.who,
            limit_s=self._runtime.limit_s + 5 * expected_s,
        ).seconds


class TvmRpcRuntime:
    """TVM on a board, as a `MeasurementRuntime`; a context manager that ends the session.

    Args:
        board: How to reach it.
        target: What to compile for; None: any processor of the board's architecture.
        num_threads: Threads inside an operator.
        limit_s: Seconds after which a board that should have answered counts as hung;
            long work gets longer.

    Raises:
        BackendUnavailableError: TVM is not installed, or there is nothing to link with.
        ConfigError: The board's server says nothing of itself, and neither does ``board``.
        TargetUnavailableError: The board does not answer, refuses the token, is busy, or
            is of another architecture.
    """

    dtype = "float32"
    regime = ""

    def __init__(
        self,
        board: Board,
        *,
        target: TvmTarget | None = None,
        num_threads: int = 1,
        limit_s: float = 15.0,
    ) -> None:
        self.who, self.limit_s = f"the board at {board.address}", limit_s
        self.num_threads = num_threads
        find_tvm()
        host, port, key = board.find(limit_s)
        self.worker = TvmWorker()
        try:
            description = self._connect(host, port, key)
            self.target = self._require_target(board, description, target)
        except BaseException:
            self.worker.close()
            raise
        self.is_emulated = description is not None and description.emulated
        self.clock_policy = "unknown" if description is None else description.governor
        self.device = board.device or (description.name if description else "")
        said = description.fingerprint if description else board.device
        self.device_fingerprint = _digest(["board", said])
        build = [find_tvm().build, *map(str, sorted(self.target.to_tvm().items()))]
        self.build = RuntimeBuild(
            name="tvm", version=f"{TVM_VERSION} (untuned)", build=_digest(build)
        )
        self._libraries: dict[str, Path] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session and the process that holds it."""
        self.worker.close()

    def open_model(self, model: bytes) -> BoardModel:
        """`MeasurementRuntime.open_model`; a model is compiled once.

        Raises:
            CorruptFileError: TVM refuses the model, or a size of its input is not fixed.
            TargetUnavailableError: The board is lost, or hangs.
        """
        inputs = _make_inputs(model)
        digest = hashlib.sha256(model).hexdigest()
        library = self._libraries.get(digest)
        if library is None:
            library = self._libraries[digest] = self.worker.compile(model, self.target)
        limit_s = self.limit_s + library.stat().st_size / _BYTES_PER_S
        handle = self.worker.ask(Load(library=str(library)), who=self.who, limit_s=limit_s).handle
        return BoardModel(self, handle, inputs)

    def instruments(self) -> Instruments:
        """`MeasurementRuntime.instruments`: a convolution, compiled alike, on the board."""
        return Instruments(reference=lambda: self.open_model(reference_model()))

    def require_real(self) -> None:
        """Refuse to time an emulator.

        Raises:
            TargetUnavailableError: The board is emulated.
        """
        if self.is_emulated:
            raise TargetUnavailableError(
                f"{self.who} is emulated: it computes, but yields no latency (null)",
                hint="run effdl-rpcd on the device itself: docs/guides/board.md",
            )

    def _connect(self, host: str, port: int, key: str) -> BoardDescription | None:
        request = Connect(
            host=host, port=port, key=key, session_s=_SESSION_S, num_threads=self.num_threads
        )
        try:
            answer = self.worker.ask(request, who=self.who, limit_s=self.limit_s)
        except TargetUnavailableError as error:
            reason, hint = error.message, _HINT_RESTART
            if "cannot find server that matches" in reason:
                reason = f"{self.who} refuses the key or the token"
                hint = "the token is in the file that effdl-rpcd was started with"
            elif "already have key" in reason:
                reason = f"{self.who} is busy with another session"
                hint = "wait until that has ended"
            raise TargetUnavailableError(reason, hint=hint) from None
        text = answer.description
        return None if text is None else BoardDescription.parse(text)

    def _require_target(
        self, board: Board, description: BoardDescription | None, target: TvmTarget | None
    ) -> TvmTarget:
        if description is None:
            if not board.device or target is None:
                raise ConfigError(
                    f"{self.who} says nothing of itself, as it is not effdl-rpcd: wanted the "
                    "device's name and the target to compile for",
                    hint="start effdl-rpcd on the board: docs/guides/board.md",
                )
            return target
        found = target or TvmTarget(triple=f"{description.machine}-linux-gnu")
        if found.machine != description.machine:
            raise TargetUnavailableError(
                f"{self.who} wanted code for {description.machine}, got {found.triple}",
                hint=f"give the triple {description.machine}-linux-gnu",
            )
        return found


def _make_inputs(model: bytes) -> list[NDArray[np.float32]]:
    """Standard normal inputs of a model's fixed sizes."""
    try:
        graph = onnx.load_model_from_string(model).graph
    except DecodeError as error:
        raise CorruptFileError(f"the model is not ONNX: {error}") from error
    weights = {value.name for value in graph.initializer}
    rng, inputs = np.random.default_rng(0), []
    for value in graph.input:
        if value.name in weights:
            continue
        tensor = value.type.tensor_type
        shape = [d.dim_value for d in tensor.shape.dim]
        if tensor.elem_type != onnx.TensorProto.FLOAT or not all(shape):
            raise CorruptFileError(
                f"input {value.name!r} wanted float32 of fixed sizes, got sizes {shape} (0: free)",
                hint="export the model with fixed sizes",
            )
        inputs.append(rng.standard_normal(shape, dtype=np.float32))
    return inputs


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]
