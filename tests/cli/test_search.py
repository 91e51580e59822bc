"""``effdl search``, ``export`` and ``verify`` through the command line, on a made target."""

import csv
import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import Result

from effdl.models.mobilenet_v3.space import ofa_mbv3_w10

Invoke = Callable[..., Result]
InvokeJson = Callable[..., dict[str, Any]]
Run = Callable[..., "subprocess.CompletedProcess[str]"]

SPACE = ("--space", "ofa-mbv3-w1.0")
FAST = ("--effort", "fast", "--max-evaluations", 2000)
LIMIT_MS = 25.0


def search_line(target: str, latency: str = f"{LIMIT_MS}ms") -> tuple[object, ...]:
    return ("search", "--target", target, "--latency", latency, *SPACE, *FAST)


def table_ms(ofa_tables: Path, config: dict[str, Any]) -> float:
    """The latency of one configuration, added up from the YAML file by another way."""
    rows = yaml.safe_load((ofa_tables / "224_lookup_table.yaml").read_text())
    space = ofa_mbv3_w10().with_resolutions([224])
    row = space.search_space.encode(config)
    decoded = space.search_space.decode(row)
    return sum(rows[shape.spec().key]["mean"] for _, shape in space.shapes(decoded))


def test_json_is_the_contract(
    made_target: str, ofa_tables: Path, invoke_json: InvokeJson, documented_keys: Any
) -> None:
    found = invoke_json(*search_line(made_target), "--no-export", "--top-k", 3)
    assert set(found) == documented_keys("effdl search") | {"schema_version"}
    assert found["target"] == {
        "name": made_target,
        "device": made_target,
        "batch_size": 1,
        "runtime": "unknown",
        "latency_source": "measured",
    }
    assert found["constraints"] == {"latency_ms": LIMIT_MS}
    assert found["best"] == found["top"][0]
    assert len(found["top"]) == 3
    assert found["out"] is None
    for network in (*found["top"], *found["pareto_front"]):
        assert network["predicted_latency_ms"] <= LIMIT_MS
        assert set(network["accuracy"]) == {"metric", "value", "unit", "raw", "source"}
    for network in (found["best"], found["pareto_front"][0]):
        expected = table_ms(ofa_tables, network["config"])
        assert network["predicted_latency_ms"] == pytest.approx(expected, rel=1e-9)
    front = found["pareto_front"]
    latencies = [network["predicted_latency_ms"] for network in front]
    accuracies = [network["accuracy"]["value"] for network in front]
    assert latencies == sorted(latencies)
    assert accuracies == sorted(accuracies)
    assert found["best"]["accuracy"]["value"] == max(accuracies)


def test_same_seed_same_answer(made_target: str, invoke_json: InvokeJson) -> None:
    def answer(seed: int) -> dict[str, Any]:
        found = invoke_json(*search_line(made_target), "--no-export", "--seed", seed)
        return {key: value for key, value in found.items() if not key.endswith("_seconds")}

    assert answer(3) == answer(3)
    assert answer(3)["pareto_front"] != answer(4)["pareto_front"]


def test_frames_per_second_and_milliseconds_are_one_limit(
    made_target: str, invoke_json: InvokeJson
) -> None:
    found = [
        invoke_json(*search_line(made_target, text), "--no-export") for text in ("25ms", "40fps")
    ]
    assert found[0]["constraints"] == found[1]["constraints"] == {"latency_ms": 25.0}
    assert found[0]["best"] == found[1]["best"]


def test_every_limit_is_kept(made_target: str, invoke_json: InvokeJson) -> None:
    limits = ("--macs", "240MMACs", "--params", "5.2Mparams", "--peak-memory", "4MiB")
    found = invoke_json(*search_line(made_target), "--no-export", *limits)
    assert found["constraints"] == {
        "latency_ms": 25.0,
        "macs": 2.4e8,
        "params": 5.2e6,
        "peak_memory_bytes": 4 * 2**20,
    }
    assert found["best"]["macs"] <= 2.4e8
    assert found["best"]["params"] <= 5.2e6


