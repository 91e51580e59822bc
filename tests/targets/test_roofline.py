"""Estimates: the roofline by hand, and how far it is from what was measured."""

from pathlib import Path

import numpy as np
import pytest

from effdl.data.ofa_latency import read_measured_networks
from effdl.errors import ConfigError
from effdl.models.mobilenet_v3.space import ofa_mbv3_w12
from effdl.opspec import OpSpec
from effdl.search.cost import SlotIndex
from effdl.targets.latency_model import load_latency_model
from effdl.targets.roofline import RooflineModel
from effdl.targets.target import Target, load_target
from effdl.workflows.fit_target import measurements_of

TOY = RooflineModel(
    device="Toy",
    batch_size=3,
    runtime="hand",
    peak_flops_per_s=4e9,
    memory_bandwidth_bytes_per_s=1e9,
    launch_overhead_us=50.0,
    flops_efficiency=0.5,
    bandwidth_efficiency=0.25,
)
ESTIMATED = (
    "gpu-h100",
    "gpu-a100",
    "mobile-snapdragon-8-gen-3",
    "raspberry-pi-5",
    "cpu-x86-server",
)


def make_op(macs: int, bytes_moved: int, num_params: int) -> OpSpec:
    return OpSpec(
        key="k",
        num_params=num_params,
        macs=macs,
        bytes_moved=bytes_moved,
        peak_memory_bytes=0,
        features={},
        build=lambda batch_size: b"",
    )


def test_by_hand() -> None:
    bound_by_arithmetic = make_op(macs=10**6, bytes_moved=1000, num_params=0)
    bound_by_memory = make_op(macs=1000, bytes_moved=504_000, num_params=1000)
    nothing = make_op(macs=0, bytes_moved=0, num_params=0)
    # 3 x 2e6 operations at 2e9/s are 3 ms. Weights (4,000 bytes) are read once, the other
    # 500,000 bytes three times: 1,504,000 bytes at 0.25e9/s are 6.016 ms. Each costs 50 us more.
    estimates = TOY.estimate_op_ms([bound_by_arithmetic, bound_by_memory, nothing])
    assert estimates == pytest.approx([3.05, 6.066, 0.05])
    assert TOY.predict_op_ms([nothing], resolutions=[224]) == pytest.approx([0.05])
    assert (TOY.source, TOY.interval_percent) == ("estimated", None)


@pytest.mark.parametrize("name", ESTIMATED)
def test_estimated_targets_price_the_whole_space(name: str) -> None:
    model = load_latency_model(load_target(name), batch_size=2)
    assert (model.source, model.batch_size) == ("estimated", 2)
    ops = [op for slot in ofa_mbv3_w12().slots for op in slot.ops]
    latencies = model.predict_op_ms(ops)
    assert np.isfinite(latencies).all()
    assert (latencies > 0).all()


def test_a_faster_device_is_estimated_faster() -> None:
    ops = [op for slot in ofa_mbv3_w12().slots for op in slot.ops]
    older, newer = (
        load_latency_model(load_target(name), batch_size=64).predict_op_ms(ops)
        for name in ("gpu-a100", "gpu-h100")
    )
    assert (newer < older).all()


def test_a_descriptor_without_figures() -> None:
    target = Target(name="bare", device="d", kind="gpu", runtime="r", description="d")
    with pytest.raises(ConfigError, match=r"lacks peak_flops_per_s, .*bandwidth_efficiency"):
        load_latency_model(target)


@pytest.mark.reference_data
@pytest.mark.parametrize(
    ("column", "batch_size", "peak_flops_per_s", "bandwidth"),
    [
        # NVIDIA's figures: float32 at boost clock, and memory bandwidth.
        ("titan_rtx_64_ms", 64, 16.3e12, 672e9),
        ("titan_rtx_32_ms", 32, 16.3e12, 672e9),
        ("v100_64_ms", 64, 15.7e12, 900e9),
        ("2080ti_64_ms", 64, 13.45e12, 616e9),
    ],
)
def test_shares_of_the_peak_fit_measured_gpus(
    column: str,
    batch_size: int,
    peak_flops_per_s: float,
    bandwidth: float,
    reference_data: Path,
) -> None:
    shipped = RooflineModel.of_target(load_target("gpu-a100"), batch_size=batch_size)
    model = RooflineModel(
        device=column,
        batch_size=batch_size,
        runtime="PyTorch",
        peak_flops_per_s=peak_flops_per_s,
        memory_bandwidth_bytes_per_s=bandwidth,
        launch_overhead_us=shipped.launch_overhead_us,
        flops_efficiency=shipped.flops_efficiency,
        bandwidth_efficiency=shipped.bandwidth_efficiency,
    )
    path = reference_data / "ofa" / "measured_gpu_latency.csv"
    networks = read_measured_networks(path, latency_columns=(column,))[:1000]
    latency_ms = [network.latencies_ms[0] for network in networks]
    measured = measurements_of(ofa_mbv3_w12(), networks, latency_ms, path)
    estimated = measured.sum_over_slots(model.estimate_op_ms(measured.ops))
    assert 100 * np.abs(estimated / measured.latency_ms - 1).mean() < 6.0


def test_shares_of_the_peak_fit_the_measured_phone() -> None:
    shipped = RooflineModel.of_target(load_target("mobile-snapdragon-8-gen-3"), batch_size=1)
    model = RooflineModel(
        device="one Cortex-A76 at 2.84 GHz",
        batch_size=1,
        runtime="TensorFlow Lite",
        peak_flops_per_s=2.84e9 * 16,
        memory_bandwidth_bytes_per_s=34.1e9,
        launch_overhead_us=shipped.launch_overhead_us,
        flops_efficiency=shipped.flops_efficiency,
        bandwidth_efficiency=shipped.bandwidth_efficiency,
    )
    space, phone = ofa_mbv3_w12(), load_latency_model(load_target("mobile"))
    index = SlotIndex(space.search_space, space.slots)
    codes = index.codes(space.search_space.sample(500, np.random.default_rng(0)))
    estimated, measured = (
        index.flatten([each.predict_op_ms(slot.ops) for slot in space.slots])[codes].sum(axis=1)
        for each in (model, phone)
    )
    assert 100 * np.abs(estimated / measured - 1).mean() < 6.0
