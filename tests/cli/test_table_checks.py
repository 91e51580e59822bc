"""``effdl table verify``, ``merge`` and ``diff`` through the command line."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from effdl.models.mobilenet_v3.space import ofa_mbv3_w10
from effdl.targets.measure.onnxruntime import OnnxRuntime
from effdl.targets.profiler import profile_items
from effdl.targets.store import MeasurementStore, Setting, default_store_path
from effdl.targets.timing import QUICK_PROTOCOL
from effdl.workflows.profile_plan import distinct_ops

Invoke = Callable[..., Result]
InvokeJson = Callable[..., dict[str, Any]]

SPACE = "ofa-mbv3-w1.0"


@pytest.fixture(scope="module")
def profiled_store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A store in which twelve small operators of a published space were measured."""
    path = tmp_path_factory.mktemp("profiled") / "measurements.sqlite"
    runtime = OnnxRuntime()
    ops = sorted(
        distinct_ops(ofa_mbv3_w10().with_resolutions([128])).values(), key=lambda o: o.macs
    )

    def opened(build: Callable[[int], bytes]) -> Any:
        return runtime.open_model(build(1))

    with MeasurementStore(path) as store:
        profile_items(
            {op.key: partial(opened, op.build) for op in ops[:12]},
            store=store,
            setting=Setting.of(runtime, QUICK_PROTOCOL, batch_size=1),
            protocol=QUICK_PROTOCOL,
            instruments=runtime.instruments(),
            budget_s=30.0,
        )
    return path.read_bytes()


@pytest.fixture
def profiled(profiled_store: bytes, effdl_home: Path) -> Path:
    default_store_path().write_bytes(profiled_store)
    return default_store_path()


def test_verify_measures_again(
    profiled: Path, invoke_json: InvokeJson, documented_keys: Any
) -> None:
    found = invoke_json("table", "verify", "--target", "cpu", "--space", SPACE)
    assert set(found) == documented_keys("effdl table verify") | {"schema_version"}
    assert found["num_stored"] == 12
    assert found["num_checked"] == len(found["entries"]) == 10
    # Loose: other programs may run beside this test.
    assert 0.5 < found["median_corrected_ratio"] < 2.0
    for entry in found["entries"]:
        assert entry["measured_ms"] / entry["stored_ms"] == pytest.approx(entry["ratio"])


def test_strict_is_exit_5_where_the_table_no_longer_holds(
    profiled: Path, invoke: Invoke, effdl_home: Path
) -> None:
    setting = Setting.of(OnnxRuntime(), QUICK_PROTOCOL, batch_size=1)
    with MeasurementStore(profiled) as store:
        timings = store.read_timings(setting)
        lies = {key: replace(timing, p20_ms=5 * timing.p20_ms) for key, timing in timings.items()}
        store.write_timings(setting, lies)
    line = ("table", "verify", "--target", "cpu", "--space", SPACE)
    result = invoke(*line, "--strict", "--format", "json")
    assert result.exit_code == 5
    found = json.loads(result.stdout)
    assert found["drifted"]
    assert found["error"]["type"] == "UnstableMeasurementError"
    assert "has drifted" in found["error"]["message"]
    table = invoke(*line)
    assert table.exit_code == 0
    assert "the table has drifted" in table.stdout


def test_verify_needs_a_table_of_this_machine(invoke: Invoke) -> None:
    result = invoke("table", "verify", "--target", "cpu")
    assert result.exit_code == 4
    assert "effdl profile --target cpu" in result.stderr
    assert invoke("table", "verify", "--target", "mobile").exit_code == 4
    for share in ("0%", "5", "101%"):
        assert invoke("table", "verify", "--target", "cpu", "--share", share).exit_code == 2


@pytest.fixture
def exported(made_target: str, tmp_path: Path, invoke: Invoke) -> Path:
    """A table as JSON lines."""
    file = tmp_path / "a.jsonl"
    line = ("table", "export", "--target", made_target, "--to", "jsonl", "-o", file)
    assert invoke(*line).exit_code == 0
    return file


def edited(table: Path, name: str, edit: Callable[[list[dict[str, Any]]], None]) -> Path:
    """A copy of a table whose header and rows were changed."""
    lines = [json.loads(line) for line in table.read_text().splitlines()]
    edit(lines)
    lines[0]["num_entries"] = len(lines) - 1
    copy = table.with_name(name)
    copy.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return copy


