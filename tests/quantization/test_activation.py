"""Quantizers of activations."""

import pytest
import torch

from effdl.errors import ConfigError
from effdl.quantization.activation import LearnedQuantizer, QuantizedReLU6, TrackedQuantizer


@pytest.mark.parametrize("num_bits", [1, 2, 3, 4, 5])
def test_relu6_has_the_papers_levels(num_bits: int) -> None:
    layer = QuantizedReLU6(num_bits)
    y = layer(torch.linspace(-3, 9, 2001))
    levels = 2**num_bits - 1
    wanted = torch.arange(levels + 1) * 6 / levels
    torch.testing.assert_close(y.unique(), wanted)
    assert layer.state_dict() == {}


def test_relu6_passes_gradients_between_its_ends() -> None:
    x = torch.tensor([-1.0, 0.5, 3.0, 5.9, 7.0], requires_grad=True)
    (grad,) = torch.autograd.grad(QuantizedReLU6(2)(x).sum(), x)
    assert grad.tolist() == [0, 1, 1, 1, 0]


def test_tracked_range_is_a_moving_average_and_stands_still_in_evaluation() -> None:
    layer = TrackedQuantizer(8, momentum=0.5)
    layer(torch.tensor([-1.0, 4.0]))
    assert (float(layer.low), float(layer.high)) == (-1.0, 4.0)
    layer(torch.tensor([-3.0, 2.0]))
    assert (float(layer.low), float(layer.high)) == (-2.0, 3.0)
    layer.eval()
    y = layer(torch.tensor([-50.0, 50.0]))
    assert (float(layer.low), float(layer.high)) == (-2.0, 3.0)
    step = 5 / 255
    torch.testing.assert_close(y, torch.tensor([-102 * step, 153 * step]))


def test_tracked_range_is_kept_in_the_state() -> None:
    layer, other = TrackedQuantizer(4), TrackedQuantizer(4)
    layer(torch.tensor([0.0, 3.0]))
    other.load_state_dict(layer.state_dict())
    other.eval()
    assert float(other(torch.tensor([9.0]))) == pytest.approx(3.0)


def test_learned_step_starts_at_lsqs_and_ends_where_its_slopes_balance() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4096, generator=generator) * 3
    layer = LearnedQuantizer(2)
    layer(x)
    start = float(layer.log_scale.detach().exp())
    assert start == pytest.approx(2 * float(x.mean()) / 3**0.5, rel=1e-5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        (layer(x) - x).square().mean().mul(100).backward()
        optimizer.step()
    # By hand, for uniform numbers on [0, 3] and four levels: 7 s^2 / 24 from rounding up to
    # 3.5 s balances 1.5 (9 (1 - s)^2 - s^2 / 4) from clipping above, at s = 9 / 11.
    assert float(layer.log_scale.detach().exp()) == pytest.approx(9 / 11, rel=0.01)
    assert float(layer.quantization().scale) == float(layer.log_scale.detach().exp())


def test_says_what_it_wanted() -> None:
    with pytest.raises(ConfigError, match="wanted 1 to 8, got 9"):
        QuantizedReLU6(9)
    with pytest.raises(ConfigError, match="momentum: wanted above 0 and at most 1, got 0"):
        TrackedQuantizer(8, momentum=0)
