"""The int8 depthwise kernel against integer sums, on both of its paths."""

import numpy as np
import pytest
import torch
from torch import Tensor

from effdl.kernels.lipschitz_conv2d.tvm_depthwise import quantized_depthwise_conv2d
from effdl.kernels.quantization import requantize
from effdl.kernels.tvm_runtime import has_vnni

PATHS = [
    pytest.param(
        True,
        id="vnni",
        marks=pytest.mark.skipif(not has_vnni(), reason="the processor has no AVX512-VNNI"),
    ),
    pytest.param(False, id="plain"),
]
# Images, channels, height, width, kernel, stride, padding: one vector, part of one, several;
# rows that overlap; whole and partial groups of four taps.
SIZES = [
    (1, 4, 28, 28, 3, 1, 1),
    (1, 3, 14, 14, 5, 1, 2),
    (2, 3, 5, 7, 3, 1, 1),
    (1, 5, 9, 17, 3, 2, 1),
    (2, 2, 20, 63, 7, 2, 3),
    (1, 2, 1, 1, 3, 1, 1),
    (1, 3, 6, 130, 5, 1, 0),
    (1, 1000, 3, 4, 1, 1, 0),
]


def made(num_channels: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    weight = rng.integers(-128, 128, (num_channels, 1, size, size), np.int8)
    bias = rng.integers(-1000, 1000, num_channels).astype(np.int32)
    multiplier = (rng.random(num_channels) * 0.02 / size**2).astype(np.float32)
    return torch.from_numpy(weight), torch.from_numpy(bias), torch.from_numpy(multiplier)


def by_shifted_sums(
    x: Tensor, weight: Tensor, bias: Tensor, *, point: int, stride: int, padding: int
) -> np.ndarray:
    """int64 sums, one shifted image for each tap, [N, C, H', W']."""
    size = weight.shape[2]
    edges = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    padded = np.pad(x.numpy().astype(np.int64), edges, constant_values=point) - point
    taps = weight.numpy().astype(np.int64)[:, 0]
    total = bias.numpy().astype(np.int64)[None, :, None, None]
    rows = (padded.shape[2] - size) // stride * stride + 1
    columns = (padded.shape[3] - size) // stride * stride + 1
    for i in range(size):
        for j in range(size):
            part = padded[:, :, i : i + rows : stride, j : j + columns : stride]
            total = total + part * taps[None, :, i, j, None, None]
    return total


@pytest.mark.parametrize("vnni", PATHS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_equals_integer_sums(sizes: tuple[int, ...], vnni: bool) -> None:
    num_images, num_channels, height, width, size, stride, padding = sizes
    rng = np.random.default_rng(1)
    shape = (num_images, num_channels, height, width)
    x = torch.from_numpy(rng.integers(0, 256, shape, np.uint8))
    weight, bias, multiplier = made(num_channels, size)
    y = quantized_depthwise_conv2d(
        x,
        weight,
        bias,
        multiplier,
        x_zero_point=119,
        y_zero_point=13,
        y_min=13,
        y_max=240,
        stride=stride,
        padding=padding,
        vnni=vnni,
    )
    sums = by_shifted_sums(x, weight, bias, point=119, stride=stride, padding=padding)
    wanted = requantize(
        sums.transpose(0, 2, 3, 1).astype(np.int32),
        multiplier.numpy(),
        y_zero_point=13,
        y_min=13,
        y_max=240,
    ).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(y.numpy(), wanted)
    assert len(np.unique(wanted)) >= min(4, wanted.size)


@pytest.mark.parametrize("vnni", PATHS)
def test_by_hand(vnni: bool) -> None:
    # A kernel that is 1 in the middle and -1 on its right, on an edge of 10 to 20.
    x = torch.full((1, 1, 2, 4), 10, dtype=torch.uint8)
    x[..., 2:] = 20
    weight = torch.zeros((1, 1, 3, 3), dtype=torch.int8)
    weight[0, 0, 1, 1:] = torch.tensor([1, -1], dtype=torch.int8)
    y = quantized_depthwise_conv2d(
        x,
        weight,
        torch.tensor([5], dtype=torch.int32),
        torch.tensor([0.5]),
        x_zero_point=10,
        y_zero_point=100,
        padding=1,
        vnni=vnni,
    )
    # (5, -5, 5, 15) / 2, halves to even; the right border is the zero point.
    assert y.tolist() == [[[[102, 98, 102, 108]] * 2]]


@pytest.mark.parametrize("vnni", PATHS)
@pytest.mark.parametrize(("multiplier", "wanted"), [(1e9, 255), (-1e9, 0)])
def test_products_beyond_int32_are_clipped(vnni: bool, multiplier: float, wanted: int) -> None:
    y = quantized_depthwise_conv2d(
        torch.full((1, 2, 4, 20), 255, dtype=torch.uint8),
        torch.full((2, 1, 3, 3), 127, dtype=torch.int8),
        torch.zeros(2, dtype=torch.int32),
        torch.full((2,), multiplier),
        x_zero_point=0,
        y_zero_point=0,
        vnni=vnni,
    )
    assert y.unique().tolist() == [wanted]


@pytest.mark.parametrize("vnni", PATHS)
def test_images_of_a_batch_do_not_mix(vnni: bool) -> None:
    x = torch.randint(0, 256, (3, 2, 6, 9), dtype=torch.uint8)
    weight, bias, multiplier = made(2, 3)

    def run(given: Tensor) -> Tensor:
        return quantized_depthwise_conv2d(
            given, weight, bias, multiplier, x_zero_point=7, y_zero_point=9, padding=1, vnni=vnni
        )

    assert torch.equal(run(x), torch.cat([run(image[None]) for image in x]))
    strided = x.transpose(2, 3)
    assert torch.equal(run(strided), run(strided.contiguous()))


def test_empty_batch() -> None:
    weight, bias, multiplier = made(2, 3)
    x = torch.zeros((0, 2, 5, 5), dtype=torch.uint8)
    y = quantized_depthwise_conv2d(
        x, weight, bias, multiplier, x_zero_point=0, y_zero_point=0, padding=1
    )
    assert y.shape == (0, 2, 5, 5)


@pytest.mark.parametrize("vnni", PATHS)
def test_two_threads_give_the_same(vnni: bool) -> None:
    x = torch.randint(0, 256, (1, 5, 9, 9), dtype=torch.uint8)
    weight, bias, multiplier = made(5, 3)
    before, results = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            results.append(
                quantized_depthwise_conv2d(
                    x, weight, bias, multiplier, x_zero_point=3, y_zero_point=5, vnni=vnni
                )
            )
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)
