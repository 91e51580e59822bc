"""Two files against each other."""

import json
from pathlib import Path

import pytest

from effdl.errors import ConfigError
from effdl.models.mobilenet_v3.onnx_graph import build_operator
from effdl.models.mobilenet_v3.operators import ConvShape
from effdl.targets.target import load_target
from effdl.workflows.compare import compare_models


def _write(path: Path, *, size: int = 28, kernel_size: int = 1) -> Path:
    shape = ConvShape(
        name="Conv_1", in_size=size, in_channels=64, out_channels=64, kernel_size=kernel_size
    )
    path.write_bytes(build_operator(shape, 1))
    return path


def test_the_faster_file_is_named(tmp_path: Path):
    """49 times the arithmetic; any of it that shows is enough."""
    fast = _write(tmp_path / "fast.onnx")
    slow = _write(tmp_path / "slow.onnx", kernel_size=7)
    done = compare_models(load_target("cpu"), fast, slow, budget_s=5.0)
    assert done.ratio.value > 5
    assert done.faster == fast
    assert done.difference.max_absolute > 0
    facts = done.to_json()
    assert [m["path"] for m in facts["models"]] == [str(fast), str(slow)]
    assert facts["ratio"]["low"] <= facts["ratio"]["value"] <= facts["ratio"]["high"]
    assert json.loads(json.dumps(facts, allow_nan=False))["faster"] == str(fast)
    back = compare_models(load_target("cpu"), slow, fast, budget_s=5.0)
    assert back.faster == fast
    assert back.ratio.value < 0.2


def test_equal_files_agree(tmp_path: Path):
    path = _write(tmp_path / "a.onnx")
    done = compare_models(load_target("cpu"), path, path, budget_s=2.0)
    assert done.difference.max_absolute == 0.0
    assert done.ratio.value == pytest.approx(1.0, abs=0.5)


def test_different_inputs_are_said(tmp_path: Path):
    with pytest.raises(ConfigError, match="different inputs"):
        compare_models(
            load_target("cpu"), _write(tmp_path / "a.onnx"), _write(tmp_path / "b.onnx", size=30)
        )
