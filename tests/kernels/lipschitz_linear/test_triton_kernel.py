"""Quantized linear layers on Triton, bit for bit against numpy's integers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effdl.errors import ConfigError
from effdl.kernels.bit_packing import pack_bits
from effdl.kernels.quantization import requantize
from effdl.kernels.triton_tiles import Tile

triton_kernel = pytest.importorskip("effdl.kernels.lipschitz_linear.triton_kernel")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = Tile(rows=16, columns=32, depth=32, num_warps=4, num_stages=2)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write is NaN, or 77."""
    empty = torch.empty

    def filled(*args: object, **settings: object) -> torch.Tensor:
        tensor = empty(*args, **settings)  # pyright: ignore[reportCallIssue, reportArgumentType]
        return tensor.fill_(float("nan") if tensor.dtype.is_floating_point else 77)

    monkeypatch.setattr(torch, "empty", filled)


def drawn(low: int, high: int, *shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=generator).to(DEVICE, dtype)


def operands(
    num_rows: int, num_outputs: int, num_terms: int, *, bits: int = 8
) -> tuple[torch.Tensor, ...]:
    x = drawn(0, 255, num_rows, num_terms, seed=0, dtype=torch.uint8)
    limit = 2 ** (bits - 1)
    weight = drawn(-limit, limit - 1, num_outputs, num_terms, seed=1, dtype=torch.int8)
    bias = drawn(-9999, 9999, num_outputs, seed=2, dtype=torch.int32)
    span = 128 * limit * max(num_terms, 1) ** 0.5
    generator = torch.Generator().manual_seed(3)
    multiplier = (0.5 + torch.rand(num_outputs, generator=generator)) * 100 / span
    return x, weight, bias, multiplier.to(DEVICE)


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
) -> torch.Tensor:
    numbers = [t.cpu().numpy().astype(np.int64) for t in (x, weight, bias)]
    sums = (numbers[0] - x_zero_point) @ numbers[1].T + numbers[2]
    wanted = requantize(
        sums.astype(np.int32),
        multiplier.cpu().numpy(),
        y_zero_point=y_zero_point,
        y_min=y_min,
        y_max=y_max,
    )
    return torch.from_numpy(wanted).to(DEVICE)


@pytest.mark.parametrize(
    ("num_rows", "num_outputs", "num_terms"),
    [(1, 63, 100), (17, 33, 65), (3, 5, 1), (40, 70, 32), (5, 0, 8), (0, 7, 8)],
)
def test_bytes(num_rows: int, num_outputs: int, num_terms: int) -> None:
    given_ = operands(num_rows, num_outputs, num_terms)
    points = {"x_zero_point": 113, "y_zero_point": 97, "y_min": 97, "y_max": 240}
    got = triton_kernel.quantized_linear(*given_, tile=SMALL, **points)
    assert torch.equal(got, by_hand(*given_, **points))


def test_shipped_tile_and_a_single_multiplier() -> None:
    x, weight, bias, multiplier = operands(7, 20, 300)
    points = {"x_zero_point": 0, "y_zero_point": 255}
    got = triton_kernel.quantized_linear(x, weight, bias, multiplier[:1], **points)
    assert torch.equal(got, by_hand(x, weight, bias, multiplier[:1], **points))


def test_signed_activations_and_results() -> None:
    x, weight, bias, multiplier = operands(9, 18, 40)
    x = (x.to(torch.int16) - 128).to(torch.int8)
    got = triton_kernel.quantized_linear(
        x, weight, bias, multiplier, x_zero_point=-5, y_zero_point=-3, y_min=-128, y_max=127
    )
    sums = (x.long() + 5).cpu() @ weight.long().cpu().t() + bias.cpu()
    scaled = np.rint(sums.numpy().astype(np.float32) * multiplier.cpu().numpy()) - 3
    assert got.dtype == torch.int8
    assert np.array_equal(got.cpu().numpy(), np.clip(scaled, -128, 127).astype(np.int8))


def test_halves_fall_to_even_and_the_product_is_rounded_first() -> None:
    """A fused multiply-add would round once, and otherwise."""
    x = torch.tensor([[1], [3], [5], [7]], dtype=torch.uint8, device=DEVICE)
    one = torch.ones(1, 1, dtype=torch.int8, device=DEVICE)
    none = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    half = torch.tensor([0.5], device=DEVICE)
    points = {"x_zero_point": 0, "y_zero_point": 0}
    y = triton_kernel.quantized_linear(x, one, none, half, **points)
    assert y.flatten().tolist() == [0, 2, 2, 4]
    # 3 * m is a little more than 2.5 before, and 2.5 after rounding to float32.
    m = np.nextafter(np.float32(2.5 / 3), np.float32(1))
    assert 3 * float(m) > 2.5
    assert np.float32(3) * m == np.float32(2.5)
    multiplier = torch.tensor([m], device=DEVICE)
    y = triton_kernel.quantized_linear(x[1:2], one, none, multiplier, **points)
    assert y.item() == 2


