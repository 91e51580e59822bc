"""``effdl profile``, ``compare`` and ``doctor`` through the command line, on tiny files."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import Result
from onnx import TensorProto, helper

Invoke = Callable[..., Result]
InvokeJson = Callable[..., dict[str, Any]]


def write_model(path: Path, num_layers: int) -> Path:
    """A chain of matrix products of a free batch with 64 x 64 weights of 1/64."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [64, 64], [1 / 64] * 64 * 64)
    names = ["x", *(f"h{i}" for i in range(1, num_layers)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], "w"], [names[i + 1]]) for i in range(num_layers)]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64])],
        [weights],
    )
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_profile_of_a_file(
    tmp_path: Path, invoke: Invoke, invoke_json: InvokeJson, documented_keys: Any
) -> None:
    model = write_model(tmp_path / "m.onnx", 3)
    line = ("profile", "--target", "cpu", model, "--budget", "1s", "--batch-size", 8)
    found = invoke_json(*line)
    assert set(found) == documented_keys("effdl profile", "Of a file: ") | {"schema_version"}
    assert found["batch_size"] == 8
    assert 0 < found["latency_ms"]["p20"] <= found["latency_ms"]["p50"]
    assert found["latency_ms"]["p50"] <= found["latency_ms"]["p95"]
    assert sum(node["operator"] == "MatMul" for node in found["nodes"]) == 3
    assert "p50 [ms]" in invoke(*line).stdout


@pytest.mark.parametrize("option", ["--quick", "--dry-run", "--seed=1", "--space=ofa-mbv3-w1.0"])
def test_options_of_spaces_have_no_effect_on_a_file(
    option: str, tmp_path: Path, invoke: Invoke
) -> None:
    model = write_model(tmp_path / "m.onnx", 1)
    assert invoke("profile", "--target", "cpu", model, option).exit_code == 2


def test_profile_of_what_is_no_model(tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x0a not a model")
    assert invoke("profile", "--target", "cpu", tmp_path / "m.onnx").exit_code == 7
    assert invoke("profile", "--target", "cpu", tmp_path / "absent.onnx").exit_code == 2


@pytest.mark.parametrize("target", ["mobile", "gpu-h100"])
def test_only_this_machine_is_measured(target: str, tmp_path: Path, invoke: Invoke) -> None:
    model = write_model(tmp_path / "m.onnx", 1)
    assert invoke("profile", "--target", target, model).exit_code == 4
    assert invoke("profile", "--target", target).exit_code == 4
    assert invoke("compare", model, model, "--target", target).exit_code == 4


def test_a_dry_run_measures_and_writes_nothing(
    invoke_json: InvokeJson, documented_keys: Any
) -> None:
    line = ("profile", "--target", "cpu", "--quick", "--dry-run")
    first, second = invoke_json(*line), invoke_json(*line)
    assert set(first) == documented_keys("effdl profile") | {"schema_version"}
    assert first["num_cached"] == second["num_cached"] == 0
    assert first["num_measured"] + first["num_interpolated"] == first["num_entries"]
    assert first["calibration"] is None
    assert first["seconds"] > 0


def test_compare_finds_the_faster_and_equal_outputs(
    tmp_path: Path, invoke_json: InvokeJson, documented_keys: Any
) -> None:
    short, long = (write_model(tmp_path / f"{n}.onnx", n) for n in (1, 60))
    found = invoke_json("compare", short, long, "--target", "cpu", "--budget", "2s")
    assert set(found) == documented_keys("effdl compare") | {"schema_version"}
    assert found["ratio"]["low"] > 1
    assert found["faster"] == str(short)
    twin = write_model(tmp_path / "twin.onnx", 1)
    found = invoke_json("compare", short, twin, "--target", "cpu", "--budget", "2s")
    assert found["output_difference"]["max_absolute"] == 0


def test_doctor_finds_what_this_test_runs_on(invoke_json: InvokeJson, documented_keys: Any) -> None:
    found = invoke_json("doctor")
    assert set(found) == documented_keys("effdl doctor") | {"schema_version"}
    by_name = {check["name"]: check for check in found["checks"]}
    assert found["ok"]
    assert by_name["onnx"]["found"] == onnx.__version__
    assert all(check["command"] for check in found["checks"] if not check["ok"])


def test_doctor_says_when_the_main_job_cannot_be_done(
    tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EFFDL_HOME", str(tmp_path / "file" / "below"))
    result = invoke("doctor", "--format", "json")
    assert result.exit_code == 4
    value = json.loads(result.stdout)
    assert not value["ok"]
    assert value["error"]["hint"]


@pytest.mark.proof
def test_a_terminated_profile_keeps_what_it_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "effdl.cli", "profile", "--target", "cpu", "--quick"]
    store = tmp_path / "measurements.sqlite"

    def num_rounds() -> int:
        if not store.exists():
            return 0
        with contextlib.closing(sqlite3.connect(store)) as database:
            (num,) = database.execute("SELECT count(*) FROM round").fetchone()
        return num

    with subprocess.Popen(
        [*command, "--format", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "EFFDL_HOME": str(tmp_path)},
    ) as running:
        deadline = time.monotonic() + 120
        while num_rounds() < 10 and time.monotonic() < deadline:
            time.sleep(0.5)
        running.terminate()
        out, _ = running.communicate(timeout=30)
    assert running.returncode == 143
    assert json.loads(out)["error"]["type"] == "InterruptedError"
    assert num_rounds() >= 10
