"""The quantized linear layer, bit for bit."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor

from effdl.compilers import check_tvm
from effdl.errors import BackendUnavailableError, ConfigError
from effdl.kernels.bit_packing import pack_bits
from effdl.kernels.lipschitz_linear.op import int4_linear, quantized_linear


def has_tvm() -> bool:
    try:
        check_tvm()
    except BackendUnavailableError:
        return False
    return True


needs_tvm = pytest.mark.skipif(not has_tvm(), reason="needs TVM")
BACKENDS = ["reference", pytest.param("tvm", marks=needs_tvm)]


def operands(rows: int, outputs: int, inputs: int, seed: int = 0) -> tuple[Tensor, ...]:
    """x, weight, bias, multiplier."""
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, 256, (rows, inputs), generator=g, dtype=torch.uint8),
        torch.randint(-127, 128, (outputs, inputs), generator=g, dtype=torch.int8),
        torch.randint(-5000, 5000, (outputs,), generator=g, dtype=torch.int32),
        torch.rand(outputs, generator=g) * 4e-3 / max(inputs, 1) ** 0.5 + 1e-5,
    )


def in_python(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    *,
    x_zero_point: int,
    y_zero_point: int,
    y_min: int = 0,
    y_max: int = 255,
) -> Tensor:
    """The definition, one output at a time, in integers and one float32 product."""
    out = torch.empty(len(x), len(weight), dtype=torch.uint8)
    for m, row in enumerate(x.tolist()):
        for n, column in enumerate(weight.tolist()):
            total = sum((a - x_zero_point) * w for a, w in zip(row, column, strict=True))
            total += int(bias[n])
            scaled = np.float32(total) * np.float32(multiplier[n if len(multiplier) > 1 else 0])
            out[m, n] = int(min(max(round(float(scaled)) + y_zero_point, y_min), y_max))
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 63), (2, 7, 100), (17, 33, 8)], ids=str)
def test_against_one_output_at_a_time(backend: str, shape: tuple[int, int, int]) -> None:
    given = operands(*shape)
    for limits in ({}, {"y_min": 120}, {"y_min": 120, "y_max": 180}):
        settings = {"x_zero_point": 131, "y_zero_point": 120, **limits}
        got = quantized_linear(*given, **settings, backend=backend)
        assert torch.equal(got, in_python(*given, **settings))


@needs_tvm
@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 20),
    outputs=st.integers(1, 70),
    inputs=st.integers(1, 130),
    x_zero_point=st.integers(0, 255),
    seed=st.integers(0, 99),
)
def test_tvm_is_the_reference(
    rows: int, outputs: int, inputs: int, x_zero_point: int, seed: int
) -> None:
    given = operands(rows, outputs, inputs, seed)
    settings = {"x_zero_point": x_zero_point, "y_zero_point": 128}
    wanted = quantized_linear(*given, **settings, backend="reference")
    assert torch.equal(quantized_linear(*given, **settings, backend="tvm"), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_onnxruntimes_qgemm(backend: str) -> None:
    x, weight, bias, _ = operands(5, 33, 63)
    # Seven bits: without dot products of bytes ONNX Runtime's sums saturate beyond.
    weight = weight // 2
    weight_scale = torch.rand(33) * 0.01 + 0.001
    x_scale, y_scale = 0.02, 0.7
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node(
                    "QGemm",
                    ["x", "xs", "xz", "w", "ws", "wz", "b", "ys", "yz"],
                    ["y"],
                    domain="com.microsoft",
                    transB=1,
                )
            ],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.UINT8, list(x.shape))],
            [helper.make_tensor_value_info("y", TensorProto.UINT8, [5, 33])],
            [
                helper.make_tensor("xs", TensorProto.FLOAT, [], [x_scale]),
                helper.make_tensor("xz", TensorProto.UINT8, [], [131]),
                onnx.numpy_helper.from_array(weight.numpy(), "w"),
                onnx.numpy_helper.from_array(weight_scale.numpy(), "ws"),
                onnx.numpy_helper.from_array(np.zeros(33, np.int8), "wz"),
                onnx.numpy_helper.from_array(bias.numpy(), "b"),
                helper.make_tensor("ys", TensorProto.FLOAT, [], [y_scale]),
                helper.make_tensor("yz", TensorProto.UINT8, [], [120]),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 19), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    wanted = np.asarray(session.run(None, {"x": x.numpy()})[0])
    product = np.float32(x_scale) * weight_scale.numpy()
    multiplier = torch.from_numpy((product / np.float32(y_scale)).astype(np.float32))
    got = quantized_linear(
        x, weight, bias, multiplier, x_zero_point=131, y_zero_point=120, backend=backend
    )
    assert np.array_equal(got.numpy(), wanted)
    assert len(np.unique(wanted)) > 10


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_multiplier_for_all(backend: str) -> None:
    x, weight, bias, _ = operands(3, 5, 20)
    one = torch.tensor([0.003])
    settings: dict[str, Any] = {"x_zero_point": 7, "y_zero_point": 128, "backend": backend}
    got = quantized_linear(x, weight, bias, one, **settings)
    assert torch.equal(got, quantized_linear(x, weight, bias, one.expand(5).clone(), **settings))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 4, 8), (3, 4, 0)], ids=str)
def test_empty(backend: str, shape: tuple[int, int, int]) -> None:
    given = operands(*shape)
    settings = {"x_zero_point": 3, "y_zero_point": 128}
    got = quantized_linear(*given, **settings, backend=backend)
    assert got.shape == shape[:2]
    assert torch.equal(got, in_python(*given, **settings))


@pytest.mark.parametrize("backend", BACKENDS)
def test_not_contiguous_and_at_odd_addresses(backend: str) -> None:
    x, weight, bias, multiplier = operands(8, 12, 66)
    settings: dict[str, Any] = {"x_zero_point": 131, "y_zero_point": 120, "backend": backend}
    strided = quantized_linear(x[::2, 1::2], weight[:, 1::2], bias, multiplier, **settings)
    dense = quantized_linear(
        x[::2, 1::2].contiguous(), weight[:, 1::2].contiguous(), bias, multiplier, **settings
    )
    assert torch.equal(strided, dense)
    shifted = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(8, 66)
    assert torch.equal(
        quantized_linear(shifted, weight, bias, multiplier, **settings),
        quantized_linear(x, weight, bias, multiplier, **settings),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend: str) -> None:
    args = (*operands(3, 5, 12), 131, 120, 0, 255, backend)
    torch.library.opcheck(torch.ops.effdl.quantized_linear.default, args)


def test_compiles_with_any_batch() -> None:
    _, weight, bias, multiplier = operands(1, 6, 16)

    @torch.compile(backend="aot_eager", fullgraph=True, dynamic=True)
    def compiled(x: Tensor) -> Tensor:
        return quantized_linear(x, weight, bias, multiplier, x_zero_point=3, y_zero_point=9)

    for rows in (2, 5):
        x = operands(rows, 6, 16, seed=rows)[0]
        wanted = quantized_linear(
            x, weight, bias, multiplier, x_zero_point=3, y_zero_point=9, backend="reference"
        )
        assert torch.equal(compiled(x), wanted)


def test_says_what_it_wanted() -> None:
    x, weight, bias, multiplier = operands(2, 3, 4)
    good: dict[str, Any] = {"x_zero_point": 0, "y_zero_point": 0}
    with pytest.raises(
        ConfigError, match=r"x: wanted \[M, 4\] for a weight of \[3, 4\], got \[2, 3\]"
    ):
        quantized_linear(x[:, :3], weight, bias, multiplier, **good)
    with pytest.raises(ConfigError, match=r"x: wanted 2 axes \[M, K\], got shape \[4\]"):
        quantized_linear(x[0], weight, bias, multiplier, **good)
    with pytest.raises(ConfigError, match=r"x: wanted torch.uint8, got torch.float32"):
        quantized_linear(x.float(), weight, bias, multiplier, **good)
    with pytest.raises(ConfigError, match=r"weight: wanted torch.int8, got torch.uint8"):
        quantized_linear(x, weight.view(torch.uint8), bias, multiplier, **good)
    with pytest.raises(
        ConfigError, match=r"bias: wanted shape \[3\], one number an output, got \[1\]"
    ):
        quantized_linear(x, weight, bias[:1], multiplier, **good)
    with pytest.raises(ConfigError, match=r"multiplier: wanted shape \[3\] or \[1\], got \[2\]"):
        quantized_linear(x, weight, bias, multiplier[:2], **good)
    with pytest.raises(ConfigError, match="x_zero_point: wanted 0 to 255, got 256"):
        quantized_linear(x, weight, bias, multiplier, x_zero_point=256, y_zero_point=0)
    with pytest.raises(ConfigError, match="wanted y_min <= y_max, got 9 and 8"):
        quantized_linear(x, weight, bias, multiplier, **good, y_min=9, y_max=8)


def made_int4(outputs: int, inputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    integers = torch.randint(-8, 8, (outputs, inputs), generator=g, dtype=torch.int8)
    return integers, pack_bits(integers, 4)


def test_int4_by_hand() -> None:
    packed = torch.tensor([[0xF1, 0x87]], dtype=torch.uint8)
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 0.0]])
    got = int4_linear(x, packed, torch.tensor([0.5]), backend="reference")
    # 1 * 1 - 2 + 21 - 32.
    assert got.tolist() == [[-6.0], [0.5]]
    grouped = int4_linear(x, packed, torch.tensor([[1.0, 0.5]]), backend="reference")
    assert grouped.tolist() == [[-6.5], [1.0]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("groups", [None, 2])
def test_int4_and_its_gradient(backend: str, groups: int | None) -> None:
    integers, packed = made_int4(40, 128)
    scale = torch.rand(40, *([groups] if groups else [])) + 0.1
    weight = integers.float().unflatten(1, (groups or 1, -1)) * scale.reshape(40, -1, 1)
    weight = weight.flatten(1)
    for rows in (1, 3):
        x = torch.randn(rows, 128).requires_grad_()
        got = int4_linear(x, packed, scale, backend=backend)
        wanted = x.double() @ weight.double().t()
        # TVM's kernel takes x in steps of 1 / 32512 of the row's largest number.
        largest = x.detach().abs().amax(dim=1, keepdim=True) * weight.abs().sum(dim=1)
        room = largest * (2e-6 + (1 / 65024 if backend == "tvm" else 0))
        assert bool(((got - wanted).detach().abs() <= room).all())
        grad = torch.randn_like(got)
        (grad_x,) = torch.autograd.grad(got, x, grad)
        torch.testing.assert_close(grad_x, grad @ weight, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_int4_opcheck(backend: str) -> None:
    _, packed = made_int4(16, 32)
    args = (torch.randn(2, 32).requires_grad_(), packed, torch.rand(16), backend)
    torch.library.opcheck(torch.ops.effdl.int4_linear.default, args)


def test_int4_says_what_it_wanted() -> None:
    _, packed = made_int4(4, 8)
    x, scale = torch.zeros(1, 8), torch.ones(4)
    with pytest.raises(ConfigError, match=r"x: wanted \[M, 8\] for a packed weight of \[4, 4\]"):
        int4_linear(x[:, :6], packed, scale)
    with pytest.raises(ConfigError, match=r"scale: wanted \[4\], or \[4, groups\] .* got \[4, 3\]"):
        int4_linear(x, packed, torch.ones(4, 3))
    with pytest.raises(ConfigError, match=r"no triton kernel for this case"):
        int4_linear(x, packed, scale, backend="triton")
