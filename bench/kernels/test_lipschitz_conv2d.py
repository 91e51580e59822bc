"""int8 depthwise and narrow 1x1 convolutions beside ONNX Runtime's and OpenVINO's."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.kernels.quantized_peers import (
    convolution_model,
    multipliers,
    onnxruntime_run,
    openvino_run,
)
from effdl.kernels.lipschitz_conv2d.tvm_depthwise import (
    bind_depthwise_conv2d,
    quantized_depthwise_conv2d,
)
from effdl.kernels.lipschitz_conv2d.tvm_pointwise import bind_conv1x1, quantized_conv1x1

Report = Callable[..., Mapping[str, float]]
# Outputs, inputs of one group, kernel, height and width.
CASES = {
    "depthwise 3x3 192@28": (192, 1, 3, 28),
    "depthwise 5x5 240@14": (240, 1, 5, 14),
    "1x1 96-24@56": (24, 96, 1, 56),
    "1x1 192-32@28": (32, 192, 1, 28),
    "1x1 32-16@112": (16, 32, 1, 112),
}


@pytest.mark.parametrize("case", CASES)
def test_int8_convolution(benchmark: BenchmarkFixture, kernel_report: Report, case: str) -> None:
    num_outputs, num_inputs, kernel, size = CASES[case]
    channels = num_outputs if num_inputs == 1 else num_inputs
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (num_outputs, num_inputs, kernel, kernel), np.int8)
    x = rng.integers(0, 256, (1, channels, size, size), np.uint8)
    padding = kernel // 2
    settings: dict[str, int] = {"x_zero_point": 128, "y_zero_point": 128}
    function, bind = quantized_conv1x1, bind_conv1x1
    if num_inputs == 1:
        function = partial(quantized_depthwise_conv2d, padding=padding)
        bind = partial(bind_depthwise_conv2d, padding=padding)
    given = (
        torch.from_numpy(x),
        torch.from_numpy(weight),
        torch.zeros(num_outputs, dtype=torch.int32),
        torch.from_numpy(multipliers(weight)),
    )
    whole = partial(function, *given, **settings)
    y = torch.empty((1, num_outputs, size, size), dtype=torch.uint8)
    ours = bind(*given, y, **settings)
    model = partial(convolution_model, weight, size, padding=padding)
    theirs = {
        "onnxruntime float32": onnxruntime_run(
            model(kind="float"), {"input": x.astype(np.float32)}
        ),
        "onnxruntime int8": onnxruntime_run(model(kind="qlinear"), {"input": x}),
        "openvino int8": openvino_run(model(kind="qdq"), {"input": x}),
    }
    operations = 2 * weight.size * size**2
    p20_ms = kernel_report(
        benchmark,
        kernel="lipschitz_conv2d",
        case=case,
        variants={
            "tvm": ours,
            "tvm, whole call": whole,
            **{name: run for name, run in theirs.items() if run},
        },
        dtype="int8",
        bytes_moved=x.nbytes + num_outputs * size**2 + weight.nbytes,
        operations=operations,
    )
    result = np.asarray(onnxruntime_run(model(kind="qlinear"), {"input": x})())[0]
    np.testing.assert_array_equal(whole().numpy(), result)
    np.testing.assert_array_equal(y.numpy(), result)
    for name in theirs:
        if name in p20_ms:
            print(f"  {p20_ms[name] / p20_ms['tvm']:.2f} times as fast as {name}")
