"""``effdl export --precision int8`` through the command line: keys, notes, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

Invoke = Callable[..., Result]

CONFIG = {"kernel_size": [3] * 20, "expand_ratio": [3] * 20, "depth": [2] * 5, "resolution": 160}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        coarse = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((160, 140)).save(folder / f"{i}.jpg")
    return folder


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (("--calibration-data", "."), "--precision int8"),
        (("--precision", "int8", "--to", "tvm"), "--to onnx"),
        (("--precision", "int8", "--triple", "x86_64-linux-gnu"), "--to tvm"),
    ],
)
def test_options_that_do_not_go_together(
    options: tuple[str, ...], hint: str, invoke: Invoke, config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.onnx"
    result = invoke("export", config, *options, "-o", out, "--format", "json")
    assert result.exit_code == 2, result.stderr
    assert hint in json.loads(result.stdout)["error"]["hint"]
    assert not out.exists()


def test_a_folder_without_photos(invoke: Invoke, config: Path, tmp_path: Path) -> None:
    line = ("export", config, "--precision", "int8", "--calibration-data", tmp_path)
    result = invoke(*line, "-o", tmp_path / "m.onnx")
    assert result.exit_code == 2
    assert "photos" in result.stderr


@pytest.mark.proof
def test_whole_network(
    invoke: Invoke, config: Path, photos: Path, tmp_path: Path, documented_keys: Any
) -> None:
    out = tmp_path / "int8.onnx"
    line = ("export", config, "--precision", "int8", "-o", out)
    result = invoke(*line, "--calibration-data", photos, "--format", "json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    more = documented_keys("effdl export", "The JSON then has\n")
    assert set(found) == documented_keys("effdl export") | more | {"schema_version"}
    assert found["bytes"] == out.stat().st_size
    for choice in found["operators"]:
        assert choice["precision"] == "fp32" or choice["int8_ms"] <= choice["fp32_ms"]
    if found["num_int8"]:
        assert found["latency_ms"]["int8"] <= found["latency_ms"]["fp32"]
    assert "made inputs" not in result.stderr
    assert invoke("verify", out).exit_code == 0
    made = invoke(*line)
    assert made.exit_code == 0, made.stderr
    assert "made inputs" in made.stderr
