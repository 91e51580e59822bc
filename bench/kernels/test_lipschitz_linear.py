"""Linear layers with weights of eight and four bits beside ONNX Runtime's and OpenVINO's."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from pytest_benchmark.fixture import BenchmarkFixture

from bench.kernels.quantized_peers import SCALE, onnxruntime_run, openvino_run
from effdl.kernels.bit_packing import pack_bits
from effdl.kernels.lipschitz_linear.tvm_int4 import (
    pack_int4,
    pack_int4_requantized,
    run_int4,
    run_int4_requantized,
)
from effdl.kernels.lipschitz_linear.tvm_kernel import pack_linear, quantized_linear, run_linear

Report = Callable[..., Mapping[str, float]]
POINTS: dict[str, Any] = {"x_zero_point": 128, "y_zero_point": 128}
# Rows, inputs, outputs.
SIZES = [(1, 1024, 4096), (1, 4096, 4096), (64, 1024, 4096)]


def weight_scale(num_inputs: int) -> np.float32:
    return np.float32(SCALE / (40.0 * np.sqrt(num_inputs)))


def int8_model(weight: NDArray[np.int8], num_rows: int, *, is_qdq: bool) -> bytes:
    """A matrix product of bytes, as one node or through QuantizeLinear and DequantizeLinear."""
    num_outputs, num_inputs = weight.shape
    constants = {
        "s": np.array(SCALE, np.float32),
        "z": np.array(128, np.uint8),
        "wq": np.ascontiguousarray(weight.T),
        "ws": np.full(num_outputs, weight_scale(num_inputs), np.float32),
        "wz": np.zeros(num_outputs, np.int8),
    }
    if is_qdq:
        nodes = [
            helper.make_node("DequantizeLinear", ["input", "s", "z"], ["x"]),
            helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["w"], axis=1),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("QuantizeLinear", ["y", "s", "z"], ["output"]),
        ]
    else:
        inputs = ["input", "s", "z", "wq", "ws", "wz", "s", "z"]
        nodes = [helper.make_node("QLinearMatMul", inputs, ["output"])]
    return as_model(nodes, constants, TensorProto.UINT8, (num_rows, num_inputs, num_outputs))


def int4_model(num_inputs: int, num_outputs: int) -> bytes:
    """ONNX Runtime's own product with weights of four bits, on activations of eight."""
    rng = np.random.default_rng(0)
    blocks = num_inputs // 32
    constants = {
        "w": rng.integers(0, 256, (num_outputs, blocks, 16), np.uint8),
        "ws": rng.random(num_outputs * blocks, np.float32),
    }
    node = helper.make_node(
        "MatMulNBits",
        ["input", "w", "ws"],
        ["output"],
        domain="com.microsoft",
        K=num_inputs,
        N=num_outputs,
        bits=4,
        block_size=32,
        accuracy_level=4,
    )
    return as_model([node], constants, TensorProto.FLOAT, (1, num_inputs, num_outputs))


def as_model(
    nodes: list, constants: Mapping[str, NDArray], dtype: int, size: tuple[int, int, int]
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("input", dtype, [size[0], size[1]])],
        [helper.make_tensor_value_info("output", dtype, [size[0], size[2]])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_int8_linear(
    benchmark: BenchmarkFixture,
    kernel_report: Report,
    size: tuple[int, int, int],
    num_threads: int,
) -> None:
    num_rows, num_inputs, num_outputs = size
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (num_outputs, num_inputs), np.int8)
    values = rng.integers(0, 256, (num_rows, num_inputs), np.uint8)
    x = torch.from_numpy(values)
    scale = np.float32(SCALE) * weight_scale(num_inputs) / np.float32(SCALE)
    layer = (
        torch.from_numpy(weight),
        torch.zeros(num_outputs, dtype=torch.int32),
        torch.full((num_outputs,), float(scale)),
    )
    packed = pack_linear(*layer, **POINTS)
    y = torch.empty(num_rows, num_outputs, dtype=torch.uint8)
    feed = {"input": values}
    one_node, qdq = (int8_model(weight, num_rows, is_qdq=is_qdq) for is_qdq in (False, True))
    theirs = {
        "onnxruntime int8": onnxruntime_run(one_node, feed, num_threads=num_threads),
        "openvino int8": openvino_run(qdq, feed, num_threads=num_threads),
    }
    p20_ms = kernel_report(
        benchmark,
        kernel="lipschitz_linear",
        case=f"{num_rows}x{num_inputs}x{num_outputs}",
        variants={
            "tvm": partial(run_linear, packed, x, out=y),
            "tvm by tensor": partial(quantized_linear, x, *layer, **POINTS),
            **{name: run for name, run in theirs.items() if run},
        },
        dtype="int8",
        bytes_moved=weight.nbytes + values.nbytes + y.numel(),
        operations=2 * weight.size * num_rows,
        num_threads=num_threads,
    )
    result = np.asarray(onnxruntime_run(one_node, feed)())[0]
    np.testing.assert_array_equal(y.numpy(), result)
    for name in theirs:
        if name in p20_ms:
            print(f"  {p20_ms['tvm'] / p20_ms[name]:.2f} of the time of {name}")


@pytest.mark.parametrize("num_threads", [1, 2])
def test_int4_matrix_vector(
    benchmark: BenchmarkFixture, kernel_report: Report, num_threads: int
) -> None:
    size = 4096
    rng = np.random.default_rng(0)
    real = torch.from_numpy(rng.standard_normal((1, size), np.float32))
    values = rng.integers(0, 256, (1, size), np.uint8)
    x = torch.from_numpy(values)
    four = pack_bits(torch.from_numpy(rng.integers(-8, 8, (size, size), np.int8)), 4)
    eight = rng.integers(-127, 128, (size, size), np.int8)
    bias, multiplier = torch.zeros(size, dtype=torch.int32), torch.full((size,), 1e-4)
    grouped = pack_int4(four, torch.rand(size, 32))
    requantized = pack_int4_requantized(four, bias, multiplier, **POINTS)
    int8 = pack_linear(torch.from_numpy(eight), bias, multiplier, **POINTS)
    feed = {"input": values}
    one_node, qdq = (int8_model(eight, 1, is_qdq=is_qdq) for is_qdq in (False, True))
    theirs = {
        "onnxruntime int8": onnxruntime_run(one_node, feed, num_threads=num_threads),
        "openvino int8": openvino_run(qdq, feed, num_threads=num_threads),
        "onnxruntime int4": onnxruntime_run(
            int4_model(size, size), {"input": real.numpy()}, num_threads=num_threads
        ),
    }
    p20_ms = kernel_report(
        benchmark,
        kernel="lipschitz_linear",
        case="int4 1x4096x4096",
        variants={
            "tvm": partial(run_int4, pack_int4(four, torch.rand(size)), real),
            "tvm 32 groups": partial(run_int4, grouped, real),
            "tvm between bytes": partial(run_int4_requantized, requantized, x),
            "tvm int8": partial(run_linear, int8, x),
            **{name: run for name, run in theirs.items() if run},
        },
        dtype="int8",
        bytes_moved=size * size // 2 + 8 * size,
        operations=2 * size * size,
        num_threads=num_threads,
    )
    for name, time_ms in p20_ms.items():
        print(f"  {time_ms / p20_ms['tvm']:.2f} times as fast as {name}")
