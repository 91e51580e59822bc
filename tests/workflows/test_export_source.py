"""Run folders and configuration files as sources of an export."""

import json
from pathlib import Path
from typing import Any

import pytest

from effdl.errors import ConfigError, CorruptFileError
from effdl.workflows.export_source import read_export_source


def network(depth: int, accuracy: float | None, latency_ms: float) -> dict[str, Any]:
    value = None if accuracy is None else {"metric": "top-1", "value": accuracy, "unit": "percent"}
    return {
        "config": {"depth": [depth], "resolution": 32},
        "predicted_latency_ms": latency_ms,
        "measured_latency_ms": None,
        "accuracy": value,
        "params": 1,
        "macs": 1,
        "onnx": None,
    }


def run_of(**changes: Any) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "target": {
            "name": "mobile-note10",
            "device": "Samsung Note10",
            "batch_size": 1,
            "runtime": "TF-Lite",
            "latency_source": "measured",
        },
        "space": "small",
        "best": network(4, 78.0, 25.1234567),
        "top": [network(4, 78.0, 25.1234567)],
        "pareto_front": [
            network(1, 70.0, 10.0),
            network(3, 76.0, 20.0),
            network(2, 74.0, 15.0),
            network(4, 78.0, 25.1234567),
        ],
        **changes,
    }


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_best_of_a_run_folder(tmp_path: Path) -> None:
    write(tmp_path / "result.json", run_of())
    for path in (tmp_path, tmp_path / "result.json"):
        found = read_export_source(path)
        assert found.config == {"depth": [4], "resolution": 32}
        assert found.space == "small"
        assert found.target_info == {
            "target": "mobile-note10",
            "device": "Samsung Note10",
            "runtime": "TF-Lite",
            "batch_size": "1",
            "latency_source": "measured",
            "predicted_latency_ms": "25.1235",
        }


def test_ranks_go_on_down_the_front(tmp_path: Path) -> None:
    write(tmp_path / "result.json", run_of())
    depths = [read_export_source(tmp_path, rank=rank).config["depth"] for rank in (1, 2, 3, 4)]
    assert depths == [[4], [3], [2], [1]]
    for rank in (0, 5, -1):
        with pytest.raises(ConfigError, match=f"rank wanted 1 to 4 .* got {rank}"):
            read_export_source(tmp_path, rank=rank)


def test_top_comes_first(tmp_path: Path) -> None:
    top = [network(4, 78.0, 25.0), network(9, 77.9, 24.0)]
    write(tmp_path / "result.json", run_of(top=top))
    assert read_export_source(tmp_path, rank=2).config["depth"] == [9]


@pytest.mark.parametrize("wrapped", [False, True])
def test_configuration_file(tmp_path: Path, wrapped: bool) -> None:
    config = {"ks": [3], "e": [3], "d": [2], "r": 224}
    content = {"space": "ofa-mbv3-w1.0", "config": config} if wrapped else config
    found = read_export_source(write(tmp_path / "config.json", content))
    assert found.config == config
    assert found.space == ("ofa-mbv3-w1.0" if wrapped else None)
    assert found.target_info == {}


def test_rank_of_a_configuration_file_has_no_effect(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no effect"):
        read_export_source(write(tmp_path / "config.json", {"d": [2]}), rank=2)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1, 2]",
        b'"text"',
        b"\xff\xfe",
        b'{"config": 3}',
        b"[" * 100_000,
        b'{"best": {}}',
        json.dumps(run_of(schema_version=2)).encode(),
        json.dumps(run_of(best={"config": "?"})).encode(),
        json.dumps(run_of(pareto_front=None)).encode(),
        json.dumps(run_of(target={"name": 3})).encode(),
    ],
)
def test_malformed_source(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError):
        read_export_source(path)


def test_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"result\.json"):
        read_export_source(tmp_path)
    write(tmp_path / "result.json", {"d": [2]})
    with pytest.raises(CorruptFileError, match="not the result of a search"):
        read_export_source(tmp_path)
