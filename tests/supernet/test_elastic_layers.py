"""Elastic layers against hand-worked slices and an independent oracle."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from effdl.supernet.elastic_batch_norm import ElasticBatchNorm2d
from effdl.supernet.elastic_depthwise import ElasticDepthwiseConv2d, transform_kernel
from effdl.supernet.elastic_inverted_residual import ElasticInvertedResidual
from effdl.supernet.elastic_pointwise import ElasticPointwiseConv2d
from effdl.supernet.elastic_squeeze_excite import ElasticSqueezeExcite
from effdl.supernet.global_mean import global_mean
from effdl.supernet.initialization import initialize_he_fan_out


def drawn(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with every parameter and statistic drawn, matrices too."""
    rng = np.random.default_rng(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            values = rng.standard_normal(tuple(tensor.shape), dtype=np.float32)
            tensor.copy_(
                torch.from_numpy(np.abs(values) + 0.1 if "running_var" in name else values)
            )
    return module.eval()


def images(*shape: int, seed: int = 1) -> torch.Tensor:
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(values)


def kernel_oracle(weight: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The definition with the matrix as [i, j, k, l], in float64."""
    size = round(matrix.shape[0] ** 0.5)
    cut = (weight.shape[-1] - size) // 2
    centre = weight[:, 0, cut : weight.shape[-1] - cut, cut : weight.shape[-1] - cut]
    four = matrix.reshape(size, size, size, size).astype(np.float64)
    return np.einsum("ijkl,ckl->cij", four, centre.astype(np.float64))[:, None]


@pytest.mark.parametrize(("large", "small"), [(7, 5), (5, 3), (7, 3)])
def test_transform_kernel_is_the_matrix_times_the_centre(large: int, small: int) -> None:
    weight, matrix = images(6, 1, large, large), images(small**2, small**2, seed=2)
    expected = kernel_oracle(weight.numpy(), matrix.numpy())
    np.testing.assert_allclose(transform_kernel(weight, matrix), expected, rtol=1e-5, atol=1e-5)


def test_transform_kernel_by_hand() -> None:
    weight = torch.arange(25.0).view(1, 1, 5, 5)
    matrix = torch.zeros(9, 9)
    matrix[0, 8] = 2.0  # twice the centre's last weight, 18, becomes the first
    matrix[4, 0] = -1.0  # the centre's first weight, 6, negated, becomes the middle
    small = transform_kernel(weight, matrix)
    assert small.flatten().tolist() == [36.0, 0, 0, 0, -6.0, 0, 0, 0, 0]


def test_depthwise_chains_its_matrices() -> None:
    layer = drawn(ElasticDepthwiseConv2d(6, (3, 5, 7), 2))
    assert isinstance(layer, ElasticDepthwiseConv2d)
    state = layer.state_dict()
    assert state["7to5_matrix"].shape == (25, 25)
    assert state["5to3_matrix"].shape == (9, 9)
    five = kernel_oracle(state["conv.weight"].numpy(), state["7to5_matrix"].numpy())
    three = kernel_oracle(five, state["5to3_matrix"].numpy())
    for kernel_size, expected in ((5, five), (3, three)):
        got = layer.weight(4, kernel_size).detach()
        np.testing.assert_allclose(got, expected[:4], rtol=1e-4, atol=1e-4)
        x = images(2, 4, 9, 11)
        conv = F.conv2d(x, got, stride=2, padding=kernel_size // 2, groups=4)
        assert torch.equal(layer(x, kernel_size), conv)
        assert conv.shape == (2, 4, 5, 6)


def test_depthwise_largest_kernel_is_untouched() -> None:
    layer = drawn(ElasticDepthwiseConv2d(6, (3, 5, 7), 1))
    assert isinstance(layer, ElasticDepthwiseConv2d)
    assert torch.equal(layer.weight(6, 7), layer.conv.weight)


@pytest.mark.parametrize(
    ("kernel_sizes", "matrices"),
    [
        ((3, 5), {"5to3_matrix"}),
        ((3, 7), {"7to3_matrix"}),
        ((5,), set()),
        ((5, 3), {"5to3_matrix"}),
    ],
)
def test_depthwise_has_one_matrix_a_step(kernel_sizes: tuple[int, ...], matrices: set[str]) -> None:
    layer = ElasticDepthwiseConv2d(2, kernel_sizes, 1)
    assert set(layer.state_dict()) == matrices | {"conv.weight"}
    for name in matrices:
        assert torch.equal(layer.get_parameter(name), torch.eye(9))


def test_depthwise_gradient_reaches_matrices_and_only_used_channels() -> None:
    layer = drawn(ElasticDepthwiseConv2d(4, (3, 5, 7), 1))
    assert isinstance(layer, ElasticDepthwiseConv2d)
    layer(images(1, 3, 8, 8), 5).square().sum().backward()
    gradient = layer.conv.weight.grad
    assert gradient is not None
    assert gradient[:3, :, 1:6, 1:6].abs().min() > 0
    assert gradient[3].abs().max() == 0
    assert gradient[:, :, 0].abs().max() == 0
    matrix_gradient = layer.get_parameter("7to5_matrix").grad
    assert matrix_gradient is not None
    assert matrix_gradient.abs().max() > 0
    assert layer.get_parameter("5to3_matrix").grad is None


def test_pointwise_uses_leading_channels() -> None:
    layer = ElasticPointwiseConv2d(3, 4)
    layer.conv.weight.data = torch.arange(12.0).view(4, 3, 1, 1)
    x = torch.tensor([1.0, 10.0]).view(1, 2, 1, 1)
    assert layer(x, 3).flatten().tolist() == [10.0, 43.0, 76.0]  # 0+10, 3+40, 6+70


def test_squeeze_excite_by_hand() -> None:
    layer = ElasticSqueezeExcite(3, 2)
    gate = layer.fc
    gate.reduce.weight.data = torch.tensor([[1.0, 2.0, 100.0], [100.0] * 3]).view(2, 3, 1, 1)
    gate.expand.weight.data = torch.tensor([[1.0, 100.0], [-1.0, 100.0], [0.0, 0.0]]).view(
        3, 2, 1, 1
    )
    assert gate.reduce.bias is not None
    assert gate.expand.bias is not None
    gate.reduce.bias.data = torch.tensor([-2.0, 100.0])
    gate.expand.bias.data = torch.tensor([0.5, -0.5, 7.0])
    x = torch.tensor([[1.0, 3.0], [-1.0, 1.0]]).view(1, 2, 1, 2)  # means 2 and 0
    # reduce 2 - 2 = 0 -> relu 0 -> gates (0.5 + 3) / 6 and (-0.5 + 3) / 6
    expected = torch.tensor([[3.5 / 6, 3 * 3.5 / 6], [-2.5 / 6, 2.5 / 6]]).view(1, 2, 1, 2)
    torch.testing.assert_close(layer(x, 1), expected)


def test_global_mean_is_the_mean() -> None:
    x = images(2, 3, 5, 7)
    torch.testing.assert_close(global_mean(x), x.mean(dim=(2, 3), keepdim=True))


def test_batch_norm_partial_width_in_evaluation() -> None:
    layer = drawn(ElasticBatchNorm2d(5))
    assert isinstance(layer, ElasticBatchNorm2d)
    plain = nn.BatchNorm2d(3).eval()
    plain.load_state_dict(dict(layer.slices(3)))
    x = images(2, 3, 4, 4)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    assert torch.equal(layer(x), plain(x))
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


def test_batch_norm_partial_width_in_training() -> None:
    layer = drawn(ElasticBatchNorm2d(5)).train()
    assert isinstance(layer, ElasticBatchNorm2d)
    bn, x = layer.bn, images(4, 3, 6, 6)
    before = {k: v.clone() for k, v in bn.state_dict().items()}
    out = layer(x).detach()
    values = x.double()
    mean = values.mean(dim=(0, 2, 3))
    variance = values.var(dim=(0, 2, 3), unbiased=False)
    normal = (values - mean.view(1, 3, 1, 1)) / (variance.view(1, 3, 1, 1) + bn.eps).sqrt()
    expected = normal * bn.weight[:3].view(1, 3, 1, 1) + bn.bias[:3].view(1, 3, 1, 1)
    torch.testing.assert_close(out.double(), expected.detach(), rtol=1e-4, atol=1e-5)
    after = bn.state_dict()
    moved = 0.9 * before["running_mean"][:3] + 0.1 * mean.float()
    torch.testing.assert_close(after["running_mean"][:3], moved)
    unbiased = values.var(dim=(0, 2, 3), unbiased=True).float()
    torch.testing.assert_close(
        after["running_var"][:3], 0.9 * before["running_var"][:3] + 0.1 * unbiased
    )
    assert torch.equal(after["running_mean"][3:], before["running_mean"][3:])
    assert torch.equal(after["running_var"][3:], before["running_var"][3:])
    assert int(after["num_batches_tracked"]) == 1


def test_block_shortcut_adds_the_input() -> None:
    def block(*, skip: bool) -> nn.Module:
        return drawn(
            ElasticInvertedResidual(
                in_channels=4,
                out_channels=4,
                max_mid_channels=12,
                max_squeeze_channels=8,
                kernel_sizes=(3, 5),
                stride=1,
                activation=nn.Hardswish(inplace=True),
                skip=skip,
            )
        )

    x, choice = images(2, 4, 8, 8), {"mid_channels": 8, "kernel_size": 3, "squeeze_channels": 4}
    without = block(skip=False)(x, **choice)
    assert without.abs().max() > 0
    assert torch.equal(block(skip=True)(x, **choice), x + without)


def test_he_fan_out_has_its_variance() -> None:
    dense, depthwise = nn.Conv2d(64, 128, 3), nn.Conv2d(96, 96, 5, groups=96)
    linear = nn.Linear(400, 90)
    initialize_he_fan_out(nn.Sequential(dense, depthwise, linear), np.random.default_rng(0))
    assert dense.weight.detach().var().item() == pytest.approx(2 / (9 * 128), rel=0.02)
    assert depthwise.weight.detach().var().item() == pytest.approx(2 / (25 * 96), rel=0.06)
    assert linear.weight.detach().abs().max().item() == pytest.approx(1 / 20, rel=0.01)
    biases = [layer.bias for layer in (dense, depthwise, linear)]
    assert all(bias is not None and not bias.detach().any() for bias in biases)
