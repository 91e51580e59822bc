"""The largest singular value of the convolution as it is applied is at most the bound."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from effdl.errors import ConfigError, UnknownNameError
from effdl.kernels.lipschitz_conv2d.module import LipschitzConv2d
from effdl.kernels.quantization import asymmetric_parameters, dequantize, quantize
from effdl.kernels.spectral_conv import conv_matrix, conv_power_iteration, reshaped_norm_bound


def norm_of(layer: LipschitzConv2d, weight: Tensor, input_size: tuple[int, int] = (9, 8)) -> float:
    """The operator's, by brute force."""
    matrix = conv_matrix(weight.detach().double(), layer.geometry, input_size=input_size)
    return float(torch.linalg.svdvals(matrix)[0])


def made(*sizes: Any, size: float = 10.0, seed: int = 0, **settings: Any) -> LipschitzConv2d:
    torch.manual_seed(seed)
    layer = LipschitzConv2d(*sizes, **settings)
    with torch.no_grad():
        layer.weight.mul_(size)
    return layer


def applied_weight(layer: LipschitzConv2d) -> Tensor:
    integers, scale = layer.quantized_weight()
    return integers.double() * scale.double().reshape(-1, 1, 1, 1)


@settings(max_examples=50, deadline=None)
@given(
    num_bits=st.sampled_from([8, 4, 2]),
    channels=st.sampled_from([(4, 4, 1), (6, 4, 2), (4, 8, 4), (5, 5, 5), (3, 6, 3), (3, 5, 1)]),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.integers(1, 2),
    per_channel=st.booleans(),
    bound=st.floats(0.1, 4),
    seed=st.integers(0, 99),
)
def test_never_more_than_the_bound(
    num_bits: int,
    channels: tuple[int, int, int],
    kernel: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
    dilation: int,
    per_channel: bool,
    bound: float,
    seed: int,
) -> None:
    layer = made(
        channels[0],
        channels[1],
        kernel,
        groups=channels[2],
        stride=stride,
        padding=padding,
        dilation=dilation,
        num_bits=num_bits,
        per_channel=per_channel,
        bound=bound,
        seed=seed,
    ).eval()
    assert norm_of(layer, layer.effective_weight()) <= bound * (1 + 1e-6)
    applied = applied_weight(layer)
    assert norm_of(layer, applied) <= bound
    torch.testing.assert_close(layer.effective_weight().double(), applied, rtol=1e-5, atol=1e-8)
    assert layer.quantized_weight()[0].abs().max() <= 2 ** (num_bits - 1) - 1


@pytest.mark.parametrize("num_bits", [8, 4, 2])
def test_most_of_the_bound_is_used_on_large_images(num_bits: int) -> None:
    cases = {
        "dense": ((6, 5, 3), {}, 0.95),
        "depthwise": ((5, 5, 3), {"groups": 5}, 0.97),
        "strided": ((4, 6, 3), {"stride": 2}, 0.95),
    }
    for name, (sizes, geometry, share) in cases.items():
        layer = made(*sizes, padding=1, num_bits=num_bits, **geometry).eval()
        weight = layer.effective_weight().detach()
        start = torch.randn(1, sizes[0], 24, 24)
        sigma, _ = conv_power_iteration(weight, start, layer.geometry, num_iterations=200)
        assert share < float(sigma.max()) <= 1 + 1e-6, name


def test_each_group_is_held_alone() -> None:
    layer = made(4, 4, 3, padding=1, groups=4, size=1)
    with torch.no_grad():
        layer.weight.copy_(torch.rand(4, 1, 3, 3) + 0.1)
        layer.weight.mul_(torch.tensor([0.01, 1.0, 10.0, 100.0]).reshape(4, 1, 1, 1))
    layer.eval()
    sums = layer.effective_weight().detach().sum(dim=(1, 2, 3))
    # All taps positive: the norm of a channel is near its sum, at frequency zero.
    torch.testing.assert_close(sums[0], layer.weight[0].detach().sum(), rtol=0.01, atol=0)
    assert bool((sums[1:] > 0.98).all())
    assert bool((sums[1:] <= 1).all())


def test_reshaped_norm_is_named_and_is_not_the_operators() -> None:
    layer = made(16, 16, 3, padding=1, norm="reshaped").eval()
    weight = layer.effective_weight()
    assert reshaped_norm_bound(weight) == pytest.approx(1.0, rel=1e-5)
    assert norm_of(layer, weight, (8, 8)) > 1.2


