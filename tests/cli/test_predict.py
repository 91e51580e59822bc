"""``effdl predict`` through the command line."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from effdl.models.mobilenet_v3.space import ofa_mbv3_w10

Invoke = Callable[..., Result]
InvokeJson = Callable[..., dict[str, Any]]

SPACE = ("--space", "ofa-mbv3-w1.0")


@pytest.fixture
def configs(tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Random configurations at 224 px, alternately in effdl's and in OFA's words."""
    space = ofa_mbv3_w10().with_resolutions([224]).search_space
    rows = space.sample(20, np.random.default_rng(1))
    given = [space.decode(row).to_json() for row in rows]
    lines = []
    for i, config in enumerate(given):
        if i % 2:
            short = {"ks": "kernel_size", "e": "expand_ratio", "d": "depth"}
            lines.append({k: config[v] for k, v in short.items()} | {"r": [224]})
        else:
            lines.append(config)
    path = tmp_path / "configs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path, given


def test_predictions_are_in_order_and_the_contract(
    configs: tuple[Path, list[dict[str, Any]]],
    invoke_json: InvokeJson,
    documented_keys: Any,
) -> None:
    path, given = configs
    found = invoke_json("predict", "--configs", path, "--target", "raspberry-pi-5", *SPACE)
    assert set(found) == documented_keys("effdl predict") | {"schema_version"}
    assert [network["config"] for network in found["predictions"]] == given
    for network in found["predictions"]:
        assert set(network) == {
            *("config", "predicted_latency_ms", "latency_source", "reason"),
            *("accuracy", "params", "macs"),
        }
        assert network["latency_source"] == "estimated"
        assert 60 < network["accuracy"]["value"] < 80


def test_csv_and_json_agree(
    configs: tuple[Path, list[dict[str, Any]]],
    invoke: Invoke,
    invoke_json: InvokeJson,
) -> None:
    line = ("predict", "--configs", configs[0], "--target", "raspberry-pi-5", *SPACE)
    found = invoke_json(*line)["predictions"]
    rows = list(csv.DictReader(io.StringIO(invoke(*line, "--format", "csv").stdout)))
    assert [float(row["predicted_latency_ms"]) for row in rows] == [
        network["predicted_latency_ms"] for network in found
    ]
    assert [int(row["macs"]) for row in rows] == [network["macs"] for network in found]


def test_without_a_target_there_is_no_latency(
    configs: tuple[Path, list[dict[str, Any]]], invoke: Invoke, invoke_json: InvokeJson
) -> None:
    found = invoke_json("predict", "--configs", configs[0], *SPACE)
    assert found["target"] is None
    assert {network["predicted_latency_ms"] for network in found["predictions"]} == {None}
    result = invoke("predict", "--configs", configs[0], *SPACE, "--batch-size", 4)
    assert result.exit_code == 2


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        '{"a": 1}',
        '{"ks": "3", "e": 3, "d": 2, "r": 224}',
        json.dumps({"ks": [3] * 19, "e": [3] * 20, "d": [2] * 5, "r": 224}),
        json.dumps({"ks": [4] * 20, "e": [3] * 20, "d": [2] * 5, "r": 224}),
        json.dumps({"ks": [3] * 20, "e": [3] * 20, "d": [2] * 5, "r": 225}),
        json.dumps({"ks": [3] * 20, "e": [3] * 20, "d": [2] * 5, "r": float("nan")}),
        json.dumps({"ks": [True] * 20, "e": [3] * 20, "d": [2] * 5, "r": 224}),
        "\udcff",
    ],
)
def test_a_malformed_line_is_named(text: str, tmp_path: Path, invoke: Invoke) -> None:
    good = json.dumps({"ks": [3] * 20, "e": [3] * 20, "d": [2] * 5, "r": 224})
    path = tmp_path / "configs.jsonl"
    path.write_bytes(f"{good}\n{text}\n".encode(errors="surrogateescape"))
    result = invoke("predict", "--configs", path, *SPACE, "--format", "json")
    assert result.exit_code == 7
    assert "line 2" in json.loads(result.stdout)["error"]["message"]


def test_an_empty_file(tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "configs.jsonl").write_text("\n")
    assert invoke("predict", "--configs", tmp_path / "configs.jsonl", *SPACE).exit_code == 7


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_any_bytes_end_in_one_clear_error(data: bytes, tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "configs.jsonl").write_bytes(data)
    result = invoke("predict", "--configs", tmp_path / "configs.jsonl", *SPACE)
    assert result.exit_code == 7
    assert result.stderr.startswith("error: ")
