"""The int8 1x1 kernel for few outputs against integer sums, on both of its paths."""

import numpy as np
import pytest
import torch
from torch import Tensor

from effdl.kernels.lipschitz_conv2d.tvm_pointwise import quantized_conv1x1
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
# Images, inputs, outputs, height, width: whole and partial groups of four inputs, of six
# outputs and of 64 pixels.
SIZES = [
    (1, 96, 24, 8, 8),
    (2, 3, 5, 9, 8),
    (1, 5, 9, 9, 17),
    (1, 63, 1, 40, 63),
    (1, 2, 7, 1, 1),
    (1, 1000, 3, 5, 20),
]


def made(num_inputs: int, num_outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(0)
    weight = rng.integers(-128, 128, (num_outputs, num_inputs, 1, 1), np.int8)
    bias = rng.integers(-1000, 1000, num_outputs).astype(np.int32)
    multiplier = (rng.random(num_outputs) * 0.01 / num_inputs**0.5).astype(np.float32)
    return torch.from_numpy(weight), torch.from_numpy(bias), torch.from_numpy(multiplier)


@pytest.mark.parametrize("vnni", PATHS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_equals_integer_sums(sizes: tuple[int, ...], vnni: bool) -> None:
    num_images, num_inputs, num_outputs, height, width = sizes
    shape = (num_images, num_inputs, height, width)
    x = torch.from_numpy(np.random.default_rng(1).integers(0, 256, shape, np.uint8))
    weight, bias, multiplier = made(num_inputs, num_outputs)
    y = quantized_conv1x1(
        x,
        weight,
        bias,
        multiplier,
        x_zero_point=119,
        y_zero_point=13,
        y_min=13,
        y_max=240,
        vnni=vnni,
    )
    pixels = x.numpy().astype(np.int64).transpose(0, 2, 3, 1) - 119
    sums = pixels @ weight.numpy().astype(np.int64)[:, :, 0, 0].T + bias.numpy()
    wanted = requantize(
        sums.astype(np.int32), multiplier.numpy(), y_zero_point=13, y_min=13, y_max=240
    )
    np.testing.assert_array_equal(y.numpy(), wanted.transpose(0, 3, 1, 2))
    assert len(np.unique(wanted)) >= min(4, wanted.size)


@pytest.mark.parametrize("vnni", PATHS)
def test_by_hand(vnni: bool) -> None:
    x = torch.zeros((1, 2, 8, 9), dtype=torch.uint8)
    x[0, 0], x[0, 1] = 12, 30
    y = quantized_conv1x1(
        x,
        torch.tensor([[3, -1], [1, 1]], dtype=torch.int8)[..., None, None],
        torch.tensor([1, 0], dtype=torch.int32),
        torch.tensor([0.5, 0.25]),
        x_zero_point=10,
        y_zero_point=20,
        vnni=vnni,
    )
    # (3 * 2 - 20 + 1) / 2 = -6.5 to -6; (2 + 20) / 4 = 5.5 to 6.
    assert y[0, 0].unique().tolist() == [14]
    assert y[0, 1].unique().tolist() == [26]


@pytest.mark.parametrize("vnni", PATHS)
def test_products_beyond_int32_are_clipped(vnni: bool) -> None:
    y = quantized_conv1x1(
        torch.full((1, 4, 8, 8), 255, dtype=torch.uint8),
        torch.full((2, 4, 1, 1), 127, dtype=torch.int8),
        torch.zeros(2, dtype=torch.int32),
        torch.tensor([1e9, -1e9]),
        x_zero_point=0,
        y_zero_point=0,
        vnni=vnni,
    )
    assert y[0, 0].unique().tolist() == [255]
    assert y[0, 1].unique().tolist() == [0]


def test_empty_batch() -> None:
    weight, bias, multiplier = made(4, 3)
    x = torch.zeros((0, 4, 5, 5), dtype=torch.uint8)
    y = quantized_conv1x1(x, weight, bias, multiplier, x_zero_point=0, y_zero_point=0)
    assert y.shape == (0, 3, 5, 5)


@pytest.mark.parametrize("vnni", PATHS)
def test_two_threads_and_strides_give_the_same(vnni: bool) -> None:
    x = torch.randint(0, 256, (2, 5, 9, 16), dtype=torch.uint8).transpose(2, 3)
    weight, bias, multiplier = made(5, 7)
    before, results = torch.get_num_threads(), []
    try:
        for num_threads, given in ((1, x.contiguous()), (2, x)):
            torch.set_num_threads(num_threads)
            results.append(
                quantized_conv1x1(
                    given, weight, bias, multiplier, x_zero_point=3, y_zero_point=5, vnni=vnni
                )
            )
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)
