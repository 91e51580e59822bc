"""The fused block: every backend and path against the operators one by one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from effdl.errors import ConfigError
from effdl.kernels.inverted_residual.op import (
    QuantizedAddition,
    QuantizedConvolution,
    quantized_inverted_residual,
)
from effdl.kernels.inverted_residual.reference import inverted_residual_reference
from effdl.kernels.inverted_residual.tvm_images import run_images
from effdl.kernels.tvm_runtime import has_vnni

PATHS = [
    pytest.param(
        True,
        id="vnni",
        marks=pytest.mark.skipif(not has_vnni(), reason="the processor has no AVX512-VNNI"),
    ),
    pytest.param(False, id="plain"),
]
ADDITION = QuantizedAddition(x_scale=0.05, y_scale=0.04, sum_scale=0.06, sum_zero_point=120)


def layer(
    rng: np.random.Generator, shape: tuple[int, ...], point: int, **bounds: int
) -> QuantizedConvolution:
    multiplier = (0.2 + rng.random(shape[0])) * 0.008 / np.prod(shape[1:]) ** 0.5
    return QuantizedConvolution(
        weight=torch.from_numpy(rng.integers(-127, 128, shape, np.int8)),
        bias=torch.from_numpy(rng.integers(-2000, 2000, shape[0]).astype(np.int32)),
        multiplier=torch.from_numpy(multiplier.astype(np.float32)),
        y_zero_point=point,
        **bounds,
    )


def block(
    in_channels: int,
    hidden: int,
    out_channels: int,
    size: int = 3,
    *,
    expands: bool = True,
    addition: QuantizedAddition | None = None,
    stride: int = 1,
) -> dict[str, Any]:
    rng = np.random.default_rng(hidden)
    expansion = layer(rng, (hidden, in_channels, 1, 1), 3, y_max=210) if expands else None
    return {
        "expansion": expansion,
        "depthwise": layer(rng, (hidden, 1, size, size), 5, y_min=5),
        "projection": layer(rng, (out_channels, hidden, 1, 1), 128),
        "x_zero_point": 117,
        "stride": stride,
        "addition": addition,
    }


def images(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, shape, np.uint8))


# Blocks of 64, 32 and 16 channels, alone and together; strides, odd sizes, overlapping tiles.
CASES = [
    pytest.param((2, 24, 9, 13), block(24, 144, 24, addition=ADDITION), id="64+64+16 residual"),
    pytest.param((1, 20, 7, 7), block(20, 100, 40, stride=2), id="64+32+16 stride 2"),
    pytest.param(
        (2, 32, 8, 7),
        block(32, 32, 32, expands=False, addition=replace(ADDITION, x_first=False)),
        id="no expansion, residual",
    ),
    pytest.param((1, 63, 5, 8), block(63, 63, 7, 5, expands=False), id="odd channels, 5x5"),
    pytest.param((1, 3, 4, 5), block(3, 5, 7, 5, stride=2), id="narrow, 5x5 stride 2"),
    pytest.param((1, 3, 1, 1), block(3, 70, 3, addition=ADDITION), id="one pixel"),
    pytest.param((1, 8, 3, 2), block(8, 64, 8, 7), id="kernel larger than the image"),
]


@pytest.mark.parametrize("vnni", PATHS)
@pytest.mark.parametrize(("shape", "settings"), CASES)
def test_tvm_equals_the_reference(
    shape: tuple[int, ...], settings: dict[str, Any], vnni: bool
) -> None:
    x = images(*shape)
    wanted = inverted_residual_reference(x, **settings)
    assert torch.equal(run_images(x, **settings, vnni=vnni), wanted)
    assert len(wanted.unique()) > 2


@pytest.mark.parametrize("vnni", PATHS)
def test_bands_of_rows(vnni: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from effdl.kernels.inverted_residual import tvm_kernel

    monkeypatch.setattr(tvm_kernel, "_BAND_BYTES", 4096)
    for stride in (1, 2):
        settings = block(8, 80, 8, stride=stride, addition=ADDITION if stride == 1 else None)
        x = images(1, 8, 11, 9)
        assert torch.equal(
            run_images(x, **settings, vnni=vnni), inverted_residual_reference(x, **settings)
        )


def test_by_hand() -> None:
    # One channel: times 2, then the sum over 3x3, then a half; the input is added.
    def one(weight: list[int], shape: tuple[int, ...], multiplier: float) -> QuantizedConvolution:
        return QuantizedConvolution(
            weight=torch.tensor(weight, dtype=torch.int8).view(shape),
            bias=torch.zeros(1, dtype=torch.int32),
            multiplier=torch.tensor([multiplier]),
            y_zero_point=0,
        )

    x = torch.tensor([[[[11, 12], [13, 10]]]], dtype=torch.uint8)
    for backend in ("reference", None):
        y = quantized_inverted_residual(
            x,
            expansion=one([2], (1, 1, 1, 1), 1.0),
            depthwise=one([1] * 9, (1, 1, 3, 3), 1.0),
            projection=one([1], (1, 1, 1, 1), 0.5),
            x_zero_point=10,
            addition=QuantizedAddition(x_scale=1, y_scale=1, sum_scale=1, sum_zero_point=100),
            backend=backend,
        )
        # All nine taps see 2 * (1 + 2 + 3 + 0) = 12, halved 6, plus each input less 10.
        assert y.tolist() == [[[[107, 108], [109, 106]]]]


@pytest.mark.parametrize("vnni", PATHS)
def test_products_beyond_int32_are_clipped(vnni: bool) -> None:
    settings = block(4, 64, 4)
    huge = torch.full((64,), 1e6) * torch.tensor([1.0, -1.0]).repeat(32)
    settings["expansion"] = replace(settings["expansion"], multiplier=huge)
    x = images(1, 4, 5, 5)
    assert torch.equal(
        run_images(x, **settings, vnni=vnni), inverted_residual_reference(x, **settings)
    )


@pytest.mark.parametrize("x_first", [True, False])
def test_addition_equals_onnxruntime_over_all_bytes(x_first: bool) -> None:
    import onnxruntime
    from onnx import TensorProto, helper

    from effdl.kernels.inverted_residual.reference import add_quantized

    addition = QuantizedAddition(
        x_scale=0.0213, y_scale=0.0377, sum_scale=0.0451, sum_zero_point=93, x_first=x_first
    )
    points = {"x": 131, "y": 77}
    scales = {"x": addition.x_scale, "y": addition.y_scale}
    order = ("x", "y") if x_first else ("y", "x")
    inputs = [name for o in order for name in (o, f"{o}_scale", f"{o}_point")]
    node = helper.make_node(
        "QLinearAdd", [*inputs, "s_scale", "s_point"], ["sum"], domain="com.microsoft"
    )
    constants = [
        *(helper.make_tensor(f"{n}_scale", TensorProto.FLOAT, [], [s]) for n, s in scales.items()),
        *(helper.make_tensor(f"{n}_point", TensorProto.UINT8, [], [p]) for n, p in points.items()),
        helper.make_tensor("s_scale", TensorProto.FLOAT, [], [addition.sum_scale]),
        helper.make_tensor("s_point", TensorProto.UINT8, [], [addition.sum_zero_point]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.UINT8, [65536]) for n in ("x", "y")]
    result = helper.make_tensor_value_info("sum", TensorProto.UINT8, [65536])
    model = helper.make_model(
        helper.make_graph([node], "sum", values, [result], constants),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
        ir_version=8,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x, y = (a.ravel().astype(np.uint8) for a in np.meshgrid(np.arange(256), np.arange(256)))
    mine = add_quantized(x, y, addition, x_zero_point=131, y_zero_point=77)
    theirs = np.asarray(session.run(None, {"x": x, "y": y})[0])
    differing = np.abs(mine.astype(int) - theirs.astype(int))
    # Processors without fused multiply-adds round once more.
    assert differing.max() <= 1
    assert np.count_nonzero(differing) <= 2


@pytest.mark.parametrize("backend", ["reference", "tvm"])
def test_opcheck_and_dynamic_batch(backend: str) -> None:
    settings = block(4, 24, 4, addition=ADDITION)

    def run(x: Tensor) -> Tensor:
        return quantized_inverted_residual(x, **settings, backend=backend)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=True)
    for num_images in (2, 3, 0):
        x = images(num_images, 4, 6, 8)
        assert torch.equal(compiled(x), run(x))
    parts = [settings[name] for name in ("expansion", "depthwise", "projection")]
    arguments = (
        images(2, 4, 6, 8),
        [part.weight for part in parts],
        [part.bias for part in parts],
        [part.multiplier for part in parts],
        [value for part in parts for value in (part.y_zero_point, part.y_min, part.y_max)],
        [0.05, 0.04, 0.06],
        [120, 1],
        117,
        1,
        backend,
    )
    torch.library.opcheck(torch.ops.effdl.quantized_inverted_residual.default, arguments)


def test_non_contiguous_input() -> None:
    settings = block(4, 24, 6)
    x = images(1, 4, 6, 8).transpose(2, 3)
    assert torch.equal(
        quantized_inverted_residual(x, **settings),
        quantized_inverted_residual(x.contiguous(), **settings, backend="reference"),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 4, 5, dtype=torch.uint8)}, r"x: wanted 4 axes"),
        ({"x": torch.zeros(1, 4, 5, 5)}, r"x: wanted torch.uint8, got torch.float32"),
        ({"x": images(1, 5, 5, 5)}, r"expansion.weight: wanted shape \[24, 5, 1, 1\]"),
        ({"expansion": None}, r"depthwise.weight: wanted 4 channels, as x has, got 24"),
        ({"stride": 3}, r"stride: wanted 1 or 2, got 3"),
        ({"x_zero_point": 256}, r"x_zero_point: wanted 0 to 255, got 256"),
        ({"stride": 2, "addition": ADDITION}, r"addition: wanted stride 1"),
        ({"backend": "triton"}, r"no triton kernel"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    settings = {"x": images(1, 4, 5, 5), **block(4, 24, 4), **change}
    with pytest.raises(ConfigError, match=message):
        quantized_inverted_residual(**settings)
