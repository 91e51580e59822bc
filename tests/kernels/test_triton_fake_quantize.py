"""Fake quantization on Triton against numpy's arithmetic, element by element."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

triton_kernel = pytest.importorskip("effdl.kernels.triton_fake_quantize")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def by_hand(
    x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, low: int, high: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The result, where gradients pass, and the slope to the scale; float32 as the kernel."""
    exact = x.astype(np.float32) / scale
    rounded = np.rint(exact) + zero_point
    inside = (rounded >= low) & (rounded <= high)
    steps = np.clip(rounded, low, high) - zero_point
    slope = np.where(inside, steps - exact, steps)
    return (steps * scale).astype(np.float32), inside, slope.astype(np.float64)


def check(
    x: torch.Tensor, scale: list[float], zero_point: list[int], low: int, high: int, axis: int
) -> None:
    s, z = torch.tensor(scale, device=DEVICE), torch.tensor(zero_point, device=DEVICE)
    z = z.to(torch.int32)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
    shape = [1] * x.ndim
    if axis >= 0:
        shape[axis] = -1
    wide = x.float().cpu().numpy()
    y, inside, slope = by_hand(
        wide, s.cpu().numpy().reshape(shape), z.cpu().numpy().reshape(shape), low, high
    )
    got = triton_kernel.fake_quantize_forward(x, s, z, low, high, axis)
    wanted = torch.from_numpy(y).to(x)
    # Triton's interpreter cuts bfloat16 off where a GPU rounds it.
    step = 2.0**-7 if x.dtype == torch.bfloat16 and DEVICE == "cpu" else 0.0
    torch.testing.assert_close(got, wanted, rtol=step, atol=0.0, equal_nan=True)
    assert got.is_contiguous()
    for needs_scale in (False, True):
        grad_x, grad_scale = triton_kernel.fake_quantize_backward(
            grad, x, s, z, low, high, axis, needs_scale
        )
        assert torch.equal(grad_x, torch.where(torch.from_numpy(inside).to(DEVICE), grad, 0.0))
        each = grad.double().cpu().numpy() * slope
        others = tuple(i for i in range(x.ndim) if i != axis) if axis >= 0 else None
        sums = np.atleast_1d(each.sum(axis=others)) if needs_scale else np.zeros(len(scale))
        np.testing.assert_allclose(
            grad_scale.cpu().numpy(), sums, rtol=1e-5, atol=1e-6 * max(1.0, np.abs(each).sum())
        )


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write is NaN."""
    empty_like = torch.empty_like
    monkeypatch.setattr(
        torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(float("nan"))
    )


@pytest.mark.parametrize("size", [1, 63, 1000, 1024, 2500])
def test_one_scale(size: int) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    check(x, [0.03], [5], 0, 63, -1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_formats(dtype: torch.dtype) -> None:
    x = torch.randn(7, 33, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    check(x, [0.05], [0], -8, 7, -1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_scale_a_channel(axis: int) -> None:
    x = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    num_channels = x.shape[axis]
    scale = [0.01 * (i + 1) for i in range(num_channels)]
    check(x, scale, [i - 2 for i in range(num_channels)], -128, 127, axis)


def test_halves_fall_to_even() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 254.5, 255.5], device=DEVICE)
    one, zero = torch.ones(1, device=DEVICE), torch.zeros(1, dtype=torch.int32, device=DEVICE)
    y = triton_kernel.fake_quantize_forward(x, one, zero, -300, 300, -1)
    assert y.tolist() == [0.0, 2.0, 2.0, 0.0, -2.0, 254.0, 256.0]


def test_values_that_are_no_numbers() -> None:
    x = torch.tensor(
        [float("nan"), float("inf"), -float("inf"), 3.4e38, -3.4e38, 1e-45, 0.0], device=DEVICE
    )
    one, zero = torch.ones(1, device=DEVICE), torch.zeros(1, dtype=torch.int32, device=DEVICE)
    y = triton_kernel.fake_quantize_forward(x, one, zero, 0, 15, -1)
    assert torch.isnan(y[0])
    assert y[1:].tolist() == [15.0, 0.0, 15.0, 0.0, 0.0, 0.0]
    grad_x, _ = triton_kernel.fake_quantize_backward(torch.ones_like(x), x, one, zero, 0, 15, -1)
    assert grad_x.tolist() == [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]


def test_empty_and_strided() -> None:
    one, zero = torch.ones(1, device=DEVICE), torch.zeros(1, dtype=torch.int32, device=DEVICE)
    nothing = torch.zeros(0, 3, device=DEVICE)
    assert triton_kernel.fake_quantize_forward(nothing, one, zero, 0, 3, -1).shape == (0, 3)
    grads = triton_kernel.fake_quantize_backward(nothing, nothing, one, zero, 0, 3, -1, True)
    assert [tuple(g.shape) for g in grads] == [(0, 3), (1,)]
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    check(x.t()[::2], [0.1], [0], -8, 7, -1)
    check(x.t()[::2], [0.1 * (i + 1) for i in range(6)], [0] * 6, -8, 7, 1)


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=40),
    scale=st.floats(2.0**-10, 2.0**6, width=32),
    num_bits=st.integers(1, 8),
    data=st.data(),
)
def test_any_values(values: list[float], scale: float, num_bits: int, data: st.DataObject) -> None:
    high = 2**num_bits - 1
    zero_point = data.draw(st.integers(0, high))
    x = torch.tensor(values, dtype=torch.float32, device=DEVICE)
    s = torch.tensor([scale], device=DEVICE)
    z = torch.tensor([zero_point], dtype=torch.int32, device=DEVICE)
    with np.errstate(over="ignore", invalid="ignore"):
        y, inside, _ = by_hand(
            x.cpu().numpy(),
            np.array([scale], np.float32),
            np.array([zero_point], np.int32),
            0,
            high,
        )
    got = triton_kernel.fake_quantize_forward(x, s, z, 0, high, -1)
    np.testing.assert_array_equal(got.cpu().numpy(), y)
    grad_x, _ = triton_kernel.fake_quantize_backward(torch.ones_like(x), x, s, z, 0, high, -1)
    assert grad_x.cpu().numpy().astype(bool).tolist() == inside.tolist()
