"""Networks on a board through TVM's RPC, the board being a daemon on this machine."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from effdl.errors import ConfigError, CorruptFileError, TargetUnavailableError
from effdl.targets.measure.rpc_board import Board
from effdl.targets.measure.rpc_daemon_process import RunningDaemon, run_daemon
from effdl.targets.measure.runtime import MeasurementRuntime
from effdl.targets.measure.tvm_rpc import TvmRpcRuntime
from effdl.targets.measure.tvm_target import TvmTarget
from effdl.targets.timing import Protocol, measure_interleaved

# Nothing but the environment in front: the daemon cannot tell, but its launcher says so.
AS_IF_EMULATED = ("/usr/bin/env",)


@pytest.fixture(scope="module")
def daemon(daemon_path: Path) -> Iterator[RunningDaemon]:
    with run_daemon(daemon_path) as running:
        yield running


@pytest.fixture(scope="module")
def runtime(daemon: RunningDaemon) -> Iterator[TvmRpcRuntime]:
    with TvmRpcRuntime(daemon.board) as connected:
        yield connected


def images(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 8, 12, 12), dtype=np.float32)


def largest_error(model: bytes, got: np.ndarray, image: np.ndarray) -> float:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    wanted = np.asarray(session.run(None, {"input": image})[0])
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def test_says_what_it_measures(runtime: TvmRpcRuntime) -> None:
    checked: MeasurementRuntime = runtime
    assert str(checked.build) == "tvm 0.27.0.post1 (untuned)"
    assert len(checked.build.build) == len(checked.device_fingerprint) == 16
    assert checked.device
    assert (checked.num_threads, checked.dtype, checked.regime) == (1, "float32", "")
    assert not runtime.is_emulated


def test_board_computes_what_onnxruntime_computes(
    runtime: TvmRpcRuntime, block_model: bytes
) -> None:
    model = runtime.open_model(block_model)
    for seed in range(3):
        (got,) = model.run([images(seed)])
        assert largest_error(block_model, got, images(seed)) <= 1e-5


def test_samples_are_of_single_calls(runtime: TvmRpcRuntime, block_model: bytes) -> None:
    model = runtime.open_model(block_model)
    once, often = model.sample(5, 0.0), model.sample(10, 2e-3)
    assert len(once.seconds) == 5
    assert len(often.seconds) == len(often.interrupted) == 10
    assert not any(often.interrupted)
    assert all(1e-7 < s < 1e-2 for s in often.seconds)
    start = time.perf_counter()
    model.sample(10, 2e-2)
    assert time.perf_counter() - start > 0.5 * 10 * 2e-2


def test_model_is_compiled_once_and_let_go(
    runtime: TvmRpcRuntime, daemon: RunningDaemon, block_model: bytes
) -> None:
    runtime.open_model(block_model)
    start = time.perf_counter()
    for _ in range(20):
        runtime.open_model(block_model)
    # Twenty compilations take over half a minute anywhere.
    assert time.perf_counter() - start < 15
    (folder,) = (p for p in daemon.work_folder.iterdir() if p.is_dir())
    assert list(folder.iterdir()) == []


def test_profile_interleaves_on_the_board(runtime: TvmRpcRuntime, block_model: bytes) -> None:
    quick = Protocol(name="test", min_rounds=2, max_rounds=2, samples_per_round=3)
    (timing,) = measure_interleaved(
        [lambda: runtime.open_model(block_model)],
        instruments=runtime.instruments(),
        protocol=quick,
    )
    assert timing.num_samples + timing.num_dropped == 6
    assert 1e-4 < timing.p20_ms < 10


def test_what_is_no_model(runtime: TvmRpcRuntime) -> None:
    with pytest.raises(CorruptFileError, match="not ONNX"):
        runtime.open_model(b"\xffnonsense")
    with pytest.raises(CorruptFileError, match="fixed sizes"):
        runtime.open_model(free_batch_model())


def free_batch_model() -> bytes:
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 2]) for n in "xy"]
    node = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    return helper.make_model(graph).SerializeToString()


def test_emulated_board_computes_but_yields_no_latency(
    daemon_path: Path, block_model: bytes
) -> None:
    with (
        run_daemon(daemon_path, emulator=AS_IF_EMULATED) as daemon,
        TvmRpcRuntime(daemon.board) as runtime,
    ):
        assert runtime.is_emulated
        assert runtime.device.startswith("emulated")
        model = runtime.open_model(block_model)
        (got,) = model.run([images(0)])
        assert largest_error(block_model, got, images(0)) <= 1e-5
        with pytest.raises(TargetUnavailableError, match=r"emulated.*no latency") as error:
            model.sample(1, 0.0)
        assert error.value.hint is not None
        with pytest.raises(TargetUnavailableError, match="emulated"):
            measure_interleaved([lambda: model], instruments=runtime.instruments())


def test_busy_or_wrongly_addressed_board(daemon: RunningDaemon, runtime: TvmRpcRuntime) -> None:
    with pytest.raises(TargetUnavailableError, match="busy") as error:
        TvmRpcRuntime(daemon.board)
    assert error.value.exit_code == 4
    with pytest.raises(TargetUnavailableError, match="token"):
        TvmRpcRuntime(replace(daemon.board, token="0" * 64))
    assert not runtime.is_emulated


@pytest.mark.proof
def test_code_for_another_processor_is_refused(daemon_path: Path) -> None:
    with run_daemon(daemon_path) as daemon:
        probe = TvmRpcRuntime(daemon.board)
        other = {"x86_64": "aarch64", "aarch64": "x86_64"}[probe.target.machine]
        probe.close()
        with pytest.raises(TargetUnavailableError, match=f"got {other}"):
            TvmRpcRuntime(daemon.board, target=TvmTarget(triple=f"{other}-linux-gnu"))


def test_board_that_is_not_there(native_triple: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TargetUnavailableError, match="failed") as error:
        TvmRpcRuntime(Board(address=f"127.0.0.1:{port}"))
    assert error.value.hint is not None
    assert "effdl-rpcd" in error.value.hint


def test_board_that_hangs_in_mid_session(daemon_path: Path, block_model: bytes) -> None:
    """A stopped process answers nothing, as a board that lost its power behind a tunnel."""
    with (
        run_daemon(daemon_path) as daemon,
        TvmRpcRuntime(daemon.board, limit_s=15.0) as runtime,
    ):
        model = runtime.open_model(block_model)
        model.sample(1, 0.0)
        runtime.limit_s = 1.0
        os.killpg(daemon.pid, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(TargetUnavailableError, match="did not answer"):
            model.sample(10, 1e-4)
        assert time.monotonic() - start < 60
        with pytest.raises(TargetUnavailableError, match="has ended"):
            model.sample(10, 1e-4)


@pytest.mark.proof
def test_board_that_dies_in_mid_session(daemon_path: Path, block_model: bytes) -> None:
    with run_daemon(daemon_path) as daemon, TvmRpcRuntime(daemon.board) as runtime:
        model = runtime.open_model(block_model)
        os.killpg(daemon.pid, signal.SIGKILL)
        with pytest.raises(TargetUnavailableError, match="failed"):
            model.sample(10, 1e-4)


@pytest.fixture
def stock_tracker(native_triple: str) -> Iterator[Board]:
    """TVM's own tracker and server, which say nothing of the device and want no token."""
    for package in ("tornado", "psutil", "cloudpickle"):
        pytest.importorskip(package)
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ports.append(listener.getsockname()[1])
    tracker, server = ports

    def at(port: int) -> list[str]:
        return ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]

    commands = [
        ["tvm.exec.rpc_tracker", *at(tracker)],
        ["tvm.exec.rpc_server", *at(server), "--tracker", f"127.0.0.1:{tracker}"],
    ]
    commands[1] += ["--key", "here"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for command in commands
    ]
    try:
        board = Board(address=f"127.0.0.1:{tracker}", tracker=True, key="here", device="this one")
        deadline = time.monotonic() + 60
        while True:
            try:
                board.find(1.0)
                break
            except TargetUnavailableError:
                assert all(p.poll() is None for p in processes)
                assert time.monotonic() < deadline
                time.sleep(0.3)
        yield board
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.proof
def test_stock_server_through_a_tracker(
    stock_tracker: Board, native_triple: str, block_model: bytes
) -> None:
    target = TvmTarget(triple=native_triple)
    with TvmRpcRuntime(stock_tracker, target=target, limit_s=120) as runtime:
        assert runtime.device == "this one"
        model = runtime.open_model(block_model)
        (got,) = model.run([images(0)])
        assert largest_error(block_model, got, images(0)) <= 1e-5
        assert len(model.sample(3, 0.0).seconds) == 3
    with pytest.raises(ConfigError, match="says nothing of itself"):
        TvmRpcRuntime(replace(stock_tracker, device=""), target=target, limit_s=120)
