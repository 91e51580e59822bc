"""A small network with everything the exporter has to fold, and its export."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from effdl.export.onnx_export import OnnxFile, export_onnx


class Gated(nn.Module):
    """Convolution with batch norm, a squeeze-excite gate, a residual and a classifier."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.gate = nn.Conv2d(4, 4, 1)
        self.classifier = nn.Linear(4, 5)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.norm(self.convolution(x)))
        x = x + x * nn.functional.hardsigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.classifier(x.mean((2, 3))) * self.scale


def make_network(scale: float = 1.0) -> Gated:
    """The network with made weights and running statistics, in evaluation mode."""
    generator = torch.Generator().manual_seed(3)
    network = Gated(scale).eval()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return network


@pytest.fixture
def network() -> nn.Module:
    return make_network()


@pytest.fixture
def make_scaled() -> Callable[[float], nn.Module]:
    """Makes the network with its outputs multiplied by a number."""
    return make_network


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> OnnxFile:
    """The network as a file that tests may read but not change."""
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    return export_onnx(
        make_network(), path, example=torch.zeros(2, 3, 8, 8), metadata={"effdl.note": "ä, b"}
    )


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., Path]:
    """Exports a module of images [batch, 3, 8, 8] into a file of the test's own."""

    def call(module: nn.Module, name: str = "made.onnx") -> Path:
        path = tmp_path / name
        return export_onnx(module, path, example=torch.zeros(2, 3, 8, 8), metadata={}).path

    return call