@pytest.mark.parametrize("norm", ["operator", "reshaped"])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_training_follows(norm: str, groups: int) -> None:
    layer = made(8, 8, 3, padding=1, groups=groups, norm=norm, num_bits=4)
    x = torch.randn(2, 8, 14, 14)
    for _ in range(60):
        layer(x)
    weight = layer.effective_weight()
    found = norm_of(layer, weight, (14, 14)) if norm == "operator" else reshaped_norm_bound(weight)
    # The estimate is of a smaller image.
    assert found == pytest.approx(1.0, rel=0.04)


def test_gradient_is_that_of_the_normalised_operator() -> None:
    layer = made(2, 3, 3, padding=1, bound=0.5).double()
    for _ in range(300):
        layer.effective_weight()
    grad = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    (got,) = torch.autograd.grad(layer.effective_weight(), layer.weight, grad)
    # Straight through the rounding: the slope of w / sigma(w), by finite differences.
    from effdl.kernels.fake_quantize import fake_quantize_as
    from effdl.kernels.quantization import weight_parameters

    parameters = weight_parameters(layer.weight, 8, per_channel=True)
    quantized = fake_quantize_as(layer.weight, parameters).detach()

    def normalised(weight: Tensor) -> Tensor:
        return 0.5 * weight / norm_of(layer, weight, (10, 10))

    wanted = torch.zeros_like(quantized)
    for i in range(quantized.numel()):
        step = torch.zeros_like(quantized)
        step.view(-1)[i] = 1e-5
        slope = (normalised(quantized + step) - normalised(quantized - step)) / 2e-5
        wanted.view(-1)[i] = (slope * grad).sum()
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


def test_gradient_reaches_weight_bias_and_x() -> None:
    layer = made(3, 4, 3, padding=1, size=1)
    x = torch.randn(2, 3, 6, 6).requires_grad_()
    layer(x).square().sum().backward()
    for name, tensor in (*layer.named_parameters(), ("x", x)):
        assert tensor.grad is not None, name
        assert bool(torch.isfinite(tensor.grad).all()), name
        assert float(tensor.grad.abs().max()) > 0, name


def test_loading_bounds_anew() -> None:
    layer, other = made(4, 4, 3, size=1).eval(), made(4, 4, 3, size=50, seed=1)
    layer.load_state_dict(other.state_dict())
    assert norm_of(layer, layer.effective_weight()) <= 1 + 1e-6


@pytest.mark.parametrize("num_bits", [8, 4, 2])
@pytest.mark.parametrize(
    ("sizes", "geometry"),
    [
        ((6, 9, 3), {"padding": 1}),
        ((6, 9, 1), {"stride": 2}),
        ((8, 8, 5), {"padding": 2, "stride": 2, "groups": 8}),
    ],
    ids=["dense", "pointwise", "depthwise"],
)
def test_integers_compute_what_the_layer_does(
    num_bits: int, sizes: tuple[int, int, int], geometry: dict[str, int]
) -> None:
    layer = made(*sizes, num_bits=num_bits, **geometry).eval()
    x_grid = asymmetric_parameters(torch.tensor(-2.0), torch.tensor(3.0), 8)
    y_grid = asymmetric_parameters(torch.tensor(-8.0), torch.tensor(8.0), 8)
    frozen = layer.to_quantized(
        x_scale=float(x_grid.scale),
        x_zero_point=int(x_grid.zero_point),
        y_scale=float(y_grid.scale),
        y_zero_point=int(y_grid.zero_point),
    )
    assert norm_of(layer, frozen.real_weight()) <= 1.0
    x_bytes = quantize(torch.randn(2, sizes[0], 9, 9), x_grid)
    got = dequantize(frozen(x_bytes), y_grid)
    wanted = layer(dequantize(x_bytes, x_grid)).detach()
    room = float(y_grid.scale) * 0.5 + float(frozen.weight_scale.max() * x_grid.scale) + 1e-5
    assert float((got - wanted).abs().max()) <= room


def test_compiles() -> None:
    layer = made(3, 4, 3, padding=1)
    x = torch.randn(2, 3, 6, 6)
    before = layer.direction.clone()
    y = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    layer.direction.copy_(before)
    torch.testing.assert_close(y, layer(x))


def test_says_what_it_wanted() -> None:
    with pytest.raises(UnknownNameError, match="unknown norm 'spectral'"):
        LipschitzConv2d(2, 2, 3, norm="spectral")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="groups: wanted a divisor of 4 and 6, got 4"):
        LipschitzConv2d(4, 6, 3, groups=4)
    with pytest.raises(ConfigError, match=r"equal strides, equal paddings and dilation 1, got"):
        LipschitzConv2d(4, 4, 3, dilation=2).to_quantized(
            x_scale=1.0, x_zero_point=0, y_scale=1.0, y_zero_point=0
        )
