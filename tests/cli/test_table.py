"""``effdl table``: tables in and out through the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result

Invoke = Callable[..., Result]
InvokeJson = Callable[..., dict[str, Any]]


def test_ofa_tables_come_back_equal(
    made_target: str, ofa_tables: Path, tmp_path: Path, invoke_json: InvokeJson
) -> None:
    out = tmp_path / "out"
    written = invoke_json("table", "export", "--target", made_target, "-o", out)
    assert written["paths"] == [str(out / "224_lookup_table.yaml")]
    rows = [
        yaml.safe_load((folder / "224_lookup_table.yaml").read_text())
        for folder in (ofa_tables, out)
    ]
    assert rows[0] == rows[1]
    assert written["num_entries"] == len(rows[0])


def test_jsonl_table_becomes_another_target(
    made_target: str, tmp_path: Path, invoke_json: InvokeJson
) -> None:
    file = tmp_path / "table.jsonl"
    invoke_json("table", "export", "--target", made_target, "--to", "jsonl", "-o", file)
    invoke_json("table", "import", file, "--name", "twin")
    shown = [invoke_json("table", "show", "--target", name) for name in (made_target, "twin")]
    assert shown[0]["entries"] == shown[1]["entries"]
    assert [s["target"] for s in shown] == [made_target, "twin"]


def test_show_gives_what_was_imported(
    made_target: str, ofa_tables: Path, invoke_json: InvokeJson, documented_keys: Any
) -> None:
    shown = invoke_json("table", "show", "--target", made_target)
    assert set(shown) == documented_keys("effdl table show") | {"schema_version"}
    rows = yaml.safe_load((ofa_tables / "224_lookup_table.yaml").read_text())
    assert {e["key"]: e["latency_ms"] for e in shown["entries"]} == {
        key: row["mean"] for key, row in rows.items()
    }
    assert shown["resolutions"] == [224]


def test_json_of_import_and_export_is_documented(
    ofa_tables: Path, tmp_path: Path, invoke_json: InvokeJson, documented_keys: Any
) -> None:
    done = invoke_json("table", "import", ofa_tables, "--name", "phone-2")
    assert set(done) == documented_keys("effdl table import") | {"schema_version"}
    done = invoke_json("table", "export", "--target", "phone-2", "-o", tmp_path / "o")
    assert set(done) == documented_keys("effdl table export") | {"schema_version"}


@pytest.mark.parametrize("name", ["gpu", "mobile", "cpu", "gpu-titan-rtx", "../evil", "A B", ""])
def test_names_that_cannot_be_a_users_target(
    name: str, ofa_tables: Path, invoke: Invoke, effdl_home: Path
) -> None:
    result = invoke("table", "import", ofa_tables, "--name", name)
    assert result.exit_code == 2
    assert list(effdl_home.rglob("*.jsonl")) == []
    assert list(effdl_home.parent.glob("evil*")) == []


def test_a_table_is_never_replaced(made_target: str, ofa_tables: Path, invoke: Invoke) -> None:
    result = invoke("table", "import", ofa_tables, "--name", made_target)
    assert result.exit_code == 2
    assert "already" in result.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1, 2]\n", "line 1"),
        ("a: {count: 1, mean: .nan, std: 0}\n", "line 1"),
        ("a: {count: 1, mean: -1, std: 0}\n", "line 1"),
        ("a: {count: 1, mean: 1, std: 0}\na: {count: 1, mean: 1, std: 0}\n", "line 2"),
        ("a: {count: 1, mean: 1, std: 'x", "YAML"),
        ("!!python/object/apply:os.system ['true']\n", "line 1"),
        ("", "no entries"),
    ],
)
def test_malformed_yaml_exits_7_and_leaves_nothing(
    text: str, says: str, tmp_path: Path, invoke: Invoke, effdl_home: Path
) -> None:
    file = tmp_path / "224_lookup_table.yaml"
    file.write_text(text)
    result = invoke("table", "import", file, "--name", "phone", "--format", "json")
    assert result.exit_code == 7
    assert says in json.loads(result.stdout)["error"]["message"]
    assert list(effdl_home.rglob("*.*")) == []


def test_a_fitted_target_has_no_table(invoke: Invoke) -> None:
    result = invoke("table", "show", "--target", "raspberry-pi-5")
    assert result.exit_code == 2
    assert "estimated" in result.stderr
