"""What a GPU's clock is good for: run this first on a new GPU machine.

    python -m pytest bench/targets/test_gpu_timing.py tests/targets/measure/test_torch_runtime.py -s

It measures networks in every regime and number format, says how repeatable that is,
and how far the sum of a network's parts is from the whole.
"""

import time

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from effdl.models.mobilenet_v3.onnx_graph import build_network
from effdl.models.mobilenet_v3.space import ofa_mbv3_w10
from effdl.search.space import SubnetConfig
from effdl.targets.measure.torch_runtime import Mode, TorchRuntime
from effdl.targets.sampler import Opener
from effdl.targets.timing import QUICK_PROTOCOL, measure_interleaved

# Older PyTorch warns of the switches for tf32 that its own compiler reads.
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.filterwarnings("default"),
]
SPACE = ofa_mbv3_w10()
NUM_EQUAL = 40
WAYS: tuple[tuple[Mode, str], ...] = (
    ("eager", "graph"),
    ("eager", "cold"),
    ("compiled", "graph"),
    ("compiled", "cold"),
)


def config(seed: int) -> SubnetConfig:
    rows = SPACE.search_space.sample(1, np.random.default_rng(seed))
    return SPACE.search_space.decode(rows[0])


def opener(runtime: TorchRuntime, model: bytes) -> Opener:
    return lambda: runtime.open_model(model)


def p20_ms(runtime: TorchRuntime, models: list[bytes]) -> np.ndarray:
    timings = measure_interleaved(
        [opener(runtime, model) for model in models],
        instruments=runtime.instruments(),
        protocol=QUICK_PROTOCOL,
    )
    return np.array([t.p20_ms for t in timings])


@pytest.mark.parametrize("batch_size", [1, 64])
def test_regimes_and_number_formats(benchmark: BenchmarkFixture, batch_size: int) -> None:
    """One network in every way: the numbers behind the choice of what to ship."""
    model = build_network(SPACE, config(0), batch_size)

    def measure() -> dict[str, float]:
        found = {}
        print()
        for mode, regime in WAYS:
            for dtype in ("float32", "tf32", "float16", "bfloat16"):
                for last in (False, True):
                    start = time.perf_counter()
                    runtime = TorchRuntime(
                        processor="cuda", mode=mode, regime=regime, dtype=dtype, channels_last=last
                    )
                    name = f"{runtime.build.name} {regime} {dtype}"
                    found[name] = float(p20_ms(runtime, [model])[0])
                    took_s = time.perf_counter() - start
                    print(f"{name:40} {found[name]:8.4f} ms  (in {took_s:.1f} s)", flush=True)
                    print(f"{'':40} {runtime.device}, {runtime.clock_policy}")
        return found

    benchmark.extra_info.update(benchmark.pedantic(measure, rounds=1))


@pytest.mark.parametrize("regime", ["graph", "cold"])
def test_equal_entries_and_the_sum_of_parts(benchmark: BenchmarkFixture, regime: str) -> None:
    """CV of 40 equal entries; and a network beside the sum of its operators."""
    runtime = TorchRuntime(processor="cuda", regime=regime)
    chosen = config(0)
    network = build_network(SPACE, chosen, 1)
    parts = [shape.spec().build(1) for _, shape in SPACE.shapes(chosen)]

    def measure() -> tuple[np.ndarray, np.ndarray]:
        return p20_ms(runtime, [network] * NUM_EQUAL), p20_ms(runtime, [network, *parts])

    equal, apart = benchmark.pedantic(measure, rounds=1)
    percent = 100 * float(equal.std(ddof=1) / equal.mean())
    ratio = float(apart[1:].sum() / apart[0])
    benchmark.extra_info.update(cv_percent=percent, sum_of_parts_over_whole=ratio)
    print(f"\n{regime}: CV {percent:.2f} %, sum of parts over whole {ratio:.3f}")
    assert percent < 1.0


def test_events_agree_with_the_wall_clock(benchmark: BenchmarkFixture) -> None:
    """A graph replayed for half a second takes as long by either clock, within 2 %."""
    runtime = TorchRuntime(processor="cuda")
    sampler = runtime.open_model(build_network(SPACE, config(0), 64))
    (call_s,) = sampler.sample(1, 0.1).seconds
    num_samples = 10
    repeats = max(1, round(0.05 / call_s))

    def measure() -> tuple[float, float]:
        start = time.perf_counter()
        seconds = sampler.sample(num_samples, repeats * call_s).seconds
        return time.perf_counter() - start, float(np.sum(seconds)) * repeats

    wall_s, events_s = benchmark.pedantic(measure, rounds=1)
    # The host's second also holds one launch to warm up.
    assert wall_s == pytest.approx(events_s, rel=0.05)
