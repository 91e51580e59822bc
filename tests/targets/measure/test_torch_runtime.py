"""PyTorch as a runtime: on the CPU, and on a GPU where there is one."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from effdl.errors import ConfigError, TargetUnavailableError
from effdl.models.mobilenet_v3.onnx_graph import build_network
from effdl.models.mobilenet_v3.space import ofa_mbv3_w10
from effdl.targets.host import describe_host
from effdl.targets.measure.onnxruntime import open_session, reference_model, run_once
from effdl.targets.measure.torch_runtime import CapturedCalls, Mode, TorchRuntime, TorchSession
from effdl.targets.timing import Protocol, measure_interleaved

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@pytest.fixture(scope="module")
def network() -> bytes:
    space = ofa_mbv3_w10()
    rows = space.search_space.sample(1, np.random.default_rng(0))
    return build_network(space, space.search_space.decode(rows[0]), 1)


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """The settings of the process before and after each test are the same."""
    before = process_settings()
    yield
    assert process_settings() == before


def process_settings() -> tuple[object, ...]:
    return (
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize(
    ("dtype", "channels_last", "tolerance"),
    [("float32", False, 1e-4), ("float32", True, 1e-4), ("bfloat16", False, 0.5)],
)
def test_a_network_computes_what_onnxruntime_computes(
    network: bytes, dtype: str, channels_last: bool, tolerance: float
):
    session = TorchSession(network, dtype=dtype, channels_last=channels_last)
    with torch.no_grad():
        (got,) = session.run()
    (wanted,) = run_once(open_session(network), session.feeds)
    assert str(got.dtype) == f"torch.{dtype}"
    error = np.abs(got.float().numpy() - wanted).max() / np.abs(wanted).max()
    assert error < tolerance
    assert tolerance < 0.1 or error > 1e-3


def test_images_and_filters_lie_channels_last_if_asked_for():
    (planar,), (last,) = (
        TorchSession(reference_model(), channels_last=asked).run() for asked in (False, True)
    )
    assert planar.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(planar, last, rtol=0, atol=1e-3)


def test_a_runtime_times_models_beside_its_reference(network: bytes):
    runtime = TorchRuntime()
    brief = Protocol(name="brief", min_rounds=3, max_rounds=3, samples_per_round=3, min_span_s=0.0)
    fast, slow = measure_interleaved(
        [lambda: runtime.open_model(reference_model()), lambda: runtime.open_model(network)],
        instruments=runtime.instruments(),
        protocol=brief,
    )
    assert 0 < fast.p20_ms < slow.p20_ms / 5
    assert (runtime.dtype, runtime.regime) == ("float32", "")
    assert runtime.device_fingerprint == describe_host().fingerprint


def test_settings_hold_while_a_sample_is_taken(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[object, ...]] = []
    plain = TorchSession.run

    def run(self: TorchSession) -> tuple[torch.Tensor, ...]:
        seen.append(process_settings())
        return plain(self)

    monkeypatch.setattr(TorchSession, "run", run)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("medium")
    try:
        TorchRuntime().open_model(reference_model()).sample(1, 0.0)
        assert torch.get_num_threads() == 2
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {(1, "highest", False, False, False)}


def test_what_decides_the_time_is_in_the_builds_name():
    plain, last = TorchRuntime().build, TorchRuntime(channels_last=True).build
    assert (plain.name, last.name) == ("torch-eager", "torch-eager-nhwc")
    assert plain.version == last.version == torch.__version__
    assert plain.build == last.build


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processor": "tpu"}, "one of cpu, cuda: got 'tpu'"),
        ({"mode": "compiled"}, "on cpu wants as mode one of 'eager': got 'compiled'"),
        ({"dtype": "tf32"}, "on cpu wants as dtype one of 'float32', .*: got 'tf32'"),
        ({"regime": "cold"}, "on cpu wants as regime one of '': got 'cold'"),
        ({"processor": "cuda", "regime": ""}, "one of 'graph', 'cold': got ''"),
        ({"processor": "cuda", "dtype": "int8"}, "got 'int8'"),
    ],
)
def test_settings_without_a_meaning_are_refused(options: dict[str, str], message: str):
    with pytest.raises(ConfigError, match=message):
        TorchRuntime(**options)  # pyright: ignore[reportArgumentType]


@without_gpu
def test_a_missing_gpu_is_said():
    with pytest.raises(TargetUnavailableError, match=r"no CUDA device 0: PyTorch .* sees 0"):
        TorchRuntime(processor="cuda")


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
REGIMES = ("graph", "cold")
MODES: tuple[Mode, ...] = ("eager", "compiled")


@needs_gpu
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float32", 1e-4), ("tf32", 0.05), ("float16", 0.1), ("bfloat16", 0.5)],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_computes_what_the_cpu_computes(
    network: bytes, dtype: str, tolerance: float, compiled: bool
):
    (wanted,) = run_once(open_session(network), TorchSession(network).feeds)
    with torch.no_grad():
        session = TorchSession(network, processor="cuda", dtype=dtype, compiled=compiled)
        precision = "high" if dtype == "tf32" else "highest"
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = dtype == "tf32"
        try:
            (got,) = session.run()
        finally:
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = True
    error = np.abs(got.float().cpu().numpy() - wanted).max() / np.abs(wanted).max()
    assert error < tolerance
    assert dtype == "float32" or error > 1e-4


@needs_gpu
def test_a_captured_graph_writes_its_outputs_anew(network: bytes):
    with torch.no_grad():
        session = TorchSession(network, processor="cuda")
        (wanted,) = session.run()
        captured = CapturedCalls(session, 3)
        captured.outputs[0].fill_(float("nan"))
        captured.replay()
        torch.cuda.synchronize()
    torch.testing.assert_close(captured.outputs[0], wanted, rtol=1e-4, atol=1e-3)


@needs_gpu
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("mode", MODES)
def test_more_work_takes_a_gpu_longer(regime: str, mode: Mode):
    runtime = TorchRuntime(processor="cuda", mode=mode, regime=regime)
    small, large = (reference_model(batch_size=n, channels=256, size=28) for n in (16, 128))
    brief = Protocol(name="brief", min_rounds=3, max_rounds=3, samples_per_round=5, min_span_s=0.0)
    fast, slow = measure_interleaved(
        [lambda: runtime.open_model(small), lambda: runtime.open_model(large)],
        instruments=runtime.instruments(),
        protocol=brief,
    )
    assert 5 < slow.p20_ms / fast.p20_ms < 10


@needs_gpu
def test_cold_calls_are_not_faster_than_warm_ones(network: bytes):
    warm, cold = (
        TorchRuntime(processor="cuda", regime=regime).open_model(network).sample(10, 1e-3).seconds
        for regime in REGIMES
    )
    assert min(warm) < min(cold)


@needs_gpu
def test_device_memory_is_given_back(network: bytes):
    runtime = TorchRuntime(processor="cuda")
    runtime.open_model(network).sample(2, 0.0)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        runtime.open_model(network).sample(2, 0.0)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before
