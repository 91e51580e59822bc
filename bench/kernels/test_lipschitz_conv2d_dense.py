"""Dense int8 convolutions beside ONNX Runtime's and OpenVINO's."""

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
from effdl.kernels.lipschitz_conv2d.tvm_kernel import (
    pack_conv2d,
    quantized_conv2d,
    run_conv2d,
    run_conv2d_words,
)

Report = Callable[..., Mapping[str, float]]
# Inputs, outputs, kernel, height and width.
CASES = {
    "3x3 64-64@56": (64, 64, 3, 56),
    "3x3 256-256@14": (256, 256, 3, 14),
    "1x1 256-256@14": (256, 256, 1, 14),
}


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_dense_convolution(
    benchmark: BenchmarkFixture, kernel_report: Report, case: str, num_threads: int
) -> None:
    num_inputs, num_outputs, kernel, size = CASES[case]
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (num_outputs, num_inputs, kernel, kernel), np.int8)
    image = rng.integers(0, 256, (1, num_inputs, size, size), np.uint8)
    padding = kernel // 2
    x = torch.from_numpy(image)
    layer = (
        torch.from_numpy(weight),
        torch.zeros(num_outputs, dtype=torch.int32),
        torch.from_numpy(multipliers(weight)),
    )
    packed = pack_conv2d(
        *layer,
        image_size=(size, size),
        x_zero_point=128,
        y_zero_point=128,
        padding=(padding, padding),
    )
    y = torch.empty(1, num_outputs, size, size, dtype=torch.uint8)
    x_words = torch.full((packed.x_bytes,), 128, dtype=torch.uint8)
    y_words = torch.empty(packed.y_bytes, dtype=torch.uint8)
    model = partial(convolution_model, weight, size, padding=padding)
    theirs = {
        "onnxruntime int8": onnxruntime_run(
            model(kind="qlinear"), {"input": image}, num_threads=num_threads
        ),
        "openvino int8": openvino_run(model(kind="qdq"), {"input": image}, num_threads=num_threads),
    }
    p20_ms = kernel_report(
        benchmark,
        kernel="lipschitz_conv2d",
        case=case,
        variants={
            "tvm": partial(run_conv2d, packed, x, out=y),
            "tvm in words": partial(run_conv2d_words, packed, x_words, out=y_words),
            "tvm by tensor": partial(
                quantized_conv2d, x, *layer, x_zero_point=128, y_zero_point=128, padding=padding
            ),
            **{name: run for name, run in theirs.items() if run},
        },
        dtype="int8",
        bytes_moved=image.nbytes + num_outputs * size**2 + weight.nbytes,
        operations=2 * weight.size * size**2,
        num_threads=num_threads,
    )
    result = np.asarray(onnxruntime_run(model(kind="qlinear"), {"input": image})())[0]
    np.testing.assert_array_equal(y.numpy(), result)
    for name in theirs:
        if name in p20_ms:
            print(f"  {p20_ms['tvm'] / p20_ms[name]:.2f} of the time of {name}")
