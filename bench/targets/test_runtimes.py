"""The same ten networks in every runtime of this machine, and how repeatable they are."""

import importlib.util

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from effdl.models.mobilenet_v3.onnx_graph import build_network
from effdl.models.mobilenet_v3.space import ofa_mbv3_w10
from effdl.targets.host import describe_host
from effdl.targets.measure.onnxruntime import OnnxRuntime
from effdl.targets.measure.openvino import OpenVinoRuntime
from effdl.targets.measure.runtime import MeasurementRuntime
from effdl.targets.measure.torch_runtime import TorchRuntime
from effdl.targets.sampler import Opener
from effdl.targets.timing import QUICK_PROTOCOL, TABLE_PROTOCOL, measure_interleaved

NUM_NETWORKS = 10
NUM_EQUAL = 40
needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason='needs pip install "effdl[openvino]"'
)


def networks(num: int) -> list[bytes]:
    """Random networks of the space at width 1.0, batch 1, from small to large resolutions."""
    space = ofa_mbv3_w10()
    rows = space.search_space.sample(num, np.random.default_rng(0))
    return [build_network(space, space.search_space.decode(row), 1) for row in rows]


def opener(runtime: MeasurementRuntime, model: bytes) -> Opener:
    return lambda: runtime.open_model(model)


@needs_openvino
def test_ten_networks_in_every_runtime(benchmark: BenchmarkFixture) -> None:
    """p20 in ms, one thread, all runtimes interleaved in one run."""
    runtimes: dict[str, MeasurementRuntime] = {
        "onnxruntime": OnnxRuntime(),
        "openvino": OpenVinoRuntime(),
        "torch": TorchRuntime(),
        "torch-nhwc": TorchRuntime(channels_last=True),
    }
    if {"avx512_bf16", "amx_bf16"} & set(describe_host().isa):
        # What it does when it is not told otherwise.
        runtimes["openvino-bf16"] = OpenVinoRuntime(dtype="bfloat16")
    models = networks(NUM_NETWORKS)
    openers = [opener(runtime, model) for model in models for runtime in runtimes.values()]

    def measure() -> np.ndarray:
        timings = measure_interleaved(
            openers, instruments=OnnxRuntime().instruments(), protocol=QUICK_PROTOCOL
        )
        return np.array([t.p20_ms for t in timings]).reshape(len(models), len(runtimes))

    p20_ms = benchmark.pedantic(measure, rounds=1)
    ratios = np.median(p20_ms / p20_ms[:, :1], axis=0)
    print("\n" + " ".join(f"{name:>13}" for name in runtimes))
    for row in [*p20_ms, ratios]:
        print(" ".join(f"{value:13.3f}" for value in row))
    benchmark.extra_info.update(
        {f"{name} over onnxruntime": float(r) for name, r in zip(runtimes, ratios, strict=True)}
    )
    assert ratios[1] < 1.0


@needs_openvino
def test_equal_entries(benchmark: BenchmarkFixture) -> None:
    """Coefficient of variation of 40 equal networks' p20, of OpenVINO and ONNX Runtime at once."""
    runtimes: tuple[MeasurementRuntime, ...] = (OpenVinoRuntime(), OnnxRuntime())
    (model,) = networks(1)
    openers = [opener(runtime, model) for runtime in runtimes for _ in range(NUM_EQUAL)]

    def measure() -> np.ndarray:
        timings = measure_interleaved(
            openers,
            instruments=runtimes[0].instruments(),
            protocol=TABLE_PROTOCOL,
            max_open=len(openers),
        )
        return np.array([t.p20_ms for t in timings]).reshape(len(runtimes), NUM_EQUAL)

    p20_ms = benchmark.pedantic(measure, rounds=1)
    percents = 100 * p20_ms.std(axis=1, ddof=1) / p20_ms.mean(axis=1)
    for runtime, entries, percent in zip(runtimes, p20_ms, percents, strict=True):
        benchmark.extra_info[f"{runtime.build.name} cv_percent"] = float(percent)
        spread = entries.max() / entries.min()
        print(
            f"\n{runtime.build}: {entries.mean():.3f} ms, CV {percent:.2f} %, max/min {spread:.3f}"
        )
    assert percents[0] < 3.0
