"""The regulariser of a whole network."""

import pytest
import torch
from torch import nn

from effdl.errors import ConfigError, UnknownNameError
from effdl.kernels.lipschitz_conv2d.module import LipschitzConv2d
from effdl.kernels.lipschitz_linear.module import LipschitzLinear
from effdl.kernels.spectral_conv import ConvGeometry, conv_norm_bound
from effdl.kernels.spectral_penalty import conv_orthogonality_penalty
from effdl.quantization.regularization import defensive_quantization_loss


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        LipschitzConv2d(8, 8, 3, groups=8, stride=2),
        nn.Conv2d(8, 16, 1),
        nn.Conv2d(16, 16, 3),
        nn.Conv2d(16, 16, 3),
        nn.Flatten(),
        LipschitzLinear(16, 4),
    )


def test_published_form_layer_by_layer() -> None:
    net = network()
    wanted = 0.0
    for parameter in net.parameters():
        if parameter.ndim > 1:
            matrix = parameter.detach().flatten(1).double()
            rows, columns = matrix.shape
            published = (matrix.t() @ matrix - torch.eye(columns)).square().sum()
            wanted += 0.5 * 3e-4 * (float(published) - max(columns - rows, 0))
    loss = defensive_quantization_loss(net, beta=3e-4)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("norm", ["reshaped", "operator"])
def test_every_weight_gets_its_gradient(norm: str) -> None:
    net = network()
    defensive_quantization_loss(net, beta=1.0, norm=norm).backward()  # pyright: ignore[reportArgumentType]
    for name, parameter in net.named_parameters():
        if parameter.ndim > 1 and not (norm == "operator" and name.startswith("2.")):
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().max()) > 0, name
        elif parameter.ndim == 1:
            assert parameter.grad is None, name


def test_operator_form_takes_each_geometry() -> None:
    layer = nn.Conv2d(4, 6, 3, stride=2, groups=2)
    got = defensive_quantization_loss(layer, beta=0.7, norm="operator")
    wanted = conv_orthogonality_penalty(
        [layer.weight], ConvGeometry(stride=(2, 2), groups=2), beta=0.7
    )
    assert torch.equal(got, wanted)


def test_it_lowers_the_norm_of_a_network() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(6, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)]
    net = nn.Sequential(layers[0], nn.ReLU6(), layers[1])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    before = [max(conv_norm_bound(layer.weight.detach(), ConvGeometry())) for layer in layers]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(200):
        optimizer.zero_grad()
        defensive_quantization_loss(net, beta=1.0, norm="operator").backward()
        optimizer.step()
    after = [max(conv_norm_bound(layer.weight.detach(), ConvGeometry())) for layer in layers]
    assert min(before) > 1.8
    # 1 % of it is the bound's own excess.
    assert max(after) < 1.03


def test_says_what_it_wanted() -> None:
    with pytest.raises(ConfigError, match="ReLU: wanted a Linear or Conv2d layer, got none"):
        defensive_quantization_loss(nn.ReLU(), beta=1.0)
    with pytest.raises(UnknownNameError, match="unknown norm 'frobenius'"):
        defensive_quantization_loss(nn.Linear(2, 2), beta=1.0, norm="frobenius")  # pyright: ignore[reportArgumentType]
