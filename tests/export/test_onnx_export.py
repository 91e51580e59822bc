"""The exporter: one clean, reproducible file, or none."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from effdl import __version__
from effdl.errors import ConfigError, ExportParityError, OutputError
from effdl.export.onnx_export import OnnxFile, export_onnx
from effdl.export.onnx_proto import graph_sha256

EXAMPLE = torch.zeros(2, 3, 8, 8)


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_file_says_what_it_is(exported: OnnxFile) -> None:
    data = exported.path.read_bytes()
    model = onnx.load_model_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert (model.producer_name, model.producer_version) == ("effdl", __version__)
    assert exported.num_bytes == len(data)
    assert exported.sha256 == hashlib.sha256(data).hexdigest()
    assert exported.num_nodes == len(model.graph.node)
    (image,), (logits,) = model.graph.input, model.graph.output
    shapes = [
        [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (image, logits)
    ]
    assert (image.name, logits.name) == ("image", "logits")
    assert shapes == [["N", 3, 8, 8], ["N", 5]]


def test_one_file_stands_in_the_folder(exported: OnnxFile) -> None:
    assert [p.name for p in exported.path.parent.iterdir()] == ["model.onnx"]


def test_batch_norm_is_folded_and_activations_stay_whole(exported: OnnxFile) -> None:
    kinds = {node.op_type for node in onnx.load(exported.path).graph.node}
    assert "BatchNormalization" not in kinds
    assert {"HardSwish", "HardSigmoid"} <= kinds


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7])
def test_any_batch_size_runs(network: nn.Module, exported: OnnxFile, batch_size: int) -> None:
    image = np.random.default_rng(batch_size).standard_normal(
        (batch_size, 3, 8, 8), dtype=np.float32
    )
    got = np.asarray(session_of(exported.path).run(None, {"image": image})[0])
    with torch.inference_mode():
        wanted = network(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_two_exports_have_the_same_bytes(
    network: nn.Module, exported: OnnxFile, tmp_path: Path
) -> None:
    metadata = {"effdl.note": "ä, b"}
    again = export_onnx(network, tmp_path / "again.onnx", example=EXAMPLE, metadata=metadata)
    assert again.path.read_bytes() == exported.path.read_bytes()
    assert again.sha256 == exported.sha256


def test_no_local_path_is_in_the_bytes(exported: OnnxFile) -> None:
    data = exported.path.read_bytes()
    leaks = (
        *(Path.cwd(), Path.home(), sys.prefix, sys.base_prefix, torch.__file__, __file__),
        *("site-packages", "conftest", 'File "', "stack_trace"),
    )
    assert [leak for leak in leaks if str(leak).encode() in data] == []


def test_metadata_survive_onnx_runtime(exported: OnnxFile) -> None:
    assert session_of(exported.path).get_modelmeta().custom_metadata_map == {
        "effdl.note": "ä, b",
        "effdl.exporter": f"torch {torch.__version__}",
        "effdl.graph_sha256": graph_sha256(onnx.load(exported.path)),
    }


def test_nothing_is_printed(
    network: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    export_onnx(network, tmp_path / "a.onnx", example=EXAMPLE, metadata={})
    assert capfd.readouterr() == ("", "")


def test_old_opset_is_refused_and_the_file_kept(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"before")
    with pytest.raises(ExportParityError, match=r"ai\.onnx 17"):
        export_onnx(network, path, example=EXAMPLE, metadata={}, opset_version=17)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_local_path_in_the_metadata_is_refused(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportParityError, match="/home/someone/weights"):
        export_onnx(
            network,
            tmp_path / "a.onnx",
            example=EXAMPLE,
            metadata={"effdl.source": "/home/someone/weights.safetensors"},
        )
    assert list(tmp_path.iterdir()) == []


def test_training_mode_is_refused(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="training mode"):
        export_onnx(network.train(), tmp_path / "a.onnx", example=EXAMPLE, metadata={})


def test_batch_of_one_is_refused(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch of 2 or more, got 1"):
        export_onnx(network, tmp_path / "a.onnx", example=EXAMPLE[:1], metadata={})


def test_more_than_one_file_can_hold_is_refused(tmp_path: Path) -> None:
    # 20,000 x 20,000 float32 weights, on no device: 1.6 GB that take no memory.
    module = nn.Linear(20_000, 20_000, device="meta").eval()
    with pytest.raises(ConfigError, match="got 1600080000"):
        export_onnx(module, tmp_path / "a.onnx", example=torch.zeros(2, 20_000), metadata={})


def test_folder_that_is_a_file(network: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        export_onnx(network, tmp_path / "file" / "a.onnx", example=EXAMPLE, metadata={})