def test_parts_are_merged_into_the_whole(
    exported: Path, tmp_path: Path, invoke_json: InvokeJson, documented_keys: Any
) -> None:
    first = edited(exported, "first.jsonl", lambda lines: lines.__delitem__(slice(60, None)))
    last = edited(exported, "last.jsonl", lambda lines: lines.__delitem__(slice(1, 50)))
    done = invoke_json("table", "merge", last, first, "-o", tmp_path / "m.jsonl")
    assert set(done) == documented_keys("effdl table merge") | {"schema_version"}
    assert done["num_tables"] == 2
    assert done["num_rows"] == done["num_entries"] + 10
    found = invoke_json("table", "diff", exported, done["path"], "--over", "0.001%")
    assert found["num_common"] == done["num_entries"]
    assert found["only_in_a"] == found["only_in_b"] == found["changed"] == []


def test_what_cannot_be_merged_exits_7_and_writes_nothing(exported: Path, invoke: Invoke) -> None:
    out = exported.with_name("m.jsonl")

    def double(lines: list[dict[str, Any]]) -> None:
        lines[5]["latency_ms"] *= 2

    def rename(lines: list[dict[str, Any]]) -> None:
        lines[0]["header"]["device"] = "another"

    slower = edited(exported, "slower.jsonl", double)
    other = edited(exported, "other.jsonl", rename)
    for file, says in ((slower, "1 of the operators"), (other, "differ in device")):
        result = invoke("table", "merge", exported, file, "-o", out, "--format", "json")
        assert result.exit_code == 7
        error = json.loads(result.stdout)["error"]
        assert error["type"] == "TableMismatchError"
        assert says in error["message"]
        assert not out.exists()
    assert (
        invoke("table", "merge", exported, slower, "-o", out, "--prefer", "lowest").exit_code == 0
    )
    assert invoke("table", "merge", "-o", out).exit_code == 2
    assert invoke("table", "merge", exported, exported / "absent", "-o", out).exit_code == 2
    assert invoke("table", "merge", exported, "-o", exported / "below").exit_code == 8


def test_diff_of_files(
    exported: Path, invoke: Invoke, invoke_json: InvokeJson, documented_keys: Any
) -> None:
    keys: list[str] = []

    def edit(lines: list[dict[str, Any]]) -> None:
        lines[3]["latency_ms"] *= 1.5
        lines[4]["latency_ms"] *= 1.02
        keys.extend((lines[3]["key"], lines.pop()["key"]))

    other = edited(exported, "b.jsonl", edit)
    found = invoke_json("table", "diff", exported, other)
    assert set(found) == documented_keys("effdl table diff") | {"schema_version"}
    assert [row["key"] for row in found["changed"]] == keys[:1]
    assert found["changed"][0]["ratio"] == pytest.approx(1.5)
    assert [row["key"] for row in found["only_in_a"]] == keys[1:]
    assert found["only_in_b"] == []
    assert found["ratio"]["median"] == 1.0
    assert found["ratio"]["worst"] == pytest.approx(1.5)
    result = invoke("table", "diff", exported, other, "--over", "1%", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [float(row["ratio"]) for row in rows] == pytest.approx([1.5, 1.02])
    assert "B / A, median" in invoke("table", "diff", exported, other).stdout


def test_diff_of_targets_and_files(
    made_target: str, exported: Path, invoke: Invoke, invoke_json: InvokeJson
) -> None:
    found = invoke_json("table", "diff", made_target, exported)
    assert found["a"]["target"] == found["b"]["target"] == made_target
    assert found["changed"] == []
    found = invoke_json("table", "diff", made_target, "mobile")
    assert found["b"]["device"] == "Samsung Galaxy Note10"
    assert found["over_percent"] == 5.0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("{file}", "{file}", "--space", SPACE), 2),
        (("{file}", "{file}", "--batch-size", 1), 2),
        (("{file}", "absent.jsonl"), 2),
        (("{file}", "no-such-target"), 2),
        (("{file}", "raspberry-pi-5"), 2),
        (("{file}", "cpu"), 4),
        (("{file}",), 2),
    ],
)
def test_diff_of_what_is_not_there(
    arguments: tuple[object, ...], code: int, exported: Path, invoke: Invoke
) -> None:
    line = [str(argument).format(file=exported) for argument in arguments]
    assert invoke("table", "diff", *line).exit_code == code
