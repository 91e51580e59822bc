"""The real MobileNetV2 on bytes, end to end: the int8 engine beside two runtimes.

``EFFDL_MOBILENET_V2`` names torchvision's weights (mobilenet_v2-b0353104.pth); without it
the weights are made, of the same shapes, and the line that is printed says so.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.kernels.conftest import report
from bench.kernels.quantized_peers import onnxruntime_run, openvino_run
from effdl.export.batch_norm_folding import fold_batch_norms
from effdl.export.int8_calibration import CalibrationOptions, calibrate
from effdl.export.int8_engine import compile_int8
from effdl.export.int8_operators import find_int8_operators
from effdl.export.onnx_export import export_onnx
from effdl.export.qdq import write_qdq
from effdl.models.mobilenet_v2.network import mobilenet_v2
from effdl.models.weights import load_torchvision_weights

WEIGHTS = "EFFDL_MOBILENET_V2"
SIZE = 224
MACS = 300_774_272


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """The float graph and the int8 one, of one image."""
    torch.manual_seed(0)
    network = mobilenet_v2().eval()
    if WEIGHTS in os.environ:
        load_torchvision_weights(network, Path(os.environ[WEIGHTS]))
    path = tmp_path_factory.mktemp("model") / "mobilenet_v2.onnx"
    example = torch.randn(2, 3, SIZE, SIZE)
    export_onnx(network, path, example=example, metadata={})
    model = fold_batch_norms(onnx.load(path))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].ClearField("dim_param")
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    coarse = torch.randn(4, 3, SIZE // 8, SIZE // 8)
    samples = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear").numpy()
    options = CalibrationOptions(rounds_weights=False, corrects_biases=False)
    operators = find_int8_operators(model)
    quantized = write_qdq(model, operators, calibrate(model, operators, samples, options))
    return model.SerializeToString(), quantized.SerializeToString()


@pytest.mark.parametrize("num_threads", [1, 2])
def test_mobilenet_v2(
    benchmark: BenchmarkFixture, models: tuple[bytes, bytes], num_threads: int
) -> None:
    floats, quantized = models
    model = onnx.load_from_string(quantized)
    x = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    inputs = {model.graph.input[0].name: x}
    engine = compile_int8(model, num_threads=num_threads)
    runs: Mapping[str, Callable[[], object] | None] = {
        "tvm": lambda: engine.run(x),
        "onnxruntime int8": onnxruntime_run(quantized, inputs, num_threads=num_threads),
        "openvino int8": openvino_run(quantized, inputs, num_threads=num_threads),
        "onnxruntime float32": onnxruntime_run(floats, inputs, num_threads=num_threads),
    }
    wanted = np.asarray(onnxruntime_run(quantized, inputs)())[0]
    steps = np.abs(np.rint((engine.run(x) - wanted) / engine.graph.output.scale))
    kind = "torchvision's weights" if WEIGHTS in os.environ else "made weights"
    p20_ms = report(
        benchmark,
        kernel="mobilenet_v2",
        case=f"224, {kind}",
        variants={name: run for name, run in runs.items() if run},
        dtype="int8",
        bytes_moved=x.nbytes + 3_504_872,
        operations=2 * MACS,
        num_threads=num_threads,
    )
    print(f"  {kind}; logits differ from ONNX Runtime's by at most {steps.max():.0f} steps")
    for name in list(runs)[1:]:
        if name in p20_ms:
            print(f"  {p20_ms['tvm'] / p20_ms[name]:.2f} of the time of {name}")
