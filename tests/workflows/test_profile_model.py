"""One file of a user."""

import json
from pathlib import Path

import pytest

from effdl.errors import ConfigError, CorruptFileError, TargetUnavailableError
from effdl.models.mobilenet_v3.onnx_graph import build_operator
from effdl.models.mobilenet_v3.operators import BlockShape
from effdl.targets.target import Target, load_target
from effdl.workflows.profile_model import profile_model

_BLOCK = BlockShape(
    in_size=14, in_channels=16, mid_channels=48, out_channels=16, kernel_size=3, stride=1,
    squeeze_excite=True, activation="hswish", skip=True,
)  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(build_operator(_BLOCK, 2))
    return path


def test_latency_nodes_and_memory(model: Path):
    done = profile_model(load_target("cpu"), model, budget_s=1.0)
    facts = done.to_json()
    latency = facts["latency_ms"]
    assert 0 < latency["p20"] <= latency["p50"] <= latency["p95"]
    assert facts["batch_size"] == 2
    assert facts["peak_memory_bytes"] > 0
    assert "Conv" in {node["operator"] for node in facts["nodes"]}
    assert json.loads(json.dumps(facts, allow_nan=False))["path"] == str(model)


def test_errors(model: Path, tmp_path: Path):
    host = load_target("cpu")
    phone = Target(
        name="phone", device="a phone", kind="phone", runtime="TF-Lite", description="A phone."
    )
    with pytest.raises(TargetUnavailableError):
        profile_model(phone, model)
    with pytest.raises(ConfigError, match="no such file"):
        profile_model(host, tmp_path / "none.onnx")
    with pytest.raises(ConfigError, match="batch size 2 and no other"):
        profile_model(host, model, batch_size=5)
    with pytest.raises(ConfigError, match="at least 1"):
        profile_model(host, model, batch_size=0)
    model.write_bytes(b"not a model")
    with pytest.raises(CorruptFileError, match="cannot run"):
        profile_model(host, model)
