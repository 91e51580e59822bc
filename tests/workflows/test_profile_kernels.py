"""Kernels against their plain ONNX forms: measured once, kept apart, chosen by a search."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from effdl.errors import ConfigError, MissingEntryError, TargetUnavailableError
from effdl.kernels.backend import Backend
from effdl.kernels.kernel_spec import KernelSpec
from effdl.opspec import OpSpec
from effdl.targets.measure.onnxruntime import OnnxRuntime
from effdl.targets.target import load_target
from effdl.targets.timing import QUICK_PROTOCOL
from effdl.workflows import profile_kernels as workflow
from effdl.workflows.kernel_implementations import PLAIN, find_implementations
from effdl.workflows.profile_kernels import (
    KernelsProfile,
    load_kernel_latency_model,
    profile_kernels,
)

CPU = load_target("cpu")
# A folder that is there, so that its sources can be read.
KERNEL = "temporal_shift"


def products_onnx(batch_size: int, *, size: int, num: int) -> bytes:
    """``num`` matrix products in a row, of [batch_size, size] with [size, size]."""
    names = ["x", *(f"h{i}" for i in range(1, num)), "y"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [names[i], "w"], [names[i + 1]]) for i in range(num)],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch_size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch_size, size])],
        [helper.make_tensor("w", TensorProto.FLOAT, [size, size], [1 / size] * size**2)],
    )
    opset = helper.make_opsetid("", 20)
    return helper.make_model(graph, ir_version=10, opset_imports=[opset]).SerializeToString()


def products_run(
    batch_size: int, backend: Backend, *, size: int, num: int
) -> Callable[[], torch.Tensor]:
    """``num`` of the same products in PyTorch."""
    assert backend is Backend.REFERENCE
    x, w = torch.ones(batch_size, size), torch.full((size, size), 1 / size)

    def run() -> torch.Tensor:
        y = x
        for _ in range(num):
            y = y @ w
        return y

    return run


def spec(key: str, *, num_onnx: int, num_torch: int, size: int = 64) -> KernelSpec:
    """A made kernel whose two implementations differ in speed as the counts do."""
    return KernelSpec(
        op=OpSpec(
            key=key,
            num_params=size**2,
            macs=size**2,
            bytes_moved=4 * size**2,
            peak_memory_bytes=8 * size,
            features={},
            build=partial(products_onnx, size=size, num=num_onnx),
        ),
        kernel=KERNEL,
        case=str(size),
        dtype="float32",
        backends=(Backend.REFERENCE, Backend.TRITON),
        make_run=partial(products_run, size=size, num=num_torch),
    )


SLOW_ONNX = spec("slow-onnx", num_onnx=400, num_torch=1)
SLOW_TORCH = spec("slow-torch", num_onnx=1, num_torch=400)


def profile(
    path: Path, *specs: KernelSpec, budget_s: float = 20.0, dry_run: bool = False
) -> KernelsProfile:
    return profile_kernels(
        CPU, specs=specs, quick=True, budget_s=budget_s, store_path=path, dry_run=dry_run
    )


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> KernelsProfile:
    """Both made kernels, measured."""
    path = tmp_path_factory.mktemp("store") / "s.sqlite"
    return profile(path, SLOW_ONNX, SLOW_TORCH)


def test_the_faster_implementation_of_each_operator_wins(profiled: KernelsProfile) -> None:
    fastest = {operator.key: operator.fastest.name for operator in profiled.operators}
    assert fastest == {"slow-onnx": f"{KERNEL}.reference", "slow-torch": PLAIN}
    assert (profiled.num_entries, profiled.num_measured, profiled.num_cached) == (4, 4, 0)
    for operator in profiled.operators:
        latencies = [one.latency_ms for one in operator.implementations]
        assert latencies == sorted(latencies)
        assert operator.plain.runtime.startswith("onnxruntime ")
    assert [gone.backend for gone in profiled.missing] == ["triton"]


def test_what_is_known_is_not_measured_again(profiled: KernelsProfile) -> None:
    again = profile(profiled.store, SLOW_ONNX, SLOW_TORCH)
    assert (again.num_measured, again.num_cached) == (0, 4)
    assert again.operators == profiled.operators
    more = profile(profiled.store, SLOW_TORCH, spec("new", num_onnx=1, num_torch=1), dry_run=True)
    assert (more.num_measured, more.num_cached) == (2, 2)
    assert more.seconds > 0
    assert more.operators == ()


def test_a_stopped_profile_goes_on(tmp_path: Path) -> None:
    first = profile(tmp_path / "s", SLOW_TORCH, budget_s=1e-6)
    assert first.num_partial == 2
    assert profile(tmp_path / "s", SLOW_TORCH).num_partial == 0


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 2}, {"specs": (replace(SLOW_TORCH, dtype="uint8"),)}],
    ids=["batch size", "number format"],
)
def test_another_setting_is_a_miss(profiled: KernelsProfile, change: dict[str, object]) -> None:
    asked = {"specs": (SLOW_TORCH,), "quick": True, "store_path": profiled.store, "dry_run": True}
    assert profile_kernels(CPU, **asked).num_cached == 2  # type: ignore[arg-type]
    assert profile_kernels(CPU, **(asked | change)).num_cached == 0  # type: ignore[arg-type]


def test_a_dry_run_makes_no_store(tmp_path: Path) -> None:
    assert profile(tmp_path / "s", SLOW_TORCH, dry_run=True).num_measured == 2
    assert not (tmp_path / "s").exists()


def test_settings_name_the_backend_and_the_source() -> None:
    found, _ = find_implementations(
        [SLOW_TORCH], runtime=OnnxRuntime(), protocol=QUICK_PROTOCOL, batch_size=3
    )
    plain, ours = (one.implementation for one in found)
    assert (plain.name, ours.name) == (PLAIN, f"{KERNEL}.reference")
    assert ours.setting.runtime == "effdl-reference"
    assert ours.setting.runtime_version == torch.__version__
    assert len(ours.setting.runtime_build) == 16
    assert ours.setting.runtime_build != plain.setting.runtime_build
    same = ("device", "num_threads", "batch_size", "dtype", "clock_policy", "protocol")
    for name in same:
        assert getattr(ours.setting, name) == getattr(plain.setting, name)


def test_the_latency_model_takes_the_fastest(profiled: KernelsProfile) -> None:
    model = load_kernel_latency_model([SLOW_ONNX, SLOW_TORCH], store_path=profiled.store)
    assert model is not None
    ops = [SLOW_TORCH.op, SLOW_ONNX.op, SLOW_TORCH.op]
    by_key = {operator.key: operator.fastest.latency_ms for operator in profiled.operators}
    wanted = [by_key[op.key] for op in ops]
    np.testing.assert_allclose(model.predict_op_ms(ops), wanted, rtol=1e-12)
    assert model.fastest("slow-onnx") == f"{KERNEL}.reference"
    assert (model.source, model.batch_size) == ("measured", 1)
    with pytest.raises(MissingEntryError, match="unknown"):
        model.predict_op_ms([spec("unknown", num_onnx=1, num_torch=1).op])


def test_no_latency_model_of_what_is_half_measured(
    profiled: KernelsProfile, tmp_path: Path
) -> None:
    assert load_kernel_latency_model([SLOW_ONNX], store_path=tmp_path / "absent") is None
    new = spec("new", num_onnx=1, num_torch=1)
    assert load_kernel_latency_model([new], store_path=profiled.store) is None


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    for name in ("gpu-h100", "mobile"):
        with pytest.raises(TargetUnavailableError):
            profile_kernels(load_target(name), specs=[SLOW_ONNX], store_path=tmp_path / "s")
    with pytest.raises(ConfigError, match="got 0"):
        profile_kernels(CPU, specs=[SLOW_ONNX], batch_size=0, store_path=tmp_path / "s")
    assert workflow.QUICK_BUDGET_S < workflow.FULL_BUDGET_S
