"""The quantized convolution, bit for bit."""

from itertools import product
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
from effdl.kernels.lipschitz_conv2d.op import quantized_conv2d


def has_tvm() -> bool:
    try:
        check_tvm()
    except BackendUnavailableError:
        return False
    return True


needs_tvm = pytest.mark.skipif(not has_tvm(), reason="needs TVM")
BACKENDS = ["reference", pytest.param("tvm", marks=needs_tvm)]


def operands(
    images: int,
    inputs: int,
    outputs: int,
    size: tuple[int, int],
    kernel: int,
    groups: int = 1,
    seed: int = 0,
) -> tuple[Tensor, ...]:
    """x, weight, bias, multiplier."""
    g = torch.Generator().manual_seed(seed)
    reach = inputs // groups * kernel * kernel
    return (
        torch.randint(0, 256, (images, inputs, *size), generator=g, dtype=torch.uint8),
        torch.randint(
            -127, 128, (outputs, inputs // groups, kernel, kernel), generator=g, dtype=torch.int8
        ),
        torch.randint(-5000, 5000, (outputs,), generator=g, dtype=torch.int32),
        torch.rand(outputs, generator=g) * 4e-3 / max(reach, 1) ** 0.5 + 1e-5,
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
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> Tensor:
    """The definition, one output at a time, in integers and one float32 product."""
    images, _, height, width = x.shape
    outputs, depth, kh, kw = weight.shape
    out_size = [(size + 2 * padding - k) // stride + 1 for size, k in ((height, kh), (width, kw))]
    out = torch.empty(images, outputs, *out_size, dtype=torch.uint8)
    values, weights = x.tolist(), weight.tolist()
    for n, o, i, j in product(range(images), range(outputs), *map(range, out_size)):
        total = int(bias[o])
        for c, a, b in product(range(depth), range(kh), range(kw)):
            y, z = i * stride + a - padding, j * stride + b - padding
            if 0 <= y < height and 0 <= z < width:
                channel = o // (outputs // groups) * depth + c
                total += (values[n][channel][y][z] - x_zero_point) * weights[o][c][a][b]
        scaled = np.float32(total) * np.float32(multiplier[o])
        out[n, o, i, j] = int(min(max(round(float(scaled)) + y_zero_point, y_min), y_max))
    return out


CASES = {
    "3x3": ((2, 5, 6, (6, 5), 3), {"padding": 1}),
    "3x3 stride": ((1, 4, 5, (7, 9), 3), {"padding": 1, "stride": 2}),
    "1x1": ((2, 7, 9, (5, 3), 1), {}),
    "1x1 stride": ((1, 8, 4, (5, 5), 1), {"stride": 2}),
    "depthwise 3x3": ((2, 5, 5, (7, 6), 3, 5), {"padding": 1, "groups": 5}),
    "depthwise 5x5 stride": ((1, 6, 6, (9, 7), 5, 6), {"padding": 2, "stride": 2, "groups": 6}),
    "groups": ((1, 6, 4, (5, 6), 3, 2), {"padding": 1, "groups": 2}),
    "multiplier": ((1, 3, 6, (5, 5), 3, 3), {"padding": 0, "groups": 3}),
    "7x7": ((1, 3, 4, (11, 9), 7), {"padding": 3, "stride": 2}),
    "wide padding": ((1, 2, 3, (3, 4), 2), {"padding": 3}),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_against_one_output_at_a_time(backend: str, case: str) -> None:
    sizes, geometry = CASES[case]
    given = operands(*sizes)
    settings = {"x_zero_point": 131, "y_zero_point": 120, "y_max": 190, **geometry}
    got = quantized_conv2d(*given, **settings, backend=backend)
    assert torch.equal(got, in_python(*given, **settings))
    assert got.is_contiguous()


@needs_tvm
@settings(max_examples=10, deadline=None)
@given(
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 40),
    size=st.tuples(st.integers(3, 17), st.integers(3, 17)),
    kernel=st.sampled_from([1, 3]),
    stride=st.integers(1, 2),
    x_zero_point=st.integers(0, 255),
    seed=st.integers(0, 99),
)
def test_tvm_is_the_reference(
    inputs: int,
    outputs: int,
    size: tuple[int, int],
    kernel: int,
    stride: int,
    x_zero_point: int,
    seed: int,
) -> None:
    given = operands(1, inputs, outputs, size, kernel, seed=seed)
    settings = {
        "x_zero_point": x_zero_point,
        "y_zero_point": 128,
        "stride": stride,
        "padding": kernel // 2,
    }
    wanted = quantized_conv2d(*given, **settings, backend="reference")
    assert torch.equal(quantized_conv2d(*given, **settings, backend="tvm"), wanted)


@needs_tvm
@pytest.mark.parametrize(
    ("sizes", "geometry"),
    [
        ((1, 24, 24, (14, 14), 5, 24), {"padding": 2, "groups": 24}),
        ((2, 32, 32, (28, 28), 3, 32), {"padding": 1, "groups": 32}),
        ((1, 33, 33, (15, 13), 3, 33), {"padding": 1, "stride": 2, "groups": 33}),
        ((1, 96, 24, (28, 28), 1), {}),
        ((1, 64, 64, (14, 14), 3), {"padding": 1}),
    ],
    ids=str,
)
def test_tvm_is_the_reference_at_the_networks_sizes(
    sizes: tuple[int, ...], geometry: dict[str, int]
) -> None:
    given = operands(*sizes)  # pyright: ignore[reportArgumentType]
    settings = {"x_zero_point": 117, "y_zero_point": 0, **geometry}
    wanted = quantized_conv2d(*given, **settings, backend="reference")
    assert torch.equal(quantized_conv2d(*given, **settings, backend="tvm"), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["3x3 stride", "1x1", "depthwise 3x3", "groups"])
def test_is_onnxruntimes_qlinearconv(backend: str, case: str) -> None:
    sizes, geometry = CASES[case]
    x, weight, bias, _ = operands(*sizes)
    # Seven bits: without dot products of bytes ONNX Runtime's sums saturate beyond.
    weight = weight // 2
    weight_scale = torch.rand(len(bias)) * 0.01 + 0.001
    x_scale, y_scale = 0.02, 0.5
    stride, padding = geometry.get("stride", 1), geometry.get("padding", 0)
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node(
                    "QLinearConv",
                    ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"],
                    ["y"],
                    strides=[stride] * 2,
                    pads=[padding] * 4,
                    group=geometry.get("groups", 1),
                )
            ],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.UINT8, list(x.shape))],
            [helper.make_tensor_value_info("y", TensorProto.UINT8, [None] * 4)],
            [
                helper.make_tensor("xs", TensorProto.FLOAT, [], [x_scale]),
                helper.make_tensor("xz", TensorProto.UINT8, [], [131]),
                onnx.numpy_helper.from_array(weight.numpy(), "w"),
                onnx.numpy_helper.from_array(weight_scale.numpy(), "ws"),
                onnx.numpy_helper.from_array(np.zeros(len(bias), np.int8), "wz"),
                helper.make_tensor("ys", TensorProto.FLOAT, [], [y_scale]),
                helper.make_tensor("yz", TensorProto.UINT8, [], [120]),
                onnx.numpy_helper.from_array(bias.numpy(), "b"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 19)],
        ir_version=10,
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    wanted = np.asarray(session.run(None, {"x": x.numpy()})[0])
    scaled = np.float32(x_scale) * weight_scale.numpy()
    multiplier = torch.from_numpy((scaled / np.float32(y_scale)).astype(np.float32))
    got = quantized_conv2d(
        x, weight, bias, multiplier, x_zero_point=131, y_zero_point=120, **geometry, backend=backend
    )
    assert np.array_equal(got.numpy(), wanted)
    assert len(np.unique(wanted)) > 10


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty(backend: str) -> None:
    given = operands(0, 3, 4, (5, 5), 3)
    got = quantized_conv2d(*given, x_zero_point=1, y_zero_point=2, padding=1, backend=backend)
    assert got.shape == (0, 4, 5, 5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["3x3", "1x1", "depthwise 3x3"])
