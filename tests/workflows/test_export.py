"""Exporting a sub-network: verified, marked, and all or nothing."""

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from effdl.errors import ConfigError, CorruptFileError, ExportParityError, OutputError
from effdl.models.mobilenet_v3.network import (
    MobileNetV3Supernet,
    build_subnet,
    load_supernet,
    save_supernet,
)
from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.search.space import SubnetConfig
from effdl.workflows.export import export_subnet, require_supported


def run(path: Path, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": image})[0])


def metadata_of(path: Path) -> dict[str, str]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.get_modelmeta().custom_metadata_map


@pytest.mark.parametrize("batch_size", [1, 7])
def test_untrained_file_computes_the_untrained_network(
    small_space: MobileNetV3Space, small_config: SubnetConfig, untrained_onnx: Path, batch_size: int
) -> None:
    image = np.random.default_rng(0).standard_normal((batch_size, 3, 32, 32), dtype=np.float32)
    with torch.inference_mode():
        wanted = build_subnet(small_space, small_config, seed=3)(torch.from_numpy(image)).numpy()
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(run(untrained_onnx, image), wanted, rtol=0, atol=1e-5 * scale)


def test_untrained_file_says_so(untrained_onnx: Path) -> None:
    metadata = metadata_of(untrained_onnx)
    assert metadata["effdl.weights"] == "untrained seed=3"
    assert metadata["effdl.space"] == "small"
    assert metadata["effdl.target"] == "phone"
    assert metadata["effdl.predicted_latency_ms"] == "20.5"
    assert metadata["effdl.config"] == (
        '{"depth":[1],"expand_ratio":[3,0],"kernel_size":[5,0],"resolution":32}'
    )


def test_trained_file_computes_the_supernet(
    small_space: MobileNetV3Space,
    small_config: SubnetConfig,
    small_weights: Path,
    trained_onnx: Path,
) -> None:
    image = np.random.default_rng(1).standard_normal((2, 3, 32, 32), dtype=np.float32)
    with torch.inference_mode():
        supernet = load_supernet(small_weights, small_space)
        wanted = supernet(torch.from_numpy(image), small_config).numpy()
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(run(trained_onnx, image), wanted, rtol=0, atol=1e-5 * scale)
    sha256 = hashlib.sha256(small_weights.read_bytes()).hexdigest()
    assert metadata_of(trained_onnx)["effdl.weights"] == f"sha256:{sha256}"


def test_result_and_bytes_are_the_same_again(
    small_space: MobileNetV3Space, untrained_onnx: Path, tmp_path: Path
) -> None:
    # Short names, and values where nothing is: the same network.
    config = {"d": [1], "ks": [5, 3], "e": [3, 2], "r": [32]}
    again = export_subnet(
        space=small_space,
        config=config,
        out=tmp_path / "again.onnx",
        seed=3,
        target_info={"target": "phone", "predicted_latency_ms": "20.5"},
    )
    data = untrained_onnx.read_bytes()
    assert again.path.read_bytes() == data
    facts = again.to_json()
    assert facts["path"] == str(tmp_path / "again.onnx")
    assert (facts["opset"], facts["bytes"], facts["precision"]) == (20, len(data), "fp32")
    assert facts["weights"] == "untrained seed=3"
    assert facts["sha256"] == hashlib.sha256(data).hexdigest()
    parity = facts["parity"]
    assert isinstance(parity, dict)
    assert parity["batch_sizes"] == [1, 2, 5]
    assert 0.0 <= parity["max_relative_error"] < 1e-5
    assert [p.name for p in tmp_path.iterdir()] == ["again.onnx"]


def test_failed_parity_leaves_what_was_there(
    small_space: MobileNetV3Space, small_config: SubnetConfig, tmp_path: Path
) -> None:
    supernet = MobileNetV3Supernet(small_space, seed=0).eval()
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.fill_(1e20)
    weights, out = tmp_path / "huge.safetensors", tmp_path / "model.onnx"
    save_supernet(supernet, weights)
    out.write_bytes(b"before")
    with pytest.raises(ExportParityError) as caught:
        export_subnet(space=small_space, config=small_config, out=out, weights=weights)
    assert caught.value.exit_code == 6
    assert out.read_bytes() == b"before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["huge.safetensors", "model.onnx"]


def test_configuration_of_another_space(small_space: MobileNetV3Space, tmp_path: Path) -> None:
    config = {"depth": [4], "kernel_size": [3, 3], "expand_ratio": [2, 2], "resolution": 32}
    with pytest.raises(ConfigError, match="depth"):
        export_subnet(space=small_space, config=config, out=tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_kind(
    small_space: MobileNetV3Space, small_config: SubnetConfig, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"\x80\x04pickled")
    with pytest.raises(CorruptFileError):
        export_subnet(
            space=small_space, config=small_config, out=tmp_path / "m.onnx", weights=weights
        )
    with pytest.raises(ConfigError):
        export_subnet(
            space=small_space,
            config=small_config,
            out=tmp_path / "m.onnx",
            weights=tmp_path / "absent.safetensors",
        )


def test_negative_seed(
    small_space: MobileNetV3Space, small_config: SubnetConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="got -1"):
        export_subnet(space=small_space, config=small_config, out=tmp_path / "m.onnx", seed=-1)


def test_output_that_is_a_folder(
    small_space: MobileNetV3Space, small_config: SubnetConfig, tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="taken"):
        export_subnet(space=small_space, config=small_config, out=tmp_path / "taken")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize(
    ("precision", "container", "said"),
    [("int4", "onnx", "int4"), ("fp32", "coreml", "coreml"), ("int8", "tvm", "int8")],
)
def test_what_is_not_there_is_refused(precision: str, container: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        require_supported(precision=precision, container=container)
    for known in (("fp32", "onnx"), ("fp32", "tvm"), ("int8", "onnx")):
        require_supported(precision=known[0], container=known[1])
