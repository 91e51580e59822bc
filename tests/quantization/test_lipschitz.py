"""Certificates of whole networks, by hand and under attack."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from effdl.errors import ConfigError
from effdl.kernels.lipschitz_conv2d.module import LipschitzConv2d
from effdl.kernels.lipschitz_linear.module import LipschitzLinear
from effdl.models.mobilenet_v2.network import mobilenet_v2
from effdl.quantization.activation import QuantizedReLU6
from effdl.quantization.certificate import attack_certificate
from effdl.quantization.lipschitz import lipschitz_bound


class Residual(nn.Module):
    """x + f(x), and a layer used twice."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.body(x))


class Branches(nn.Module):
    """Two heads, joined; the mean; a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 4, 1)
        self.offset = nn.Parameter(torch.ones(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.left(x), self.right(x)], dim=1) + self.offset
        return (2 * joined).mean([2, 3]).flatten(1)


def norm_of(weight: Tensor) -> float:
    return float(torch.linalg.svdvals(weight.detach().double().flatten(1))[0])


def jacobian_norm(module: nn.Module, x: Tensor) -> float:
    jacobian = torch.autograd.functional.jacobian(lambda v: module(v[None])[0].flatten(), x)
    assert isinstance(jacobian, Tensor)
    return norm_of(jacobian.reshape(jacobian.shape[0], -1))


def test_product_by_hand() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Sigmoid()).eval()
    with torch.no_grad():
        net.get_parameter("0.weight").copy_(torch.diag(torch.tensor([2.0, 1, 1, 1]))[:, :3])
        net.get_parameter("2.weight").copy_(torch.tensor([[3.0, 0, 0, 0], [0, 4.0, 0, 0]]))
    found = lipschitz_bound(net, (3,))
    assert found.bound == pytest.approx(2 * 4 * 0.25)
    assert [layer.kind for layer in found.layers] == ["Linear", "ReLU", "Linear", "Sigmoid"]
    assert [layer.name for layer in found.layers] == ["0", "1", "2", "3"]
    assert [layer.bound for layer in found.layers] == pytest.approx([2, 1, 4, 0.25])
    assert [layer.product for layer in found.layers] == pytest.approx([2, 2, 8, 2])
    assert found.rounding_error == 0.0


def test_residual_adds_and_joins_add_in_squares() -> None:
    net = Residual(nn.Conv2d(2, 2, 1)).eval()
    assert lipschitz_bound(net, (2, 5, 5)).bound == pytest.approx(
        1 + norm_of(net.body[0].weight)  # pyright: ignore[reportArgumentType]
    )
    two = Branches().eval()
    joined = math.hypot(norm_of(two.left.weight), norm_of(two.right.weight))
    assert lipschitz_bound(two, (3, 4, 4)).bound == pytest.approx(2 * joined / 4)


def test_batch_norm_is_folded() -> None:
    conv, norm = nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5)
    with torch.no_grad():
        norm.running_var.copy_(torch.rand(5) + 0.1)  # pyright: ignore[reportOptionalMemberAccess]
        norm.weight.copy_(torch.randn(5))
    net = nn.Sequential(conv, norm).eval()
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()  # pyright: ignore[reportOptionalOperand]
    found = lipschitz_bound(net, (3, 4, 4))
    assert found.bound == pytest.approx(norm_of(conv.weight * gain[:, None, None, None]), rel=1e-5)
    assert [layer.kind for layer in found.layers] == ["Conv2d+BatchNorm2d"]
    # Where another reads the convolution too, the batch norm counts alone.
    alone = lipschitz_bound(nn.Sequential(norm).eval(), (5, 4, 4))
    assert alone.bound == pytest.approx(float(gain.detach().abs().max()), rel=1e-5)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.MaxPool2d(3, 2, 1), (2, 9, 9)),
        (nn.MaxPool2d(2), (2, 8, 8)),
        (nn.AvgPool2d(3, 1, 1), (2, 7, 7)),
        (nn.AvgPool2d(2), (2, 8, 8)),
        (nn.AdaptiveAvgPool2d(1), (3, 5, 7)),
        (nn.AdaptiveAvgPool2d((2, 3)), (1, 4, 9)),
        (nn.Conv2d(2, 3, 3, padding="same", padding_mode="circular"), (2, 8, 8)),
        (nn.Conv2d(2, 3, 3, stride=2, padding=1, padding_mode="circular"), (2, 7, 7)),
        (nn.ConvTranspose2d(3, 2, 3, stride=2), (3, 5, 5)),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2), (4, 8, 8)),
        (nn.Hardswish(), (4, 3, 3)),
        (nn.SiLU(), (50,)),
        (nn.GELU(), (50,)),
        (nn.LeakyReLU(-2.0), (5,)),
    ],
    ids=str,
)
def test_no_jacobian_exceeds_its_layers_bound(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    bound = lipschitz_bound(layer.eval(), shape).bound
    largest = max(jacobian_norm(layer, torch.randn(shape) * 2) for _ in range(5))
    assert largest <= bound * (1 + 1e-6)
    assert largest >= 0.5 * bound


def test_slopes_of_swish_and_gelu_are_their_maxima() -> None:
    x = torch.linspace(-10, 10, 200_001, dtype=torch.float64, requires_grad=True)
    for layer in (nn.SiLU(), nn.GELU(), nn.Hardswish(), nn.Hardsigmoid()):
        (slope,) = torch.autograd.grad(layer(x).sum(), x)
        largest = float(slope.abs().max())
        bound = lipschitz_bound(layer.eval(), (1,)).bound
        assert largest <= bound + 1e-9
        assert bound <= largest * 1.001


def small_network(num_bits: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(6),
        QuantizedReLU6(num_bits),
        LipschitzConv2d(6, 6, 3, padding=1, groups=6, num_bits=4),
        Residual(LipschitzConv2d(6, 6, 3, padding=1, num_bits=2), QuantizedReLU6(num_bits)),
        nn.AvgPool2d(2),
        nn.Flatten(),
        LipschitzLinear(54, 5, num_bits=8),
    ).eval()


@pytest.mark.parametrize("num_bits", [2, 4, 8])
def test_no_attack_exceeds_the_certificate(num_bits: int) -> None:
    net = small_network(num_bits)
    found = lipschitz_bound(net, (3, 12, 12))
    assert found.rounding_error > 0
    inputs = torch.rand(16, 3, 12, 12) * 4
    worst = attack_certificate(
        net, inputs, rounding_error=found.rounding_error, num_pairs=1000, num_steps=60
    )
    assert worst.by_pairs <= worst.by_ascent <= found.bound


def test_rounding_is_within_its_error() -> None:
    """The network without rounding: the one that the bound speaks of."""
    for num_bits in (2, 4):
        net = small_network(num_bits)
        found = lipschitz_bound(net, (3, 12, 12))
        x = torch.rand(64, 3, 12, 12) * 4
        rounded = net(x)
        for layer in net.modules():
            if isinstance(layer, QuantizedReLU6):
                layer.forward = functional.relu6  # pyright: ignore[reportAttributeAccessIssue]
        moved = (net(x) - rounded).flatten(1).norm(dim=1)
        assert 0 < float(moved.detach().max()) <= found.rounding_error


def test_without_rounding_pairs_and_ascent_come_close_and_never_over() -> None:
    torch.manual_seed(0)
    single = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1)).eval()
    found = lipschitz_bound(single, (2, 8, 8))
    worst = attack_certificate(single, torch.randn(8, 2, 8, 8), num_steps=400)
    assert worst.by_pairs < worst.by_ascent <= found.bound * (1 + 1e-5)
    assert worst.by_ascent > 0.85 * found.bound


def test_the_attack_finds_a_wrong_certificate() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)).eval()
    with torch.no_grad():
        q, _ = torch.linalg.qr(torch.randn(72, 8))
        net.get_parameter("0.weight").copy_(q.t().reshape(8, 8, 3, 3))
    # What the reshaped weights say.
    worst = attack_certificate(net, torch.randn(4, 8, 8, 8), num_steps=200)
    assert worst.by_ascent > 1.2


@settings(max_examples=15, deadline=None)
@given(widths=st.lists(st.integers(1, 12), min_size=2, max_size=5), seed=st.integers(0, 999))
def test_product_is_never_below_the_true_constant(widths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    net = nn.Sequential(*layers).eval()
    true = layers[0].weight.double()
    for layer in layers[1:]:
        true = layer.weight.double() @ true
    assert norm_of(true) <= lipschitz_bound(net, (widths[0],)).bound * (1 + 1e-12)


def test_lipschitz_network_is_at_most_the_product_of_its_bounds() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        LipschitzConv2d(3, 8, 3, padding=1, bound=0.9, num_bits=4),
        nn.ReLU6(),
        LipschitzConv2d(8, 8, 3, stride=2, padding=1, bound=0.5, num_bits=2),
        nn.Flatten(),
        LipschitzLinear(8 * 16, 3, bound=2.0),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(10)
    assert lipschitz_bound(net.eval(), (3, 8, 8)).bound <= 0.9 * 0.5 * 2.0 * (1 + 1e-9)


def test_says_what_it_wanted() -> None:
    with pytest.raises(ConfigError, match="in evaluation mode, got one in training"):
        lipschitz_bound(nn.Linear(2, 2), (2,))
    softmax = nn.Sequential(nn.Linear(2, 2), nn.Softmax(dim=1)).eval()
    with pytest.raises(ConfigError, match=r"1 \(Softmax\): no Lipschitz bound is known for it"):
        lipschitz_bound(softmax, (2,))

    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x)

    with pytest.raises(ConfigError, match="mul: a product of two tensors has no Lipschitz bound"):
        lipschitz_bound(Product().eval(), (2,))

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ConfigError, match="Branching: cannot be traced"):
        lipschitz_bound(Branching().eval(), (2,))
    reflect = nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect").eval()
    with pytest.raises(
        ConfigError, match="0: padding_mode: wanted 'zeros' or 'circular', got 'reflect'"
    ):
        lipschitz_bound(reflect, (1, 5, 5))
    with pytest.raises(ConfigError, match=r"does not take an input of shape \[1, 3\]"):
        lipschitz_bound(nn.Sequential(nn.Linear(2, 2)).eval(), (3,))
    with pytest.raises(
        ConfigError, match="0: adaptive average pool: wanted an output that divides"
    ):
        lipschitz_bound(nn.AdaptiveAvgPool2d(2).eval(), (1, 5, 5))


def test_networks_may_look_at_shapes() -> None:
    class Checked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            if x.dim() != 4 or x.shape[1] != 3:
                raise ConfigError("wanted images")
            return self.layer(x.reshape(x.size(0), -1))

    net = Checked().eval()
    assert lipschitz_bound(net, (3, 2, 2)).bound == pytest.approx(norm_of(net.layer.weight))
    with pytest.raises(ConfigError, match=r"Checked: does not take an input .* wanted images"):
        lipschitz_bound(net, (12,))


def test_real_backbones_have_bounds() -> None:
    torch.manual_seed(0)
    net = mobilenet_v2(num_classes=10, width_mult=0.35).eval()
    found = lipschitz_bound(net, (3, 32, 32))
    # 52 convolutions with their batch norms, and the classifier.
    kinds = [layer.kind for layer in found.layers]
    assert kinds.count("Conv2d+BatchNorm2d") == 52
    assert kinds.count("Linear") == 1
    images = torch.randn(4, 3, 32, 32)
    worst = attack_certificate(net, images, num_pairs=64, num_ascents=2, num_steps=3)
    assert 0 < worst.by_ascent <= found.bound


def test_a_tensor_changed_in_place_is_not_read_as_what_it_was() -> None:
    class Alias(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            before = y
            y += x
            return y + before

    with pytest.raises(ConfigError, match="iadd: wanted a tensor that nothing reads after"):
        lipschitz_bound(Alias().eval(), (4,))


def test_a_subclass_may_compute_otherwise() -> None:
    class Louder(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return super().forward(input) * 3

    net = nn.Sequential(Louder()).eval()
    assert lipschitz_bound(net, (4,)).bound == pytest.approx(3.0)
    hooked = nn.Sequential(nn.ReLU()).eval()
    hooked[0].register_forward_hook(lambda *args: args[-1] * 3)
    with pytest.raises(ConfigError, match="0: wanted no hooks"):
        lipschitz_bound(hooked, (4,))


def test_parametrized_layers_count_as_they_are_applied() -> None:
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5), n_power_iterations=50)
    net = nn.Sequential(layer).eval()
    assert lipschitz_bound(net, (6,)).bound == pytest.approx(1.0, rel=1e-3)
