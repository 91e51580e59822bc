"""The largest singular value of the linear layer as it is applied is at most the bound."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from effdl.errors import ConfigError
from effdl.kernels.lipschitz_linear.module import LipschitzLinear
from effdl.kernels.quantization import asymmetric_parameters, dequantize, quantize


def norm_of(matrix: Tensor) -> float:
    return float(torch.linalg.svdvals(matrix.detach().double())[0])


def made(
    inputs: int, outputs: int, *, size: float = 3.0, seed: int = 0, **settings: object
) -> LipschitzLinear:
    torch.manual_seed(seed)
    layer = LipschitzLinear(inputs, outputs, **settings)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        layer.weight.mul_(size)
    return layer


@settings(max_examples=40, deadline=None)
@given(
    num_bits=st.sampled_from([8, 4, 2, 3]),
    inputs=st.integers(1, 90),
    outputs=st.integers(1, 90),
    per_channel=st.booleans(),
    bound=st.floats(0.01, 10),
    seed=st.integers(0, 99),
)
def test_never_more_than_the_bound(
    num_bits: int, inputs: int, outputs: int, per_channel: bool, bound: float, seed: int
) -> None:
    layer = made(
        inputs, outputs, size=10, seed=seed, num_bits=num_bits, per_channel=per_channel, bound=bound
    ).eval()
    assert norm_of(layer.effective_weight()) <= bound * (1 + 1e-6)
    integers, scale = layer.quantized_weight()
    assert integers.abs().max() <= 2 ** (num_bits - 1) - 1
    assert len(scale) == (outputs if per_channel else 1)
    applied = integers.double() * scale.double()[:, None]
    assert norm_of(applied) <= bound
    torch.testing.assert_close(layer.effective_weight().double(), applied, rtol=1e-5, atol=1e-8)


def test_what_is_below_the_bound_stays() -> None:
    layer = made(8, 8, size=0.01, bound=1.0).eval()
    plain = layer.weight.abs().amax(dim=1) / 127
    torch.testing.assert_close(layer.quantized_weight()[1], plain, rtol=2e-6, atol=0)


def test_most_of_the_bound_is_used() -> None:
    for num_bits in (8, 4, 2):
        layer = made(60, 50, size=10, num_bits=num_bits).eval()
        assert norm_of(layer.effective_weight()) >= 1 - 1e-5


def test_training_estimates_and_converges_from_above() -> None:
    layer = made(40, 30, size=5, num_bits=4)
    x = torch.randn(4, 40)
    for _ in range(50):
        layer(x)
    assert norm_of(layer.effective_weight()) == pytest.approx(1.0, rel=1e-2)


def test_gradient_is_that_of_the_normalised_operator() -> None:
    layer = made(12, 9, size=5, bound=0.5).double()
    for _ in range(200):
        layer.effective_weight()
    grad = torch.randn(9, 12, dtype=torch.float64)
    (got,) = torch.autograd.grad(layer.effective_weight(), layer.weight, grad)
    # Straight through the rounding: the slope of w / sigma(w) at the quantized weights.
    integers, scale = layer.quantized_weight()
    exact = torch.linalg.svdvals(layer.weight.detach())[0]
    weight = layer.weight.detach().abs().amax(dim=1, keepdim=True).float().double() / 127
    quantized = (integers.double() * weight).requires_grad_()
    normalised = 0.5 * quantized / torch.linalg.svdvals(quantized)[0]
    (wanted,) = torch.autograd.grad(normalised, quantized, grad)
    assert exact > 0.5
    assert scale.dtype == torch.float32
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


def test_loading_and_stepping_bound_anew() -> None:
    layer, other = made(10, 10, size=1).eval(), made(10, 10, size=50, seed=1)
    layer.load_state_dict(other.state_dict())
    assert norm_of(layer.effective_weight()) <= 1 + 1e-6
    with torch.no_grad():
        layer.weight.mul_(7)
    assert norm_of(layer.effective_weight()) <= 1 + 1e-6
    assert norm_of(layer.effective_weight()) > 0.9


def test_same_seed_same_steps() -> None:
    def trained() -> Tensor:
        layer = made(8, 6, num_bits=4)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for i in range(5):
            optimizer.zero_grad()
            layer(torch.full((3, 8), float(i))).square().sum().backward()
            optimizer.step()
        return layer.weight.detach()

    assert torch.equal(trained(), trained())


@pytest.mark.parametrize("num_bits", [8, 4, 2])
@pytest.mark.parametrize("per_channel", [True, False])
def test_integers_compute_what_the_layer_does(num_bits: int, per_channel: bool) -> None:
    layer = made(32, 20, size=5, num_bits=num_bits, per_channel=per_channel).eval()
    x_grid = asymmetric_parameters(torch.tensor(-2.0), torch.tensor(3.0), 8)
    y_grid = asymmetric_parameters(torch.tensor(-4.0), torch.tensor(4.0), 8)
    x = torch.randn(50, 32)
    x_bytes = quantize(x, x_grid)
    frozen = layer.to_quantized(
        x_scale=float(x_grid.scale),
        x_zero_point=int(x_grid.zero_point),
        y_scale=float(y_grid.scale),
        y_zero_point=int(y_grid.zero_point),
    )
    assert norm_of(frozen.real_weight()) <= 1.0
    got = dequantize(frozen(x_bytes), y_grid)
    wanted = layer(dequantize(x_bytes, x_grid)).detach()
    # Half a step of the output, and of the bias in the accumulator.
    room = float(y_grid.scale) * 0.5 + float(frozen.weight_scale.max() * x_grid.scale) + 1e-5
    assert float((got - wanted).abs().max()) <= room
    rectified = layer.to_quantized(
        x_scale=float(x_grid.scale),
        x_zero_point=int(x_grid.zero_point),
        y_scale=float(y_grid.scale),
        y_zero_point=int(y_grid.zero_point),
        y_min=int(y_grid.zero_point),
    )
    assert torch.equal(dequantize(rectified(x_bytes), y_grid), got.relu())


def test_a_layer_without_bias() -> None:
    layer = made(6, 4, bias=False).eval()
    frozen = layer.to_quantized(x_scale=0.1, x_zero_point=128, y_scale=0.1, y_zero_point=7)
    assert frozen(torch.full((2, 6), 128, dtype=torch.uint8)).tolist() == [[7] * 4] * 2
    assert set(frozen.state_dict()) == {"weight", "bias", "weight_scale", "multiplier"}


def test_compiles() -> None:
    layer = made(8, 6)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 8)
    before = layer.direction.clone()
    y = compiled(x)
    assert not torch.equal(layer.direction, before)
    layer.direction.copy_(before)
    torch.testing.assert_close(y, layer(x))
    layer.eval()
    torch.testing.assert_close(
        torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x)
    )


def test_says_what_it_wanted() -> None:
    with pytest.raises(ConfigError, match="bound: wanted a positive number, got 0"):
        LipschitzLinear(2, 2, bound=0)
    with pytest.raises(ConfigError, match="wanted 2 to 8 for a symmetric range, got 1"):
        LipschitzLinear(2, 2, num_bits=1)
    with pytest.raises(ConfigError, match=r"wanted positive scales, got x 0.0 and y 1.0"):
        LipschitzLinear(2, 2).to_quantized(x_scale=0.0, x_zero_point=0, y_scale=1.0, y_zero_point=0)
