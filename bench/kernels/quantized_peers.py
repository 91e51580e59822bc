"""The peers of int8 kernels: one convolution, or a network, in ONNX Runtime and OpenVINO."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Run = Callable[[], object]
SCALE = 0.05


def onnxruntime_run(
    model: bytes, inputs: Mapping[str, NDArray[Any]], *, num_threads: int = 1
) -> Run:
    """ONNX Runtime on a model, with its defaults."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, dict(inputs))


def openvino_run(
    model: bytes, inputs: Mapping[str, NDArray[Any]], *, num_threads: int = 1
) -> Run | None:
    """OpenVINO on a model; None where it is not installed."""
    try:
        import openvino
    except ImportError:
        return None
    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": num_threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        # In int8 and float32: not in bfloat16, which some processors would take.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(core.read_model(model, b""), "CPU", settings)
    request = compiled.create_infer_request()
    for value in inputs.values():
        request.set_input_tensor(openvino.Tensor(np.ascontiguousarray(value)))
    return request.infer


def convolution_model(weight: NDArray[np.int8], size: int, *, padding: int, kind: str) -> bytes:
    """One convolution as ONNX.

    Args:
        weight: [O, C / groups, k, k]; depthwise where it has one input channel.
        size: Height and width.
        padding: On all sides.
        kind: ``"float"``, ``"qlinear"`` (bytes in and out) or ``"qdq"`` (the same through
            QuantizeLinear and DequantizeLinear, as OpenVINO reads it).
    """
    num_outputs, num_inputs, kernel, _ = weight.shape
    groups = num_outputs if num_inputs == 1 else 1
    channels = num_outputs if num_inputs == 1 else num_inputs
    constants: dict[str, NDArray[Any]] = {}
    attributes: dict[str, Any] = {"group": groups, "pads": [padding] * 4}
    dtype = TensorProto.FLOAT if kind == "float" else TensorProto.UINT8
    w_scale = np.full(num_outputs, SCALE / (40.0 * np.sqrt(num_inputs * kernel**2)), np.float32)
    if kind == "float":
        constants["w"] = weight.astype(np.float32)
        nodes = [helper.make_node("Conv", ["input", "w"], ["output"], **attributes)]
    else:
        constants["s"] = np.array(SCALE, np.float32)
        constants["z"] = np.array(128, np.uint8)
        constants["wq"], constants["ws"] = weight, w_scale
        constants["wz"] = np.zeros(num_outputs, np.int8)
        if kind == "qlinear":
            inputs = ["input", "s", "z", "wq", "ws", "wz", "s", "z"]
            nodes = [helper.make_node("QLinearConv", inputs, ["output"], **attributes)]
        else:
            nodes = [
                helper.make_node("DequantizeLinear", ["input", "s", "z"], ["x"]),
                helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["w"], axis=0),
                helper.make_node("Conv", ["x", "w"], ["y"], **attributes),
                helper.make_node("QuantizeLinear", ["y", "s", "z"], ["output"]),
            ]
    out = size + 2 * padding - kernel + 1
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("input", dtype, [1, channels, size, size])],
        [helper.make_tensor_value_info("output", dtype, [1, num_outputs, out, out])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return model.SerializeToString()


def multipliers(weight: NDArray[np.int8]) -> NDArray[np.float32]:
    """What the sums of `convolution_model` are multiplied with."""
    num_outputs, num_inputs, kernel, _ = weight.shape
    scale = np.float32(SCALE / (40.0 * np.sqrt(num_inputs * kernel**2)))
    return np.full(num_outputs, np.float32(SCALE) * scale / np.float32(SCALE), np.float32)