def test_infeasible_names_the_fastest_and_that_is_feasible(
    made_target: str, ofa_tables: Path, invoke: Invoke, invoke_json: InvokeJson
) -> None:
    result = invoke(*search_line(made_target, "1ms"), "--no-export", "--format", "json")
    assert result.exit_code == 3
    fastest_ms = json.loads(result.stdout)["error"]["fastest_latency_ms"]
    smallest = {"kernel_size": [3] * 20, "expand_ratio": [3] * 20, "depth": [2] * 5}
    assert fastest_ms == pytest.approx(table_ms(ofa_tables, {**smallest, "resolution": 224}))
    found = invoke_json(*search_line(made_target, f"{fastest_ms * (1 + 1e-9)}ms"), "--no-export")
    assert found["best"]["predicted_latency_ms"] == pytest.approx(fastest_ms)


def test_table_and_csv_say_the_same(made_target: str, invoke: Invoke, tmp_path: Path) -> None:
    line = (*search_line(made_target), "--no-export")
    table = invoke(*line)
    assert table.exit_code == 0
    assert "accuracy [%]" in table.stdout
    rows = list(csv.DictReader(io.StringIO(invoke(*line, "--format", "csv").stdout)))
    best = max(rows, key=lambda row: float(row["accuracy_percent"]))
    assert f"{float(best['accuracy_percent']):.4g}" in table.stdout
    assert f"{float(best['predicted_latency_ms']):.4g}" in table.stdout