def test_not_contiguous_and_at_odd_addresses(backend: str, case: str) -> None:
    sizes, geometry = CASES[case]
    x, weight, bias, multiplier = operands(*sizes)
    settings: dict[str, Any] = {
        "x_zero_point": 131,
        "y_zero_point": 120,
        **geometry,
        "backend": backend,
    }
    dense = quantized_conv2d(x, weight, bias, multiplier, **settings)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(quantized_conv2d(last, weight, bias, multiplier, **settings), dense)
    shifted = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    assert torch.equal(quantized_conv2d(shifted, weight, bias, multiplier, **settings), dense)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend: str) -> None:
    args = (*operands(2, 3, 4, (6, 5), 3), 131, 120, 0, 255, 2, 1, 1, backend)
    torch.library.opcheck(torch.ops.effdl.quantized_conv2d.default, args)


def test_compiles_with_any_batch() -> None:
    _, weight, bias, multiplier = operands(1, 3, 4, (6, 5), 3)
    settings: dict[str, Any] = {"x_zero_point": 3, "y_zero_point": 9, "padding": 1}

    @torch.compile(backend="aot_eager", fullgraph=True, dynamic=True)
    def compiled(x: Tensor) -> Tensor:
        return quantized_conv2d(x, weight, bias, multiplier, **settings)

    for images in (2, 3):
        x = operands(images, 3, 4, (6, 5), 3, seed=images)[0]
        wanted = quantized_conv2d(x, weight, bias, multiplier, **settings, backend="reference")
        assert torch.equal(compiled(x), wanted)


def test_says_what_it_wanted() -> None:
    x, weight, bias, multiplier = operands(1, 4, 6, (5, 5), 3)
    good: dict[str, Any] = {"x_zero_point": 0, "y_zero_point": 0}
    with pytest.raises(
        ConfigError,
        match=r"x: wanted \[N, 4, H, W\] for a weight of \[6, 4, 3, 3\] in 1 groups, got \[1, 3",
    ):
        quantized_conv2d(x[:, :3], weight, bias, multiplier, **good)
    with pytest.raises(
        ConfigError, match=r"x: wanted 4 axes \[N, C, H, W\], got shape \[4, 5, 5\]"
    ):
        quantized_conv2d(x[0], weight, bias, multiplier, **good)
    with pytest.raises(ConfigError, match="stride: wanted at least 1, got 0"):
        quantized_conv2d(x, weight, bias, multiplier, **good, stride=0)
    with pytest.raises(ConfigError, match="weight: wanted outputs divisible by groups=4, got 6"):
        quantized_conv2d(x, weight[:, :1], bias, multiplier, **good, groups=4)
    with pytest.raises(ConfigError, match=r"no smaller than the 3 x 3 weight with padding=0"):
        quantized_conv2d(x[:, :, :2], weight, bias, multiplier, **good)
    with pytest.raises(ConfigError, match=r"weight: wanted torch.int8, got torch.float32"):
        quantized_conv2d(x, weight.float(), bias, multiplier, **good)
