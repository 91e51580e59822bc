"""Quantized convolutions on Triton, bit for bit against a convolution of integers in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from effdl.kernels.quantization import requantize
from effdl.kernels.triton_tiles import Tile

triton_kernel = pytest.importorskip("effdl.kernels.lipschitz_conv2d.triton_kernel")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = Tile(rows=32, columns=32, depth=32, num_warps=4, num_stages=2)
POINTS = {"x_zero_point": 121, "y_zero_point": 90, "y_min": 90, "y_max": 250}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write is 77."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(77))


def operands(
    x_shape: tuple[int, ...], weight_shape: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, x_shape, generator=generator, dtype=torch.uint8)
    weight = torch.randint(-128, 128, weight_shape, generator=generator, dtype=torch.int8)
    num_outputs, *each = weight_shape
    bias = torch.randint(-9999, 9999, (num_outputs,), generator=generator, dtype=torch.int32)
    spread = 60 / (74 * 74 * max(1, int(np.prod(each))) ** 0.5)
    multiplier = (0.5 + torch.rand(num_outputs, generator=generator)) * spread
    return x.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE), multiplier.to(DEVICE)


def by_hand(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    multiplier: torch.Tensor,
    *,
    x_zero_point: int,
    y_zero_point: int,
    y_min: int = 0,
    y_max: int = 255,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    groups: int = 1,
) -> torch.Tensor:
    # Sums of bytes are exact in float64.
    sums = functional.conv2d(
        x.cpu().double() - x_zero_point,
        weight.cpu().double(),
        bias.cpu().double(),
        stride,
        padding,
        groups=groups,
    )
    wanted = requantize(
        sums.permute(0, 2, 3, 1).numpy().astype(np.int32),
        multiplier.cpu().numpy(),
        y_zero_point=y_zero_point,
        y_min=y_min,
        y_max=y_max,
    )
    return torch.from_numpy(wanted).permute(0, 3, 1, 2).to(DEVICE)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "form"),
    [
        pytest.param((2, 40, 5, 7), (35, 40, 3, 3), {"padding": 1}, id="3x3"),
        pytest.param((1, 33, 6, 5), (9, 33, 3, 3), {"stride": 2, "padding": 1}, id="stride"),
        pytest.param((1, 64, 3, 3), (17, 64, 1, 1), {}, id="1x1"),
        pytest.param((2, 3, 9, 8), (10, 3, 3, 3), {"stride": 2, "padding": 1}, id="stem"),
        pytest.param((1, 12, 5, 5), (18, 4, 3, 3), {"groups": 3, "padding": 1}, id="groups"),
        pytest.param(
            (1, 5, 6, 4),
            (6, 5, 5, 3),
            {"stride": (1, 2), "padding": (2, 1)},
            id="oblong",
        ),
        pytest.param((2, 37, 6, 5), (37, 1, 3, 3), {"groups": 37, "padding": 1}, id="depthwise"),
        pytest.param(
            (1, 6, 7, 7),
            (6, 1, 5, 5),
            {"groups": 6, "padding": 2, "stride": 2},
            id="depthwise-stride",
        ),
        pytest.param((1, 4, 3, 3), (8, 1, 3, 3), {"groups": 4}, id="depthwise-multiplied"),
    ],
)
def test_convolutions(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    form: dict[str, int],
    memory_format: torch.memory_format,
) -> None:
    x, *rest = operands(x_shape, weight_shape)
    x = x.to(memory_format=memory_format)
    got = triton_kernel.quantized_conv2d(
        x, *rest, memory_format=memory_format, tile=SMALL, **POINTS, **form
    )
    assert torch.equal(got, by_hand(x, *rest, **POINTS, **form))
    assert got.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("groups", [1, 8])
def test_shipped_tiles(groups: int) -> None:
    x, weight, bias, multiplier = operands((1, 8, 9, 9), (8, 8 // groups, 3, 3))
    form = {"padding": 1, "groups": groups}
    got = triton_kernel.quantized_conv2d(x, weight, bias, multiplier[:1], **POINTS, **form)
    assert torch.equal(got, by_hand(x, weight, bias, multiplier[:1], **POINTS, **form))


def test_border_stands_for_zero() -> None:
    """An image of nothing but zero points gives the bias everywhere, at the border too."""
    x = torch.full((1, 4, 3, 3), 200, dtype=torch.uint8, device=DEVICE)
    _, weight, _, _ = operands((1, 4, 3, 3), (2, 4, 3, 3))
    bias = torch.tensor([30, -20], dtype=torch.int32, device=DEVICE)
    one = torch.ones(2, device=DEVICE)
    y = triton_kernel.quantized_conv2d(
        x, weight, bias, one, x_zero_point=200, y_zero_point=100, padding=2
    )
    assert y.shape == (1, 2, 5, 5)
    assert y.flatten(2).unique(dim=2).tolist() == [[[130], [80]]]


def test_signed_bytes() -> None:
    x, weight, bias, multiplier = operands((1, 34, 4, 4), (7, 34, 3, 3))
    signed = (x.to(torch.int16) - 128).to(torch.int8)
    unsigned = by_hand(x, weight, bias, multiplier, x_zero_point=121, y_zero_point=128, padding=1)
    got = triton_kernel.quantized_conv2d(
        signed,
        weight,
        bias,
        multiplier,
        x_zero_point=121 - 128,
        y_zero_point=0,
        y_min=-128,
        y_max=127,
        padding=1,
    )
    assert torch.equal(got.to(torch.int16) + 128, unsigned.to(torch.int16))


@pytest.mark.parametrize("groups", [1, 6])
def test_empty_and_strided(groups: int) -> None:
    x, *rest = operands((4, 6, 5, 10), (6, 6 // groups, 3, 3))
    form = {"padding": 1, "groups": groups}
    assert triton_kernel.quantized_conv2d(x[:0], *rest, **POINTS, **form).shape == (0, 6, 5, 10)
    for view in (x[::2, :, :, ::2], x.transpose(2, 3), x.flip(1)[:, :, 1:4]):
        got = triton_kernel.quantized_conv2d(view, *rest, tile=SMALL, **POINTS, **form)
        assert torch.equal(got, by_hand(view, *rest, **POINTS, **form))


@settings(max_examples=12, deadline=None)
@given(
    num_images=st.integers(1, 2),
    sides=st.tuples(st.integers(3, 6), st.integers(3, 6)),
    channels=st.tuples(st.integers(1, 36), st.integers(1, 20)),
    kernel=st.sampled_from([1, 3]),
    stride=st.integers(1, 3),
    depthwise=st.booleans(),
    x_zero_point=st.integers(0, 255),
)
def test_any_sizes(
    num_images: int,
    sides: tuple[int, int],
    channels: tuple[int, int],
    kernel: int,
    stride: int,
    depthwise: bool,
    x_zero_point: int,
) -> None:
    num_channels, num_outputs = channels
    groups = num_channels if depthwise else 1
    weight_shape = (
        num_channels if depthwise else num_outputs,
        num_channels // groups,
        kernel,
        kernel,
    )
    given_ = operands((num_images, num_channels, *sides), weight_shape)
    form = {"padding": kernel // 2, "stride": stride, "groups": groups}
    points = {**POINTS, "x_zero_point": x_zero_point}
    got = triton_kernel.quantized_conv2d(*given_, tile=SMALL, **points, **form)
    assert torch.equal(got, by_hand(*given_, **points, **form))
