"""Latency tables: what is read back, what is looked up, and what is refused."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effdl.errors import (
    ConfigError,
    CorruptFileError,
    LatencyTableError,
    MissingEntryError,
    OutputError,
)
from effdl.opspec import OpSpec
from effdl.targets.latency_table import LatencyEntry, LatencyTable, TableHeader

HEADER = TableHeader(
    target="toy", device="Toy", batch_size=2, runtime="hand", statistic="mean", licence="none"
)


def make_op(key: str) -> OpSpec:
    return OpSpec(
        key=key,
        num_params=0,
        macs=0,
        bytes_moved=0,
        peak_memory_bytes=0,
        features={},
        build=lambda batch_size: b"",
    )


def make_table(*entries: LatencyEntry) -> LatencyTable:
    return LatencyTable(header=HEADER, entries=entries)


def write_lines(path: Path, table: LatencyTable, **replaced: str) -> Path:
    """The table's file with some lines replaced: line1="..."."""
    table.write(path)
    lines = path.read_text().splitlines()
    for name, text in replaced.items():
        lines[int(name.removeprefix("line")) - 1] = text
    path.write_text("\n".join(lines) + "\n")
    return path


TWO = make_table(
    LatencyEntry(key="a", latency_ms=1.5), LatencyEntry(key="b", latency_ms=2.25, std_ms=0.0)
)


def test_looks_up_in_the_order_asked_for() -> None:
    latencies = TWO.predict_op_ms([make_op("b"), make_op("a"), make_op("b")])
    assert latencies.dtype == np.float64
    assert latencies.tolist() == [2.25, 1.5, 2.25]
    assert TWO.predict_op_ms([]).shape == (0,)
    assert (TWO.source, TWO.device, TWO.batch_size, TWO.runtime) == ("measured", "Toy", 2, "hand")
    assert "a" in TWO
    assert "c" not in TWO


def test_rows_of_a_resolution_are_for_that_resolution() -> None:
    table = make_table(
        LatencyEntry(key="a", resolution=160, latency_ms=1.0),
        LatencyEntry(key="a", resolution=224, latency_ms=3.0),
        LatencyEntry(key="b", latency_ms=5.0),
        LatencyEntry(key="b", resolution=224, latency_ms=7.0),
    )
    ops = [make_op(key) for key in "aaabbb"]
    latencies = table.predict_op_ms(ops, resolutions=[160, 224, 192, 160, 224, 192])
    # No row for a at 192: the mean of its rows. None for b there: its row for any.
    assert latencies.tolist() == [1.0, 3.0, 2.0, 5.0, 7.0, 5.0]
    assert table.predict_op_ms([make_op("a"), make_op("b")]).tolist() == [2.0, 5.0]
    assert table.resolutions == (160, 224)
    with pytest.raises(ValueError, match="shorter"):
        table.predict_op_ms(ops, resolutions=[160])


def test_missing_operators_are_named() -> None:
    with pytest.raises(MissingEntryError, match=r"lacks 5 .*: c, d, e and 2 more") as error:
        TWO.predict_op_ms([make_op(key) for key in "acdefg"])
    assert "effdl profile --target toy" in (error.value.hint or "")


def test_two_entries_for_one_operator() -> None:
    entry = LatencyEntry(key="a", latency_ms=1.0)
    with pytest.raises(LatencyTableError, match="two entries for a"):
        make_table(entry, entry)


finite = st.floats(min_value=1e-9, max_value=1e9, allow_nan=False)
entries = st.builds(
    LatencyEntry,
    key=st.text(min_size=1, max_size=20),
    resolution=st.none() | st.integers(1, 4096),
    latency_ms=finite,
    std_ms=st.none() | st.just(0.0) | finite,
    count=st.none() | st.integers(1, 10**9),
    p50_ms=st.none() | finite,
    p95_ms=st.none() | finite,
)


@settings(max_examples=60)
@given(
    rows=st.lists(entries, max_size=8, unique_by=lambda e: (e.key, e.resolution)),
    device=st.text(min_size=1, max_size=30),
)
def test_written_tables_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[LatencyEntry], device: str
) -> None:
    header = TableHeader(target="t", device=device, batch_size=1, runtime="r", statistic="p20")
    table = LatencyTable(header=header, entries=tuple(rows))
    path = tmp_path_factory.getbasetemp() / "table.jsonl"
    table.write(path)
    assert LatencyTable.read(path) == table


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"key":"b","latency_ms":0}', r"line 3: .*latency_ms"),
        ('{"key":"b","latency_ms":-1}', r"line 3: .*latency_ms"),
        ('{"key":"b","latency_ms":NaN}', "line 3"),
        ('{"key":"b","latency_ms":Infinity}', "line 3"),
        ('{"key":"b","latency_ms":1e999}', "line 3"),
        ('{"key":"b","latency_ms":"1"}', r"line 3: .*latency_ms"),
        ('{"key":"b","latency_ms":true}', r"line 3: .*latency_ms"),
        ('{"key":"b"}', r"line 3: .*latency_ms"),
        ('{"key":"","latency_ms":1}', r"line 3: .*key"),
        ('{"key":"b","latency_ms":1,"std_ms":-1}', r"line 3: .*std_ms"),
        ('{"key":"b","latency_ms":1,"count":0}', r"line 3: .*count"),
        ('{"key":"b","latency_ms":1,"colour":2}', r"line 3: .*colour"),
        ('{"key":"b","latency_ms":1', "line 3"),
        ("", "line 3"),
        ("[" * 100_000, "line 3"),
        ('{"key":"a","latency_ms":1}', "line 3: second row for a"),
    ],
)
def test_malformed_rows_are_named_by_line(tmp_path: Path, line: str, message: str) -> None:
    path = write_lines(tmp_path / "t.jsonl", TWO, line3=line)
    with pytest.raises(CorruptFileError, match=message):
        LatencyTable.read(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"schema_version":1', '"schema_version":2'),
        ('"kind":"latency_table"', '"kind":"shopping_list"'),
        ('"batch_size":2', '"batch_size":0'),
        ('"device":"Toy",', ""),
        ('"runtime":"hand"', '"runtime":7'),
        ("{", "("),
    ],
)
def test_malformed_headers(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "t.jsonl"
    TWO.write(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(CorruptFileError, match="line 1"):
        LatencyTable.read(path)


def test_truncated_files(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    TWO.write(path)
    whole = path.read_bytes()
    # Without its last line feed the file is still whole.
    for size in range(len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptFileError):
            LatencyTable.read(path)
    path.write_bytes(b"\xff\xfe" + whole)
    with pytest.raises(CorruptFileError, match="line 1"):
        LatencyTable.read(path)
    with pytest.raises(ConfigError, match="cannot read"):
        LatencyTable.read(tmp_path / "absent.jsonl")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        TWO.write(tmp_path / "file" / "t.jsonl")
    (tmp_path / "taken.jsonl").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        TWO.write(tmp_path / "taken.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken.jsonl"]


def test_values_survive_exactly(tmp_path: Path) -> None:
    value = math.nextafter(0.1, 1.0)
    table = make_table(LatencyEntry(key="a", latency_ms=value))
    table.write(tmp_path / "t.jsonl")
    read = LatencyTable.read(tmp_path / "t.jsonl")
    assert read.predict_op_ms([make_op("a")])[0] == value