def test_no_export_writes_a_folder_only_where_asked(
    made_target: str, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke(*search_line(made_target), "--no-export").exit_code == 0
    assert list(tmp_path.iterdir()) == []
    assert invoke(*search_line(made_target), "--no-export", "--out", "here").exit_code == 0
    assert {path.name for path in (tmp_path / "here").iterdir()} == {
        *("result.json", "pareto.csv", "pareto.png", "report.html"),
        *("config.json", "versions.json"),
    }
    stored = json.loads((tmp_path / "here" / "config.json").read_text())
    assert stored["settings"]["latency"] == "25.0ms"
    before = (tmp_path / "here" / "result.json").read_bytes()
    again = invoke(*search_line(made_target), "--no-export", "--out", "here")
    assert again.exit_code == 8
    assert "taken" in again.stderr
    assert (tmp_path / "here" / "result.json").read_bytes() == before


def test_output_below_a_file(made_target: str, invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    result = invoke(*search_line(made_target), "--no-export", "--out", tmp_path / "file" / "run")
    assert result.exit_code == 8
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_nothing_half_written(made_target: str, tmp_path: Path) -> None:
    # A limit on the size of files stops writing in the middle of the report, as a full disk does.
    line = map(str, (*search_line(made_target), "--no-export", "--out", tmp_path / "run"))
    done = subprocess.run(
        [sys.executable, "-m", "effdl.cli", *line, "--format", "json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 8, done.stderr
    assert json.loads(done.stdout)["error"]["type"] == "OutputError"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_folder(made_target: str, invoke: Invoke, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    result = invoke(*search_line(made_target), "--no-export", "--out", tmp_path / "run")
    tmp_path.chmod(0o700)
    assert result.exit_code == 8


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--confidence", "95%"), 2, "no effect"),
        (("--confidence", "40%"), 2, "confidence"),
        (("--fine-tuned",), 2, "fine-tun"),
        (("--batch-size", "64"), 7, "batch size"),
    ],
)
def test_options_that_this_target_and_space_cannot_honour(
    options: tuple[str, ...], code: int, says: str, made_target: str, invoke: Invoke
) -> None:
    result = invoke(*search_line(made_target), "--no-export", *options)
    assert result.exit_code == code
    assert says in result.stderr


def test_weights_without_an_export(made_target: str, invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"not weights")
    line = (*search_line(made_target), "--weights", tmp_path / "w.safetensors")
    assert invoke(*line, "--no-export").exit_code == 2
    result = invoke(*line, "--out", tmp_path / "run")
    assert result.exit_code == 7
    assert not (tmp_path / "run").exists()


def test_a_table_of_another_space(made_target: str, invoke: Invoke) -> None:
    line = ("search", "--target", made_target, "--latency", "25ms", "--no-export")
    result = invoke(*line, "--space", "ofa-mbv3-w1.2")
    assert result.exit_code == 7


def test_this_machine_without_a_table_and_without_profiling(invoke: Invoke) -> None:
    result = invoke(*search_line("cpu"), "--no-export", "--no-profile")
    assert result.exit_code == 4
    assert "effdl profile" in result.stderr


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, ofa_tables: Path, run: Run
) -> tuple[Path, dict[str, Any]]:
    """A run folder with an exported network, and what the search printed."""
    home, work = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("work")
    environment = {"EFFDL_HOME": str(home)}
    imported = run("table", "import", ofa_tables, "--name", "made-phone", **environment)
    assert imported.returncode == 0, imported.stderr
    done = run(*search_line("made-phone", "20ms"), "--format", "json", cwd=work, **environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return work / found["out"], found


def test_search_exports_a_network_that_runs(exported: tuple[Path, dict[str, Any]]) -> None:
    import onnxruntime

    folder, found = exported
    assert folder.parent.name == "runs"
    assert folder.name.startswith("search-")
    assert json.loads((folder / "result.json").read_text()) == found
    assert found["best"]["weights"] == "untrained seed=0"
    assert found["best"]["parity"]["max_relative_error"] < 1e-4
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    images = np.zeros((3, 3, 224, 224), dtype=np.float32)
    (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    assert np.asarray(logits).shape == (3, 1000)


def test_verify_passes_what_was_exported_and_fails_what_was_changed(
    exported: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    invoke: Invoke,
    invoke_json: InvokeJson,
    documented_keys: Any,
) -> None:
    import onnx
    from onnx import numpy_helper

    model = exported[0] / "model.onnx"
    sound = invoke_json("verify", model)
    assert set(sound) == documented_keys("effdl verify") | {"schema_version"}
    assert sound["ok"]
    changed = onnx.load(model)
    tensor = max(changed.graph.initializer, key=lambda t: len(t.raw_data))
    values = numpy_helper.to_array(tensor) * np.float32(1.5)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(changed, tmp_path / "changed.onnx")
    result = invoke("verify", tmp_path / "changed.onnx", "--format", "json")
    assert result.exit_code == 6
    value = json.loads(result.stdout)
    assert not value["ok"]
    assert value["error"]["type"] == "ExportParityError"
    assert {check["name"] for check in value["checks"] if check["status"] == "failed"} == {
        "unchanged",
        "outputs",
    }
    (tmp_path / "half.onnx").write_bytes(model.read_bytes()[:5000])
    assert invoke("verify", tmp_path / "half.onnx").exit_code == 7


def test_export_writes_the_run_again(
    exported: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    invoke_json: InvokeJson,
    documented_keys: Any,
) -> None:
    folder, found = exported
    done = invoke_json("export", folder, "-o", tmp_path / "again.onnx")
    assert set(done) == documented_keys("effdl export") | {"schema_version"}
    assert done["config"] == found["best"]["config"]
    assert done["space"] == "ofa-mbv3-w1.0"
    assert done["bytes"] == (tmp_path / "again.onnx").stat().st_size
    assert done["parity"]["max_relative_error"] < 1e-4


@pytest.mark.parametrize(
    ("text", "options", "code"),
    [
        ("{", (), 7),
        ("[]", (), 7),
        ('{"kernel_size": [3]}', (), 2),
        ('{"a": NaN}', (), 7),
        ("[" * 100_000, (), 7),
        ('{"kernel_size": [3]}', ("--rank", "2"), 2),
        ('{"kernel_size": [3]}', ("--precision", "int4"), 2),
        ('{"kernel_size": [3]}', ("--to", "tvm"), 2),
    ],
)
def test_export_refuses(
    text: str, options: tuple[str, ...], code: int, tmp_path: Path, invoke: Invoke
) -> None:
    (tmp_path / "config.json").write_text(text)
    out = tmp_path / "model.onnx"
    result = invoke("export", tmp_path / "config.json", "-o", out, *options)
    assert result.exit_code == code, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_export_of_a_folder_that_is_no_run(tmp_path: Path, invoke: Invoke) -> None:
    result = invoke("export", tmp_path, "-o", tmp_path / "model.onnx")
    assert result.exit_code == 2
    assert "result.json" in result.stderr
