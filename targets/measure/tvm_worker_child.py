"""The child of `effdl.targets.measure.tvm_worker`: started as a module, imported by no other.

Any error ends it: the last line on stderr is what the parent tells.
"""

import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import tvm
from tvm import relax, rpc

from effdl.targets.measure.tvm_worker import Answer, Compile, Connect, Envelope, Load, Run, Time

_LINK_LIMIT_S = 240
_BUSY_TRIES = 5
_BUSY_WAIT_S = 1.0
# TVM's name for: leave the choice of cores to the system.
_ANY_CORES = 0


class _Library:
    """A library on the board or here, ready to run."""

    def __init__(self, module: Any, device: Any) -> None:
        self._device = device
        self._machine = relax.VirtualMachine(module, device)

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        tensors = [tvm.runtime.tensor(value, self._device) for value in inputs]
        self._machine.save_function("main", "timed", *tensors, include_return=False)
        self._machine.set_input("main", *tensors)
        self._machine.invoke_stateful("main")
        outputs = self._machine.get_outputs("main")
        values: tuple[Any, ...] = outputs if isinstance(outputs, tuple) else (outputs,)
        return [value.numpy() for value in values]

    def time(self, number: int, repeat: int) -> tuple[float, ...]:
        timed = self._machine.time_evaluator("timed", self._device, number=number, repeat=repeat)
        return tuple(timed().results)


class _Child:
    def __init__(self) -> None:
        self._session: Any = None
        self._libraries: dict[int, _Library] = {}
        self._num_loaded = 0

    def answer(self, envelope: Envelope) -> Answer:
        for handle in envelope.released:
            self._libraries.pop(handle, None)
        match envelope.request:
            case Compile() as request:
                _compile(request)
                return Answer()
            case Connect() as request:
                return Answer(description=self._connect(request))
            case Load() as request:
                return Answer(handle=self._load(Path(request.library)))
            case Run() as request:
                with np.load(request.inputs, allow_pickle=False) as arrays:
                    inputs = [arrays[name] for name in arrays.files]
                np.savez(request.outputs, *self._libraries[request.handle].run(inputs))
                return Answer()
            case Time() as request:
                library = self._libraries[request.handle]
                return Answer(seconds=library.time(request.number, request.repeat))

    def _connect(self, request: Connect) -> str | None:
        self._session = _open_session(request)
        threads = self._session.get_function("runtime.config_threadpool")
        threads(_ANY_CORES, request.num_threads)
        try:
            describe = self._session.get_function("effdl.rpcd.describe")
        except AttributeError:
            return None
        return str(describe())

    def _load(self, path: Path) -> int:
        self._num_loaded += 1
        if self._session is None:
            module, device = tvm.runtime.load_module(str(path)), tvm.cpu()
        else:
            name = f"{self._num_loaded}.so"
            self._session.upload(str(path), target=name)
            module, device = self._session.load_module(name), self._session.cpu()
            # What is mapped stays usable; a board's memory disk is small.
            self._session.remove(name)
        self._libraries[self._num_loaded] = _Library(module, device)
        return self._num_loaded


def _open_session(request: Connect) -> Any:
    for tries_left in reversed(range(_BUSY_TRIES)):
        try:
            return rpc.connect(
                request.host, request.port, request.key, session_timeout=request.session_s
            )
        except RuntimeError as error:
            if tries_left == 0 or "already have key" not in str(error):
                raise
            time.sleep(_BUSY_WAIT_S)
    raise AssertionError


def _compile(request: Compile) -> None:
    from tvm.relax.frontend.onnx import from_onnx

    def link(output: str, objects: list[str]) -> None:
        command = [*request.linker, "-shared", "-fPIC", "-s", "-o", output, *objects]
        subprocess.run(  # noqa: S603
            command, stdin=subprocess.DEVNULL, check=True, timeout=_LINK_LIMIT_S
        )

    model: Any = onnx.load_model(request.model)
    weights = {value.name for value in model.graph.initializer}
    shapes = {
        value.name: [d.dim_value or request.batch_size for d in value.type.tensor_type.shape.dim]
        for value in model.graph.input
        if value.name not in weights
    }
    module = from_onnx(model, shape_dict=shapes, keep_params_in_input=False)
    compiled = tvm.compile(module, target=tvm.target.Target(request.target))
    compiled.export_library(request.library, fcompile=link)


def main() -> int:
    """Answer requests until the parent hangs up; returns the exit status."""
    answers = os.fdopen(os.dup(1), "wb")
    # What TVM prints must not stand between answers.
    os.dup2(2, 1)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin.buffer:
            lines.put(line)
        os._exit(0)

    def write(answer: Answer) -> None:
        answers.write(msgspec.json.encode(answer) + b"\n")
        answers.flush()

    threading.Thread(target=read, daemon=True).start()
    child = _Child()
    write(Answer())
    while True:
        write(child.answer(msgspec.json.decode(lines.get(), type=Envelope)))


if __name__ == "__main__":
    sys.exit(main())
