"""``effdl export --to tvm`` through the command line: the keys, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from effdl.errors import BackendUnavailableError
from effdl.workflows import export_tvm

Invoke = Callable[..., Result]

CONFIG = {"kernel_size": [3] * 20, "expand_ratio": [3] * 20, "depth": [2] * 5, "resolution": 160}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


def error_of(result: Result) -> dict[str, Any]:
    return json.loads(result.stdout)["error"]


def test_triple_without_tvm_has_no_effect(invoke: Invoke, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    result = invoke("export", config, "--triple", "x86_64-linux-gnu", "-o", out, "--format", "json")
    assert result.exit_code == 2
    assert error_of(result)["hint"] == "add --to tvm"
    assert not out.exists()


def test_unknown_triple(invoke: Invoke, config: Path, tmp_path: Path) -> None:
    line = ("export", config, "--to", "tvm", "--triple", "arm64-linux-gnu", "-o", tmp_path / "m.so")
    result = invoke(*line, "--format", "json")
    assert result.exit_code == 2
    assert "aarch64-linux-gnu" in error_of(result)["message"]


def test_missing_tool_is_exit_4_with_the_command(
    invoke: Invoke, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(triple: str) -> None:
        raise BackendUnavailableError(f"nothing links for {triple}", hint="pip install ziglang")

    monkeypatch.setattr(export_tvm, "find_tvm", lambda: None)
    monkeypatch.setattr(export_tvm, "find_linker", missing)
    result = invoke("export", config, "--to", "tvm", "-o", tmp_path / "m.so", "--format", "json")
    assert result.exit_code == 4
    assert error_of(result)["hint"] == "pip install ziglang"
    assert error_of(result)["message"] == "nothing links for aarch64-linux-gnu"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json"]


@pytest.mark.proof
def test_library_of_a_whole_network(
    invoke: Invoke, config: Path, tmp_path: Path, native_triple: str
) -> None:
    line = ("export", config, "--to", "tvm", "--triple", native_triple, "-o", tmp_path / "m.so")
    result = invoke(*line, "--format", "json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert {"path", "bytes", "triple", "parity", "metadata_path", "runtime"} <= set(found)
    assert found["bytes"] == (tmp_path / "m.so").stat().st_size
    assert found["parity"]["checked"] == "the library itself, on this machine"
    assert found["parity"]["max_relative_error"] <= 1e-5
    assert "untrained" in result.stderr
