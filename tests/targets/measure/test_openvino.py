"""OpenVINO for real: the same numbers as ONNX Runtime, and nothing behind the user's back."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from effdl.errors import BackendUnavailableError, ConfigError, CorruptFileError
from effdl.models.mobilenet_v3.onnx_graph import build_network
from effdl.models.mobilenet_v3.space import ofa_mbv3_w10
from effdl.search.space import SubnetConfig
from effdl.targets.host import describe_host, find_runtime
from effdl.targets.measure.onnx_to_torch import load_onnx_module
from effdl.targets.measure.onnxruntime import make_feeds, open_session, run_once
from effdl.targets.measure.openvino import OpenVinoRuntime, OpenVinoSession
from effdl.targets.timing import Protocol, measure_interleaved

installed = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason='needs pip install "effdl[openvino]"'
)
SPACE = ofa_mbv3_w10()


def config(seed: int) -> SubnetConfig:
    rows = SPACE.search_space.sample(1, np.random.default_rng(seed))
    return SPACE.search_space.decode(rows[0])


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def relu(*shape: int | str) -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["input"], ["output"])],
        "test",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, ir_version=8, opset_imports=[opset]).SerializeToString()


@installed
@pytest.mark.parametrize("batch_size", [1, 2])
def test_operators_compute_what_onnxruntime_computes(batch_size: int):
    """Every kind of operator of the space, at some of its sizes."""
    found = [shape.spec() for seed in range(2) for _, shape in SPACE.shapes(config(seed))]
    specs = list({spec.key: spec for spec in found}.values())
    for spec in specs[:: 4 if batch_size > 1 else 1]:
        model = spec.build(batch_size)
        session, peer = OpenVinoSession(model), open_session(model)
        feeds = make_feeds(peer)
        assert all(np.array_equal(feeds[name], made) for name, made in session.feeds.items())
        (wanted,) = run_once(peer, feeds)
        assert relative_error(session.outputs[0], wanted) < 1e-4, spec.key


@installed
def test_networks_compute_what_onnxruntime_computes():
    for seed in range(2):
        model = build_network(SPACE, config(seed), 1)
        session = OpenVinoSession(model)
        assert session.precision == "f32"
        session.outputs[0][:] = np.nan
        session.run()
        (peer,) = run_once(open_session(model), session.feeds)
        # Made weights let rounding grow through a network: float64 judges both runtimes.
        with torch.no_grad():
            module = load_onnx_module(model).double()
            (exact,) = module(*[torch.from_numpy(v).double() for v in session.feeds.values()])
        assert relative_error(peer, exact.numpy()) < 5e-3
        assert relative_error(session.outputs[0], exact.numpy()) < 5e-3


@installed
@pytest.mark.skipif(
    not {"avx512_bf16", "amx_bf16"} & set(describe_host().isa),
    reason="the processor has no units for bfloat16",
)
def test_bfloat16_is_used_only_where_it_was_asked_for():
    model = build_network(SPACE, config(0), 1)
    session = OpenVinoSession(model, dtype="bfloat16")
    (wanted,) = run_once(open_session(model), session.feeds)
    assert session.precision == "bf16"
    assert 1e-3 < relative_error(session.outputs[0], wanted) < 0.5
    assert OpenVinoRuntime(dtype="bfloat16").dtype == "bfloat16"


@installed
def test_the_work_stays_on_the_core_this_thread_is_pinned_to():
    """Its own pinning would widen the thread's affinity again, at the first call."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores and a system that pins")
    before = os.sched_getaffinity(0)
    core = max(before)
    try:
        os.sched_setaffinity(0, {core})
        session = OpenVinoSession(build_network(SPACE, config(0), 1))
        session.run()
        assert os.sched_getaffinity(0) == {core}
        start, start_thread = os.times(), time.thread_time()
        for _ in range(50):
            session.run()
        end = os.times()
        in_all = end.user + end.system - start.user - start.system
        # All of the process's work was this thread's: no other computes beside it.
        assert time.thread_time() - start_thread > 0.9 * in_all - 0.02
    finally:
        os.sched_setaffinity(0, before)


@installed
def test_a_runtime_times_models_beside_its_reference():
    runtime = OpenVinoRuntime()
    brief = Protocol(name="brief", min_rounds=3, max_rounds=3, samples_per_round=5, min_span_s=0.0)
    small, large = relu(1, 8, 4, 4), build_network(SPACE, config(0), 1)
    fast, slow = measure_interleaved(
        [lambda: runtime.open_model(small), lambda: runtime.open_model(large)],
        instruments=runtime.instruments(),
        protocol=brief,
    )
    assert 0 < fast.p20_ms < slow.p20_ms / 5
    assert (runtime.build.name, runtime.dtype, runtime.regime) == ("openvino", "float32", "")
    assert runtime.device_fingerprint == describe_host().fingerprint


@installed
def test_damaged_and_unfixed_models_are_refused():
    good = relu(1, 8)
    for bad in (b"", b"no model", good[: len(good) // 2]):
        with pytest.raises(CorruptFileError, match="OpenVINO cannot run a model given as bytes"):
            OpenVinoSession(bad)
    with pytest.raises(
        CorruptFileError, match=r"'input' has dimensions of no fixed size: \[\?,8\]"
    ):
        OpenVinoSession(relu("N", 8))


@installed
def test_other_number_formats_are_refused():
    with pytest.raises(ConfigError, match="float32, bfloat16: got float16"):
        OpenVinoRuntime(dtype="float16")


@installed
def test_measuring_tells_nobody(tmp_path: Path):
    """Importing the package plainly writes an identity below the home folder and sends an event."""
    code = (
        "import sys\n"
        "from effdl.targets.measure.openvino import OpenVinoSession\n"
        "from effdl.targets.measure.onnxruntime import reference_model\n"
        "OpenVinoSession(reference_model()).run()\n"
        "print([m for m in sys.modules if m.startswith('openvino_telemetry')])\n"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_an_error_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [])
    find_runtime.cache_clear()
    try:
        with pytest.raises(BackendUnavailableError, match="openvino is not installed") as error:
            OpenVinoRuntime()
    finally:
        find_runtime.cache_clear()
    assert error.value.hint == 'pip install "effdl[openvino]"'
