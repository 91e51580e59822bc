"""MobileNetV3 cross-compiled for ARM, shipped over RPC to an emulated board, and run there."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from effdl.errors import BackendUnavailableError, TargetUnavailableError
from effdl.models.mobilenet_v3.onnx_graph import build_network
from effdl.models.spaces import load_space
from effdl.targets.measure.rpc_daemon_build import build_daemon
from effdl.targets.measure.rpc_daemon_process import RunningDaemon, run_daemon
from effdl.targets.measure.tvm_rpc import TvmRpcRuntime
from effdl.targets.measure.tvm_target import find_tvm
from effdl.workflows.export import export_subnet

pytestmark = pytest.mark.proof

TRIPLE = "aarch64-linux-gnu"
SYSTEM_ROOT = Path("/usr/aarch64-linux-gnu")
DEBIAN = "apt-get install qemu-user g++-aarch64-linux-gnu libc6-dev-arm64-cross"
QEMU = ("qemu-aarch64", "-L", str(SYSTEM_ROOT))
SMALLEST = {"kernel_size": [3] * 20, "expand_ratio": [3] * 20, "depth": [2] * 5}
LARGEST = {"kernel_size": [7] * 20, "expand_ratio": [6] * 20, "depth": [4] * 5}


@pytest.fixture(scope="module", params=["g++", "ziglang"])
def arm_daemon(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The daemon for ARM, by Debian's compiler and by PyPI's."""
    if shutil.which("qemu-aarch64") is None or not SYSTEM_ROOT.is_dir():
        pytest.skip(f"no ARM emulator here: {DEBIAN}")
    if request.param == "g++":
        compiler = shutil.which(f"{TRIPLE}-g++")
        if compiler is None:
            pytest.skip(f"no {TRIPLE}-g++ here: {DEBIAN}")
        linker: tuple[str, ...] | None = (compiler,)
    else:
        pytest.importorskip("ziglang", reason="pip install ziglang")
        linker = None
    try:
        find_tvm()
        return build_daemon(TRIPLE, tmp_path_factory.mktemp("arm"), linker=linker)
    except BackendUnavailableError as error:
        pytest.skip(f"{error.message}: {error.hint}")


@pytest.fixture
def board(arm_daemon: Path) -> Iterator[RunningDaemon]:
    with run_daemon(arm_daemon, emulator=QEMU) as daemon:
        yield daemon


def largest_error(model: bytes, name: str, got: np.ndarray, image: np.ndarray) -> float:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    wanted = np.asarray(session.run(None, {name: image})[0])
    assert got.shape == wanted.shape == (1, 1000)
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def test_mobilenet_v3_runs_and_yields_no_latency(board: RunningDaemon) -> None:
    space = load_space("ofa-mbv3-w1.0")
    config = space.search_space.decode(space.search_space.encode({**SMALLEST, "resolution": 128}))
    model = build_network(space, config, 1)
    image = np.random.default_rng(0).standard_normal((1, 3, 128, 128), dtype=np.float32)
    start = time.monotonic()
    with TvmRpcRuntime(board.board) as runtime:
        assert runtime.target.triple == TRIPLE
        assert runtime.is_emulated
        assert runtime.device == "emulated aarch64"
        remote = runtime.open_model(model)
        (got,) = remote.run([image])
        assert largest_error(model, "input", got, image) <= 1e-5
        with pytest.raises(TargetUnavailableError, match="yields no latency"):
            remote.sample(1, 0.0)
    assert time.monotonic() - start < 120


def test_largest_exported_network(board: RunningDaemon, tmp_path: Path) -> None:
    space = load_space("ofa-mbv3-w1.0")
    path = tmp_path / "model.onnx"
    export_subnet(space=space, config={**LARGEST, "resolution": 224}, out=path)
    import onnx

    proto = onnx.load_model(path)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    model = proto.SerializeToString()
    image = np.random.default_rng(1).standard_normal((1, 3, 224, 224), dtype=np.float32)
    with TvmRpcRuntime(board.board, limit_s=120.0) as runtime:
        (got,) = runtime.open_model(model).run([image])
    assert largest_error(model, "image", got, image) <= 1e-5


def test_emulation_is_noticed_where_nobody_says_so(arm_daemon: Path, tmp_path: Path) -> None:
    """Started through a script, so that the launcher takes it for a real board."""
    disguise = tmp_path / "effdl-rpcd"
    disguise.write_text(f'#!/bin/sh\nexec {" ".join(QEMU)} {arm_daemon} "$@"\n')
    disguise.chmod(0o755)
    assert os.access(disguise, os.X_OK)
    with run_daemon(disguise) as daemon, TvmRpcRuntime(daemon.board) as runtime:
        assert runtime.is_emulated