def test_huge_products_clip() -> None:
    x, weight, _, _ = operands(2, 2, 3)
    bias = torch.tensor([2**31 - 200_000, -(2**31) + 200_000], dtype=torch.int32, device=DEVICE)
    many = torch.tensor([1e28, 1e28], device=DEVICE)
    y = triton_kernel.quantized_linear(x, weight, bias, many, x_zero_point=9, y_zero_point=7)
    assert y.tolist() == [[255, 0], [255, 0]]


def test_folded_bias_and_strided_rows() -> None:
    x, weight, bias, multiplier = operands(6, 12, 50)
    wide = torch.cat([x, x.flip(1)], dim=1)
    points = {"x_zero_point": 40, "y_zero_point": 128}
    folded = triton_kernel.fold_zero_point(weight, bias, x_zero_point=40)
    for rows in (wide[::2, :50], wide[:, 50:].flip(1)[::2], x.t().contiguous().t()[::2]):
        wanted = by_hand(rows, weight, bias, multiplier, **points)
        got = triton_kernel.quantized_linear(
            rows, weight, folded, multiplier, bias_is_folded=True, tile=SMALL, **points
        )
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("num_terms", [31, 64])
def test_four_bits(num_terms: int) -> None:
    x, weight, bias, multiplier = operands(5, 37, num_terms, bits=4)
    points = {"x_zero_point": 120, "y_zero_point": 100}
    got = triton_kernel.quantized_int4_linear(
        x, pack_bits(weight, 4), bias, multiplier, tile=SMALL, **points
    )
    assert torch.equal(got, by_hand(x, weight, bias, multiplier, **points))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_groups", [1, 3])
def test_four_bit_weights(dtype: torch.dtype, num_groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 48, generator=generator).to(DEVICE, dtype)
    q = drawn(-8, 7, 21, 48, seed=1, dtype=torch.int8)
    scale = 0.1 + torch.rand(21, num_groups, generator=generator).to(DEVICE)
    bias = torch.randn(21, generator=generator).to(DEVICE, dtype)
    got = triton_kernel.int4_linear(
        x, pack_bits(q, 4), scale if num_groups > 1 else scale[:, 0], bias, tile=SMALL
    )
    weight = q.double() * scale.double().repeat_interleave(48 // num_groups, dim=1)
    wanted = x.double() @ weight.t() + bias.double()
    step = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), wanted, rtol=step, atol=step * 8)


def test_groups_that_no_step_divides_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 16 weights, got 12"):
        triton_kernel.int4_linear(
            torch.zeros(1, 24), torch.zeros(2, 12, dtype=torch.uint8), torch.ones(2, 2)
        )


def test_eight_bit_floats() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 40, generator=generator).to(torch.float8_e4m3fn).to(DEVICE)
    weight = torch.randn(18, 40, generator=generator).to(torch.float8_e4m3fn).to(DEVICE)
    scale = (0.5 + torch.rand(18, generator=generator)).to(DEVICE)
    bias = torch.randn(18, generator=generator).to(DEVICE)
    got = triton_kernel.fp8_linear(x, weight, scale, bias, y_dtype=torch.float32, tile=SMALL)
    wanted = x.double() @ weight.double().t() * scale.double() + bias.double()
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 20), st.integers(1, 40), st.integers(1, 70)),
    x_zero_point=st.integers(0, 255),
    y_zero_point=st.integers(0, 255),
    limits=st.tuples(st.integers(0, 255), st.integers(0, 255)),
)
def test_any_sizes_and_points(
    sizes: tuple[int, int, int], x_zero_point: int, y_zero_point: int, limits: tuple[int, int]
) -> None:
    given_ = operands(*sizes)
    points = {
        "x_zero_point": x_zero_point,
        "y_zero_point": y_zero_point,
        "y_min": min(limits),
        "y_max": max(limits),
    }
    got = triton_kernel.quantized_linear(*given_, tile=SMALL, **points)
    assert torch.equal(got, by_hand(*given_, **points))
