"""Products with weights of four bits, bit for bit with the arithmetic that is stated."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from effdl.compilers import check_tvm
from effdl.errors import BackendUnavailableError
from effdl.kernels.bit_packing import pack_bits
from effdl.kernels.quantization import requantize

try:
    check_tvm()
except BackendUnavailableError as error:
    pytest.skip(error.message, allow_module_level=True)

from effdl.kernels.lipschitz_linear.tvm_int4 import (
    int4_matvec,
    pack_int4,
    pack_int4_requantized,
    run_int4,
    run_int4_requantized,
)
from effdl.kernels.tvm_dot import DOT_PRODUCTS
from effdl.kernels.tvm_runtime import has_feature

HERE = [d.name for d in DOT_PRODUCTS if all(map(has_feature, d.features))]
Floats = NDArray[np.float32]


def operands(rows: int, inputs: int, outputs: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, integer weights, scale."""
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(rows, inputs, generator=g),
        torch.randint(-8, 8, (outputs, inputs), dtype=torch.int8, generator=g),
        torch.rand(outputs, groups, generator=g),
    )


def fused_multiply_add(a: Floats, b: Floats, c: Floats) -> Floats:
    """``a * b + c`` rounded once: exact in float64, which is then rounded to odd."""
    product = a.astype(np.float64) * b
    total = product + c
    back = total - product
    error = (product - (total - back)) + (c - back)
    is_even = total.view(np.int64) % 2 == 0
    away = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where((error != 0) & is_even, away, total).astype(np.float32)


def expected(x: Floats, weight: NDArray[np.int8], scale: Floats) -> Floats:
    """The arithmetic at the head of tvm_int4.py."""
    largest = np.abs(x).max(1, keepdims=True)
    step = np.where(largest > 0, largest / np.float32(32512), np.float32(1))
    q = np.rint(x / step).astype(np.int64)
    high = (q + 128) >> 8
    low = q - 256 * high
    assert np.abs(high).max() <= 127
    total = np.zeros((len(x), len(weight)), np.float32)
    for g, columns in enumerate(np.split(np.arange(x.shape[1]), scale.shape[1])):
        part = weight[:, columns].astype(np.int64).T
        sums = [(half[:, columns] @ part).astype(np.float32) for half in (high, low)]
        value = sums[0] * np.float32(256) + sums[1]
        total = fused_multiply_add(value, np.broadcast_to(scale[:, g], value.shape), total)
    return total * step


@pytest.mark.parametrize("instructions", HERE)
@pytest.mark.parametrize(
    "size", [(1, 64, 64, 1), (2, 100, 63, 5), (5, 66, 20, 1), (1, 1024, 128, 8)], ids=str
)
def test_bit_exact(instructions: str, size: tuple[int, int, int, int]) -> None:
    x, weight, scale = operands(*size)
    y = run_int4(pack_int4(pack_bits(weight, 4), scale, instructions=instructions), x)
    wanted = expected(x.numpy(), weight.numpy(), scale.numpy())
    np.testing.assert_array_equal(y.numpy(), wanted)


def test_is_the_float_product_to_sixteen_bits() -> None:
    x, weight, scale = operands(3, 512, 96, 4)
    y = int4_matvec(x, pack_bits(weight, 4), scale)
    real = weight.double().view(96, 4, 128) * scale.double()[:, :, None]
    # Each of 512 inputs is off by at most half a step, 8 * scale at the most.
    bound = x.abs().amax(1, keepdim=True).double() / 65024 * real.view(96, 512).abs().sum(1)
    error = (y.double() - x.double() @ real.view(96, 512).t()).abs()
    assert (error <= bound + 1e-5 * y.abs().max()).all()
    assert error.max() > 0


def test_scale_of_one_axis_and_odd_outputs() -> None:
    x, weight, scale = operands(1, 64, 33, 1)
    y = int4_matvec(x, pack_bits(weight, 4), scale[:, 0])
    assert y.shape == (1, 33)
    np.testing.assert_array_equal(y.numpy(), expected(x.numpy(), weight.numpy(), scale.numpy()))


def test_zero_rows_and_numbers_that_are_not_finite() -> None:
    x, weight, scale = operands(4, 64, 16, 1)
    packed = pack_bits(weight, 4)
    clean = int4_matvec(x, packed, scale)
    x[0] = 0.0
    x[1, 5], x[2, 63] = torch.nan, -torch.inf
    y = int4_matvec(x, packed, scale)
    assert (y[0] == 0).all()
    assert y[1].isnan().all()
    assert y[2].isnan().all()
    assert torch.equal(y[3], clean[3])


@pytest.mark.parametrize("size", [(0, 8, 4), (2, 8, 0), (2, 0, 4)], ids=str)
def test_empty(size: tuple[int, int, int]) -> None:
    rows, inputs, outputs = size
    packed = torch.zeros(outputs, inputs // 2, dtype=torch.uint8)
    y = int4_matvec(torch.ones(rows, inputs), packed, torch.ones(outputs))
    assert y.shape == (rows, outputs)
    assert (y == 0).all()


def test_changed_weights_are_packed_again() -> None:
    x, weight, scale = operands(1, 64, 16, 1)
    packed = pack_bits(weight, 4)
    before = int4_matvec(x, packed, scale)
    packed.zero_()
    assert (int4_matvec(x, packed, scale) == 0).all()
    assert (before != 0).any()


@pytest.mark.parametrize("instructions", HERE)
@pytest.mark.parametrize("size", [(1, 64, 64), (3, 70, 33)], ids=str)
def test_requantized_form(instructions: str, size: tuple[int, int, int]) -> None:
    rows, inputs, outputs = size
    _, weight, scale = operands(rows, inputs, outputs, 1)
    g = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8, generator=g)
    bias = torch.randint(-1000, 1000, (outputs,), dtype=torch.int32, generator=g)
    multiplier = scale[:, 0] / 10
    layer = pack_int4_requantized(
        pack_bits(weight, 4),
        bias,
        multiplier,
        x_zero_point=117,
        y_zero_point=100,
        y_min=3,
        y_max=250,
        instructions=instructions,
    )
    accumulator = (x.long() - 117) @ weight.long().t() + bias
    wanted = requantize(
        accumulator.to(torch.int32).numpy(),
        multiplier.numpy(),
        y_zero_point=100,
        y_min=3,
        y_max=250,
    )
    np.testing.assert_array_equal(run_int4_requantized(layer, x).numpy(), wanted)
