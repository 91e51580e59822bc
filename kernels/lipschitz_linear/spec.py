"""The quantized linear layer as latency tables see it: costs, ONNX form, and how to run it."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from effdl.errors import BackendUnavailableError
from effdl.kernels.backend import Backend, choose_backend
from effdl.kernels.kernel_spec import KernelSpec
from effdl.kernels.quantization import output_multiplier
from effdl.opspec import OpSpec

__all__ = ["LINEAR_SHAPES", "default_specs", "linear_spec"]

_FLOAT32_BYTES = 4
_IR_VERSION = 10
_SCALE = 0.05
_ZERO_POINT = 128

LINEAR_SHAPES = ((1024, 4096, 1), (4096, 4096, 1), (1024, 4096, 64))
"""Inputs, outputs, and rows of one sample."""


def linear_spec(num_inputs: int, num_outputs: int, num_rows: int = 1) -> OpSpec:
    """The layer as an operator.

    Args:
        num_inputs: K.
        num_outputs: N.
        num_rows: Rows of one sample, M.
    """
    weights = num_inputs * num_outputs
    elements = num_rows * (num_inputs + num_outputs)
    macs = num_rows * weights
    return OpSpec(
        key=f"Int8Linear-input:{num_rows}x{num_inputs}-output:{num_rows}x{num_outputs}",
        num_params=weights + num_outputs,
        macs=macs,
        bytes_moved=_FLOAT32_BYTES * (elements + weights + num_outputs),
        peak_memory_bytes=_FLOAT32_BYTES * elements,
        features={"dense_macs": float(macs), "activation_elements": float(elements)},
        build=partial(_build, num_inputs, num_outputs, num_rows),
    )


def default_specs() -> tuple[KernelSpec, ...]:
    """Matrix-vector products, which reading weights bounds, and a product of matrices."""
    return tuple(
        KernelSpec(
            op=linear_spec(*shape),
            kernel="lipschitz_linear",
            case=f"{shape[2]}x{shape[0]}x{shape[1]}",
            dtype="uint8",
            backends=(Backend.TVM, Backend.TRITON),
            make_run=partial(_make_run, *shape),
        )
        for shape in LINEAR_SHAPES
    )


def _made_weight(num_inputs: int, num_outputs: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    # Seven bits: without dot products of bytes some runtimes' sums saturate beyond.
    weight = rng.integers(-64, 65, (num_outputs, num_inputs), np.int8)
    # Sums of random bytes come to fill the output's range.
    scale = np.full(num_outputs, 40.0 / (74.0 * 37.0 * num_inputs**0.5), np.float32)
    return weight, scale


def _make_run(
    num_inputs: int, num_outputs: int, num_rows: int, batch_size: int, backend: Backend
) -> Callable[[], object]:
    if backend is Backend.TRITON and not torch.cuda.is_available():
        raise BackendUnavailableError("Triton's kernels run on a GPU, got none here")
    device = torch.device("cuda" if backend is Backend.TRITON else "cpu")
    choose_backend(backend, device=device)
    if backend is Backend.TVM:
        from effdl.kernels.lipschitz_linear import tvm_kernel as implementation
    elif backend is Backend.TRITON:
        from effdl.kernels.lipschitz_linear import triton_kernel as implementation
    else:
        from effdl.kernels.lipschitz_linear import reference as implementation
    weight, scale = _made_weight(num_inputs, num_outputs)
    multiplier = torch.from_numpy(output_multiplier(_SCALE, scale, _SCALE))
    x = torch.randint(0, 256, (batch_size * num_rows, num_inputs), dtype=torch.uint8)
    run = partial(
        implementation.quantized_linear,
        x.to(device),
        torch.from_numpy(weight).to(device),
        torch.zeros(num_outputs, dtype=torch.int32, device=device),
        multiplier.to(device),
        x_zero_point=_ZERO_POINT,
        y_zero_point=_ZERO_POINT,
    )
    run()
    return run


def _build(num_inputs: int, num_outputs: int, num_rows: int, batch_size: int) -> bytes:
    """The layer with QuantizeLinear and DequantizeLinear, which runtimes fuse to integers."""
    weight, scale = _made_weight(num_inputs, num_outputs)
    constants = {
        "scale": np.array(_SCALE, np.float32),
        "middle": np.array(_ZERO_POINT, np.uint8),
        "weight": weight,
        "weight_scale": scale,
        "weight_points": np.zeros(num_outputs, np.int8),
        "bias": np.zeros(num_outputs, np.int32),
        "bias_scale": (np.float32(_SCALE) * scale).astype(np.float32),
    }
    nodes: list[NodeProto] = [
        helper.make_node("DequantizeLinear", ["input", "scale", "middle"], ["x"]),
        helper.make_node(
            "DequantizeLinear", ["weight", "weight_scale", "weight_points"], ["w"], axis=0
        ),
        helper.make_node("DequantizeLinear", ["bias", "bias_scale"], ["b"], axis=0),
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1),
        helper.make_node("QuantizeLinear", ["y", "scale", "middle"], ["output"]),
    ]
    rows = batch_size * num_rows
    graph = helper.make_graph(
        nodes,
        "int8_linear",
        [helper.make_tensor_value_info("input", TensorProto.UINT8, [rows, num_inputs])],
        [helper.make_tensor_value_info("output", TensorProto.UINT8, [rows, num_outputs])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=_IR_VERSION
    )
    return model.SerializeToString()
