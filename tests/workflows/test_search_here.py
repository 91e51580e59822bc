"""A search of this machine, end to end, on a made device with a clock of its own."""

from dataclasses import dataclass, field
from pathlib import Path

import onnx
import pytest

from effdl import load_space, load_target
from effdl.errors import InfeasibleConstraintError
from effdl.targets.host import RuntimeBuild
from effdl.targets.sampler import Samples
from effdl.targets.timing import Instruments
from effdl.workflows.profile import profile_space
from effdl.workflows.search import search_subnet
from effdl.workflows.search_outcome import Limits, SearchOutcome

_SPACE = load_space("ofa-mbv3-w1.0").with_resolutions([224])
_TARGET = load_target("cpu")


@dataclass
class MadeSampler:
    """Takes as long as it is told, by the made device's clock."""

    device: "MadeDevice"
    seconds: float

    def sample(self, num: int, min_sample_s: float) -> Samples:
        seconds = self.seconds * self.device.slowness
        self.device.now_s += num * max(seconds, min_sample_s)
        return Samples((seconds,) * num, (False,) * num)


@dataclass
class MadeDevice:
    """Every node costs 2 us and every weight 0.5 ns; networks may be slower than predicted."""

    slowness: float = 1.0
    now_s: float = 0.0
    num_opened: int = 0
    build: RuntimeBuild = field(
        default_factory=lambda: RuntimeBuild(name="onnxruntime", version="made", build="made")
    )
    device: str = "a made device"
    device_fingerprint: str = "0" * 16
    clock_policy: str = "unknown"
    num_threads: int = 1
    dtype: str = "float32"
    regime: str = ""

    def open_model(self, model: bytes) -> MadeSampler:
        self.num_opened += 1
        graph = onnx.load_model_from_string(model).graph
        weights = sum(len(w.raw_data) // 4 for w in graph.initializer)
        return MadeSampler(self, 2e-6 * len(graph.node) + 0.5e-9 * weights)

    def instruments(self) -> Instruments:
        # The reference does not feel what slows networks: a table that has gone stale.
        steady = MadeDevice()
        return Instruments(
            reference=lambda: MadeSampler(steady, 1e-4), clock=lambda: self.now_s + steady.now_s
        )


@pytest.fixture
def device() -> MadeDevice:
    made = MadeDevice()
    done = profile_space(_TARGET, _SPACE, runtime=made, quick=True)
    assert done.calibration is not None
    assert done.calibration.mape_percent < 1.0
    return made


def search(device: MadeDevice, latency_ms: float, **options: object) -> SearchOutcome:
    return search_subnet(
        target=_TARGET,
        space=_SPACE,
        limits=Limits(latency_ms=latency_ms),
        runtime=device,
        **{"export": False, "max_evaluations": 2000, **options},  # type: ignore[arg-type]
    )


def test_what_is_returned_meets_the_limit_by_the_clock(device: MadeDevice, tmp_path: Path):
    predicted = search(device, 2.6)
    assert predicted.best.measured_latency_ms is not None
    assert predicted.best.measured_latency_ms <= 2.6
    device.slowness = 1.05
    outcome = search(device, 2.6, export=True, out=tmp_path / "run")
    best, facts = outcome.best, outcome.to_json()
    assert best.measured_latency_ms is not None
    assert best.predicted_latency_ms is not None
    # 5 % slower than the table says, so searched with as much less.
    assert best.measured_latency_ms == pytest.approx(1.05 * best.predicted_latency_ms, rel=0.02)
    assert 2.6 * 0.95 < best.measured_latency_ms <= 2.6
    assert 4.0 < facts["latency_margin_percent"] < 8.0
    assert len(facts["measured_searches"]) >= 2
    assert facts["measured_searches"][0]["measured_latency_ms"] > 2.6
    assert best.onnx == tmp_path / "run" / "model.onnx"
    assert (tmp_path / "run" / "model.onnx").exists()


def test_a_confidence_leaves_its_margin_by_the_clock(device: MadeDevice):
    outcome = search(device, 2.6, confidence=0.95)
    interval = outcome.latency_model.interval_percent
    assert interval is not None
    assert outcome.best.measured_latency_ms is not None
    # 1.645 of 1.96 standard deviations.
    limit_ms = 2.6 / (1 + 0.8393 * interval / 100)
    assert outcome.best.measured_latency_ms <= limit_ms
    assert outcome.best.measured_latency_ms < 2.6


def test_a_limit_that_the_clock_refutes_is_refused(device: MadeDevice, tmp_path: Path):
    with pytest.raises(InfeasibleConstraintError) as caught:
        search(device, 0.01)
    fastest_ms = caught.value.fastest_latency_ms
    assert fastest_ms is not None
    device.slowness = 1.06
    with pytest.raises(InfeasibleConstraintError, match="by the clock") as caught:
        search(device, 1.03 * fastest_ms, out=tmp_path / "run")
    assert caught.value.fastest_latency_ms == pytest.approx(1.06 * fastest_ms, rel=0.03)
    assert not (tmp_path / "run").exists()
