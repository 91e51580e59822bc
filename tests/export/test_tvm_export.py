"""A library for a board computes what the network computes, or does not appear."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from effdl.errors import ExportParityError
from effdl.export.onnx_export import export_onnx
from effdl.export.tvm_export import export_tvm
from effdl.targets.measure.tvm_target import TvmTarget


class Network(nn.Module):
    """A convolution, pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.linear = nn.Linear(4, 5)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.linear(nn.functional.hardswish(self.conv(image)).mean((2, 3)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, bytes]:
    path = tmp_path_factory.mktemp("tvm") / "m.onnx"
    network = Network().eval()
    export_onnx(network, path, example=torch.zeros(2, 3, 9, 9), metadata={})
    return network, path.read_bytes()


def test_library_is_verified(exported: tuple[Network, bytes], native_triple: str) -> None:
    network, model = exported
    library = export_tvm(
        model, network, target=TvmTarget(triple=native_triple), sample_shape=(3, 9, 9)
    )
    assert library.data[:4] == b"\x7fELF"
    assert library.parity.checked == "the library itself, on this machine"
    assert library.parity.max_relative_error <= 1e-5
    assert (library.parity.batch_sizes, library.parity.num_cases) == ((1,), 7)


def test_another_network_is_noticed(
    exported: tuple[Network, bytes], native_triple: str, tmp_path: Path
) -> None:
    """One weight of the file is 0.1 % off: within a picture's noise, beyond rounding."""
    network, model = exported
    proto = onnx.load_model_from_string(model)
    weight = next(t for t in proto.graph.initializer if t.name == "linear.weight")
    values = numpy_helper.to_array(weight).copy()
    values.flat[np.abs(values).argmax()] *= np.float32(1.001)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with pytest.raises(ExportParityError, match="does not follow PyTorch") as error:
        export_tvm(
            proto.SerializeToString(),
            network,
            target=TvmTarget(triple=native_triple),
            sample_shape=(3, 9, 9),
        )
    assert error.value.exit_code == 6
