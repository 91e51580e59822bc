"""MobileNetV2's blocks on bytes: fused, beside the same operators in other runtimes."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.kernels.quantized_peers import onnxruntime_run, openvino_run
from effdl.kernels.backend import Backend
from effdl.kernels.inverted_residual.spec import default_specs
from effdl.kernels.kernel_spec import KernelSpec

Report = Callable[..., Mapping[str, float]]


@pytest.mark.parametrize("spec", default_specs(), ids=lambda spec: spec.case)
def test_block(benchmark: BenchmarkFixture, kernel_report: Report, spec: KernelSpec) -> None:
    model = spec.op.build(1)
    in_channels, _, rest = spec.case.split("-")
    size = int(rest.split("@")[1].split()[0])
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (1, int(in_channels), size, size), np.uint8)
    variants = {
        "tvm": spec.make_run(1, Backend.TVM),
        "onnxruntime int8": onnxruntime_run(model, {"input": x}),
        "openvino": openvino_run(model, {"input": x}),
    }
    p20_ms = kernel_report(
        benchmark,
        kernel="inverted_residual",
        case=spec.case,
        variants={name: run for name, run in variants.items() if run},
        dtype="int8",
        bytes_moved=x.nbytes + spec.op.num_params,
        operations=spec.op.flops,
    )
    for name in list(variants)[1:]:
        if name in p20_ms:
            print(f"  {p20_ms[name] / p20_ms['tvm']:.2f} times as fast as {name}")
