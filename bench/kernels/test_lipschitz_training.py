"""What quantized Lipschitz-constrained training costs, beside plain layers and PyTorch's."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from effdl.kernels.fake_quantize import fake_quantize_as
from effdl.kernels.lipschitz_conv2d.module import LipschitzConv2d
from effdl.kernels.quantization import relu6_parameters
from effdl.kernels.spectral_conv import ConvGeometry
from effdl.kernels.spectral_penalty import conv_orthogonality_penalty, orthogonality_penalty

Report = Callable[..., Mapping[str, float]]
Step = Callable[[], object]
FLOAT32_BYTES = 4


def step_of(module: nn.Module, x: Tensor, extra: Callable[[], Tensor] | None = None) -> Step:
    """Forward and backward."""

    def step() -> None:
        loss = module(x).square().mean()
        if extra is not None:
            loss = loss + extra()
        loss.backward()

    return step


@pytest.mark.parametrize("shape", [(32, 64, 56, 56), (64, 64, 3, 3)], ids=str)
def test_fake_quantization(
    benchmark: BenchmarkFixture, kernel_report: Report, shape: tuple[int, ...]
) -> None:
    """Forward and backward: one pass each."""
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 2).requires_grad_()
    grad = torch.ones(shape)
    parameters = relu6_parameters(4)

    def run(function: Callable[[], Tensor]) -> Step:
        return lambda: torch.autograd.grad(function(), x, grad)

    kernel_report(
        benchmark,
        kernel="fake_quantize",
        case="x".join(map(str, shape)),
        variants={
            "tvm": run(lambda: fake_quantize_as(x, parameters, backend="tvm")),
            "reference": run(lambda: fake_quantize_as(x, parameters, backend="reference")),
            "torch.fake_quantize": run(
                lambda: torch.fake_quantize_per_tensor_affine(x, float(parameters.scale), 0, 0, 15)
            ),
        },
        dtype="float32",
        bytes_moved=5 * FLOAT32_BYTES * x.numel(),
        operations=0,
    )


def test_lipschitz_convolution(benchmark: BenchmarkFixture, kernel_report: Report) -> None:
    """A training step of 64->64 3x3 on 32 images of 14 x 14."""
    torch.manual_seed(0)
    x = torch.randn(32, 64, 14, 14)
    settings: dict[str, Any] = {"padding": 1}
    plain = nn.Conv2d(64, 64, 3, **settings)
    geometry = ConvGeometry(padding=(1, 1))

    def penalty() -> Tensor:
        return conv_orthogonality_penalty([plain.weight], geometry, beta=1e-3)

    p20_ms = kernel_report(
        benchmark,
        kernel="lipschitz_training",
        case="step 3x3 64-64@14 batch 32",
        variants={
            "plain": step_of(plain, x),
            "LipschitzConv2d": step_of(LipschitzConv2d(64, 64, 3, **settings), x),
            "LipschitzConv2d reshaped": step_of(
                LipschitzConv2d(64, 64, 3, norm="reshaped", **settings), x
            ),
            "operator penalty": step_of(plain, x, penalty),
            "torch spectral_norm": step_of(
                parametrizations.spectral_norm(nn.Conv2d(64, 64, 3, **settings)), x
            ),
            "torch orthogonal": step_of(
                parametrizations.orthogonal(nn.Conv2d(64, 64, 3, **settings)), x
            ),
        },
        dtype="float32",
        bytes_moved=3 * FLOAT32_BYTES * (2 * x.numel() + plain.weight.numel()),
        operations=3 * 2 * plain.weight.numel() * 32 * 14 * 14,
    )
    for name, value in p20_ms.items():
        print(f"  {name}: {value / p20_ms['plain']:.3f} of a plain step")


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A backbone, and a batch of images."""
    from effdl.models.mobilenet_v2.network import mobilenet_v2
    from effdl.models.resnet.network import resnet18

    torch.manual_seed(0)
    module = resnet18() if name == "ResNet-18" else mobilenet_v2()
    return module, torch.randn(16, 3, 224, 224)


@pytest.mark.parametrize("name", ["ResNet-18", "MobileNetV2"])
def test_regulariser(benchmark: BenchmarkFixture, kernel_report: Report, name: str) -> None:
    """The published term over all layers of a network, beside a training step of 16 images."""
    module, x = network(name)
    weights = [p for p in module.parameters() if p.ndim > 1]

    def ours() -> object:
        return torch.autograd.grad(orthogonality_penalty(weights, beta=3e-4), weights)

    def naive() -> object:
        total = torch.zeros(())
        for weight in weights:
            matrix = weight.flatten(1)
            gram = matrix.t() @ matrix
            total = total + (gram - torch.eye(len(gram))).square().sum()
        return torch.autograd.grad(1.5e-4 * total, weights)

    def smaller() -> object:
        total = torch.zeros(())
        for weight in weights:
            matrix = weight.flatten(1)
            matrix = matrix if matrix.shape[0] > matrix.shape[1] else matrix.t()
            gram = matrix.t() @ matrix
            total = total + (gram - torch.eye(len(gram))).square().sum()
        return torch.autograd.grad(1.5e-4 * total, weights)

    gram = sum(min(w.shape[0], w[0].numel()) * w.numel() for w in weights)
    variants: dict[str, Step] = {
        "ours": ours,
        "smaller side, autograd": smaller,
        "training step": step_of(module, x),
    }
    if name == "MobileNetV2":
        variants["as published, autograd"] = naive
    p20_ms = kernel_report(
        benchmark,
        kernel="orthogonality_penalty",
        case=f"all layers of {name}, step of 16 images",
        variants=variants,
        dtype="float32",
        bytes_moved=3 * FLOAT32_BYTES * sum(w.numel() for w in weights),
        operations=2 * 2 * gram,
    )
    print(f"  {p20_ms['ours'] / p20_ms['training step']:.2%} of a step of 16 images")
