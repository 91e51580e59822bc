"""Norms from below and from above, against dense singular values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from effdl.errors import ConfigError
from effdl.kernels.spectral import (
    gram_bound,
    norm_upper_bound,
    power_iteration,
    shrink_factor,
    start_direction,
)
from effdl.kernels.spectral_conv import (
    ConvGeometry,
    apply_conv,
    apply_conv_transpose,
    conv_gram_bound,
    conv_matrix,
    conv_norm_bound,
    conv_power_iteration,
    conv_symbol,
    reshaped_norm_bound,
)
from effdl.kernels.spectral_penalty import conv_orthogonality_penalty, orthogonality_penalty


def made(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def norm_of(matrix: Tensor) -> float:
    return float(torch.linalg.svdvals(matrix.detach())[0])


def row_orthogonal(outputs: int, inputs: int, size: int) -> Tensor:
    q, _ = torch.linalg.qr(made(inputs * size * size, outputs))
    return q.t().reshape(outputs, inputs, size, size)


def with_norms(rows: int, columns: int, values: Tensor) -> Tensor:
    u, _ = torch.linalg.qr(made(rows, len(values)))
    v, _ = torch.linalg.qr(made(columns, len(values), seed=1))
    return u @ torch.diag(values) @ v.t()


@pytest.mark.parametrize(("rows", "columns"), [(7, 5), (5, 7), (1, 9), (9, 1)])
def test_power_iteration_finds_the_largest_from_below(rows: int, columns: int) -> None:
    matrix = made(rows, columns)
    true = norm_of(matrix)
    direction = start_direction((columns,)).double()
    seen = []
    for _ in range(200):
        sigma, direction = power_iteration(matrix, direction)
        seen.append(float(sigma))
    assert seen == pytest.approx(sorted(seen), rel=1e-12)
    assert seen[-1] <= true * (1 + 1e-12)
    assert seen[-1] == pytest.approx(true, rel=1e-6)


def test_power_iterations_gradient_is_that_of_the_singular_value() -> None:
    matrix = with_norms(6, 4, torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)).requires_grad_()
    sigma, _ = power_iteration(matrix, start_direction((4,)).double(), num_iterations=100)
    (got,) = torch.autograd.grad(sigma, matrix)
    (wanted,) = torch.autograd.grad(torch.linalg.svdvals(matrix)[0], matrix)
    torch.testing.assert_close(got, wanted)


def test_power_iteration_of_zeros_is_zero() -> None:
    sigma, direction = power_iteration(torch.zeros(3, 4), start_direction((4,)))
    assert float(sigma) == 0.0
    assert float(direction.norm()) == pytest.approx(1.0)


def test_power_iteration_says_what_it_wanted() -> None:
    with pytest.raises(ConfigError, match=r"a direction \[n\], got \[3, 4\] and \[3\]"):
        power_iteration(torch.zeros(3, 4), torch.zeros(3))


@pytest.mark.parametrize("num_iterations", [0, 1, 4, 8])
def test_gram_bound_is_above_by_what_it_says(num_iterations: int) -> None:
    for matrix in (made(9, 6), made(4, 11), with_norms(8, 8, torch.ones(8, dtype=torch.float64))):
        true, got = norm_of(matrix), float(gram_bound(matrix, num_iterations=num_iterations))
        rank = min(matrix.shape)
        assert true * (1 - 1e-12) <= got <= true * rank ** (0.5 / 2**num_iterations) * (1 + 1e-12)


def test_gram_bound_differentiates_and_does_not_overflow() -> None:
    matrix = made(5, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: gram_bound(m, num_iterations=4), matrix)
    for size in (1e-20, 1e20):
        small = (made(5, 4) * size).float()
        assert float(gram_bound(small)) == pytest.approx(norm_of(small.double()), rel=0.02)
    zero = torch.zeros(3, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(gram_bound(zero), zero)
    assert bool(torch.isfinite(grad).all())


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 90),
    columns=st.integers(1, 90),
    seed=st.integers(0, 99),
    size=st.floats(-6, 6),
)
def test_upper_bound_is_above_and_close(rows: int, columns: int, seed: int, size: float) -> None:
    matrix = made(rows, columns, seed=seed) * 10**size
    true, got = norm_of(matrix), norm_upper_bound(matrix)
    assert true * (1 - 1e-14) <= got
    assert got <= true * (1.05 if min(rows, columns) > 64 else 1 + 1e-9)


def test_upper_bound_of_wide_matrices_with_equal_and_with_hidden_values() -> None:
    orthogonal = torch.linalg.qr(made(80, 80))[0]
    assert 1 <= norm_upper_bound(orthogonal) * (1 + 1e-12) <= 1.01
    # Power iteration starts at a right angle to the largest: only the proof can notice.
    direction = start_direction((80, 1)).double()
    other = made(80, 1)
    other = other - direction * (direction * other).sum() / direction.square().sum()
    hidden = 0.1 * torch.eye(80, dtype=torch.float64) + other @ other.t() / other.square().sum()
    assert norm_upper_bound(hidden) >= norm_of(hidden)
    assert norm_upper_bound(torch.zeros(70, 80)) == 0.0


def test_upper_bound_wants_finite_numbers() -> None:
    with pytest.raises(ConfigError, match="wanted finite weights"):
        norm_upper_bound(torch.tensor([[1.0, float("nan")]]))


def test_shrink_factor() -> None:
    got = shrink_factor(torch.tensor([0.5, 2.0, 4.0]), 2.0)
    assert got.tolist() == [1.0, 1.0, 0.5]


geometries = st.builds(
    ConvGeometry,
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    groups=st.sampled_from([1, 2, 4]),
)


@settings(max_examples=60, deadline=None)
@given(
    geometry=geometries,
    outputs=st.sampled_from([4, 8]),
    inputs=st.sampled_from([4, 8]),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    seed=st.integers(0, 99),
)
def test_convolutions_norm_is_never_above_its_bound(
    geometry: ConvGeometry, outputs: int, inputs: int, kernel: tuple[int, int], seed: int
) -> None:
    weight = made(outputs, inputs // geometry.groups, *kernel, seed=seed)
    size = (11, 9)
    true = norm_of(conv_matrix(weight, geometry, input_size=size))
    bounds = conv_norm_bound(weight, geometry)
    assert len(bounds) == geometry.groups
    assert true <= max(bounds) * (1 + 1e-12)
    assert max(bounds) <= float(conv_gram_bound(weight, geometry).max()) * (1 + 1e-9)
    start = made(1, inputs, *size, seed=seed + 1)
    sigma, image = conv_power_iteration(weight, start, geometry, num_iterations=30)
    assert float(sigma.max()) <= true * (1 + 1e-12)
    assert image.shape == start.shape


@settings(max_examples=30, deadline=None)
@given(geometry=geometries, kernel=st.tuples(st.integers(1, 4), st.integers(1, 3)))
def test_transpose_is_the_transpose(geometry: ConvGeometry, kernel: tuple[int, int]) -> None:
    weight = made(4, 4 // geometry.groups, *kernel)
    x = made(2, 4, 12, 11)
    y = apply_conv(x, weight, geometry)
    z = made(*y.shape, seed=1)
    back = apply_conv_transpose(z, weight, geometry, input_size=(12, 11))
    torch.testing.assert_close((y * z).sum(), (x * back).sum())


@pytest.mark.parametrize("stride", [1, 2])
def test_power_iteration_reaches_each_groups_norm(stride: int) -> None:
    geometry = ConvGeometry(stride=(stride, stride), padding=(1, 1), groups=2)
    weight = made(6, 2, 3, 3)
    sigma, _ = conv_power_iteration(weight, made(1, 4, 8, 8), geometry, num_iterations=500)
    for group in range(2):
        alone = ConvGeometry(stride=geometry.stride, padding=geometry.padding)
        matrix = conv_matrix(weight[3 * group : 3 * group + 3], alone, input_size=(8, 8))
        assert float(sigma[group]) == pytest.approx(norm_of(matrix), rel=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_symbol_is_exact_on_a_circle(stride: int) -> None:
    weight = made(3, 2, 3, 3)
    size = 8
    geometry = ConvGeometry(stride=(stride, stride))
    images = torch.eye(2 * size * size, dtype=torch.float64).reshape(-1, 2, size, size)
    circular = nn.functional.pad(images, (1, 1, 1, 1), mode="circular")
    matrix = nn.functional.conv2d(circular, weight, stride=stride).flatten(1)
    symbol = conv_symbol(weight, geometry, grid=size // stride)
    top = float(torch.linalg.svdvals(symbol).max())
    assert top == pytest.approx(norm_of(matrix), rel=1e-10)


def test_depthwise_is_the_largest_fft() -> None:
    weight = made(5, 1, 3, 3)
    geometry = ConvGeometry(padding=(1, 1), groups=5)
    dense = torch.fft.fft2(weight[:, 0], s=(512, 512)).abs().amax(dim=(1, 2))
    for bound, truth in zip(conv_norm_bound(weight, geometry), dense.tolist(), strict=True):
        assert truth <= bound <= truth * 1.0025


@pytest.mark.parametrize("size", [3, 5, 7])
def test_the_grid_never_misses_a_peak(size: int) -> None:
    # The peak of cos((k - 1) / 2 (w - w0)) moved between the points of the grid.
    taps = torch.zeros(size, dtype=torch.complex128)
    taps[0] = taps[-1] = 0.5
    for offset in torch.linspace(0, 1, 9):
        phase = torch.exp(1j * torch.pi * torch.arange(size) * offset / 16)
        real = (taps * phase).real
        weight = real.reshape(1, 1, 1, size)
        truth = float(torch.fft.fft(real, 4096).abs().max())
        (bound,) = conv_norm_bound(weight, ConvGeometry(), grid=16)
        assert truth <= bound * (1 + 1e-12)


def test_bound_is_close_on_a_large_image() -> None:
    weight, geometry = made(4, 3, 3, 3), ConvGeometry(padding=(1, 1))
    true = norm_of(conv_matrix(weight, geometry, input_size=(16, 16)))
    assert true <= max(conv_norm_bound(weight, geometry)) <= 1.05 * true


def test_traps_of_reshaped_matrices() -> None:
    weight, geometry = row_orthogonal(64, 64, 3), ConvGeometry(padding=(1, 1))
    assert reshaped_norm_bound(weight) == pytest.approx(1.0, rel=1e-9)
    sigma, _ = conv_power_iteration(weight, made(1, 64, 14, 14), geometry, num_iterations=60)
    assert 1.8 < float(sigma) < max(conv_norm_bound(weight, geometry)) < 2.0


def test_traps_of_pytorchs_own() -> None:
    torch.manual_seed(0)
    geometry = ConvGeometry(padding=(1, 1))
    spectral = nn.utils.parametrizations.spectral_norm(
        nn.Conv2d(64, 64, 3, padding=1), n_power_iterations=50
    )
    orthogonal = nn.utils.parametrizations.orthogonal(nn.Conv2d(64, 64, 3, padding=1))
    start = made(1, 64, 14, 14).float()
    images = torch.zeros(1, 64, 14, 14)
    found = {}
    for name, layer in (("spectral", spectral), ("orthogonal", orthogonal)):
        layer(images)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        sigma, _ = conv_power_iteration(weight.detach(), start, geometry, num_iterations=80)
        found[name] = float(sigma)
        if name == "spectral":
            assert reshaped_norm_bound(weight) == pytest.approx(1.0, rel=0.01)
    assert 1.3 < found["spectral"] < 1.7
    assert 26 < found["orthogonal"] < 30


def test_symbol_says_what_it_wanted() -> None:
    with pytest.raises(ConfigError, match="grid: wanted at least 3 x 3, got 2 x 2"):
        conv_symbol(made(2, 2, 3, 3), ConvGeometry(), grid=2)
    with pytest.raises(ConfigError, match=r"with O divisible by groups=2, got \[3, 1, 3, 3\]"):
        conv_norm_bound(made(3, 1, 3, 3), ConvGeometry(groups=2))


def test_penalty_by_hand() -> None:
    weight = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 1.0]], requires_grad=True)
    # W W^T - I = [[3, 0], [0, 1]].
    loss = orthogonality_penalty([weight], beta=0.5)
    assert loss.item() == pytest.approx(0.25 * 10)
    (grad,) = torch.autograd.grad(loss, weight)
    # 2 beta (W W^T - I) W.
    assert grad.tolist() == [[6.0, 0.0, 0.0], [0.0, 1.0, 1.0]]


def test_penalty_is_the_published_one_but_for_a_constant() -> None:
    weight = made(3, 2, 2, 2)
    matrix = weight.flatten(1)
    published = 0.5 * (matrix.t() @ matrix - torch.eye(8)).square().sum()
    ours = orthogonality_penalty([weight], beta=1.0)
    assert float(published - ours) == pytest.approx(0.5 * (8 - 3))


def test_penalties_of_many_layers_add_up() -> None:
    weights = [made(4, 3, 2, 2), made(4, 12, seed=1), made(4, 12, seed=2), made(9, 2, seed=3)]
    for weight in weights:
        weight.requires_grad_()
    together = orthogonality_penalty(weights, beta=0.3)
    apart = sum(orthogonality_penalty([w], beta=0.3) for w in weights)
    torch.testing.assert_close(together, apart)
    assert torch.autograd.gradcheck(lambda *w: orthogonality_penalty(w, beta=0.3), weights)


@pytest.mark.parametrize(
    ("shape", "geometry"),
    [
        ((4, 3, 3, 3), ConvGeometry()),
        ((2, 5, 3, 3), ConvGeometry(padding=(1, 1))),
        ((4, 3, 3, 2), ConvGeometry(stride=(2, 1))),
        ((4, 2, 2, 2), ConvGeometry(stride=(2, 2), groups=2)),
        ((3, 2, 1, 1), ConvGeometry()),
    ],
    ids=str,
)
def test_conv_penalty_is_the_matrixs_at_every_frequency(
    shape: tuple[int, ...], geometry: ConvGeometry
) -> None:
    weight = made(*shape).requires_grad_()
    got = conv_orthogonality_penalty([weight, weight * 2], geometry, beta=0.3)
    wanted = 0.0
    for factor in (1, 2):
        size = (9 * geometry.stride[0], 9 * geometry.stride[1])
        channels = shape[1] * geometry.groups
        images = torch.eye(channels * size[0] * size[1], dtype=torch.float64)
        circular = nn.functional.pad(
            images.reshape(-1, channels, *size), (0, shape[3] - 1, 0, shape[2] - 1), mode="circular"
        )
        matrix = nn.functional.conv2d(
            circular, weight.detach() * factor, stride=geometry.stride, groups=geometry.groups
        )
        matrix = matrix.flatten(1).t()
        gram = matrix @ matrix.t() if matrix.shape[0] <= matrix.shape[1] else matrix.t() @ matrix
        residual = (gram - torch.eye(len(gram))).square().sum()
        wanted += 0.15 * float(residual) / 81
    assert got.item() == pytest.approx(wanted, rel=1e-9)
    assert torch.autograd.gradcheck(
        lambda w: conv_orthogonality_penalty([w, w * 2], geometry, beta=0.3), weight
    )


def test_depthwise_penalty_counts_only_what_expands() -> None:
    shift = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    shift[:, :, 1, 2] = 1.0
    geometry = ConvGeometry(padding=(1, 1), groups=2)
    assert float(conv_orthogonality_penalty([shift * 0.5], geometry, beta=1.0)) == 0.0
    assert float(conv_orthogonality_penalty([shift], geometry, beta=1.0)) < 1e-20
    # Each of 2 channels: (4 - 1)^2 / 2.
    twice = conv_orthogonality_penalty([shift * 2], geometry, beta=1.0)
    assert float(twice) == pytest.approx(9.0)


def test_conv_penalty_brings_a_row_orthogonal_convolution_to_one() -> None:
    geometry = ConvGeometry(padding=(1, 1))
    weight = row_orthogonal(16, 16, 3).requires_grad_()
    assert max(conv_norm_bound(weight.detach(), geometry)) > 1.7
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    for _ in range(200):
        optimizer.zero_grad()
        conv_orthogonality_penalty([weight], geometry, beta=1.0).backward()
        optimizer.step()
    assert norm_of(conv_matrix(weight, geometry, input_size=(8, 8))) <= 1.02


def test_penalty_says_what_it_wanted() -> None:
    with pytest.raises(ConfigError, match="wanted at least one, got none"):
        orthogonality_penalty([], beta=1.0)
    with pytest.raises(ConfigError, match="wanted at least 2 axes each, got 1"):
        orthogonality_penalty([torch.ones(3)], beta=1.0)
    with pytest.raises(ConfigError, match="one or more of one shape"):
        conv_orthogonality_penalty([made(2, 2, 3, 3), made(2, 3, 3, 3)], ConvGeometry(), beta=1.0)
