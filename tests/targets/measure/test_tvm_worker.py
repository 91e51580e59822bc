"""The child process that holds TVM: what it compiles computes, and it never outlives a limit."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from effdl.errors import BackendUnavailableError, CorruptFileError, TargetUnavailableError
from effdl.targets.measure.tvm_target import TvmTarget
from effdl.targets.measure.tvm_worker import Connect, Load, Time, TvmWorker, compile_model


def run_onnxruntime(model: bytes, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: image})[0])


@pytest.fixture(scope="module")
def worker(native_triple: str) -> Iterator[TvmWorker]:
    """A worker for requests that succeed; a failure would end it."""
    with TvmWorker() as running:
        yield running


@pytest.fixture
def doomed(native_triple: str) -> Iterator[tuple[TvmWorker, int]]:
    """A worker of the test's own, and its process."""
    others = worker_pids()
    with TvmWorker() as running:
        (pid,) = worker_pids() - others
        yield running, pid


def test_code_computes_what_onnxruntime_computes(
    worker: TvmWorker, native_triple: str, block_model: bytes
) -> None:
    library = worker.compile(block_model, TvmTarget(triple=native_triple))
    handle = worker.ask(Load(library=str(library)), who="TVM", limit_s=30).handle
    for seed in range(3):
        image = np.random.default_rng(seed).standard_normal((1, 8, 12, 12), dtype=np.float32)
        wanted = run_onnxruntime(block_model, image)
        (got,) = worker.run(handle, [image], who="TVM", limit_s=30)
        assert got.shape == wanted.shape
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()
    timed = worker.ask(Time(handle=handle, number=3, repeat=5), who="TVM", limit_s=30)
    assert len(timed.seconds) == 5
    assert all(1e-7 < s < 1 for s in timed.seconds)


def test_released_library_is_gone(
    doomed: tuple[TvmWorker, int], native_triple: str, block_model: bytes
) -> None:
    worker, _ = doomed
    library = worker.compile(block_model, TvmTarget(triple=native_triple))
    handle = worker.ask(Load(library=str(library)), who="TVM", limit_s=30).handle
    worker.release(handle)
    with pytest.raises(TargetUnavailableError, match=f"KeyError: {handle}"):
        worker.ask(Time(handle=handle, number=1, repeat=1), who="TVM", limit_s=30)


def test_free_batch_takes_the_size_that_is_given(worker: TvmWorker, native_triple: str) -> None:
    shape = ["N", 4]
    graph = helper.make_graph(
        [helper.make_node("HardSwish", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    target = TvmTarget(triple=native_triple)
    library = worker.compile(model.SerializeToString(), target, batch_size=3)
    handle = worker.ask(Load(library=str(library)), who="TVM", limit_s=30).handle
    x = np.linspace(-4, 4, 12, dtype=np.float32).reshape(3, 4)
    (got,) = worker.run(handle, [x], who="TVM", limit_s=30)
    np.testing.assert_allclose(got, x * np.clip(x + 3, 0, 6) / 6, rtol=1e-6)


def test_library_for_an_arm_board_is_one(block_model: bytes, native_triple: str) -> None:
    try:
        data = compile_model(block_model, TvmTarget(triple="aarch64-linux-gnu"))
    except BackendUnavailableError as error:
        pytest.skip(f"{error.message}: {error.hint}")
    assert data[:5] == b"\x7fELF\x02"
    assert int.from_bytes(data[18:20], "little") == 183
    assert b"effdl-tvm-" not in data


def test_model_that_cannot_be_compiled(native_triple: str) -> None:
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
    node = helper.make_node("NoSuchThing", ["x"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", value[:1], value[1:]))
    with pytest.raises(CorruptFileError, match=r"TVM's compiler failed.*NoSuchThing"):
        compile_model(model.SerializeToString(), TvmTarget(triple=native_triple))


@pytest.fixture
def silent_board() -> Iterator[int]:
    """The port of a server that accepts and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def to(port: int) -> Connect:
    return Connect(host="127.0.0.1", port=port, key="k", session_s=60, num_threads=1)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def worker_pids() -> set[int]:
    """Processes of this session's workers: children of this process."""
    mine = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return {int(p) for p in mine if b"tvm_worker_child" in Path(f"/proc/{p}/cmdline").read_bytes()}


def test_hung_board_is_an_error_within_the_limit(
    doomed: tuple[TvmWorker, int], silent_board: int
) -> None:
    worker, pid = doomed
    start = time.monotonic()
    with pytest.raises(TargetUnavailableError, match="the board did not answer within 1 s"):
        worker.ask(to(silent_board), who="the board", limit_s=1)
    assert time.monotonic() - start < 30
    assert not is_running(pid)
    assert not worker.folder.exists()
    with pytest.raises(TargetUnavailableError, match="has ended"):
        worker.ask(to(silent_board), who="the board", limit_s=1)


@pytest.mark.proof
def test_crash_of_the_worker_is_an_error(doomed: tuple[TvmWorker, int], silent_board: int) -> None:
    worker, pid = doomed
    os.kill(pid, signal.SIGSEGV)
    with pytest.raises(TargetUnavailableError):
        worker.ask(to(silent_board), who="the board", limit_s=10)


_PARENT = """
import sys
from effdl.targets.measure.tvm_worker import Connect, TvmWorker
worker = TvmWorker()
print("up", flush=True)
worker.ask(Connect(host="127.0.0.1", port=int(sys.argv[1]), key="k", session_s=60,
                   num_threads=1), who="it", limit_s=60)
"""


def test_worker_does_not_outlive_a_killed_parent(silent_board: int, native_triple: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(silent_board)], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        text = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text()
        (child,) = map(int, text.split())
        time.sleep(0.3)
        parent.kill()
    wait_for(lambda: not is_running(child))
