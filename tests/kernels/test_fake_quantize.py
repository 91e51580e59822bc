"""Fake quantization on every backend of the CPU, against the definition and PyTorch's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from effdl.compilers import check_tvm
from effdl.errors import BackendUnavailableError, ConfigError
from effdl.kernels.fake_quantize import fake_quantize, fake_quantize_as
from effdl.kernels.quantization import dequantize, quantize, relu6_parameters, weight_parameters


def has_tvm() -> bool:
    try:
        check_tvm()
    except BackendUnavailableError:
        return False
    return True


BACKENDS = [
    "reference",
    pytest.param("tvm", marks=pytest.mark.skipif(not has_tvm(), reason="needs TVM")),
]
# Where 16 lanes, and a chunk of 16384, do not divide.
SHAPES = [(63,), (1000,), (3, 5, 7, 9), (2, 17000), (0, 4), (4, 0), (1, 1)]


def made(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


def naive(x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """One number at a time, in Python."""
    out = [
        (min(max(round(v / s) + z, low), high) - z) * s
        for v, s, z in zip(x.tolist(), scale.tolist(), zero.tolist(), strict=True)
    ]
    return torch.tensor(out)


@pytest.mark.parametrize("backend", BACKENDS)
def test_against_one_number_at_a_time(backend: str) -> None:
    # Powers of two, so that Python's doubles round as float32 does; with halves.
    x = torch.cat([made((200,)), torch.arange(-40, 40) * 0.125])
    scale, zero = torch.tensor([0.25]), torch.tensor([3], dtype=torch.int32)
    got = fake_quantize(x, scale, zero, quant_min=0, quant_max=15, backend=backend)
    wanted = naive(x, scale.expand(len(x)), zero.expand(len(x)), 0, 15)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_quantize_then_dequantize(backend: str, shape: tuple[int, ...]) -> None:
    x = made(shape)
    for axis in (None, *range(len(shape))):
        parameters = weight_parameters(x, 4, per_channel=False)
        if axis is not None:
            moved = weight_parameters(x.movedim(axis, 0), 4, per_channel=True)
            got = fake_quantize(
                x,
                moved.scale,
                moved.zero_point,
                quant_min=moved.quant_min,
                quant_max=moved.quant_max,
                axis=axis,
                backend=backend,
            )
            wanted = dequantize(quantize(x.movedim(axis, 0), moved), moved).movedim(0, axis)
        else:
            got = fake_quantize_as(x, parameters, backend=backend)
            wanted = dequantize(quantize(x, parameters), parameters)
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_x_is_the_mask_of_pytorch(backend: str) -> None:
    x = made((4, 6, 31)).requires_grad_()
    grad = made((4, 6, 31), seed=1)
    scale, zero = torch.tensor([0.25]), torch.tensor([2], dtype=torch.int32)
    ours = fake_quantize(x, scale, zero, quant_min=0, quant_max=15, backend=backend)
    (grad_x,) = torch.autograd.grad(ours, x, grad)
    peer = torch.fake_quantize_per_tensor_affine(x, 0.25, 2, 0, 15)
    (wanted,) = torch.autograd.grad(peer, x, grad)
    assert torch.equal(ours, peer)
    assert torch.equal(grad_x, wanted)
    assert 0 < int((grad_x == 0).sum()) < x.numel()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_x_for_each_channel_is_that_of_pytorch(backend: str) -> None:
    x = made((4, 6, 31)).requires_grad_()
    grad = made((4, 6, 31), seed=1)
    scale = torch.tensor([0.25, 0.5, 1.0, 2.0, 0.125, 0.25])
    zero = torch.tensor([0, 3, 7, 8, 12, 15], dtype=torch.int32)
    ours = fake_quantize(x, scale, zero, quant_min=0, quant_max=15, axis=1, backend=backend)
    peer = torch.fake_quantize_per_channel_affine(x, scale, zero, 1, 0, 15)
    assert torch.equal(ours, peer)
    (grad_x,), (wanted,) = (torch.autograd.grad(y, x, grad) for y in (ours, peer))
    assert torch.equal(grad_x, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_lsqs(backend: str) -> None:
    grad = made((5, 40), seed=1)
    scale = torch.tensor([0.25, 0.3, 0.7, 1.1, 2.0]).requires_grad_()
    zero = torch.zeros(5, dtype=torch.int32)
    # Between the last step and its half the paper clips and PyTorch, and we, do not.
    steps = made((5, 40)) / scale.detach()[:, None]
    x = (torch.where((steps.abs() > 3) & (steps.abs() < 3.6), 0.4, steps)) * scale.detach()[:, None]
    x.requires_grad_()
    ours = fake_quantize(x, scale, zero, quant_min=-3, quant_max=3, axis=0, backend=backend)
    grad_x, grad_scale = torch.autograd.grad(ours, (x, scale), grad)
    # The straight-through graph, differentiated by PyTorch.
    steps = (x / scale[:, None]).clamp(-3, 3)
    rounded = steps + (steps.round() - steps).detach()
    wanted_x, wanted_scale = torch.autograd.grad(rounded * scale[:, None], (x, scale), grad)
    torch.testing.assert_close(grad_scale, wanted_scale, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad_x, wanted_x, rtol=1e-6, atol=1e-6)


def test_gradient_of_a_single_scale_is_pytorchs() -> None:
    x, grad = made((300,)).double(), made((300,), seed=1).double()
    scale = torch.tensor([0.5], dtype=torch.float64).requires_grad_()
    ours = fake_quantize(
        x, scale, torch.zeros(1, dtype=torch.int32), quant_min=0, quant_max=7, backend="reference"
    )
    (got,) = torch.autograd.grad(ours, scale, grad)
    single = torch.tensor([0.5], requires_grad=True)
    peer = torch.ops.aten._fake_quantize_learnable_per_tensor_affine(
        x.float(), single, torch.zeros(1), 0, 7, 1.0
    )
    (wanted,) = torch.autograd.grad(peer, single, grad.float())
    torch.testing.assert_close(got.float(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_not_contiguous(backend: str) -> None:
    x = made((6, 5, 4)).permute(2, 0, 1)
    parameters = weight_parameters(x, 4, per_channel=True)
    got = fake_quantize_as(x, parameters, backend=backend)
    assert torch.equal(got, fake_quantize_as(x.contiguous(), parameters, backend="reference"))
    assert torch.equal(fake_quantize_as(x[:, 1:, 1:], parameters, backend=backend), got[:, 1:, 1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_and_infinity_clips(backend: str) -> None:
    x = torch.full((40,), 1.0)
    x[[3, 20, 39]] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    x.requires_grad_()
    y = fake_quantize_as(x, relu6_parameters(4), backend=backend)
    assert torch.isnan(y).nonzero().flatten().tolist() == [3]
    assert float(y.detach()[20]) == pytest.approx(6.0)
    assert float(y.detach()[39]) == 0.0
    (grad,) = torch.autograd.grad(y, x, torch.full((40,), 2.0))
    assert (grad == 0).nonzero().flatten().tolist() == [3, 20, 39]
    # A gradient that is not finite does not leak where it is masked.
    y = fake_quantize_as(x, relu6_parameters(4), backend=backend)
    (grad,) = torch.autograd.grad(y, x, torch.full((40,), float("inf")))
    assert (grad == 0).nonzero().flatten().tolist() == [3, 20, 39]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_round_as_float32_does(dtype: torch.dtype) -> None:
    x = made((50,)).to(dtype)
    y = fake_quantize_as(x, relu6_parameters(3))
    assert y.dtype == dtype
    wanted = fake_quantize_as(x.float(), relu6_parameters(3), backend="reference").to(dtype)
    torch.testing.assert_close(y, wanted, rtol=1e-6, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    num_bits=st.integers(2, 8),
    shape=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    per_channel=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_twice_is_once(num_bits: int, shape: list[int], per_channel: bool, seed: int) -> None:
    x = made(tuple(shape), seed)
    parameters = weight_parameters(x, num_bits, per_channel=per_channel)
    once = fake_quantize_as(x, parameters)
    assert torch.equal(fake_quantize_as(once, parameters), once)
    assert once.unique().numel() <= (2**num_bits - 1) * parameters.scale.numel()


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend: str) -> None:
    x = made((3, 5)).requires_grad_()
    parameters = weight_parameters(x, 4, per_channel=True)
    args = (x, parameters.scale, parameters.zero_point, -7, 7, 0, backend)
    torch.library.opcheck(torch.ops.effdl.fake_quantize.default, args)
    learned = (x, parameters.scale.requires_grad_(), parameters.zero_point, -7, 7, 0, backend)
    torch.library.opcheck(torch.ops.effdl.fake_quantize.default, learned)


def test_compiles_with_any_batch() -> None:
    parameters = relu6_parameters(4)

    @torch.compile(backend="aot_eager", fullgraph=True, dynamic=True)
    def compiled(x: Tensor) -> Tensor:
        return fake_quantize_as(x, parameters) * 2

    for batch in (3, 5, 8):
        x = made((batch, 7)).requires_grad_()
        y = compiled(x)
        assert torch.equal(y, fake_quantize_as(x, parameters) * 2)
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert set(grad.unique().tolist()) == {0.0, 2.0}


def test_says_what_it_wanted() -> None:
    x, one, zero = torch.zeros(2, 3), torch.ones(1), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ConfigError, match=r"scale: wanted shape \[3\] for axis=1, got \[1\]"):
        fake_quantize(x, one, zero, quant_min=0, quant_max=3, axis=1)
    with pytest.raises(ConfigError, match="axis: wanted -2 to 1, got 2"):
        fake_quantize(x, one, zero, quant_min=0, quant_max=3, axis=2)
    with pytest.raises(ConfigError, match=r"x: wanted torch.float32 .* got torch.int64"):
        fake_quantize(torch.zeros(2, dtype=torch.int64), one, zero, quant_min=0, quant_max=3)
    with pytest.raises(ConfigError, match="wanted quant_min < quant_max, got 3 and 3"):
        fake_quantize(x, one, zero, quant_min=3, quant_max=3)
    with pytest.raises(ConfigError, match=r"zero_point: wanted torch.int32, got torch.float32"):
        fake_quantize(x, one, one, quant_min=0, quant_max=3)
