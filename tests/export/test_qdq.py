"""Graphs on bytes: exact integers, the right nodes, and outputs close to the float graph's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from effdl.export.batch_norm_folding import fold_batch_norms
from effdl.export.int8_calibration import CalibrationOptions, Int8Parameters, calibrate
from effdl.export.int8_operators import Int8Operator, find_int8_operators
from effdl.export.int8_parity import compare_int8, signal_to_noise_db
from effdl.export.onnx_export import export_onnx
from effdl.export.qdq import byte_tensors, write_qdq
from effdl.export.runtime import open_session, run
from effdl.kernels.quantization import output_multiplier, requantize

Export = Callable[..., Path]


class Residual(nn.Module):
    """A small MobileNetV2 with a pooling, on images [batch, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU6(), nn.MaxPool2d(2))
        self.expand = nn.Sequential(nn.Conv2d(16, 48, 1), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(48, 48, 3, padding=1, groups=48), nn.ReLU6())
        self.project = nn.Conv2d(48, 16, 1)
        self.classifier = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.classifier(x.mean((2, 3)))


def seeded(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return module.eval()


def samples(num: int, seed: int = 0, channels: int = 3) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((num, channels, 8, 8), dtype=np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("residual") / "model.onnx"
    export_onnx(seeded(Residual()), path, example=torch.zeros(2, 3, 8, 8), metadata={})
    return onnx.load(path)


def outputs(
    model: onnx.ModelProto, x: NDArray[np.float32], *, optimize: bool = True
) -> NDArray[np.float32]:
    return run(open_session(model.SerializeToString(), optimize=optimize, num_threads=1), x)


def constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def kinds(operators: tuple[Int8Operator, ...]) -> list[str]:
    return [operator.kind for operator in operators]


def test_operators_with_what_is_fused_to_them(model: onnx.ModelProto) -> None:
    found = find_int8_operators(model)
    assert kinds(found) == ["Conv", "MaxPool", "Conv", "Conv", "Conv", "Add", "Gemm"]
    assert [op.limits for op in found[:3]] == [(0, 6), (-np.inf, np.inf), (0, 6)]
    assert [len(op.nodes) for op in found] == [2, 1, 2, 2, 1, 1, 1]
    pooled, projected = found[1].output, found[4].output
    assert found[5].inputs == (pooled, projected)
    assert found[6].bias is not None


def test_one_convolution_is_exactly_the_integer_arithmetic(export: Export) -> None:
    """Against integers in NumPy, with every number read back from the file."""
    layer = seeded(nn.Sequential(nn.Conv2d(3, 7, 3, padding=1, stride=2), nn.ReLU6()))
    model = onnx.load(export(layer))
    operators = find_int8_operators(model)
    written = write_qdq(model, operators, calibrate(model, operators, samples(4)))
    (node,) = (n for n in written.graph.node if n.op_type == "Conv")
    values = constants(written)
    (operator,) = operators
    x_scale, x_zero = (values[f"{operator.inputs[0]}_{k}"] for k in ("scale", "zero_point"))
    y_scale, y_zero = (values[f"{operator.output}_{k}"] for k in ("scale", "zero_point"))
    weight = values[f"{operator.name}_weight_quantized"]
    bias = values[f"{operator.name}_bias_quantized"]
    w_scale = values[f"{operator.name}_weight_scale"].astype(np.float32)
    assert (x_zero.dtype, weight.dtype, bias.dtype) == (np.uint8, np.int8, np.int32)
    assert node.input[1] == f"{operator.name}_weight_dequantized"

    x = samples(2, seed=1)
    steps = np.clip(np.rint(x / x_scale) + x_zero, 0, 255) - x_zero
    sums = torch.nn.functional.conv2d(
        torch.from_numpy(steps.astype(np.float64)),
        torch.from_numpy(weight.astype(np.float64)),
        torch.from_numpy(bias.astype(np.float64)),
        padding=1,
        stride=2,
    ).numpy()
    y = requantize(
        sums.transpose(0, 2, 3, 1).astype(np.int32),
        output_multiplier(float(x_scale), w_scale, float(y_scale)),
        y_zero_point=int(y_zero),
        y_min=int(y_zero),
    )
    wanted = (y.astype(np.float32) - y_zero.astype(np.float32)) * y_scale
    np.testing.assert_array_equal(outputs(written, x), wanted.transpose(0, 3, 1, 2))


def test_calibrated_graph_follows_the_float_graph(model: onnx.ModelProto) -> None:
    operators = find_int8_operators(model)
    written = write_qdq(model, operators, calibrate(model, operators, samples(32)))
    onnx.checker.check_model(written, full_check=True)
    parity = compare_int8(model, written, samples(200, seed=1), description="made")
    assert parity.sqnr_db > 28
    assert parity.agreement_percent > 95
    assert parity.num_samples == 200
    x = samples(3, seed=2)
    np.testing.assert_allclose(outputs(written, x[:1]), outputs(written, x)[:1], atol=1e-5)


def test_each_part_of_calibration_helps(model: onnx.ModelProto) -> None:
    operators, x = find_int8_operators(model), samples(400, seed=1)

    def sqnr_db(*, rounds_weights: bool, corrects_biases: bool) -> float:
        options = CalibrationOptions(
            range_method="minmax", rounds_weights=rounds_weights, corrects_biases=corrects_biases
        )
        parameters = calibrate(model, operators, samples(64), options)
        return compare_int8(
            model, write_qdq(model, operators, parameters), x, description=""
        ).sqnr_db

    plain = sqnr_db(rounds_weights=False, corrects_biases=False)
    corrected = sqnr_db(rounds_weights=False, corrects_biases=True)
    both = sqnr_db(rounds_weights=True, corrects_biases=True)
    assert plain < corrected < both


def test_a_few_wild_places_bend_no_bias(model: onnx.ModelProto) -> None:
    """Values far out that a range leaves out must not move the others' mean."""
    operators, wild = find_int8_operators(model), samples(64)
    wild[:2] *= 1e4
    parameters = calibrate(model, operators, wild)
    written = write_qdq(model, operators, parameters)
    usual = {op.name: parameters.biases[op.name] for op in operators if op.weight}
    first = next(op for op in operators if op.kind == "Conv")
    floats = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert first.bias is not None
    assert np.abs(usual[first.name] - floats[first.bias]).max() < 1e4
    assert np.isfinite(outputs(written, samples(2))).all()


@pytest.mark.parametrize("index", range(7))
def test_an_operator_alone_on_bytes_leaves_the_rest_in_floats(
    model: onnx.ModelProto, index: int
) -> None:
    (operator,) = alone = find_int8_operators(model)[index : index + 1]
    parameters = calibrate(model, alone, samples(32))
    assert set(parameters.activations) == set(byte_tensors(alone))
    written = write_qdq(model, alone, parameters)
    onnx.checker.check_model(written, full_check=True)
    small = [n for n, v in constants(written).items() if v.dtype == np.int8 and v.size > v.shape[0]]
    assert small == ([f"{operator.name}_weight_quantized"] if operator.weight else [])
    counts = [n.op_type for n in written.graph.node]
    assert counts.count("QuantizeLinear") == len(byte_tensors(alone))
    assert compare_int8(model, written, samples(100, seed=1), description="").sqnr_db > 30


def test_no_operator_on_bytes_is_the_float_graph(model: onnx.ModelProto) -> None:
    written = write_qdq(model, (), Int8Parameters())
    assert [n.op_type for n in written.graph.node] == [n.op_type for n in model.graph.node]
    x = samples(2)
    np.testing.assert_array_equal(outputs(written, x), outputs(model, x))


class Ends(nn.Module):
    """An output that is also read inside, and an input that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


def test_an_output_on_bytes_keeps_its_name(export: Export) -> None:
    model = onnx.load(export(seeded(Ends())))
    operators = find_int8_operators(model)
    assert kinds(operators) == ["Conv", "Conv", "Add"]
    written = write_qdq(model, operators, calibrate(model, operators, samples(16)))
    onnx.checker.check_model(written, full_check=True)
    assert [v.name for v in written.graph.output] == ["logits"]
    quantizers = [n.input[0] for n in written.graph.node if n.op_type == "QuantizeLinear"]
    assert sorted(quantizers) == sorted(set(quantizers))
    x = samples(5, seed=3)
    assert signal_to_noise_db(outputs(model, x), outputs(written, x)) > 30
    plain = outputs(written, x, optimize=False)
    assert signal_to_noise_db(plain, outputs(written, x)) > 40


@pytest.mark.parametrize("transposed", [True, False])
def test_matrix_products_of_both_layouts(transposed: bool) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 8), dtype=np.float32)
    helper = onnx.helper
    node = (
        helper.make_node("Gemm", ["image", "w"], ["logits"], transB=1, name="product")
        if transposed
        else helper.make_node("MatMul", ["image", "w"], ["logits"], name="product")
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 6])],
        [numpy_helper.from_array(weight if transposed else weight.T.copy(), "w")],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    operators = find_int8_operators(model)
    x = rng.standard_normal((64, 8), dtype=np.float32)
    written = write_qdq(model, operators, calibrate(model, operators, x))
    onnx.checker.check_model(written, full_check=True)
    assert signal_to_noise_db(x @ weight.T, outputs(written, x)) > 35


def test_batch_norms_are_folded() -> None:
    helper, rng = onnx.helper, np.random.default_rng(0)
    made = {
        "w": rng.standard_normal((4, 3, 3, 3)),
        "gamma": rng.uniform(-2, 2, 4),
        "beta": rng.standard_normal(4),
        "mean": rng.standard_normal(4),
        "variance": rng.uniform(0.1, 2, 4),
    }
    norm = ["conv", "gamma", "beta", "mean", "variance"]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "w"], ["conv"], pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", norm, ["logits"], epsilon=1e-3),
        ],
        "norm",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 4, 8, 8])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in made.items()],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    folded, x = fold_batch_norms(model), samples(2)
    assert [n.op_type for n in folded.graph.node] == ["Conv"]
    assert len(model.graph.node) == 2
    assert len(folded.graph.initializer) == 2
    plain = outputs(model, x, optimize=False)
    np.testing.assert_allclose(outputs(folded, x), plain, rtol=1e-4, atol=1e-4)
