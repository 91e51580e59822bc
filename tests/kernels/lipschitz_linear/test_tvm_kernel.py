"""int8 products on every instruction set that this machine can run, bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from effdl.compilers import check_tvm
from effdl.errors import BackendUnavailableError, UnknownNameError
from effdl.kernels.quantization import requantize

try:
    check_tvm()
except BackendUnavailableError as error:
    pytest.skip(error.message, allow_module_level=True)

from effdl.kernels.lipschitz_linear.tvm_kernel import pack_linear, quantized_linear, run_linear
from effdl.kernels.tvm_dot import DOT_PRODUCTS, host_dot_product
from effdl.kernels.tvm_runtime import has_feature

HERE = [d.name for d in DOT_PRODUCTS if all(map(has_feature, d.features))]
LIMITS = {"x_zero_point": 117, "y_zero_point": 100, "y_min": 3, "y_max": 250}
# One row, few rows with an overlapping tile, many; whole and partial words and panels.
SIZES = [(1, 64, 64), (1, 63, 1000), (5, 66, 35), (13, 1000, 63)]


def operands(rows: int, inputs: int, outputs: int, seed: int = 0) -> tuple[Tensor, ...]:
    """x, weight, bias, multiplier."""
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, 256, (rows, inputs), dtype=torch.uint8, generator=g),
        torch.randint(-128, 128, (outputs, inputs), dtype=torch.int8, generator=g),
        torch.randint(-10_000, 10_000, (outputs,), dtype=torch.int32, generator=g),
        torch.rand(outputs, generator=g) * 0.02 / inputs**0.5,
    )


def expected(x: Tensor, weight: Tensor, bias: Tensor, multiplier: Tensor) -> np.ndarray:
    shifted = x.numpy().astype(np.int64) - LIMITS["x_zero_point"]
    accumulator = shifted @ weight.numpy().astype(np.int64).T + bias.numpy()
    return requantize(
        accumulator.astype(np.int32),
        multiplier.numpy(),
        y_zero_point=LIMITS["y_zero_point"],
        y_min=LIMITS["y_min"],
        y_max=LIMITS["y_max"],
    )


@pytest.mark.parametrize("instructions", HERE)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bit_exact(instructions: str, size: tuple[int, int, int]) -> None:
    x, *layer = operands(*size)
    packed = pack_linear(*layer, **LIMITS, instructions=instructions)
    poisoned = torch.full((size[0], size[2]), 77, dtype=torch.uint8)
    y = run_linear(packed, x, out=poisoned)
    assert y is poisoned
    wanted = expected(x, *layer)
    assert len(np.unique(wanted)) > 25
    np.testing.assert_array_equal(y.numpy(), wanted)


@pytest.mark.parametrize("instructions", HERE)
def test_extreme_bytes_do_not_saturate(instructions: str) -> None:
    """Pairs of 255 * -128 are more than an int16 holds."""
    x = torch.full((1, 64), 255, dtype=torch.uint8)
    weight = torch.full((16, 64), -128, dtype=torch.int8)
    weight[1::2] = 127
    packed = pack_linear(
        weight,
        torch.zeros(16, dtype=torch.int32),
        torch.tensor([2.0**-14]),
        x_zero_point=0,
        y_zero_point=128,
        instructions=instructions,
    )
    # 64 * 255 * -128 / 2**14 = -127.5 and 64 * 255 * 127 / 2**14 = 126.504.
    assert run_linear(packed, x)[0, :2].tolist() == [0, 255]


@given(
    rows=st.integers(1, 20),
    seed=st.integers(0, 2**16),
    x_zero_point=st.integers(0, 255),
    y_zero_point=st.integers(0, 255),
)
@settings(deadline=None, max_examples=30)
def test_any_rows_and_zero_points(
    rows: int, seed: int, x_zero_point: int, y_zero_point: int
) -> None:
    x, weight, bias, multiplier = operands(rows, 21, 18, seed)
    y = quantized_linear(
        x, weight, bias, multiplier, x_zero_point=x_zero_point, y_zero_point=y_zero_point
    )
    accumulator = (x.long() - x_zero_point) @ weight.long().t() + bias
    wanted = requantize(
        accumulator.to(torch.int32).numpy(), multiplier.numpy(), y_zero_point=y_zero_point
    )
    np.testing.assert_array_equal(y.numpy(), wanted)


def test_non_contiguous_and_misaligned() -> None:
    x, weight, bias, multiplier = operands(6, 48, 32)
    wanted = expected(x, weight, bias, multiplier)
    apart = torch.empty(48, 6, dtype=torch.uint8).t().copy_(x)
    shifted = torch.empty(6 * 48 + 1, dtype=torch.uint8)[1:].view(6, 48).copy_(x)
    loose = torch.empty(48, 32, dtype=torch.int8).t().copy_(weight)
    for given_x, given_weight in ((apart, weight), (shifted, weight), (x, loose)):
        y = quantized_linear(given_x, given_weight, bias, multiplier, **LIMITS)
        np.testing.assert_array_equal(y.numpy(), wanted)


@pytest.mark.parametrize("size", [(0, 8, 4), (3, 8, 0), (3, 0, 4)], ids=str)
def test_empty(size: tuple[int, int, int]) -> None:
    rows, inputs, outputs = size
    y = quantized_linear(
        torch.zeros(rows, inputs, dtype=torch.uint8),
        torch.zeros(outputs, inputs, dtype=torch.int8),
        torch.full((outputs,), 7, dtype=torch.int32),
        torch.ones(outputs),
        **LIMITS,
    )
    assert y.shape == (rows, outputs)
    assert (y == 107).all()


def test_changed_weights_are_packed_again() -> None:
    x, weight, bias, multiplier = operands(2, 32, 16)
    for change in (weight, bias, multiplier):
        quantized_linear(x, weight, bias, multiplier, **LIMITS)
        change.neg_()
        y = quantized_linear(x, weight, bias, multiplier, **LIMITS)
        np.testing.assert_array_equal(y.numpy(), expected(x, weight, bias, multiplier))


def test_inference_tensors_are_never_remembered() -> None:
    with torch.inference_mode():
        x, weight, bias, multiplier = operands(2, 32, 16)
        for _ in range(2):
            y = quantized_linear(x, weight, bias, multiplier, **LIMITS)
            np.testing.assert_array_equal(y.numpy(), expected(x, weight, bias, multiplier))
            weight.neg_()


def test_two_threads() -> None:
    x, *layer = operands(9, 64, 200)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        y = run_linear(pack_linear(*layer, **LIMITS), x)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(y.numpy(), expected(x, *layer))


def test_unknown_instructions() -> None:
    with pytest.raises(UnknownNameError, match="avx512-vnni"):
        pack_linear(*operands(1, 4, 4)[1:], **LIMITS, instructions="avx512-vnn")


def test_host_runs_what_it_has() -> None:
    assert host_dot_product().name == HERE[0]
    assert "plain" in HERE
