"""int8 convolutions on every instruction set that this machine can run, bit for bit."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from effdl.compilers import check_tvm
from effdl.errors import BackendUnavailableError
from effdl.kernels.quantization import requantize

try:
    check_tvm()
except BackendUnavailableError as error:
    pytest.skip(error.message, allow_module_level=True)

from effdl.kernels.lipschitz_conv2d.tvm_kernel import (
    pack_conv2d,
    quantized_conv2d,
    run_conv2d,
    run_conv2d_words,
)
from effdl.kernels.tvm_dot import DOT_PRODUCTS
from effdl.kernels.tvm_runtime import has_feature

HERE = [d.name for d in DOT_PRODUCTS if all(map(has_feature, d.features))]
LIMITS = {"x_zero_point": 117, "y_zero_point": 100, "y_min": 3, "y_max": 250}


class Case(NamedTuple):
    """Sizes of a convolution."""

    images: int
    inputs: int
    outputs: int
    height: int
    width: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)


CASES = [
    Case(1, 64, 64, 8, 8),
    Case(2, 5, 7, 9, 7, stride=(2, 2)),
    Case(3, 63, 20, 14, 14, kernel=(1, 1), padding=(0, 0)),
    Case(1, 8, 100, 15, 11, kernel=(5, 3), stride=(1, 2), padding=(2, 1)),
    Case(1, 3, 16, 2, 2, kernel=(2, 2), padding=(0, 0)),
    Case(1, 12, 48, 7, 7, kernel=(1, 1), stride=(2, 2), padding=(0, 0)),
]


def operands(case: Case) -> tuple[Tensor, ...]:
    """x, weight, bias, multiplier."""
    g = torch.Generator().manual_seed(0)
    taps = case.inputs * case.kernel[0] * case.kernel[1]
    image = (case.images, case.inputs, case.height, case.width)
    return (
        torch.randint(0, 256, image, dtype=torch.uint8, generator=g),
        torch.randint(
            -128, 128, (case.outputs, case.inputs, *case.kernel), dtype=torch.int8, generator=g
        ),
        torch.randint(-10_000, 10_000, (case.outputs,), dtype=torch.int32, generator=g),
        torch.rand(case.outputs, generator=g) * 0.02 / taps**0.5,
    )


def expected(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    groups: int = 1,
) -> np.ndarray:
    shifted = pad(x.double() - LIMITS["x_zero_point"], (padding[1],) * 2 + (padding[0],) * 2)
    sums = conv2d(shifted, weight.double(), bias.double(), stride=stride, groups=groups)
    return requantize(
        sums.to(torch.int32).numpy(),
        multiplier.numpy()[:, None, None],
        y_zero_point=LIMITS["y_zero_point"],
        y_min=LIMITS["y_min"],
        y_max=LIMITS["y_max"],
    )


@pytest.mark.parametrize("instructions", HERE)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bit_exact(instructions: str, case: Case) -> None:
    x, *layer = operands(case)
    packed = pack_conv2d(
        *layer,
        image_size=(case.height, case.width),
        stride=case.stride,
        padding=case.padding,
        instructions=instructions,
        **LIMITS,
    )
    wanted = expected(x, *layer, stride=case.stride, padding=case.padding)
    poisoned = torch.full(wanted.shape, 77, dtype=torch.uint8)
    y = run_conv2d(packed, x, out=poisoned)
    assert y is poisoned
    np.testing.assert_array_equal(y.numpy(), wanted)


def test_words_in_and_out() -> None:
    case = Case(2, 8, 32, 5, 6, kernel=(1, 1), padding=(0, 0))
    x, *layer = operands(case)
    packed = pack_conv2d(*layer, image_size=(5, 6), **LIMITS)
    words = x.view(2, 2, 4, 30).transpose(2, 3).contiguous().view(-1)
    out = torch.full((2 * packed.y_bytes,), 77, dtype=torch.uint8)
    run_conv2d_words(packed, words, out=out)
    planes = out.view(2, 8, 30, 4).transpose(2, 3).reshape(2, 32, 5, 6)
    np.testing.assert_array_equal(
        planes.numpy(), expected(x, *layer, stride=(1, 1), padding=(0, 0))
    )


def test_pixels_in_a_chain_need_no_packing() -> None:
    """The result of one convolution, in words, is the input of the next."""
    first = Case(1, 16, 24, 9, 9, kernel=(1, 1), padding=(0, 0))
    second = Case(1, 24, 40, 9, 9, kernel=(1, 1), padding=(0, 0))
    x, *layer = operands(first)
    layers = [layer, operands(second)[1:]]
    a, b = (pack_conv2d(*each, image_size=(9, 9), **LIMITS) for each in layers)
    words = x.view(4, 4, 81).transpose(1, 2).contiguous().view(-1)
    middle = torch.empty(a.y_bytes, dtype=torch.uint8)
    out = torch.empty(b.y_bytes, dtype=torch.uint8)
    run_conv2d_words(b, run_conv2d_words(a, words, out=middle), out=out)
    wanted = run_conv2d(b, run_conv2d(a, x))
    assert torch.equal(out.view(10, 81, 4).transpose(1, 2).reshape(1, 40, 9, 9), wanted)


@pytest.mark.parametrize("images", [0, 1, 3])
def test_batch_is_free(images: int) -> None:
    case = Case(3, 8, 16, 6, 5)
    x, *layer = operands(case)
    packed = pack_conv2d(*layer, image_size=(6, 5), padding=(1, 1), **LIMITS)
    wanted = expected(x[:images], *layer, stride=(1, 1), padding=(1, 1))
    np.testing.assert_array_equal(run_conv2d(packed, x[:images]).numpy(), wanted)


def test_non_contiguous() -> None:
    case = Case(2, 8, 16, 6, 5)
    x, weight, bias, multiplier = operands(case)
    wanted = expected(x, weight, bias, multiplier, stride=(1, 1), padding=(1, 1))
    loose_x = x.contiguous(memory_format=torch.channels_last)
    loose_weight = weight.contiguous(memory_format=torch.channels_last)
    y = quantized_conv2d(loose_x, loose_weight, bias, multiplier, padding=1, **LIMITS)
    np.testing.assert_array_equal(y.numpy(), wanted)


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "kernel", "size"),
    [(8, 8, 8, 3, 9), (8, 12, 4, 3, 9), (6, 6, 2, 1, 9), (24, 16, 1, 1, 48), (8, 16, 8, 3, 9)],
)
def test_dispatch(inputs: int, outputs: int, groups: int, kernel: int, size: int) -> None:
    """Depthwise, grouped, grouped 1x1, narrow 1x1, and several outputs for each input."""
    case = Case(2, inputs // groups, outputs, size, size, kernel=(kernel, kernel))
    _, *layer = operands(case)
    g = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (2, inputs, size, size), dtype=torch.uint8, generator=g)
    padding = kernel // 2
    y = quantized_conv2d(x, *layer, padding=padding, groups=groups, **LIMITS)
    wanted = expected(x, *layer, stride=(1, 1), padding=(padding, padding), groups=groups)
    np.testing.assert_array_equal(y.numpy(), wanted)


def test_no_inputs() -> None:
    y = quantized_conv2d(
        torch.zeros(1, 0, 4, 4, dtype=torch.uint8),
        torch.zeros(3, 0, 3, 3, dtype=torch.int8),
        torch.tensor([0, 5, 1000], dtype=torch.int32),
        torch.ones(1),
        padding=1,
        **LIMITS,
    )
    assert y.shape == (1, 3, 4, 4)
    assert y[0, :, 2, 2].tolist() == [100, 105, 250]
