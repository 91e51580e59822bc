"""``effdl profile --ops kernels`` through the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from effdl.cli import names

Invoke = Callable[..., Result]
InvokeJson = Callable[..., dict[str, Any]]
LINE = ("profile", "--target", "cpu", "--ops", "kernels")


@pytest.mark.parametrize(
    "option", ["--space=ofa-mbv3-w1.0", "--runtime=onnxruntime", "--cluster=tcp://x:1", "--seed=1"]
)
def test_options_of_spaces_have_no_effect_on_kernels(option: str, invoke: Invoke) -> None:
    result = invoke(*LINE, option, "--format", "json")
    assert result.exit_code == 2
    assert option.partition("=")[0] in json.loads(result.stdout)["error"]["message"]


def test_kernels_have_no_effect_on_a_file(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    result = invoke(*LINE, tmp_path / "m.onnx")
    assert result.exit_code == 2
    assert "--ops" in result.stderr


def test_unknown_operators(invoke: Invoke) -> None:
    assert invoke("profile", "--target", "cpu", "--ops", "layers").exit_code == 2
    assert names.OPS_NAMES == ("kernels",)


@pytest.mark.parametrize("target", ["mobile", "gpu-h100"])
def test_only_this_processor_is_measured(target: str, invoke: Invoke) -> None:
    assert invoke("profile", "--target", target, "--ops", "kernels").exit_code == 4


@pytest.mark.proof
def test_kernels_are_measured_once(invoke_json: InvokeJson, documented_keys: Any) -> None:
    dry = invoke_json(*LINE, "--quick", "--dry-run")
    assert set(dry) == documented_keys("effdl profile", "Of kernels: ") | {"schema_version"}
    assert dry["operators"] == []
    assert dry["num_measured"] == dry["num_entries"] > 0
    found = invoke_json(*LINE, "--quick", "--budget", "3m")
    assert found["num_measured"] == dry["num_measured"]
    assert {operator["kernel"] for operator in found["operators"]} >= {"temporal_shift"}
    for operator in found["operators"]:
        latencies = [one["latency_ms"] for one in operator["implementations"]]
        assert latencies == sorted(latencies)
        assert operator["fastest"] == operator["implementations"][0]["name"]
        assert "onnxruntime" in {one["name"] for one in operator["implementations"]}
    again = invoke_json(*LINE, "--quick")
    assert again["num_cached"] + again["num_measured"] == again["num_entries"]
    assert again["num_cached"] == found["num_entries"] - found["num_partial"]
